"""What a picture made of a radiograph takes from it: its greys as displayed, and the attributes it passes on.

Reads one stored file of a stranger's making, so call it in a killable process. Values are verbatim and legal or left
out, as in `pacs_node.report.source`. Shapes: H rows, W columns.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as ItemSequence

from models.preprocess import UNREADABLE, read_radiograph

_DECIMAL = r"[+-]?\d{1,10}(\.\d{1,10})?([eE][+-]?\d{1,2})?"
_CODE_STRING = r"[A-Z0-9 _]{1,16}"
_PASSED_ON: dict[str, tuple[str, int, int]] = {
    "PatientOrientation": (r"[APRLHF]{1,3}", 2, 2),
    "BodyPartExamined": (_CODE_STRING, 1, 1),
    "Laterality": (r"[LR]", 1, 1),
    "PixelAspectRatio": (r"[1-9]\d{0,10}", 2, 2),
    "LossyImageCompression": (r"0[01]", 1, 1),
    "LossyImageCompressionRatio": (_DECIMAL, 1, 16),
    "LossyImageCompressionMethod": (_CODE_STRING, 1, 16),
    "RescaleIntercept": (_DECIMAL, 1, 1),
    "RescaleSlope": (_DECIMAL, 1, 1),
    "WindowCenter": (_DECIMAL, 1, 16),
    "WindowWidth": (_DECIMAL, 1, 16),
    "VOILUTFunction": (r"LINEAR|LINEAR_EXACT|SIGMOID", 1, 1),
}
"""The form of one value, and how many there may be (PS3.3 C.7.6.1, C.7.6.3, C.11.1, C.11.2)."""


LUTS = ("ModalityLUTSequence", "VOILUTSequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A radiograph as it is looked at.

    Attributes
    ----------
    grey_HW
        uint8, shape (Rows, Columns), lung dark: after modality LUT, VOI and polarity.
    attributes
        Those of `_PASSED_ON` whose values are legal, and look-up tables as they are; no others.
    is_monochrome1
        The stored values are inverted.
    """

    grey_HW: np.ndarray
    attributes: Dataset
    is_monochrome1: bool


def read_picture(path: str) -> Picture:
    """Read a stored radiograph.

    Raises
    ------
    ImageUnfit
        There are no pixels, they cannot be decoded, or they are not one grey image.
    """
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")  # pydicom's warnings quote the value
        dataset = dcmread(path)
        grey_HW = np.rint(read_radiograph(dataset).grey_HW * 255).astype(np.uint8)
        attributes = Dataset()
        for keyword in _PASSED_ON:
            values = _legal_values(dataset, keyword)
            if values:
                setattr(attributes, keyword, values if len(values) > 1 else values[0])
        for keyword in LUTS:
            if isinstance(found := dataset.get(keyword), ItemSequence) and found:
                setattr(attributes, keyword, found)
        is_monochrome1 = str(dataset.get("PhotometricInterpretation") or "").strip().upper() == "MONOCHROME1"
    return Picture(grey_HW=grey_HW, attributes=attributes, is_monochrome1=is_monochrome1)


def _legal_values(dataset: Dataset, keyword: str) -> list[str]:
    form, least, most = _PASSED_ON[keyword]
    try:
        found = dataset.get(keyword)
        texts = [str(value).strip(" \0") for value in (found if isinstance(found, MultiValue | list) else [found])]
    except UNREADABLE:
        return []
    is_legal = least <= len(texts) <= most and all(re.fullmatch(form, text) for text in texts)
    return texts if is_legal else []
