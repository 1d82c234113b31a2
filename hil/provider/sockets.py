"""The records of descriptors: sockets, operations, registrations."""

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
    """The states of a socket."""

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
    """Registered memory.

    ``handle``: the MR's lkey plus one, so never NULL. ``count``: the number of live registrations. ``in_use``: the
    number of operations that use it. ``frames``: its physical pages when it was made, None when unknown.
    """

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
    """An overlapped operation. ``length``: in bytes. ``remote``: rkey and address of an RDMA transfer.

    ``posted``: the adapter has it.
    """

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
    """The end of an operation, to be reported to the switch. ``transferred``: in bytes."""

    operation: Operation
    code: Code
    transferred: int


@dataclass(slots=True, eq=False)
class Request:
    """A connection request in a listener's queue."""

    new_id: CmId
    private_data: bytes

    def withdrawn(self) -> bool:
        """Whether the connector has given up (ACC-17).

        The kernel reports it only after an accept, but it has no attributes for a connection that has become
        impossible.
        """
        try:
            self.new_id.qp_attr(INIT)
        except OSError:
            return True
        return False


@dataclass(slots=True)
class Early:
    """Private receives for early messages.

    The first messages of a connection fill one private receive each, and the first receives of the switch take one
    message each. ``unclaimed`` counts the private receives that the switch's receives have not claimed; at 0 further
    receives go to the adapter directly (NEG-05, NEG-06).
    """

    slots: dict[int, int] = field(default_factory=dict)
    size: int = 0
    memory: Any = None
    mr: Any = None
    unclaimed: int = 0
    # Addresses of the receives that an old queue pair returned unused.
    flushed: list[int] = field(default_factory=list)
    arrived: deque[bytes] = field(default_factory=deque)
    waiting: deque[Operation] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class SanSocket:
    """One socket. ``lock`` guards all fields, and is never held during an up-call (OVL-25)."""

    descriptor: int
    handle: int
    family: int
    state: State = State.CREATED
    closing: bool = False
    error: Code = Code.WSAENOTCONN
    # The CM has reported the connection's end, so no DREP will come.
    disconnected: bool = False
    local: SockAddr | None = None
    remote: SockAddr | None = None
    cm_id: CmId | None = None
    connection: Connection | None = None
    backlog: int = 0
    queue: deque[Request] = field(default_factory=deque)
    # Requests that a condition function is deciding about; they keep their places in the queue.
    asked: set[Request] = field(default_factory=set)
    options: dict[int, int] = field(default_factory=dict)
    event: WSAEVENT | None = None
    selected: int = 0
    happened: int = 0
    event_codes: list[int] = field(default_factory=lambda: [0] * FD_MAX_EVENTS)
    caller_data: bytes = b""
    callee_data: WSABUF | None = None
    # Operations by wr_id. The adapter does not have those in ``waiting`` yet.
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
    # The rest of a close that the delivering thread must do.
    rest: Callable[[], None] | None = None
    registrations: list[Registration] = field(default_factory=list)
    exposed: dict[bytes, Registration] = field(default_factory=dict)
    cache: list[Registration] = field(default_factory=list)
    # The connection's names here (secret) and at the peer's provider (peer); hand-overs keep them (DUP-02).
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_SIZE))
    peer: Peer = field(default_factory=Peer)
    lock: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
