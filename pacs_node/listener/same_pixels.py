"""Whether two stored files hold the same image, asked in a process that may be killed.

Takes two paths, gives yes or no; an image that cannot be decoded within the limits is not the same, so that both files
are kept and a person is told.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.pixels import pixel_array  # type: ignore[attr-defined]

from pacs_node.decoding import DecodingPool, result_of

TIMEOUT_S = 20.0
"""Less than a sender waits for its answer (30 s is a common DIMSE timeout)."""
MEMORY_MB = 2048

_one_at_a_time = threading.Lock()


def have_same_pixels(first: Path, second: Path) -> bool:
    """Compare two files. It is a rare question: the process ends with the answer."""
    with _one_at_a_time:
        pool = DecodingPool(processes=1, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)
        try:
            return bool(result_of(pool.submit(hold_same_pixels, str(first), str(second))))
        except Exception:  # noqa: BLE001 - too slow, too large, or whatever a decoder raises about a stranger's pixels
            return False
        finally:
            pool.close()


def hold_same_pixels(first: str, second: str) -> bool:
    """Decode two files and compare: the same values in the same shape, drawn by the same rule of grey or colour.

    References
    ----------
    PS3.3 C.7.6.3.1.2 (Photometric Interpretation)
    """
    one, other = dcmread(first), dcmread(second)
    if _drawing_rule(one.get("PhotometricInterpretation")) != _drawing_rule(other.get("PhotometricInterpretation")):
        return False
    return np.array_equal(pixel_array(one), pixel_array(other))


def _drawing_rule(photometric_interpretation: object) -> str:
    """The codecs' colour spaces are one rule: `pixel_array` gives RGB for all of them."""
    rule = str(photometric_interpretation)
    return "RGB" if rule.startswith("YBR") else rule
