"""What a chest radiograph's pixels say against themselves: polarity, position, exposure. No attribute is read.

Takes the network's input; gives codes of `codes.CODES`. Shapes: H rows, W columns; 1 is the grey channel.

Polarity and position come from one number, the likeness: the correlation of the image with the average frontal chest,
both as 8 x 8 mean greys. It is negative where lungs are lighter than mediastinum and abdomen.
"""

from __future__ import annotations

import numpy as np

_HALF = np.array(
    [
        [24, 32, 42, 58],
        [37, 50, 50, 57],
        [40, 54, 45, 57],
        [38, 52, 45, 62],
        [35, 51, 51, 68],
        [32, 51, 58, 72],
        [31, 57, 69, 76],
        [31, 64, 75, 79],
    ],
    dtype=np.float64,
)
AVERAGE_CHEST_HW = np.concatenate([_HALF, _HALF[:, ::-1]], axis=1)
"""Mean grey in percent, left and right alike; half from 5,216 children (Kermany, train), half from 620 adults (NIH)."""

# All limits below were set on those 5,836 radiographs and on nothing else.
TURNED_MARGIN = 0.2  # said of 1 child's and 3 adults' upright images; of 66 to 100 % of turned ones
EXPOSURE = (0.25, 0.80)  # of the mean grey; outside it: 3 children, 1 adult
CONTRAST_MIN = 0.30  # between the 5th and the 95th percentile; below it: 6 children, no adult
WHITE_MAX, BLACK_MAX = 0.10, 0.50  # parts of the image at the end of the range; the most seen: 0.042 and 0.446
PADDING_MAX = 1 / 3  # an even border as wide as that: 0 and 1 (0.42; the next 0.20)

_END = 0.005  # a grey so near to black or white is at the end of the range
_EVEN = 0.02  # an edge row or column of fewer greys shows nothing


def appearance_codes(image_1HW: np.ndarray, *, padding_share: float = 0.0) -> list[str]:
    """Return the codes of what the pixels of a would-be frontal chest radiograph say against themselves.

    Parameters
    ----------
    image_1HW
        float32, range [0, 1], lung dark if all is well.
    padding_share
        Part of the pixels that the header calls padding.
    """
    image_HW = image_1HW[0]
    mean = float(image_HW.mean())
    low, high = np.quantile(image_HW, (0.05, 0.95))
    white, black = float((image_HW >= 1 - _END).mean()), float((image_HW <= _END).mean())
    found = {
        "exposure_out_of_range": not EXPOSURE[0] <= mean <= EXPOSURE[1],
        "low_contrast": high - low < CONTRAST_MIN,
        "clipped": white > WHITE_MAX or black > BLACK_MAX,
        "much_padding": max(padding_share, even_border_share(image_HW)) > PADDING_MAX,
    }
    return _position_codes(image_HW) + [code for code, applies in found.items() if applies]


def likeness_by_turn(image_HW: np.ndarray) -> np.ndarray:
    """Return the correlation, -1 to 1, with the average chest as it is and turned by 1 to 3 quarters."""
    coarse = _centred(_coarse(image_HW))
    turned = [_centred(np.rot90(AVERAGE_CHEST_HW, quarters)) for quarters in range(4)]
    return np.array([float((coarse * chest).sum()) for chest in turned])


def even_border_share(image_HW: np.ndarray) -> float:
    """Return the part of the image, 0 to 1, that lies outside its first and last rows and columns with any detail."""
    kept = 1.0
    for axis in (1, 0):
        (detailed,) = np.nonzero(np.ptp(image_HW, axis=axis) >= _EVEN)
        kept *= (detailed[-1] - detailed[0] + 1) / image_HW.shape[1 - axis] if detailed.size else 0.0
    return 1.0 - float(kept)


def _position_codes(image_HW: np.ndarray) -> list[str]:
    """Return at most one code: what explains the image better than an upright chest with dark lungs."""
    upright, *turned = likeness_by_turn(image_HW)
    if upright < 0:
        return ["inverted" if -upright >= max(turned) else "looks_turned"]
    return ["looks_turned"] if max(turned) > upright + TURNED_MARGIN else []


def _coarse(image_HW: np.ndarray) -> np.ndarray:
    """Return mean greys, shape (8, 8)."""
    for axis in (0, 1):
        edges = np.linspace(0, image_HW.shape[axis], len(AVERAGE_CHEST_HW) + 1).astype(np.int64)
        sums = np.add.reduceat(image_HW.astype(np.float64), edges[:-1], axis=axis)
        image_HW = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return image_HW


def _centred(grey_HW: np.ndarray) -> np.ndarray:
    """Return the greys with mean 0 and norm 1, or all 0 where there is one grey only."""
    centred = grey_HW - grey_HW.mean()
    norm = float(np.sqrt((centred**2).sum()))
    return np.asarray(centred / norm if norm > 0 else centred)
