"""One connection while its packets are read: two ends, the CM messages between them, the packets after the end."""

from dataclasses import dataclass, fields, replace

from hil.capture.ethernet import vlans_of
from hil.evidence.rebuild.aftermath import Aftermath
from hil.evidence.rebuild.facts import CmFacts, ConnectionFacts, EndFacts, Ladder
from hil.evidence.rebuild.management import CmMessage, address_of, least_patience_ns
from hil.evidence.rebuild.requester import Requester
from hil.evidence.rebuild.rows import Flow, Row, Segment
from hil.evidence.rebuild.window import Copy, Window
from hil.roce.layers.cm import CmAttribute

MESSAGES_KEPT, WAYS_KEPT = 64, 64


@dataclass(slots=True, eq=False)
class End:
    """One end of a live connection; unknown values are -1. ``requester``: the direction of its own requests."""

    gid: int
    requester: Requester
    qpn: int = -1
    comm_id: int = -1
    packets_sent: int = 0
    wrong_icrc: int = 0
    congestion_marks: int = 0

    def facts(self) -> EndFacts:
        return EndFacts(
            address_of(self.gid),
            self.qpn,
            self.comm_id,
            self.requester.facts(),
            self.packets_sent,
            self.wrong_icrc,
            self.congestion_marks,
        )


@dataclass(slots=True, eq=False)
class _Sent:
    """A CM message and its repetitions."""

    message: CmMessage
    sender: int
    position: int
    times: int
    last_number: int
    last_time_ns: int


