"""Finds the network header in frames of each link type (the tcpdump group's list of LINKTYPE_ values)."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import numpy as np

from hil.capture.chunk import LINK_ETHERNET, Chunk, Integers
from hil.capture.ethernet import Flags, Frames, Passed, behind_tags
from hil.capture.windows import packed, records

LINUX_SLL, LINUX_SLL2 = 113, 276
RAW = (101, 228, 229)
NAMES = {0: "NULL", 105: "IEEE802_11", 127: "IEEE802_11_RADIOTAP", 189: "USB_LINUX", 220: "USB_LINUX_MMAPPED"}
_ETHERTYPE_AT, _SLL_ETHERTYPE_AT = 12, 14
_SLL2_SIZE = 20
_OF_VERSION = {4: 0x0800, 6: 0x86DD}
_SLL2 = packed(("protocol", ">u2"))
_FIRST = packed(("version", "u1"))

_Placed = tuple[Frames, Integers]


def frames_of(chunk: Chunk, passed: Passed) -> _Placed:
    """The frames of ``chunk`` at their network header, and its ethertype."""
    if (chunk.link_type == LINK_ETHERNET).all():
        return _READERS[LINK_ETHERNET](chunk, passed, np.arange(len(chunk)))
    passed.other_links += int(np.count_nonzero(unread(chunk)))
    of_each = [(read, np.flatnonzero(chunk.link_type == link)) for link, read in _READERS.items()]
    return _merged([read(chunk, passed, rows) for read, rows in of_each])


def unread(chunk: Chunk) -> Flags:
    """Whether each frame of ``chunk`` has a link type that is not supported."""
    other: Flags = ~np.isin(chunk.link_type, list(_READERS))
    return other


def _tagged(chunk: Chunk, passed: Passed, rows: Integers, *, at: int) -> _Placed:
    return behind_tags(Frames.of(chunk, passed, rows, at))


def _sll2(chunk: Chunk, passed: Passed, rows: Integers) -> _Placed:
    frames = Frames.of(chunk, passed, rows, 0).holding(_SLL2_SIZE)
    ethertype = records(frames.data, frames.at, _SLL2)["protocol"].astype(np.int64)
    return Frames.of(chunk, passed, frames.index, _SLL2_SIZE), ethertype


def _raw(chunk: Chunk, passed: Passed, rows: Integers) -> _Placed:
    frames = Frames.of(chunk, passed, rows, 0).holding(1)
    version = records(frames.data, frames.at, _FIRST)["version"] >> 4
    return frames, np.select([version == n for n in _OF_VERSION], list(_OF_VERSION.values()), 0).astype(np.int64)


_READERS: dict[int, Callable[[Chunk, Passed, Integers], _Placed]] = {
    LINK_ETHERNET: partial(_tagged, at=_ETHERTYPE_AT),
    LINUX_SLL: partial(_tagged, at=_SLL_ETHERTYPE_AT),
    LINUX_SLL2: _sll2,
    **dict.fromkeys(RAW, _raw),
}


def _merged(parts: list[_Placed]) -> _Placed:
    """The frames of several link types, in the order of the file."""
    frames, ethertype = parts[0][0], np.concatenate([types for _, types in parts])
    names = [column.name for column in fields(Frames) if column.name not in ("chunk", "passed")]
    columns = [np.concatenate([getattr(part, name) for part, _ in parts]) for name in names]
    order = np.argsort(columns[names.index("index")], kind="stable")
    return Frames(frames.chunk, frames.passed, *(column[order] for column in columns)), ethertype[order]
