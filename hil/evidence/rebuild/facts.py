"""The facts of a rebuilt connection: counts, gaps, messages, and the steps of its ladder."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from hil.evidence.rebuild.management import CmMessage

STEPS_KEPT_FIRST, STEPS_KEPT_LAST = 24, 40


class Step(NamedTuple):
    """One line of a connection's ladder: a message, an acknowledgement, a CM message.

    ``number``, ``last_number``: the frames that it begins and ends in. ``sender``: the end, 0 or 1. ``size``: in bytes.
    ``syndrome``: of an acknowledgement. Absent values are -1.
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
        """Time and frame number, to be compared for the order of steps. The order of frames may differ from that."""
        return self.time_ns, self.number


RawStep = tuple[int, int, int, int, str, int, int, int, int]


class Where(Enum):
    """Where packets went that are missing in their place in the capture."""

    LOST = "lost on the wire"
    MISSED = "missing in the capture"
    REORDERED = "out of order"
    UNKNOWN = "unknown"


GAP_PSNS_KEPT = 1 << 16


@dataclass(slots=True)
class Gap:
    """The PSNs from ``start`` up to but not including ``end``, which frame ``number`` skipped.

    ``early``: they were acknowledged before they came. ``asked``: a NAK asked for them.
    """

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
        """Note that ``psn``, which is in the gap, came late. At most GAP_PSNS_KEPT are kept."""
        if len(self.came) < GAP_PSNS_KEPT:
            self.came.add(psn)
        self.last_fill_ns = time_ns


@dataclass(frozen=True, slots=True)
class GapFacts:
    """A gap, with the conclusion where its packets went."""

    first_psn: int
    packets: int
    number: int
    where: Where


@dataclass(frozen=True, slots=True)
class DirectionFacts:
    """The requests of one end, and the answers of the other end.

    ``packets`` and ``payload`` (bytes) count each PSN once. ``retransmissions``: packets sent again, in ``resends``
    runs, of which ``go_backs`` were longer than one packet. ``unanswered_tries``: runs from the same PSN since the last
    progress. ``unsure_tries``: such runs that may be second copies. ``messages_in_flight``: unacknowledged messages at
    the end; ``unacknowledged`` holds the oldest of them. ``naks``: the number of NAKs by the name of their code.
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
    """One end: its address, QPN and CM id (-1 when unknown), and the direction of its requests."""

    address: str
    qpn: int
    comm_id: int
    requests: DirectionFacts
    packets_sent: int
    wrong_icrc: int
    congestion_marks: int


@dataclass(frozen=True, slots=True)
class After:
    """Packets after an event: their number, the first of them, and the longest time after it.

    ``unsure``: further packets, which may be second copies of packets in front of the event.
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
    """A CM message of a connection: the end that sent it, and how often it was sent."""

    message: CmMessage
    sender: int
    times_sent: int
    last_number: int
    last_time_ns: int

    @property
    def place(self) -> tuple[int, int]:
        """The place of its first sending, comparable to a step's place."""
        return self.message.time_ns, self.message.number

    @property
    def last_place(self) -> tuple[int, int]:
        """The place of its last sending."""
        return self.last_time_ns, self.last_number


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """A connection rebuilt from packets. End 0 is the active end if a REQ or REP was seen, else the first one seen.

    - ``vlans``: the VLAN ids of each end's packets, the outer one first; a mirror may show those of one direction only.
    - ``networks``: the number, from 0, of each end's network among networks with the same IP addresses, which differ by
      their MAC addresses.
    - ``inferred``: the two directions were paired by addresses and acknowledgements, not by CM messages.
    - ``until_ns``: the time of the capture's last frame.
    - ``after_dreq``: packets of each end after its own first DREQ. ``after_drep``: packets of both ends after the last
      DREP, without its repetitions. ``after_rej``: the same after a REJ.
    - ``evicted``: dropped before its end, because too many connections were live. ``reused``: a later connection uses
      its queue pair's number.
    - ``elsewhere``: the packets of one end are missing, and packets like them are in another VLAN or network.
    - ``several_ways``: packets that do not continue the earlier ones go between other MAC addresses.
    - ``believed``: the number of packets accepted with a wrong ICRC, because no packet had had a right one yet.
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
    """The first and the last steps of a connection; the steps between are only counted."""

    __slots__ = ("_first", "_last", "count")

    def __init__(self) -> None:
        self._first: list[RawStep] = []
        # Made on demand: most connections of a large capture are short, and even an empty deque is large.
        self._last: deque[RawStep] | None = None
        self.count = 0

    def add(self, step: RawStep) -> None:
        """Add a step, given as a plain tuple of a Step's fields: making Steps would double the time of the rebuild."""
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
