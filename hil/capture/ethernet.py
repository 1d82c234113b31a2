"""Frames, many at a time, up to the network header: VLAN tags are read, what is passed over is counted."""

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
    """Frames that are no row of a batch, by reason: ``other_links`` are of link types that are not read, ``cut`` those
    snapped in front of what would tell. ``roce_fragments`` are those of the ``fragments`` that RoCE packets begin with.
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
    """Frames that may yet be RoCE, as columns: ``index`` in the chunk, ``end`` of the captured bytes, ``at`` the next
    header, ``vlan`` the outer tag's id or -1, ``tags`` all ids but 0 (which is a priority and no VLAN), twelve bits
    each, the outer one's first. Those that turn out not to be are counted in ``passed``.
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
        """The frames ``index`` of ``chunk``, ``at`` so many bytes behind their beginning."""
        start, untagged = chunk.offset[index], np.zeros(len(index), np.int64)
        return cls(chunk, passed, index, start + chunk.captured[index], start + at, untagged - 1, untagged)

    def only(self, rows: Any) -> "Frames":
        """These frames; of the others nothing is counted."""
        parts = (column[rows] for column in (self.index, self.end, self.at, self.vlan, self.tags))
        return Frames(self.chunk, self.passed, *parts)

    def holding(self, size: int | Integers) -> "Frames":
        """Those of the frames that hold ``size`` more bytes; the others are passed over."""
        short = self.at + size > self.end
        if not short.any():
            return self
        self.count_short(short)
        return self.only(~short)

    def count_short(self, rows: Flags) -> None:
        """Count frames that end in front of what would tell whether they are RoCE."""
        index = self.index[rows]
        snapped = int((self.chunk.captured[index] < self.chunk.original[index]).sum())
        self.passed.cut += snapped
        self.passed.not_roce += len(index) - snapped


def vlans_of(tags: int) -> tuple[int, ...]:
    """The VLAN ids of a stack of ``tags``, the outer one's first."""
    return (*vlans_of(tags >> VLAN_BITS), tags & (1 << VLAN_BITS) - 1) if tags > 0 else ()


def macs_of(chunk: Chunk, index: Integers) -> tuple[Unsigned, Unsigned]:
    """The MAC addresses of the frames ``index``, the lower and the higher of each: they are the same both ways.

    Both are 0 where there are not two: in frames of other link types and in such as are cut.
    """
    there = (chunk.link_type[index] == LINK_ETHERNET) & (chunk.captured[index] >= _ADDRESSES_SIZE)
    both = records(chunk.data, np.where(there, chunk.offset[index], 0), _ADDRESSES)
    one, two = (both[f"{end}_hi"].astype(np.uint64) << np.uint64(32) | both[f"{end}_lo"] for end in ("dst", "src"))
    one, two = (np.where(there, address, np.uint64(0)) for address in (one, two))
    return np.minimum(one, two), np.maximum(one, two)


def behind_tags(frames: Frames) -> tuple[Frames, Integers]:
    """Frames that stand at their ethertype, at their network header, and the ethertype that names it."""
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
