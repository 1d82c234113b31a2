"""Choose the fault that acts on a frame. The only state is the history, and each fault's counters and random draws."""

import ipaddress
import random
from collections import OrderedDict
from dataclasses import dataclass

from hil.roce.outline import Outline, outline
from hil.roce.psn import psn_of
from hil.wire.faults import Action, Corrupt, Fault, MarkEcn

# How many packets are remembered to recognise retransmissions. It is more than any window.
REMEMBERED = 1 << 16
# Responses carry the PSNs of the other direction's requests (RC: RDMA READ response to ATOMIC acknowledge, 9.2).
_RESPONSES = range(0x0D, 0x13)
_Stream = tuple[bytes, bytes, int, int, bool]


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault's pick of a frame: the fault's number and name, the number of the hit, and the action."""

    fault: int
    name: str
    number: int
    action: Action


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame as faults see it. ``psn`` is relative to the first of its stream; -1 means absent."""

    side: str
    outline: Outline | None
    psn: int = -1
    retransmissions: int = -1


class History:
    """The history of the wire: the first PSN of each stream, and how often each packet was seen."""

    def __init__(self) -> None:
        self._first: OrderedDict[_Stream, int] = OrderedDict()
        self._times: OrderedDict[tuple[object, ...], int] = OrderedDict()
        self._lives: OrderedDict[tuple[object, ...], int] = OrderedDict()

    def see(self, side: str, frame: bytes) -> Seen:
        """Add a frame to the history. Returns its facts relative to the earlier frames."""
        found = outline(frame)
        if found is None:
            return Seen(side, None)
        if found.cm != -1:
            packet: tuple[object, ...] = (found.source, found.destination, found.cm, found.transaction_id)
            times = _count(self._times, packet)
            if found.qpn != -1 and not times:
                # After a REQ or REP, packets to its queue pair belong to a new connection.
                _count(self._lives, (found.destination, found.source, found.qpn))
            return Seen(side, found, -1, times)
        way = found.source, found.destination, found.dest_qp
        stream = *way, self._lives.get(way, -1), found.opcode in _RESPONSES
        first = _remember(self._first, stream, found.psn)
        times = _count(self._times, (*stream, found.opcode, found.psn))
        return Seen(side, found, psn_of(found.psn - first), times)


def _remember(known: OrderedDict[_Stream, int], stream: _Stream, psn: int) -> int:
    first = known.setdefault(stream, psn)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
    return first


def _count(known: OrderedDict[tuple[object, ...], int], packet: tuple[object, ...]) -> int:
    times = known.pop(packet, -1) + 1
    known[packet] = times
    if len(known) > REMEMBERED:
        known.popitem(last=False)
    return times


class Picker:
    """A fault that was set, with its counts of matched frames and of hits among them."""

    def __init__(self, number: int, fault: Fault) -> None:
        self.number, self.fault = number, fault
        self.matched = self.hits = 0
        self._random = random.Random(fault.match.seed)
        self._source, self._destination = (_packed(a) for a in (fault.match.source, fault.match.destination))
        match = fault.match
        selects = (match.opcodes, match.cm, match.source, match.destination, match.qpns, match.comm_ids)
        self._byte = fault.action.offset if isinstance(fault.action, Corrupt) else None
        of_roce = isinstance(fault.action, Corrupt | MarkEcn)
        self._roce = of_roce or any(selects) or match.psn is not None or match.retransmissions is not None

    def pick(self, seen: Seen) -> Hit | None:
        """The hit if the fault picks this frame, else None."""
        match = self.fault.match
        if (match.side and match.side != seen.side) or (self._roce and not self._matches(seen)):
            return None
        self.matched += 1
        if self.matched not in match.occurrences or (self.matched - match.occurrences.first) % match.every:
            return None
        if match.probability < 1 and self._random.random() >= match.probability:
            return None
        self.hits += 1
        return Hit(self.number, self.fault.name, self.hits, self.fault.action)

    def _matches(self, seen: Seen) -> bool:
        match, frame = self.fault.match, seen.outline
        return frame is not None and (
            (self._byte is None or frame.covered(self._byte) >= 0)
            and (not match.opcodes or frame.opcode in match.opcodes)
            and (not match.cm or frame.cm in match.cm)
            and (not match.source or frame.source == self._source)
            and (not match.destination or frame.destination == self._destination)
            and (not match.qpns or frame.dest_qp in match.qpns)
            and (not match.comm_ids or bool({frame.local_comm_id, frame.remote_comm_id} & {*match.comm_ids}))
            and (match.psn is None or (seen.psn != -1 and seen.psn in match.psn))
            and (match.retransmissions is None or seen.retransmissions in match.retransmissions)
        )


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed if address else b""


class Faults:
    """The faults of a wire, in the order they were set."""

    def __init__(self) -> None:
        self._history = History()
        self._all: dict[int, Picker] = {}
        self.active: list[Picker] = []

    def add(self, fault: Fault) -> int:
        """Set a fault. Returns its number, counted from 1."""
        picker = Picker(len(self._all) + 1, fault)
        self._all[picker.number] = picker
        self.active.append(picker)
        return picker.number

    def remove(self, number: int) -> bool:
        """Remove a fault, and keep its counts. Returns whether the fault was set."""
        kept = [picker for picker in self.active if picker.number != number]
        removed = len(kept) < len(self.active)
        self.active = kept
        return removed

    def tell(self) -> list[dict[str, int | bool | str]]:
        """Every fault that was ever set: its number, name, counts, and whether it is still active."""
        return [
            {
                "number": picker.number,
                "name": picker.fault.name,
                "matched": picker.matched,
                "hits": picker.hits,
                "active": picker in self.active,
            }
            for picker in self._all.values()
        ]

    def decide(self, side: str, frame: bytes) -> tuple[Hit | None, Outline | None]:
        """The hit on a frame that came in on ``side``, and the frame's outline if it is a RoCE frame."""
        seen = self._history.see(side, frame)
        for picker in self.active:
            if (hit := picker.pick(seen)) is not None:
                return hit, seen.outline
        return None, seen.outline
