"""The records behind descriptors: sockets, operations, registrations."""

import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hil.verbs.cm import CmEvent, CmId
from hil.verbs.connection import Connection
from hil.winsock.codes import FD_MAX_EVENTS, Code
from hil.winsock.structures import WSAEVENT, WSAOVERLAPPED, SockAddr


class State(Enum):
    """Where a socket is in its life."""

    CREATED = "created"
    BOUND = "bound"
    LISTENING = "listening"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAILED = "connect failed"


@dataclass(slots=True, eq=False)
class Registration:
    """Registered memory: ``handle`` is the MR's lkey plus one, so never NULL; ``count`` live registrations."""

    handle: int
    address: int
    length: int
    flags: int
    mr: Any
    count: int = 1
    in_use: int = 0

    def covers(self, address: int, length: int) -> bool:
        return self.address <= address and address + length <= self.address + self.length


@dataclass(slots=True, eq=False)
class Operation:
    """An overlapped operation that was posted."""

    wr_id: int
    kind: str
    overlapped: WSAOVERLAPPED
    length: int
    registrations: list[Registration]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended, to be told to the switch."""

    operation: Operation
    code: Code
    transferred: int


@dataclass(slots=True, eq=False)
class SanSocket:
    """One socket. ``lock`` guards everything here and is never held during an up-call (OVL-25)."""

    descriptor: int
    handle: int
    family: int
    state: State = State.CREATED
    closing: bool = False
    error: Code = Code.WSAENOTCONN
    local: SockAddr | None = None
    remote: SockAddr | None = None
    cm_id: CmId | None = None
    connection: Connection | None = None
    backlog: int = 0
    queue: deque[CmEvent] = field(default_factory=deque)
    event: WSAEVENT | None = None
    selected: int = 0
    happened: int = 0
    event_codes: list[int] = field(default_factory=lambda: [0] * FD_MAX_EVENTS)
    pending: dict[int, Operation] = field(default_factory=dict)
    outcomes: deque[Outcome] = field(default_factory=deque)
    deliverer: int | None = None
    registrations: list[Registration] = field(default_factory=list)
    lock: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
