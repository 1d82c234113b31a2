"""The kinds of journal entries and the facts of each: the words that nodes and the wire use, and rules read.

A node sends an entry as plain data: its kind, the time, thread and process, and the facts of a class below by their
names. ``hil.evidence.journal`` makes entries of what came. A fact that is None is not sent.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Kind(StrEnum):
    """What an entry tells of."""

    BEGIN = "begin"
    CALL = "call"
    UPCALL = "upcall"
    MR = "mr"
    QP = "qp"
    CM = "cm"
    WC = "wc"
    NETWORK = "network"
    HANDOVER = "handover"
    CONNECT_FAILED = "connect failed"
    ACCEPT_FAILED = "accept failed"
    HANDOVER_FAILED = "handover failed"
    FEED_FAILED = "feed failed"
    FLUSH_INCOMPLETE = "flush incomplete"
    ERROR = "error"
    MISBEHAVES = "misbehaves"
    CONDITION = "condition"
    SESSION = "session"
    ADDRESSES = "addresses"
    DEVICE = "device"
    EXIT = "exit"
    FAULT = "fault"
    CABLE = "cable"
    INJECT = "inject"


class MrEvent(StrEnum):
    REGISTERED = "registered"
    RELEASED = "released"


class CmEvent(StrEnum):
    """RDMA_CM_EVENT_*, and what the provider could not do with the connection manager."""

    ADDR_RESOLVED = "ADDR_RESOLVED"
    ADDR_ERROR = "ADDR_ERROR"
    ROUTE_RESOLVED = "ROUTE_RESOLVED"
    ROUTE_ERROR = "ROUTE_ERROR"
    CONNECT_REQUEST = "CONNECT_REQUEST"
    CONNECT_RESPONSE = "CONNECT_RESPONSE"
    CONNECT_ERROR = "CONNECT_ERROR"
    UNREACHABLE = "UNREACHABLE"
    REJECTED = "REJECTED"
    ESTABLISHED = "ESTABLISHED"
    DISCONNECTED = "DISCONNECTED"
    DEVICE_REMOVAL = "DEVICE_REMOVAL"
    MULTICAST_JOIN = "MULTICAST_JOIN"
    MULTICAST_ERROR = "MULTICAST_ERROR"
    ADDR_CHANGE = "ADDR_CHANGE"
    TIMEWAIT_EXIT = "TIMEWAIT_EXIT"
    NO_HANDOVER_LISTENER = "no hand-over listener"
    DISCONNECT_FAILED = "rdma_disconnect failed"


class NetworkEvent(StrEnum):
    UP = "up"
    DOWN = "down"


class CableEvent(StrEnum):
    CUT = "cut"
    MENDED = "mended"


class ConditionEvent(StrEnum):
    BEGINS = "begins"
    ANSWERS = "answers"


class SessionEvent(StrEnum):
    SENDS = "sends"
    RECEIVES = "receives"
    LOST = "lost"
    ENDS = "ends"
    BAD_MESSAGE = "bad message"
    CALL_FAILED = "call failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What every entry tells.

    ``node``: a node's name, or "wire". ``t_ns``: when, by the node's monotonic clock; ``at_ns``: the same by the
    controller's. ``worker``: the worker's number on its node; ``thread`` and ``pid`` are the kernel's numbers.
    """

    kind: ClassVar[Kind]

    node: str
    at_ns: int
    t_ns: int
    worker: int | None = None
    thread: int | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(Entry):
    """A down-call begins. ``socket``: its first argument, where that is a descriptor. ``overlapped``: the operation's
    number; ``polled``: its result is asked for, no up-call tells it."""

    kind: ClassVar[Kind] = Kind.BEGIN

    function: str
    socket: int | None = None
    overlapped: int | None = None
    polled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Begin):
    """A down-call ended: ``begun_ns`` by the node's clock; ``code``: a Windows Sockets error; ``result``: None for
    NULL, "INVALID_SOCKET" by its name; ``version``: WSPStartupEx's."""

    kind: ClassVar[Kind] = Kind.CALL

    begun_ns: int
    code: int
    result: bool | int | str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpCall(Entry):
    """An up-call. ``known``: the handle was made and is not closed; None where that is not asked."""

    kind: ClassVar[Kind] = Kind.UPCALL

    function: str
    handle: int
    known: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleMade(UpCall):
    """WPUCreateSocketHandle. ``context``: the provider's descriptor. ``failed``: the code it was made to fail with."""

    context: int
    failed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(UpCall):
    """WPUCompleteOverlappedRequest. ``overlapped``: the operation's number, 0 for a structure the switch does not know;
    ``transferred``: bytes; ``was_pending``: it had not ended before."""

    overlapped: int
    code: int
    transferred: int
    was_pending: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(Entry):
    """A memory region was registered: its local ``key`` and its ``length`` in bytes."""

    kind: ClassVar[Kind] = Kind.MR

    event: MrEvent
    handle: int
    key: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(Entry):
    """A registration was released by a close; ``count``: how many times it had been registered."""

    kind: ClassVar[Kind] = Kind.MR

    event: MrEvent
    handle: int
    registration: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePairMade(Entry):
    """A queue pair was made for a socket."""

    kind: ClassVar[Kind] = Kind.QP

    handle: int
    qp_num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CmHeard(Entry):
    """An event of the connection manager. ``status``: an errno (negative) or a refusal's reason (positive)."""

    kind: ClassVar[Kind] = Kind.CM

    event: CmEvent
    handle: int
    status: int
    qp_num: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkCompletion(Entry):
    """A completion came out of a completion queue; ``status``: ibv_wc_status."""

    kind: ClassVar[Kind] = Kind.WC

    handle: int
    status: int
    wr_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChanged(Entry):
    """The provider heard that its network went up or down."""

    kind: ClassVar[Kind] = Kind.NETWORK

    event: NetworkEvent
    handle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver(Entry):
    """A connection goes on with a queue pair of another process; ``receives``: how many were posted again."""

    kind: ClassVar[Kind] = Kind.HANDOVER

    event: str
    handle: int
    receives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed(Entry):
    handle: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectFailed(_Failed):
    """Verbs refused a step of a connect."""

    kind: ClassVar[Kind] = Kind.CONNECT_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptFailed(_Failed):
    """Verbs refused a step of an accept."""

    kind: ClassVar[Kind] = Kind.ACCEPT_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverFailed(_Failed):
    """Verbs refused a step of a hand-over."""

    kind: ClassVar[Kind] = Kind.HANDOVER_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedFailed(_Failed):
    """Verbs refused an operation that had waited for room."""

    kind: ClassVar[Kind] = Kind.FEED_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushIncomplete(Entry):
    """The adapter did not flush ``count`` posted requests of a queue pair in the error state."""

    kind: ClassVar[Kind] = Kind.FLUSH_INCOMPLETE

    handle: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised(Entry):
    """A thread of the provider or the switch raised what no call could return."""

    kind: ClassVar[Kind] = Kind.ERROR

    handle: int
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaves(Entry):
    """The switch broke an obligation; ``deliberate``: a test made it do so."""

    kind: ClassVar[Kind] = Kind.MISBEHAVES

    requirement: str
    seen: str
    deliberate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition(Entry):
    """A condition function begins or answers; ``decision``: CF_ACCEPT, CF_REJECT or CF_DEFER."""

    kind: ClassVar[Kind] = Kind.CONDITION

    event: ConditionEvent
    socket: int
    decision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Entry):
    """A step of the switch's session protocol; ``length`` in bytes."""

    kind: ClassVar[Kind] = Kind.SESSION

    event: SessionEvent
    socket: int
    message: str | None = None
    length: int | None = None
    text: str | None = None
    code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesChanged(Entry):
    """The switch heard that the node's addresses changed."""

    kind: ClassVar[Kind] = Kind.ADDRESSES

    event: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChanged(Entry):
    """An event of the kernel's RDMA devices."""

    kind: ClassVar[Kind] = Kind.DEVICE

    event: str
    device: str | None = None
    index: int | None = None
    port: int | None = None
    netdev: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit(Entry):
    """A worker's process ended; ``status`` is negative for a signal."""

    kind: ClassVar[Kind] = Kind.EXIT

    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultHit(Entry):
    """A fault of the wire acted on a frame: its ``hit``-th, number ``frame`` of the capture, from ``side``."""

    kind: ClassVar[Kind] = Kind.FAULT

    fault: str
    hit: int
    action: str
    side: str
    number: int
    frame: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CableChanged(Entry):
    """The wire was cut or mended."""

    kind: ClassVar[Kind] = Kind.CABLE

    event: CableEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected(Entry):
    """A test put a frame on the wire."""

    kind: ClassVar[Kind] = Kind.INJECT

    side: str
    frame: int


CLASSES: tuple[type[Entry], ...] = (
    Begin,
    Call,
    UpCall,
    HandleMade,
    Completed,
    Registered,
    Released,
    QueuePairMade,
    CmHeard,
    WorkCompletion,
    NetworkChanged,
    HandedOver,
    ConnectFailed,
    AcceptFailed,
    HandoverFailed,
    FeedFailed,
    FlushIncomplete,
    Raised,
    Misbehaves,
    Condition,
    Session,
    AddressesChanged,
    DeviceChanged,
    Exit,
    FaultHit,
    CableChanged,
    Injected,
)
"""Every class of entries."""

BY_FUNCTION: dict[str, type[UpCall]] = {
    "WPUCreateSocketHandle": HandleMade,
    "WPUCompleteOverlappedRequest": Completed,
}
"""The up-calls that have facts of their own; all others are UpCall."""

BY_MR_EVENT: dict[str, type[Entry]] = {MrEvent.REGISTERED: Registered, MrEvent.RELEASED: Released}
