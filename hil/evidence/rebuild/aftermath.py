"""Packets after a message that ends a connection, counted apart by whether their place in the order is certain."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hil.evidence.rebuild.facts import After, Step
from hil.evidence.rebuild.operations import NAMES
from hil.evidence.rebuild.rows import Kind, Row
from hil.evidence.rebuild.window import Copy
from hil.roce.layers.cm import CmAttribute

# A packet this close behind its sender's DREQ was in one queue of the adapter when the DREQ went into another.
UNDER_WAY_NS = 100_000
LATE_KEPT = 16
# After a DREP or a REJ both ends must be silent, after a DREQ its sender.
BOTH = -1


@dataclass(slots=True, eq=False)
class _Late:
    """Packets after an event: their number, the longest time after it, and the first of them."""

    count: int = 0
    latest_ns: int = 0
    steps: tuple[Step, ...] = ()

    def add(self, step: Step, behind_ns: int) -> None:
        self.count += 1
        self.latest_ns = max(self.latest_ns, behind_ns)
        if len(self.steps) < LATE_KEPT:
            self.steps += (step,)

    def __add__(self, other: "_Late") -> "_Late":
        steps = sorted((*self.steps, *other.steps), key=lambda step: step.place)[:LATE_KEPT]
        return _Late(self.count + other.count, max(self.latest_ns, other.latest_ns), tuple(steps))


@dataclass(slots=True, eq=False)
class _Following:
    """Counts the packets after an event.

    ``interfaces``: the interfaces that the event was seen at, with its times. The order is certain only there: two
    interfaces may have different clocks, or come from two merged captures. ``perhaps``: packets that are second copies
    if the capture holds any packet twice. ``unsure``: the number of packets whose place is uncertain.
    """

    begun_ns: int
    interfaces: dict[int, int]
    late: _Late = field(default_factory=_Late)
    perhaps: _Late = field(default_factory=_Late)
    unsure: int = 0
    _marked: tuple[_Late, _Late] = field(default_factory=lambda: (_Late(), _Late()))

    def mark(self) -> None:
        """Remember the counts at a message that ends the connection, sent for the first time or again."""
        self._marked = replace(self.late), replace(self.perhaps)

    def doubt(self) -> None:
        """The message is a second copy: count the packets since ``mark`` as unsure.

        They may be second copies too, of packets in front of the message. Packets that were under way in any case keep
        their count.
        """
        before, before_perhaps = self._marked
        for found, known in ((self.late, before), (self.perhaps, before_perhaps)):
            if found.latest_ns > UNDER_WAY_NS and found.count > known.count:
                self.unsure += found.count - known.count
                found.count, found.latest_ns, found.steps = known.count, known.latest_ns, known.steps

    def facts(self, *, mirrored: bool) -> After:
        late = self.late if mirrored else self.late + self.perhaps
        return After(late.count, late.steps, late.latest_ns, self.unsure + (self.perhaps.count if mirrored else 0))


class Aftermath:
    """Counts the packets of each end after its own DREQ, and of both ends after a DREP or a REJ."""

    def __init__(self) -> None:
        self._after: dict[tuple[CmAttribute, int], _Following] = {}

    @property
    def begun(self) -> bool:
        """Whether a message that ends a connection was seen."""
        return bool(self._after)

    @property
    def released(self) -> bool:
        """Whether a DREQ or DREP was seen."""
        return any(event in (CmAttribute.DREQ, CmAttribute.DREP) for event, _ in self._after)

    def note(self, event: CmAttribute, sender: int, row: Row, interface: int, *, new: bool, seen: Copy) -> bool:
        """Take a CM message in; returns whether packets are counted from it on.

        ``new``: it was not sent before; a new DREP or REJ restarts the count. ``seen``: whether it is a second copy.
        """
        if event not in (CmAttribute.DREQ, CmAttribute.DREP, CmAttribute.REJ):
            return False
        key = event, sender if event is CmAttribute.DREQ else BOTH
        known = self._after.get(key)
        for following in self._after.values():
            if seen is Copy.NO:
                following.mark()
            elif known is not None and interface in known.interfaces:
                following.doubt()
        if known is not None and not (new and event is not CmAttribute.DREQ):
            known.interfaces.setdefault(interface, row.time_ns)
            return False
        self._after[key] = _Following(row.time_ns, {interface: row.time_ns})
        return True

    def late(self, sender: int, row: Row, interface: int, *, copy: bool, taken: bool, jumped_ns: int) -> None:
        """Count a data packet that is not certainly a second copy.

        ``copy``: it may be one. ``taken``: adapters accept it. ``jumped_ns``: when PSNs last jumped. After a jump
        behind the event, the queue pair numbers may belong to another connection.
        """
        what = NAMES.get(row.operation, "packet") if row.kind == Kind.REQUEST else "answer"
        number, time_ns, psn = row.number, row.time_ns, row.psn
        step = Step(number, number, time_ns, sender, what, psn, psn, row.payload, row.syndrome)
        for (_, watched), following in self._after.items():
            if watched not in (BOTH, sender):
                continue
            begun_ns = self._begun_ns(following, sender, row, interface)
            if begun_ns is None or not taken or jumped_ns >= following.begun_ns:
                following.unsure += 1
            else:
                (following.perhaps if copy else following.late).add(step, row.time_ns - begun_ns)

    def _begun_ns(self, following: _Following, sender: int, row: Row, interface: int) -> int | None:
        """The event's time by the clock of ``row``'s interface, or None when that clock did not see the event."""
        if interface in following.interfaces:
            return following.interfaces[interface]
        own = self._after.get((CmAttribute.DREQ, sender))
        if own is not None and interface in own.interfaces:
            # This interface saw the sender's own DREQ, so the sender's later packets are certain here.
            return max(own.interfaces[interface], following.begun_ns)
        under_way = 0 <= row.time_ns - following.begun_ns <= UNDER_WAY_NS
        return following.begun_ns if under_way else None

    def steps(self) -> Iterator[Step]:
        """The kept packets that may be late."""
        for following in self._after.values():
            yield from following.late.steps
            yield from following.perhaps.steps

    def facts(self, event: CmAttribute, sender: int = BOTH, *, mirrored: bool) -> After:
        """The packets after the DREQ of ``sender``, or after a DREP or REJ. ``mirrored``: the capture has copies."""
        following = self._after.get((event, sender))
        return After() if following is None else following.facts(mirrored=mirrored)
