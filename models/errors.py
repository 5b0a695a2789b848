"""What can be wrong with a model on disk. Free of torch, so that any process can name these errors.

ModelError
├─ CardError            the card is missing, or a key of it is missing or wrong
├─ WeightsMismatch      the weights are not those of the card
├─ UnknownModel         no folder holds that name and version
└─ BundleConflict       another content already has that name and version
"""


class ModelError(Exception):
    """A model cannot be used as it lies on disk: refuse to start with it, or to add it."""


class CardError(ModelError):
    """A bundle's card is missing, or a key of it is missing or wrong; the message names file and key."""


class WeightsMismatch(ModelError):
    """The weights file is missing or is not the one of the card: digest, names, shapes or values differ."""


class UnknownModel(ModelError):
    """No folder holds that name and version; the message lists what there is."""


class BundleConflict(ModelError):
    """Another content already has that name and version."""
