"""Records read at many offsets of one array of bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hil.capture.chunk import Bytes, Integers

Records = NDArray[np.void]


def records(data: Bytes, offsets: Integers, layout: np.dtype[Any]) -> Records:
    """Copy a record of ``layout`` from each of ``offsets``; each record must lie inside ``data``."""
    size = layout.itemsize
    # Copied as opaque bytes, because numpy copies a structured record field by field.
    windows = np.ndarray((max(len(data) - size + 1, 0),), np.dtype((np.void, size)), data.data, 0, (1,))
    copied: Records = windows[offsets].view(layout)
    return copied


def packed(*columns: tuple[str, str]) -> np.dtype[Any]:
    """A record's layout without gaps, from names and numpy types such as ``u1``, ``>u2``, ``>u4``, ``>u8``, ``V5``."""
    return np.dtype(list(columns))
