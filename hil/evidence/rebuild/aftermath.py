"""What came after a message that ends a connection: counted where its place is certain, else kept apart."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hil.evidence.rebuild.facts import After, Step
from hil.evidence.rebuild.operations import NAMES
from hil.evidence.rebuild.rows import Kind, Row
from hil.evidence.rebuild.window import Copy
from hil.wire.layers.cm import CmAttribute

LATE_KEPT = 16
# After a DREP or a REJ it is both ends that must be silent, after a DREQ its sender.
BOTH = -1


@dataclass(slots=True, eq=False)
class _Following:
    """Counts the packets after an event.

    ``interfaces`` are those that the event was seen at, with when. Only there it is certain what came after it, and how
    long after: two interfaces may have a clock each, or be of two captures that were merged.
    """

    begun_ns: int
    interfaces: dict[int, int]
    count: int = 0
    steps: list[Step] = field(default_factory=list)
    latest_ns: int = 0
    unsure: int = 0

    def add(self, sender: int, row: Row, behind_ns: int) -> None:
        self.count += 1
        self.latest_ns = max(self.latest_ns, behind_ns)
        if len(self.steps) < LATE_KEPT:
            what = NAMES.get(row.operation, "packet") if row.kind == Kind.REQUEST else "answer"
            self.steps.append(
                Step(row.number, row.number, row.time_ns, sender, what, row.psn, row.psn, row.payload, row.syndrome)
            )

    def doubt(self) -> None:
        """What was counted until now may have been sent in front of the event."""
        self.unsure, self.count, self.latest_ns = self.unsure + self.count, 0, 0
        self.steps.clear()

    def facts(self) -> After:
        return After(self.count, tuple(self.steps), self.latest_ns, self.unsure)


class Aftermath:
    """Follows what each end sends after its own DREQ, and both after a DREP or a REJ."""

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
        """A CM message; whether what follows is counted from here on.

        A ``new`` DREP or REJ begins the count anew. ``seen``: whether it is a second copy in the capture.
        """
        if event not in (CmAttribute.DREQ, CmAttribute.DREP, CmAttribute.REJ):
            return False
        key = event, sender if event is CmAttribute.DREQ else BOTH
        known = self._after.get(key)
        if known is not None and interface in known.interfaces and seen is not Copy.NO:
            # Everything comes twice here: what followed the first copy may be a second one.
            for following in self._after.values():
                following.doubt()
        if known is not None and not (new and event is not CmAttribute.DREQ):
            known.interfaces.setdefault(interface, row.time_ns)
            return False
        self._after[key] = _Following(row.time_ns, {interface: row.time_ns})
        return True

    def late(self, sender: int, row: Row, interface: int, *, unsure: bool, jumped_ns: int) -> None:
        """A data packet, which is no second copy for certain; ``unsure``: it may be one.

        ``jumped_ns`` is when PSNs last went on from elsewhere: behind the event, the queue pairs' numbers may be
        another connection's.
        """
        own = self._after.get((CmAttribute.DREQ, sender))
        closed_ns = None if own is None else own.interfaces.get(interface)
        for (_, watched), following in self._after.items():
            if watched not in (BOTH, sender):
                continue
            begun_ns = following.interfaces.get(interface)
            if begun_ns is None and closed_ns is not None:
                # What its sender sent last is certain here, and whatever it sent later comes later still.
                begun_ns = max(closed_ns, following.begun_ns)
            if unsure or begun_ns is None or jumped_ns >= following.begun_ns:
                following.unsure += 1
            else:
                following.add(sender, row, row.time_ns - begun_ns)

    def steps(self) -> Iterator[Step]:
        """The packets that were counted, as far as they are kept."""
        for following in self._after.values():
            yield from following.steps

    def facts(self, event: CmAttribute, sender: int = BOTH) -> After:
        """What came after that end's DREQ, or after a DREP or REJ."""
        following = self._after.get((event, sender))
        return After() if following is None else following.facts()
