"""The packet blocks of pcapng (enhanced, simple and the obsolete packet block), many at a time."""

import struct
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hil.capture.chunk import Bytes, Integers, Unsigned

Flags = NDArray[np.bool_]

_PACKET, _SIMPLE, _ENHANCED = 2, 3, 6
PACKETS = frozenset({_PACKET, _SIMPLE, _ENHANCED})
_COMMENT, _DROPPED = 1, 4
# Options of one packet that are searched for its drop count.
MAX_OPTIONS = 16
# Bytes of a block in front of its frame, and bytes of the block's length behind the frame.
_HEAD, _SIMPLE_HEAD, _TRAILER = 28, 12, 4


class Run(NamedTuple):
    """Consecutive packet blocks of one section with the same interfaces.

    ``first``: the index of the first block. ``big``: the section is big-endian. ``base``: the index of the section's
    first interface. ``known``: the number of its interfaces so far.
    """

    first: int
    big: bool
    base: int
    known: int


class Words:
    """A stretch of a file as 32-bit words of either byte order."""

    def __init__(self, data: Bytes, filled: int) -> None:
        self.data = data
        self.count = filled // 4
        self._padded = data[: len(data) // 4 * 4]
        self._views: dict[str, memoryview] = {}

    def view(self, order: str) -> memoryview:
        """The words as Python integers, in the byte order ``order`` ("<" or ">")."""
        if order not in self._views:
            self._views[order] = self._padded.view(order + "u4").astype(np.uint32, copy=False).data
        return self._views[order]

    def gather(self, at: Integers, big: Flags) -> Integers:
        """The words at the indices ``at``, big-endian where ``big`` is set."""
        little = self._padded.view("<u4")[at].astype(np.int64)
        if not big.any():
            return little
        return np.where(big, self._padded.view(">u4")[at].astype(np.int64), little)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Packet blocks as columns.

    ``closed``: the lengths at the block's start and end are equal. ``sound``: the frame fits into the block, and its
    interface exists. ``timed``: the block has a time. ``dropped``: frames lost since the interface's previous frame.
    """

    start: Integers
    length: Integers
    big: Flags
    interface: Integers
    ticks: Unsigned
    offset: Integers
    captured: Integers
    original: Integers
    closed: Flags
    sound: Flags
    timed: Flags
    dropped: Unsigned

    def __len__(self) -> int:
        return len(self.start)

    def only(self, rows: Flags) -> "Blocks":
        return Blocks(*(getattr(self, column.name)[rows] for column in fields(self)))

    @classmethod
    def decode(cls, words: Words, starts: list[int], runs: list[Run], snap_lengths: Integers) -> "Blocks":
        """The blocks that begin at the words ``starts``."""
        start = np.array(starts, np.int64)
        counts = np.diff([run.first for run in runs] + [len(starts)])
        big, base, known = (np.repeat([run[n] for run in runs], counts) for n in (1, 2, 3))
        kind, length, interface, high, low, captured, original = (words.gather(start + n, big) for n in range(7))
        closed = words.gather(start + (length >> 2) - 1, big) == length
        timed = kind != _SIMPLE
        old = kind == _PACKET
        interface[old] = np.where(big, interface >> 16, interface & 0xFFFF)[old]
        head = np.where(timed, _HEAD, _SIMPLE_HEAD)
        if not timed.all():
            simple = ~timed
            original[simple], interface[simple] = interface[simple], 0
            room = np.minimum(original, length - _SIMPLE_HEAD - _TRAILER)
            snap = snap_lengths[np.minimum(base, len(snap_lengths) - 1)]
            captured[simple] = np.where(snap > 0, np.minimum(room, snap), room)[simple]
        sound = (interface < known) & (captured >= 0) & (captured <= length - head - _TRAILER)
        ticks = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        interface = np.where(sound, interface + base, 0)
        begin = start + head // 4 + (captured + 3 >> 2)
        end = np.where(sound & closed & timed & ~old, start + (length >> 2) - 1, 0)
        dropped = _drop_counts(words, begin, end, big)
        return cls(
            start, length, big, interface, ticks, start * 4 + head, captured, original, closed, sound, timed, dropped
        )


def _drop_counts(words: Words, at: Integers, end: Integers, big: Flags) -> Unsigned:
    """The option epb_dropcount of blocks, 0 without one; their options lie between the words ``at`` and ``end``."""
    found = np.zeros(len(at), np.uint64)
    rows = np.flatnonzero(at < end)
    for _ in range(MAX_OPTIONS):
        if not len(rows):
            break
        head, of_big = words.gather(at[rows], big[rows]), big[rows]
        code, size = (np.where(of_big, head >> shift, head >> 16 - shift) & 0xFFFF for shift in (16, 0))
        following = at[rows] + 1 + (size + 3 >> 2)
        whole = (code != 0) & (following <= end[rows])
        counts = rows[whole & (code == _DROPPED) & (size == 8)]
        one, two = (words.gather(at[counts] + n, big[counts]).astype(np.uint64) for n in (1, 2))
        low, high = np.where(big[counts], two, one), np.where(big[counts], one, two)
        found[counts] = high << np.uint64(32) | low
        at[rows] = following
        rows = rows[whole & (following < end[rows])]
    return found


def options(data: bytes, order: str) -> dict[int, bytes]:
    """The first option of each code in a list of options; an option that is cut or damaged ends the list."""
    found: dict[int, bytes] = {}
    for code, value in _options(data, order):
        found.setdefault(code, value)
    return found


class Comments:
    """Finds the comments of the packets in ``blocks``. A packet without options, as most are, costs nothing."""

    def __init__(self, data: Bytes, blocks: Blocks) -> None:
        self._data, self._blocks = data, blocks
        self._begin = blocks.offset + (blocks.captured + 3 & ~3)
        self._end = blocks.start * 4 + blocks.length - _TRAILER
        self._any = blocks.timed & (self._begin < self._end)

    def __call__(self, index: int) -> list[str]:
        if not self._any[index]:
            return []
        data = self._data[self._begin[index] : self._end[index]].tobytes()
        listed = _options(data, ">" if self._blocks.big[index] else "<")
        return [value.decode(errors="replace") for code, value in listed if code == _COMMENT]


def _options(data: bytes, order: str) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 4 <= len(data):
        code, size = struct.unpack_from(order + "HH", data, at)
        if code == 0 or at + 4 + size > len(data):
            break
        found.append((code, data[at + 4 : at + 4 + size]))
        at += 4 + (size + 3) // 4 * 4
    return found
