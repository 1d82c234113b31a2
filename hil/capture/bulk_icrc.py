"""The ICRC of many frames at once; ``hil.roce.icrc`` has the rules, and computes it for one frame."""

from zlib import crc32

import numpy as np

from hil.capture.chunk import Bytes, Integers
from hil.capture.ethernet import Flags
from hil.capture.network import GRH, IPV4, IPV6, IPV6_SIZE, UDP_SIZE, Network
from hil.capture.windows import packed, records
from hil.roce.icrc import ICRC_SIZE, SEED

# The reserved byte of the base transport header that holds FECN and BECN.
_CONGESTION = 4
_STORED = packed(("icrc", "<u4"))


def right(data: Bytes, packets: Network) -> Flags:
    """Whether each of ``packets``, complete in ``data``, ends with the ICRC of its bytes."""
    masked = data.copy()
    sizes = packets.transport - packets.header
    for kind in (IPV4, IPV6, GRH):
        of_kind = packets.kind == kind
        for size in np.unique(sizes[of_kind]):
            rows = of_kind & (sizes == size)
            _mask(masked, packets.header[rows], _variable(kind, int(size)))
    ends = packets.end - ICRC_SIZE
    stored = records(data, ends, _STORED)["icrc"].astype(np.int64)
    same: Flags = _crcs(masked, packets.header, ends) == stored
    return same


def checkable(packets: Network) -> Flags:
    """Whether the ICRC of each packet can be checked: the rules do not cover IPv6 extension headers."""
    known: Flags = (packets.kind != IPV6) | (packets.transport - packets.header == IPV6_SIZE + UDP_SIZE)
    return known


def _variable(kind: int, size: int) -> Bytes:
    """A mask of the bits that count as ones, from the network header to the base header's congestion byte."""
    mask = np.zeros(size + _CONGESTION + 1, np.uint8)
    mask[-1] = 0xFF
    if kind != GRH:
        mask[size - 2 : size] = 0xFF
    if kind == IPV4:
        mask[[1, 8, 10, 11]] = 0xFF
    else:
        mask[0] = 0x0F
        mask[[1, 2, 3, 7]] = 0xFF
    return mask


def _mask(data: Bytes, at: Integers, mask: Bytes) -> None:
    size = len(mask)
    windows = np.ndarray((len(data) - size + 1,), np.dtype((np.void, size)), data.data, 0, (1,))
    heads = windows[at].view(np.uint8).reshape(len(at), size) | mask
    windows[at] = heads.view(windows.dtype)[:, 0]


def _crcs(data: Bytes, begins: Integers, ends: Integers) -> Integers:
    view = data.data
    found = [crc32(view[begin:end], SEED) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    return np.array(found, np.int64)
