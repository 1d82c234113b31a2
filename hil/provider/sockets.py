"""The records behind descriptors: sockets, operations, registrations."""

import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hil.provider.private_data import SECRET_SIZE, Peer
from hil.verbs.cm import CmId
from hil.verbs.connection import INIT, RECV_DEPTH, SEND_DEPTH, Connection
from hil.winsock.codes import FD_MAX_EVENTS, Code
from hil.winsock.structures import WSABUF, WSAEVENT, WSAOVERLAPPED, SockAddr


class State(Enum):
    """Where a socket is in its life."""

    CREATED = "created"
    BOUND = "bound"
    LISTENING = "listening"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "connect failed"
    HANDED_OVER = "handed over to another process"


@dataclass(slots=True, eq=False)
class Registration:
    """Registered memory. ``handle`` is the MR's lkey plus one, so never NULL; ``count`` live registrations; ``frames``
    the physical pages behind it when it was made, None where they cannot be known."""

    handle: int
    address: int
    length: int
    flags: int
    mr: Any
    count: int = 1
    in_use: int = 0
    frames: bytes | None = None

    def covers(self, address: int, length: int) -> bool:
        return self.address <= address and address + length <= self.address + self.length

    def overlaps(self, address: int, length: int) -> bool:
        return self.address < address + length and address < self.address + self.length


class Kind(Enum):
    """The overlapped operations."""

    SEND = "send"
    RECV = "recv"
    WRITE = "rdma write"
    READ = "rdma read"
    IOCTL = "ioctl"


@dataclass(slots=True, eq=False)
class Operation:
    """An overlapped operation. ``remote``: rkey and address of an RDMA transfer; ``posted``: the adapter has it."""

    wr_id: int
    kind: Kind
    overlapped: WSAOVERLAPPED
    length: int
    buffers: list[WSABUF] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    remote: tuple[int, int] = (0, 0)
    posted: bool = False

    def parts(self) -> list[tuple[int, int, int]]:
        """Address, length and lkey of each buffer."""
        pairs = zip(self.buffers, self.registrations, strict=True)
        return [(buffer.buf, buffer.len, registration.mr.lkey) for buffer, registration in pairs]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended, to be told to the switch."""

    operation: Operation
    code: Code
    transferred: int


@dataclass(slots=True, eq=False)
class Request:
    """A connection request in a listener's queue."""

    new_id: CmId
    private_data: bytes

    def withdrawn(self) -> bool:
        """Whether the connector has given up (ACC-17): the kernel keeps that to itself until a request is accepted,
        but has no attributes for a connection that cannot come to be any more."""
        try:
            self.new_id.qp_attr(INIT)
        except OSError:
            return True
        return False


@dataclass(slots=True)
class Early:
    """Private receives for early messages: ``unclaimed`` of them still belong to receives the switch will post.

    The first messages of a connection land in them, one each; the first receives of the switch take one each, so both
    sides count down together and later receives go straight to the adapter (NEG-05, NEG-06).
    """

    slots: dict[int, int] = field(default_factory=dict)
    size: int = 0
    memory: Any = None
    mr: Any = None
    unclaimed: int = 0
    # Where the receives were that came back unused with an old queue pair.
    flushed: list[int] = field(default_factory=list)
    arrived: deque[bytes] = field(default_factory=deque)
    waiting: deque[Operation] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class SanSocket:
    """One socket. ``lock`` guards everything here and is never held during an up-call (OVL-25)."""

    descriptor: int
    handle: int
    family: int
    state: State = State.CREATED
    closing: bool = False
    error: Code = Code.WSAENOTCONN
    # CM has told of the connection's end: no DREP is to come.
    disconnected: bool = False
    local: SockAddr | None = None
    remote: SockAddr | None = None
    cm_id: CmId | None = None
    connection: Connection | None = None
    backlog: int = 0
    queue: deque[Request] = field(default_factory=deque)
    # Requests that condition functions are being asked about: they keep their places in the queue.
    asked: set[Request] = field(default_factory=set)
    options: dict[int, int] = field(default_factory=dict)
    event: WSAEVENT | None = None
    selected: int = 0
    happened: int = 0
    event_codes: list[int] = field(default_factory=lambda: [0] * FD_MAX_EVENTS)
    caller_data: bytes = b""
    callee_data: WSABUF | None = None
    # Operations by wr_id; those in ``waiting`` are not the adapter's yet.
    pending: dict[int, Operation] = field(default_factory=dict)
    waiting: deque[Operation] = field(default_factory=deque)
    parked: list[Operation] | None = None
    taking: bool = False
    send_room: int = SEND_DEPTH
    recv_room: int = RECV_DEPTH
    reads: int = 0
    early: Early = field(default_factory=Early)
    outcomes: deque[Outcome] = field(default_factory=deque)
    deliverer: int | None = None
    # The rest of a close, when the deliverer is to do it.
    rest: Callable[[], None] | None = None
    registrations: list[Registration] = field(default_factory=list)
    exposed: dict[bytes, Registration] = field(default_factory=dict)
    cache: list[Registration] = field(default_factory=list)
    # The connection's name with us and with the peer's provider, kept through hand-overs (DUP-02).
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_SIZE))
    peer: Peer = field(default_factory=Peer)
    lock: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