class Connection:
    """A connection that may still get packets.

    ``gids``: the addresses of its ends. ``segment``: the segment of its first packet; each end may send in another.
    """

    def __init__(self, segment: Segment, gids: tuple[int, int], window: Window, row: Row) -> None:
        self.segments = [segment, segment]
        self.window = window
        self.ladder = Ladder()
        self.ends = tuple(End(gid, Requester(side, window, self.ladder)) for side, gid in enumerate(gids))
        self.lanes: list[Lane] = []
        self.inferred = False
        self.evicted = False
        self.reused = False
        self.elsewhere = [False, False]
        self.attempts = 0
        self.believed = 0
        self.first = self._last = row
        self.closed_ns = -1
        self.several_ways = False
        self._ways: tuple[set[tuple[int, int]], ...] = (set(), set())
        self._sent: list[_Sent] = []
        self._aftermath = Aftermath()

    def lane(self, sender: int) -> "Lane":
        """A new lane for the packets that end ``sender`` sends."""
        made = Lane(self, sender, watched=self._aftermath.begun, unpaired=sender == 0 and self.ends[0].qpn < 0)
        self.lanes.append(made)
        return made

    def flow(self, sender: int) -> Flow:
        """The addresses of packets that end ``sender`` sends."""
        end, other = self.ends[sender], self.ends[1 - sender]
        return Flow(self.segments[sender], end.gid, other.gid, other.qpn)

    def knows(self, sender: int, macs: tuple[int, int]) -> bool:
        """Whether packets of end ``sender`` went between these MAC addresses before."""
        return macs in self._ways[sender]

    def come_by(self, sender: int, macs: tuple[int, int], *, in_order: bool) -> None:
        """Note a packet of end ``sender`` between new MAC addresses.

        When it does not continue the earlier packets ``in_order``, it may belong to another network.
        """
        self.several_ways |= bool(self._ways[sender]) and not in_order
        if len(self._ways[sender]) < WAYS_KEPT:
            self._ways[sender].add(macs)

    def note_elsewhere(self, flow: Flow) -> None:
        """Note that packets like those of ``flow`` are in another VLAN or network."""
        for sender in (0, 1):
            self.elsewhere[sender] |= self.flow(sender)[1:] == flow[1:]

    def comm_key(self, sender: int) -> tuple[Segment, int, int, int]:
        """The comm id of end ``sender`` with its segment and addresses, which is unique."""
        end, other = self.ends[sender], self.ends[1 - sender]
        return self.segments[sender], end.gid, other.gid, end.comm_id

    def heard(self, sender: int) -> bool:
        """Whether a packet or CM message of end ``sender`` was seen."""
        lanes = any(lane.packets for lane in self.lanes if lane.sender == sender)
        return lanes or any(sent.sender == sender for sent in self._sent)

    @property
    def announced(self) -> bool:
        """Whether a CM message of this connection was seen."""
        return bool(self._sent)

    @property
    def last(self) -> Row:
        """The last packet of either end."""
        return max((self._last, *(lane.last for lane in self.lanes if lane.last)), key=lambda row: row.position)

    def leave_lanes(self) -> None:
        """Add the counts of the lanes and drop them, because their flows get other addresses or another connection."""
        for lane in self.lanes:
            self.ends[lane.sender].packets_sent += lane.packets
            self._last = max((self._last, lane.last or self._last), key=lambda row: row.position)
            lane.stale, lane.packets = True, 0
        self.lanes.clear()

    @property
    def released(self) -> bool:
        """Whether a DREQ or DREP was seen."""
        return self._aftermath.released

    def repeats(self, message: CmMessage) -> bool:
        """Whether ``message`` was sent before or is the first with its attribute."""
        kind = [sent.message for sent in self._sent if sent.message.attribute is message.attribute]
        return not kind or any(_same(known, message) for known in kind)

    def copy(self, message: CmMessage, sender: int, row: Row, *, patient: bool = True) -> Copy:
        """Whether ``message``, in ``row``, is the capture's second copy of an earlier message of this connection.

        ``patient``: its sender waits for an answer before it sends the message again.
        """
        known = self._earlier(message, sender)
        if known is None:
            return Copy.NO
        patient_ns = self._patience_ns() if patient else 0
        seen = self.window.copy(known.position, row, patient_ns=patient_ns)
        # UNSURE may mean that the earlier bytes are no longer kept; then the time decides.
        return Copy.YES if seen is Copy.UNSURE and row.time_ns - known.last_time_ns < patient_ns else seen

    def _patience_ns(self) -> int:
        """The shortest time that the CM waits for an answer before it sends a message again."""
        sent = [t for sent in self._sent for t in (sent.message.local_timeout, sent.message.remote_timeout) if t > 0]
        return least_patience_ns(min(sent, default=-1))

    def _earlier(self, message: CmMessage, sender: int) -> _Sent | None:
        return next((sent for sent in self._sent if sent.sender == sender and _same(sent.message, message)), None)

    def note(self, message: CmMessage, sender: int, row: Row) -> bool:
        """Take a CM message of this connection in; returns whether it differs from the messages before."""
        self._last = row
        known, seen = self._earlier(message, sender), self.copy(message, sender, row)
        if known is None:
            if len(self._sent) < MESSAGES_KEPT:
                self._sent.append(_Sent(message, sender, row.position, 1, row.number, row.time_ns))
            self._learn(message, sender)
        elif (whole := _completed(known.message, message)) != known.message:
            # A copy from another mirror, which has a longer snap length.
            known.message = whole
            self._learn(whole, sender)
        if self._aftermath.note(
            message.attribute, sender, row, self.window.interface(row), new=known is None, seen=seen
        ):
            self.closed_ns = row.time_ns
            for lane in self.lanes:
                lane.watched = True
        if seen is Copy.YES:
            self.ends[sender].requester.copies += 1
            return False
        self.ladder.add((row.number, row.number, row.time_ns, sender, f"CM {message.attribute.name}", -1, -1, -1, -1))
        if known is not None:
            known.last_number, known.last_time_ns = row.number, row.time_ns
            if seen is Copy.NO:
                known.position = row.position
                known.times += 1
        return known is None

    def _learn(self, message: CmMessage, sender: int) -> None:
        end, other = self.ends[sender], self.ends[1 - sender]
        if end.comm_id < 0 and message.local_comm_id > 0:
            end.comm_id = message.local_comm_id
        if other.comm_id < 0 and message.remote_comm_id > 0:
            other.comm_id = message.remote_comm_id
        if message.attribute in (CmAttribute.REQ, CmAttribute.REP):
            end.qpn = message.qpn if end.qpn < 0 else end.qpn
            # The message gives the first PSN that its receiver must use (12.7.30).
            if message.psn >= 0:
                other.requester.start_at(message.psn)
        if message.attribute is CmAttribute.DREQ and other.qpn < 0:
            other.qpn = message.qpn
        if message.attribute is CmAttribute.REQ:
            for known in self.ends:
                known.requester.mtu = message.mtu if known.requester.mtu < 0 else known.requester.mtu

    def late(self, sender: int, row: Row, seen: Copy, *, taken: bool = True) -> None:
        """Count a data packet after a message that ends the connection. ``taken``: its receiver accepts it.

        A second copy is not counted, because the packet was sent before the message.
        """
        if seen is not Copy.YES:
            jumped_ns = max(end.requester.jumped_ns for end in self.ends)
            interface = self.window.interface(row)
            self._aftermath.late(sender, row, interface, copy=seen is Copy.UNSURE, taken=taken, jumped_ns=jumped_ns)

    def join(self, other: "Connection") -> None:
        """Take ``other``, of which only end 0 sent packets, as the opposite direction of this connection."""
        self.ends[0].qpn = other.ends[1].qpn
        self.ends[0].requester.take_over(other.ends[1].requester)
        self.adopt(other, 1)
        self.inferred = True

    def adopt(self, other: "Connection", sender: int) -> None:
        """What ``other``'s end 0 sent was sent by this connection's end ``sender``."""
        other.leave_lanes()
        self.leave_lanes()
        end, theirs = self.ends[sender], other.ends[0]
        seen, end.requester = end.requester, theirs.requester
        for step in other.ladder.steps():
            self.ladder.add(step._replace(sender=sender if step.sender == 0 else 1 - sender))
        end.requester.sender, end.requester.ladder = sender, self.ladder
        end.requester.take_over(seen)
        end.packets_sent += theirs.packets_sent
        end.wrong_icrc += theirs.wrong_icrc
        self.believed += other.believed
        self._ways[sender].update(other._ways[0])
        self.several_ways |= other.several_ways
        self.first = min(self.first, other.first, key=lambda row: row.position)

    def facts(self, until_ns: int) -> ConnectionFacts:
        """The facts of the connection so far. ``until_ns``: the time of the capture's last packet."""
        self.leave_lanes()
        messages = tuple(CmFacts(s.message, s.sender, s.times, s.last_number, s.last_time_ns) for s in self._sent)
        after = self._aftermath
        mirrored = any(end.requester.copies for end in self.ends)
        steps = self.ladder.steps()
        listed = {step.last_number for step in steps}
        late = [step for step in after.steps() if step.number not in listed]
        steps = tuple(sorted({*steps, *late}, key=lambda step: (step.time_ns, step.last_number)))
        return ConnectionFacts(
            vlans=(vlans_of(self.segments[0].tags), vlans_of(self.segments[1].tags)),
            networks=(self.segments[0].network, self.segments[1].network),
            ends=(self.ends[0].facts(), self.ends[1].facts()),
            inferred=self.inferred,
            messages=messages,
            first_number=self.first.number,
            last_number=self.last.number,
            first_ns=self.first.time_ns,
            last_ns=self.last.time_ns,
            until_ns=until_ns,
            after_dreq=(
                after.facts(CmAttribute.DREQ, 0, mirrored=mirrored),
                after.facts(CmAttribute.DREQ, 1, mirrored=mirrored),
            ),
            after_drep=after.facts(CmAttribute.DREP, mirrored=mirrored),
            after_rej=after.facts(CmAttribute.REJ, mirrored=mirrored),
            evicted=self.evicted,
            reused=self.reused,
            elsewhere=any(seen and not end.packets_sent for seen, end in zip(self.elsewhere, self.ends, strict=True)),
            several_ways=self.several_ways,
            believed=self.believed,
            steps=steps,
            steps_elided=self.ladder.elided,
        )


