"""What can be wrong with a model on disk. Free of torch, so that any process can name these errors.

ModelError
├─ CardError            the card is missing, or a key of it is missing or wrong
├─ WeightsMismatch      the weights, or the feature statistics, are not those of the card
├─ WeightsUnavailable   the weights that a training is to start from cannot be had
├─ UnknownModel         no folder holds that name and version
└─ BundleConflict       another content already has that name and version
"""


class ModelError(Exception):
    """A model cannot be used as it lies on disk: refuse to start with it, or to add it."""


class CardError(ModelError):
    """A bundle's card is missing, or a key of it is missing or wrong; the message names file and key."""


class WeightsMismatch(ModelError):
    """A file of the bundle is missing or is not the one of the card: digest, names, shapes or values differ."""


class WeightsUnavailable(ModelError):
    """Weights to start from cannot be downloaded or read, or are those of another architecture; says the ways out."""


class UnknownModel(ModelError):
    """No folder holds that name and version; the message lists what there is."""


class BundleConflict(ModelError):
    """Another content already has that name and version."""
