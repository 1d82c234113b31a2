"""Frames, many at a time, up to the network header: VLAN tags are read, and frames that are not RoCE are counted."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hil.capture.chunk import LINK_ETHERNET, Bytes, Chunk, Integers, Unsigned
from hil.capture.windows import packed, records

Flags = NDArray[np.bool_]

MAX_TAGS = 4
VLAN_BITS = 12
_TAGS = (0x8100, 0x88A8, 0x9100)
_ETHERTYPE_SIZE, _TAG_SIZE = 2, 4
_ADDRESSES_SIZE = 12
_ADDRESSES = packed(("dst_hi", ">u2"), ("dst_lo", ">u4"), ("src_hi", ">u2"), ("src_lo", ">u4"))
_ETHERTYPE = packed(("value", ">u2"))
_TAG = packed(("control", ">u2"), ("ethertype", ">u2"))


@dataclass(slots=True)
class Passed:
    """The number of frames that were passed over, by reason.

    ``other_links``: the frame's link type is not supported. ``cut``: the snap length ends in front of the fields that
    identify RoCE. ``roce_fragments``: those of ``fragments`` that are the first fragment of a RoCE packet.
    """

    other_links: int = 0
    not_roce: int = 0
    fragments: int = 0
    roce_fragments: int = 0
    cut: int = 0

    def __add__(self, other: "Passed") -> "Passed":
        return Passed(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames that may be RoCE, as columns. Frames that turn out to be none are counted in ``passed``.

    ``index``: in the chunk. ``end``: the offset behind the captured bytes. ``at``: the offset of the next header.
    ``vlan``: the outer tag's id, or -1. ``tags``: all ids, the outer one first, twelve bits each; an id of 0, which is
    a priority and no VLAN, is left out.
    """

    chunk: Chunk
    passed: Passed
    index: Integers
    end: Integers
    at: Integers
    vlan: Integers
    tags: Integers

    @property
    def data(self) -> Bytes:
        return self.chunk.data

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(cls, chunk: Chunk, passed: Passed, index: Integers, at: int) -> "Frames":
        """The frames ``index`` of ``chunk``; the next header begins ``at`` bytes behind the frame's beginning."""
        start, untagged = chunk.offset[index], np.zeros(len(index), np.int64)
        return cls(chunk, passed, index, start + chunk.captured[index], start + at, untagged - 1, untagged)

    def only(self, rows: Any) -> "Frames":
        """The frames of ``rows``; the others are not counted in ``passed``."""
        parts = (column[rows] for column in (self.index, self.end, self.at, self.vlan, self.tags))
        return Frames(self.chunk, self.passed, *parts)

    def holding(self, size: int | Integers) -> "Frames":
        """The frames that hold ``size`` more bytes; the others are counted in ``passed``."""
        short = self.at + size > self.end
        if not short.any():
            return self
        self.count_short(short)
        return self.only(~short)

    def count_short(self, rows: Flags) -> None:
        """Count frames that end in front of the fields that identify RoCE."""
        index = self.index[rows]
        snapped = int((self.chunk.captured[index] < self.chunk.original[index]).sum())
        self.passed.cut += snapped
        self.passed.not_roce += len(index) - snapped


def vlans_of(tags: int) -> tuple[int, ...]:
    """The VLAN ids in ``tags``, the outer one first."""
    return (*vlans_of(tags >> VLAN_BITS), tags & (1 << VLAN_BITS) - 1) if tags > 0 else ()


def macs_of(chunk: Chunk, index: Integers) -> tuple[Unsigned, Unsigned]:
    """The two MAC addresses of each of the frames ``index``: the lower ones, and the higher ones.

    This order is the same for both directions. Both are 0 in a frame of another link type, and in a frame that is cut.
    """
    there = (chunk.link_type[index] == LINK_ETHERNET) & (chunk.captured[index] >= _ADDRESSES_SIZE)
    both = records(chunk.data, np.where(there, chunk.offset[index], 0), _ADDRESSES)
    one, two = (both[f"{end}_hi"].astype(np.uint64) << np.uint64(32) | both[f"{end}_lo"] for end in ("dst", "src"))
    one, two = (np.where(there, address, np.uint64(0)) for address in (one, two))
    return np.minimum(one, two), np.maximum(one, two)


def behind_tags(frames: Frames) -> tuple[Frames, Integers]:
    """Move ``frames`` from their ethertype to their network header; returns them and the last ethertype."""
    frames = frames.holding(_ETHERTYPE_SIZE)
    ethertype = _ethertypes(frames)
    for _ in range(MAX_TAGS):
        tagged = np.isin(ethertype, _TAGS)
        if not tagged.any():
            break
        frames = frames.holding(np.where(tagged, _ETHERTYPE_SIZE + _TAG_SIZE, 0))
        ethertype = _ethertypes(frames)
        _skip_tag(frames, ethertype, np.flatnonzero(np.isin(ethertype, _TAGS)))
    return replace(frames, at=frames.at + _ETHERTYPE_SIZE), ethertype


def _ethertypes(frames: Frames) -> Integers:
    return records(frames.data, frames.at, _ETHERTYPE)["value"].astype(np.int64)


def _skip_tag(frames: Frames, ethertype: Integers, rows: Integers) -> None:
    tags = records(frames.data, frames.at[rows] + _ETHERTYPE_SIZE, _TAG)
    outer, known = frames.vlan[rows] < 0, frames.tags[rows]
    ids = (tags["control"] & 0xFFF).astype(np.int64)
    frames.vlan[rows[outer]] = ids[outer]
    frames.tags[rows] = np.where(ids > 0, known << VLAN_BITS | ids, known)
    frames.at[rows] += _TAG_SIZE
    ethertype[rows] = tags["ethertype"]