class Lane:
    """The packets from one end of a connection to the other's queue pair."""

    __slots__ = (
        "answered",
        "connection",
        "end",
        "last",
        "packets",
        "requester",
        "sender",
        "stale",
        "unpaired",
        "watched",
    )

    @property
    def disorder(self) -> int:
        """The number of times that this lane's packets did not continue the earlier ones."""
        return self.requester.disorder + self.answered.disorder

    def __init__(self, connection: Connection, sender: int, *, watched: bool, unpaired: bool) -> None:
        self.connection = connection
        self.sender = sender
        self.watched = watched
        self.unpaired = unpaired
        self.stale = False
        self.packets = 0
        self.last: Row | None = None
        self.end = connection.ends[sender]
        self.requester = connection.ends[sender].requester
        self.answered = connection.ends[1 - sender].requester


def _same(one: CmMessage, other: CmMessage) -> bool:
    """Whether ``other`` is ``one`` sent again. Fields that a snap length cut off are not compared."""
    return all(a == b or -1 in (a, b) for a, b in zip(_identity(one), _identity(other), strict=True))


def _completed(known: CmMessage, other: CmMessage) -> CmMessage:
    """``known``, with the fields that were cut off taken from ``other``, which is the same message."""
    missing = {name: getattr(other, name) for name in _MAY_BE_CUT if getattr(known, name) in (-1, (-1, -1))}
    return replace(known, **missing)


_MAY_BE_CUT = [field.name for field in fields(CmMessage) if field.name not in ("attribute", "number", "time_ns")]


def _identity(message: CmMessage) -> tuple[int, ...]:
    ids = message.local_comm_id, message.remote_comm_id, message.transaction_id
    return (message.attribute, *ids, message.qpn, message.psn, message.reason)
