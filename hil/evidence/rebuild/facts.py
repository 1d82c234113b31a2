"""What is known of a rebuilt connection, as facts: counts, gaps, messages, and the steps of its ladder."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from hil.evidence.rebuild.management import CmMessage

STEPS_KEPT_FIRST, STEPS_KEPT_LAST = 24, 40


class Step(NamedTuple):
    """One line of a connection's ladder: a message, an acknowledgement, a CM message.

    ``number`` and ``last_number`` are the frames it begins and ends in, ``sender`` is the end (0 or 1), ``size`` is in
    bytes, ``syndrome`` an acknowledgement's. Absent values are -1.
    """

    number: int
    last_number: int
    time_ns: int
    sender: int
    what: str
    psn: int = -1
    last_psn: int = -1
    size: int = -1
    syndrome: int = -1

    @property
    def place(self) -> tuple[int, int]:
        """Where it is in time: what is compared to tell what came first. A file's order need not be that of time."""
        return self.time_ns, self.number


RawStep = tuple[int, int, int, int, str, int, int, int, int]


class Where(Enum):
    """Where packets went that the capture does not show in their place."""

    LOST = "lost on the wire"
    MISSED = "missing in the capture"
    REORDERED = "out of order"
    UNKNOWN = "unknown"


GAP_PSNS_KEPT = 1 << 16


@dataclass(slots=True)
class Gap:
    """PSNs from ``start`` up to but not including ``end`` that were skipped in frame ``number``; ``early``: they were
    acknowledged before they came."""

    start: int
    end: int
    number: int
    time_ns: int
    came: set[int] = field(default_factory=set)
    last_fill_ns: int = 0
    early: bool = False
    asked: bool = False
    acknowledged: bool = False

    def fill(self, psn: int, time_ns: int) -> None:
        """``psn``, which is in it, came after all. Of a gap too long to be filled not all is kept."""
        if len(self.came) < GAP_PSNS_KEPT:
            self.came.add(psn)
        self.last_fill_ns = time_ns


@dataclass(frozen=True, slots=True)
class GapFacts:
    """A gap with its conclusion."""

    first_psn: int
    packets: int
    number: int
    where: Where


@dataclass(frozen=True, slots=True)
class DirectionFacts:
    """The requests of one end, and what the other end answered.

    ``packets`` and ``payload`` (bytes) count each PSN once; ``retransmissions`` are packets sent again in ``resends``
    runs, of which ``go_backs`` were longer than one packet. ``unanswered_tries`` counts runs from one PSN since the
    last progress, ``unsure_tries`` those that may be second copies. ``unacknowledged`` are messages in flight
    at the end, the oldest first and capped; their number is ``messages_in_flight``. ``naks`` maps a NAK code's name to
    its number of packets.
    """

    first_psn: int
    next_psn: int
    oldest_unacknowledged_psn: int
    packets: int
    payload: int
    messages_begun: int
    messages_ended: int
    messages_acknowledged: int
    messages_in_flight: int
    unacknowledged: tuple[Step, ...]
    retransmissions: int
    resends: int
    go_backs: int
    unanswered_tries: int
    unsure_tries: int
    acknowledgements: int
    repeated_acknowledgements: int
    rnr_naks: int
    rnr_since_progress: int
    naks: dict[str, int]
    fatal_nak: "Step | None"
    last_msn: int
    reads: int
    reads_answered: int
    read_payload: int
    atomics: int
    gaps: tuple[GapFacts, ...]
    gaps_by: dict[Where, int]
    copies: int
    unsure_copies: int
    strange: int
    last_request: "Step | None"
    last_response: "Step | None"


@dataclass(frozen=True, slots=True)
class EndFacts:
    """One end: its address, QPN and CM id (-1 when the capture does not tell), and the direction of its requests."""

    address: str
    qpn: int
    comm_id: int
    requests: DirectionFacts
    packets_sent: int
    wrong_icrc: int
    congestion_marks: int


@dataclass(frozen=True, slots=True)
class After:
    """Packets that came after an event: how many, the first of them, and the longest time after it.

    ``unsure`` counts those that may as well be second copies of packets in front of it; they are not in ``count``.
    """

    count: int = 0
    steps: tuple[Step, ...] = ()
    latest_ns: int = 0
    unsure: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(step.number for step in self.steps)


@dataclass(frozen=True, slots=True)
class CmFacts:
    """A CM message as the connection saw it: from which end, and how often it was sent."""

    message: CmMessage
    sender: int
    times_sent: int
    last_number: int
    last_time_ns: int

    @property
    def place(self) -> tuple[int, int]:
        """Where it was sent first, to be compared with a Step's place."""
        return self.message.time_ns, self.message.number

    @property
    def last_place(self) -> tuple[int, int]:
        """Where it was sent last."""
        return self.last_time_ns, self.last_number


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """A connection rebuilt from packets. End 0 is the active one where a REQ or REP was seen, else the first seen.

    ``vlans`` are the VLAN ids of each end's packets, the outer one's first; a mirror may show one direction's only.
    ``networks`` are numbers, from 0, of the networks that each end's packets are in, among those with the same
    addresses that their MAC addresses tell apart.
    ``inferred``: the two directions were paired by addresses and acknowledgements, not by CM messages.
    ``after_dreq``: what each end sent after its own first DREQ; ``after_drep``: what either end sent after the last
    DREP, not counting its repetitions; ``after_rej``: likewise after a REJ. ``until_ns`` is how far the capture goes
    on: the time of its last frame. ``elsewhere``: what one end sent is missing, and packets
    like it are in another VLAN or network. ``several_ways``: packets of an end that do not go on from those before go
    between other MAC addresses. ``believed`` counts packets that
    were taken although their ICRC is wrong, because none had been right so far.
    """

    vlans: tuple[tuple[int, ...], tuple[int, ...]]
    networks: tuple[int, int]
    ends: tuple[EndFacts, EndFacts]
    inferred: bool
    messages: tuple[CmFacts, ...]
    first_number: int
    last_number: int
    first_ns: int
    last_ns: int
    until_ns: int
    after_dreq: tuple[After, After]
    after_drep: After
    after_rej: After
    evicted: bool
    reused: bool
    elsewhere: bool
    several_ways: bool
    believed: int
    steps: tuple[Step, ...]
    steps_elided: int


class Ladder:
    """The first and the last steps of a connection; what is between is counted."""

    __slots__ = ("_first", "_last", "count")

    def __init__(self) -> None:
        self._first: list[RawStep] = []
        # Most connections of a large capture are short, and even an empty deque is large.
        self._last: deque[RawStep] | None = None
        self.count = 0

    def add(self, step: RawStep) -> None:
        """A step as a plain tuple of a Step's fields: making a Step of each would take as long as all the rest."""
        self.count += 1
        if self.count <= STEPS_KEPT_FIRST:
            self._first.append(step)
            return
        if self._last is None:
            self._last = deque(maxlen=STEPS_KEPT_LAST)
        self._last.append(step)

    def steps(self) -> tuple[Step, ...]:
        return tuple(map(Step._make, (*self._first, *(self._last or ()))))

    @property
    def elided(self) -> int:
        return self.count - len(self._first) - len(self._last or ())
