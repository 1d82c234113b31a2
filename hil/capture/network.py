"""Finds RoCE packets in frames, many at a time.

RoCE v2 is UDP over IPv4 or IPv6 (InfiniBand volume 1, annex A17). RoCE v1 has a global route header and an ethertype of
its own (annex A16).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hil.capture.chunk import Chunk, Integers, Unsigned
from hil.capture.ethernet import Flags, Frames, Passed
from hil.capture.links import frames_of
from hil.capture.windows import Records, packed, records

ROCE_PORT = 4791
MAX_EXTENSIONS = 8
IPV4, IPV6, GRH = 0x0800, 0x86DD, 0x8915
UDP, IBA = 17, 0x1B
_MORE_FRAGMENTS = 0x2000
IPV6_SIZE, UDP_SIZE = 40, 8
_IPV4_SIZE, _EXTENSION_SIZE = 20, 8
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION)
# IPv4 addresses are mapped to ::ffff:0:0/96.
_MAPPED = np.uint64(0xFFFF << 32)

Small = NDArray[np.int32]
# The two halves of the source and of the destination.
Gids = tuple[Unsigned, Unsigned, Unsigned, Unsigned]

_IPV4_HEADER = packed(
    ("version", "u1"),
    ("traffic_class", "u1"),
    ("length", ">u2"),
    ("id", ">u2"),
    ("fragment", ">u2"),
    ("ttl", "u1"),
    ("protocol", "u1"),
    ("checksum", ">u2"),
    ("source", ">u4"),
    ("destination", ">u4"),
)
# The global route header has the same fields (8.3).
_IPV6_HEADER = packed(
    ("version", ">u4"),
    ("length", ">u2"),
    ("protocol", "u1"),
    ("hop_limit", "u1"),
    ("src_hi", ">u8"),
    ("src_lo", ">u8"),
    ("dst_hi", ">u8"),
    ("dst_lo", ">u8"),
)
_EXTENSION = packed(("protocol", "u1"), ("size", "u1"), ("fragment", ">u2"))
_UDP_HEADER = packed(("source", ">u2"), ("destination", ">u2"), ("length", ">u2"), ("checksum", ">u2"))


@dataclass(frozen=True, slots=True)
class Network:
    """The RoCE packets found, as columns in file order.

    ``index``: the frame's index in the chunk. ``header``, ``transport``, ``end``: offsets in the chunk's data of the
    network header, of the base transport header, and behind the packet by its length field. ``kind``: the ethertype.
    ``fits``: whether that length field agrees with the frame's length and with UDP's.
    """

    index: Integers
    header: Integers
    transport: Integers
    end: Integers
    kind: Integers
    vlan: Integers
    tags: Integers
    src_hi: Unsigned
    src_lo: Unsigned
    dst_hi: Unsigned
    dst_lo: Unsigned
    ecn: Integers
    udp_sport: Integers
    fits: Flags

    def __len__(self) -> int:
        return len(self.index)

    def only(self, rows: Any) -> "Network":
        return Network(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class _Packets:
    """Packets of one ethertype, read up to the end of their network header."""

    frames: Frames
    kind: int
    end: Integers
    gids: Gids
    ecn: Integers

    def roce(self, transport: Integers, udp_sport: Integers, fits: Flags) -> Network:
        frames, kinds = self.frames, np.full(len(self.frames), self.kind)
        fits = fits & (self.end <= _frame_end(frames))
        where = (frames.index, frames.at, transport, self.end, kinds, frames.vlan, frames.tags)
        return Network(*where, *self.gids, self.ecn, udp_sport, fits)


def find(chunk: Chunk) -> tuple[Network, Passed]:
    """The RoCE packets among the frames of ``chunk``, and the count of the other frames."""
    passed = Passed()
    frames, ethertype = frames_of(chunk, passed)
    parts = []
    for kind, finder in ((IPV4, _over_ipv4), (IPV6, _over_ipv6), (GRH, _behind_grh)):
        rows = ethertype == kind
        parts.append(finder(frames if rows.all() else frames.only(rows)))
    passed.not_roce += int((~np.isin(ethertype, (IPV4, IPV6, GRH))).sum())
    return _merged([part for part in parts if len(part)] or parts[:1]), passed


def _merged(parts: list[Network]) -> Network:
    if len(parts) == 1:
        return parts[0]
    whole = Network(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Network)))
    return whole.only(np.argsort(whole.index, kind="stable"))


def _over_ipv4(frames: Frames) -> Network:
    frames = frames.holding(_IPV4_SIZE)
    head = records(frames.data, frames.at, _IPV4_HEADER)
    udp = (head["version"] >= 0x45) & (head["version"] < 0x50) & (head["protocol"] == UDP)
    first = udp & (head["fragment"] & 0x3FFF == _MORE_FRAGMENTS)
    _count_roce(frames, frames.at + (head["version"] & 0x0F).astype(np.int64) * 4, first)
    frames, head = _kept(frames, head, udp, head["fragment"] & 0x3FFF == 0)
    size = (head["version"] & 0x0F).astype(np.int64) * 4
    high = np.zeros(len(head), np.uint64)
    gids = (high, _MAPPED | head["source"], high, _MAPPED | head["destination"])
    packets = _Packets(frames, IPV4, frames.at + head["length"], gids, (head["traffic_class"] & 3).astype(np.int64))
    return _over_udp(packets, frames.at + size)


def _over_ipv6(frames: Frames) -> Network:
    frames, head = _of_version_6(frames)
    behind = _Extensions(frames, head["protocol"].astype(np.int64))
    if behind.lost.any():
        frames.count_short(behind.lost)
    udp, found = behind.protocol == UDP, ~behind.lost
    _count_roce(frames, behind.at, udp & found & behind.begins)
    kept = udp & behind.whole & found
    frames, head = _kept(frames.only(found), head[found], udp[found], behind.whole[found])
    return _over_udp(_as_ipv6(frames, head, IPV6), behind.at[kept])


def _behind_grh(frames: Frames) -> Network:
    frames, head = _of_version_6(frames)
    iba = head["protocol"] == IBA
    frames, head = _kept(frames, head, iba, iba)
    no_port, fits = np.full(len(head), -1), np.ones(len(head), np.bool_)
    return _as_ipv6(frames, head, GRH).roce(frames.at + IPV6_SIZE, no_port, fits)


def _of_version_6(frames: Frames) -> tuple[Frames, Records]:
    frames = frames.holding(IPV6_SIZE)
    head = records(frames.data, frames.at, _IPV6_HEADER)
    six = head["version"] >> 28 == 6
    return _kept(frames, head, six, six)


def _as_ipv6(frames: Frames, head: Records, kind: int) -> _Packets:
    src_hi, src_lo, dst_hi, dst_lo = (head[name].astype(np.uint64) for name in ("src_hi", "src_lo", "dst_hi", "dst_lo"))
    ecn = (head["version"] >> 20).astype(np.int64) & 3
    return _Packets(frames, kind, frames.at + IPV6_SIZE + head["length"], (src_hi, src_lo, dst_hi, dst_lo), ecn)


def _kept(frames: Frames, head: Records, wanted: Flags, whole: Flags) -> tuple[Frames, Records]:
    """The wanted frames that are no fragments; the others are counted as passed over."""
    frames.passed.not_roce += int((~wanted).sum())
    frames.passed.fragments += int((wanted & ~whole).sum())
    rows = wanted & whole
    return (frames, head) if rows.all() else (frames.only(rows), head[rows])


def _count_roce(frames: Frames, at: Integers, first: Flags) -> None:
    """Count the ``first`` fragments that have the UDP header of a RoCE packet at ``at``."""
    rows = np.flatnonzero(first & (at + UDP_SIZE <= frames.end))
    if len(rows):
        udp = records(frames.data, at[rows], _UDP_HEADER)
        frames.passed.roce_fragments += int(np.count_nonzero(udp["destination"] == ROCE_PORT))


class _Extensions:
    """Skips the IPv6 extension headers of frames.

    ``at``: the offset of the next header. ``protocol``: its number. ``whole``: the packet is no fragment. ``begins``:
    it is a first fragment. ``lost``: the frame ends inside an extension header.
    """

    def __init__(self, frames: Frames, protocol: Integers) -> None:
        self.at, self.protocol = frames.at + IPV6_SIZE, protocol
        self.whole = np.ones(len(protocol), np.bool_)
        self.begins = np.zeros(len(protocol), np.bool_)
        self.lost = np.zeros(len(protocol), np.bool_)
        for _ in range(MAX_EXTENSIONS):
            extended = np.isin(self.protocol, _EXTENSIONS) & self.whole & ~self.lost
            if not extended.any():
                break
            self.lost |= extended & (self.at + _EXTENSION_SIZE > frames.end)
            self._step(frames, np.flatnonzero(extended & ~self.lost))

    def _step(self, frames: Frames, rows: Integers) -> None:
        head = records(frames.data, self.at[rows], _EXTENSION)
        fragment = self.protocol[rows] == _FRAGMENT
        self.whole[rows] = ~fragment | (head["fragment"] & 0xFFF9 == 0)
        self.begins[rows] = fragment & (head["fragment"] & 0xFFF9 == 1)
        self.protocol[rows] = head["protocol"]
        self.at[rows] += np.where(fragment, _EXTENSION_SIZE, (head["size"].astype(np.int64) + 1) * _EXTENSION_SIZE)


def _over_udp(packets: _Packets, at: Integers) -> Network:
    frames = packets.frames
    short = at + UDP_SIZE > frames.end
    if short.any():
        frames.count_short(short)
    # A short frame is read at offset 0 instead; its row is left out below.
    udp = records(frames.data, np.where(short, 0, at), _UDP_HEADER)
    roce = (udp["destination"] == ROCE_PORT) & ~short
    frames.passed.not_roce += int((~roce & ~short).sum())
    same_length = udp["length"] == packets.end - at
    network = packets.roce(at + UDP_SIZE, udp["source"].astype(np.int64), same_length)
    return network if roce.all() else network.only(roce)


def _frame_end(frames: Frames) -> Integers:
    chunk, index = frames.chunk, frames.index
    longest: Integers = np.maximum(chunk.original[index], chunk.captured[index])
    return chunk.offset[index] + longest
