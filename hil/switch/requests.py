"""The requests of applications to a session, and their state."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hil.switch.messages import Kind
from hil.winsock.codes import Code


class StreamError(Exception):
    """A call on a stream ended with ``code``, after ``done`` bytes."""

    def __init__(self, code: Code, done: int = 0) -> None:
        super().__init__(str(code))
        self.code, self.done = code, done


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a session. ``chunk``: the largest RDMA transfer in bytes, 0 for SO_MAX_RDMA_SIZE."""

    receives: int = 16
    sends: int = 8
    window: int = 65536
    chunk: int = 0
    suspension_timeout_s: float = 30.0


@dataclass(slots=True, eq=False)
class Request:
    """A request that an application's thread waits for."""

    future: Future[Any] = field(default_factory=Future, kw_only=True)

    def fail(self, code: Code, done: int = 0) -> None:
        if not self.future.done():
            self.future.set_exception(StreamError(code, done))

    def settle(self, value: Any = None) -> None:
        if not self.future.done():
            self.future.set_result(value)


@dataclass(slots=True, eq=False)
class Open(Request):
    """Wait for the end of the negotiation."""


@dataclass(slots=True, eq=False)
class Send(Request):
    """Send stream data at ``address``, or with ``last`` the END or FAREWELL behind earlier data."""

    address: int
    length: int
    last: Kind | None = None
    done: int = 0
    transfer: "Outgoing | None" = None


@dataclass(slots=True, eq=False)
class Urgent(Request):
    """Send urgent data, or receive it if ``data`` is empty."""

    data: bytes = b""


@dataclass(slots=True, eq=False)
class Read(Request):
    address: int
    length: int
    filled: int = 0


@dataclass(slots=True, eq=False)
class Suspend(Request):
    """Suspend the session. ``answered``: the peer is drained. ``quiet``: this side is too, and send memory is free."""

    answered: bool = False
    quiet: bool = False


@dataclass(slots=True, eq=False)
class Resume(Request):
    pass


@dataclass(slots=True, eq=False)
class Outgoing:
    """One RDMA transfer of a send: exposed by ``descriptor``, or ``pushing`` from memory registered as ``handle``."""

    number: int
    send: Send
    length: int
    descriptor: bytes = b""
    handle: int = 0
    pushing: bool = False


@dataclass(slots=True, eq=False)
class Item:
    """A piece of the incoming stream, in order. ``data`` is None until its RDMA transfer is done.

    ``number`` and ``length`` belong to the transfer. ``source``: the peer's descriptor to read from. Without one the
    peer writes into ``target``. ``memory``: the destination, once the transfer has begun.
    """

    data: bytes | None = None
    taken: int = 0
    by_message: bool = True
    number: int = 0
    length: int = 0
    source: bytes | None = None
    target: bytes = b""
    memory: int | None = None
    handle: int = 0


@dataclass(slots=True, eq=False)
class Receive:
    slot: int
    outcome: tuple[Code, int] | None = None
