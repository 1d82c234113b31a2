"""Structured views at many offsets of one run of bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hil.capture.chunk import Bytes, Integers

Records = NDArray[np.void]


def records(data: Bytes, offsets: Integers, layout: np.dtype[Any]) -> Records:
    """The bytes at each of ``offsets`` as a record of ``layout``, copied; each record lies inside ``data``."""
    size = layout.itemsize
    # As opaque bytes: numpy copies these at once, a record field by field.
    windows = np.ndarray((max(len(data) - size + 1, 0),), np.dtype((np.void, size)), data.data, 0, (1,))
    copied: Records = windows[offsets].view(layout)
    return copied


def packed(*columns: tuple[str, str]) -> np.dtype[Any]:
    """A record of columns without gaps; ``u1``, ``>u2``, ``>u4``, ``>u8``, ``V5`` as numpy names them."""
    return np.dtype(list(columns))
