"""The rebuilder's facts of each RoCE packet: plain rows, made from the bulk scan's columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hil.capture.bulk import Batch, Malformed
from hil.capture.ethernet import macs_of
from hil.roce.opcodes import CNP_OPCODE, UD_SEND_ONLY, Operation, Transport

GENERAL_SERVICES_QP = 1


class Kind(IntEnum):
    """The kinds of packets that the rebuilder distinguishes."""

    REQUEST = 0
    RESPONSE = 1
    MANAGEMENT = 2
    CONGESTION = 3
    WRONG_ICRC = 4
    UNREADABLE = 5
    OTHER = 6
    EMITTED = 7


class Segment(NamedTuple):
    """The network of a packet.

    ``tags``: its VLAN ids (``hil.capture.ethernet.vlans_of``). ``network``: a number that distinguishes networks with
    the same addresses (``hil.evidence.rebuild.networks``).
    """

    tags: int
    network: int = 0


class Flow(NamedTuple):
    """All packets to one queue pair from one address. Addresses are GIDs as numbers of 128 bits."""

    segment: Segment
    source: int
    destination: int
    dest_qp: int


class Row(NamedTuple):
    """One packet; absent values are -1.

    ``position``: the packet's number through all batches. ``number``: its frame's. ``flow``: an index into the batch's
    flows. ``operation``: the lower five bits of the opcode. ``length``, ``payload``: in bytes.
    """

    position: int
    number: int
    time_ns: int
    flow: int
    kind: int
    operation: int
    psn: int
    syndrome: int
    msn: int
    length: int
    payload: int


class Rows(NamedTuple):
    """A batch for the rebuilder: rows in the order of time, to be iterated once, their flows, and their frames.

    ``macs``: the two MAC addresses of each flow, 0 without them; flows that differ only by these are separate. Networks
    are not assigned yet. ``order``: the order of the flows' first packets. ``believed``: the positions of packets that
    are accepted with a wrong ICRC.
    """

    flows: list[Flow]
    macs: list[tuple[int, int]]
    order: list[int]
    rows: Iterable[Row]
    batch: "Frames"
    believed: frozenset[int] = frozenset()


class Frames:
    """The frames of one batch, by position from ``first`` on. ``order``: the batch's row of each position."""

    def __init__(self, batch: Batch, first: int, order: NDArray[np.int64]) -> None:
        self.first = first
        self._batch, self._order = batch, order

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, position: int) -> bool:
        return 0 <= position - self.first < len(self._order)

    def time_ns(self, position: int) -> int:
        return int(self._batch.time_ns[self._order[position - self.first]])

    def cut(self, position: int) -> bool:
        """Whether a snap length cut the packet."""
        row = self._order[position - self.first]
        return bool(self._batch.captured[row] < self._batch.original[row])

    def interface(self, position: int) -> int:
        """An index into the capture's interfaces."""
        return int(self._batch.interface[self._order[position - self.first]])

    def packet(self, position: int) -> tuple[int, bytes]:
        """Identification and captured bytes of a packet, as of ``Batch.packet``."""
        return self._batch.packet(int(self._order[position - self.first]))


def _kinds() -> NDArray[np.int64]:
    table = np.full(256, Kind.OTHER, np.int64)
    for transport in (Transport.RC, Transport.UC, Transport.XRC):
        for operation in Operation:
            response = Operation.RDMA_READ_RESPONSE_FIRST <= operation <= Operation.ATOMIC_ACKNOWLEDGE
            table[transport | operation] = Kind.RESPONSE if response else Kind.REQUEST
    table[CNP_OPCODE] = Kind.CONGESTION
    return table


_KIND_OF_OPCODE = _kinds()
# Like Row._make, without its check of the length, which takes half the time.
_row: Callable[[tuple[int, ...]], Row] = partial(tuple.__new__, Row)


def rows_of(
    batch: Batch, first: int, times_ns: NDArray[np.int64], *, trust_icrc: bool, emitted: Sequence[int] = ()
) -> Rows:
    """The rows of ``batch`` in the order of ``times_ns``; positions count from ``first``.

    ``trust_icrc``: packets with a wrong ICRC get a kind of their own, because no receiver accepts them. ``emitted``:
    interfaces whose packets get a kind of their own, because no node sent them.
    """
    ordered = bool((times_ns[1:] >= times_ns[:-1]).all())
    order = np.arange(len(times_ns)) if ordered else np.argsort(times_ns, kind="stable")
    kinds = _KIND_OF_OPCODE[np.clip(batch.opcode, 0, 255)]
    management = (batch.opcode == UD_SEND_ONLY) & (batch.dest_qp == GENERAL_SERVICES_QP)
    kinds[management] = Kind.MANAGEMENT
    kinds[batch.malformed != Malformed.NO] = Kind.UNREADABLE
    if trust_icrc:
        kinds[batch.icrc == 0] = Kind.WRONG_ICRC
    if emitted:
        kinds[np.isin(batch.interface, emitted)] = Kind.EMITTED
    flows, macs, index = _flows(batch)
    _, firsts = np.unique(index if ordered else index[order], return_index=True)
    columns = (
        batch.number,
        times_ns,
        index,
        kinds,
        batch.opcode & 0x1F,
        batch.psn,
        batch.syndrome,
        batch.msn,
        batch.length,
        batch.payload,
    )
    lists = [(column if ordered else column[order]).tolist() for column in columns]
    rows = map(_row, zip(range(first, first + len(order)), *lists, strict=True))
    believed = np.flatnonzero(((batch.icrc == 0) & (kinds <= Kind.MANAGEMENT))[order])
    return Rows(
        flows,
        macs,
        np.argsort(firsts).tolist(),
        rows,
        Frames(batch, first, order),
        frozenset((first + believed).tolist()),
    )


_ODD = [np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)]


def _flows(batch: Batch) -> tuple[list[Flow], list[tuple[int, int]], NDArray[np.int64]]:
    """The distinct flows of a batch, the MAC addresses of each, and the index of each row's flow."""
    macs = macs_of(batch.chunk, batch.index)
    mixed = (batch.tags.astype(np.uint64) * _ODD[0]) ^ batch.dest_qp.astype(np.uint64)
    parts = (batch.src_hi, batch.src_lo, batch.dst_hi, batch.dst_lo, *macs)
    for part, odd in zip(parts, cycle(_ODD)):
        mixed = (mixed ^ part) * odd
        mixed ^= mixed >> np.uint64(29)
    _, where, index = np.unique(mixed, return_index=True, return_inverse=True)
    index = index.reshape(-1)
    # When two flows have the same mix, all columns are compared instead.
    columns = (batch.tags, batch.dest_qp, *parts)
    if any((column != column[where][index]).any() for column in columns):
        together = np.stack([column.astype(np.uint64) for column in columns], axis=1)
        _, where, index = np.unique(together, axis=0, return_index=True, return_inverse=True)
        index = index.reshape(-1)
    low, high = (column[where].tolist() for column in macs)
    return list(_named(batch, where)), list(zip(low, high, strict=True)), index.astype(np.int64)


def _named(batch: Batch, where: NDArray[np.int64]) -> Iterator[Flow]:
    columns = (batch.tags, batch.dest_qp, batch.src_hi, batch.src_lo, batch.dst_hi, batch.dst_lo)
    for tags, qp, src_hi, src_lo, dst_hi, dst_lo in zip(*(c[where].tolist() for c in columns), strict=True):
        yield Flow(Segment(tags), src_hi << 64 | src_lo, dst_hi << 64 | dst_lo, qp)
