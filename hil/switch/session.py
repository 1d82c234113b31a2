"""The session that the switch keeps with its peer over one SAN connection: a byte stream made of messages and RDMA.

The contract describes it in words only (SESS, XFER, URG, SHUT), so the format is this switch's own. Each side posts its
receives and then says how many: the connector's HELLO goes first, the acceptor's answers it. From then on every message
spends one receive of the peer's (a credit), and tells how many the sender has posted again and how much of the stream
its application has read. Data up to the threshold rides in DATA. Larger data is a SOURCE, which the receiver pulls by
RDMA read and ends with PULLED; where its provider cannot read it is a REQUEST, answered with a TARGET into which the
sender pushes by RDMA write, ended with PUSHED. END half-closes the stream, FAREWELL goes before the socket is closed.
"""

import contextlib
import ctypes
import itertools
import queue
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any

from hil.switch.switch import Memory, Switch
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, WSABUFEX, WSAPROTOCOL_INFOW

MAGIC, VERSION = b"SANS", 1
LONGEST_HELLO = 256
FEWEST_RECEIVES = 4
MOST_URGENT = 16
# What fits into the smallest receive beside the rest of a message.
LONGEST_DESCRIPTOR = 200
# How long what is left of a lost or closed connection may take to be completed, and an overdue suspension to be seen.
DRAIN_TIMEOUT_S, GRACE_S = 5.0, 0.5
# Codes by which a registration says that there is no memory for it, and a call that the connection has gone.
_NO_MEMORY = (Code.WSAENOBUFS, Code.WSAEFAULT)
_GONE = (
    Code.WSAECONNRESET,
    Code.WSAECONNABORTED,
    Code.WSAENETRESET,
    Code.WSAENETDOWN,
    Code.WSAENOTCONN,
    Code.WSA_OPERATION_ABORTED,
)


class StreamError(Exception):
    """A call on a stream ended with ``code``, after ``done`` bytes."""

    def __init__(self, code: Code, done: int = 0) -> None:
        super().__init__(str(code))
        self.code, self.done = code, done


class BadMessage(Exception):
    """The peer sent what no peer may send."""


class CallFailed(Exception):
    """A WSP function refused what the session cannot do without."""

    def __init__(self, function: str, code: Code) -> None:
        super().__init__(f"{function}: {code}")
        self.code = code


# --- messages --------------------------------------------------------------------------------------------------------


class Kind(IntEnum):
    """What a message says; see the module's text."""

    HELLO = 1
    DATA = 2
    URGENT = 3
    CREDIT = 4
    SOURCE = 5
    PULLED = 6
    REQUEST = 7
    TARGET = 8
    PUSHED = 9
    END = 10
    FAREWELL = 11
    SUSPEND = 12
    SUSPENDED = 13
    RESUME = 14


HEADER = struct.Struct("!BxHII")  # kind, receives posted again, bytes read, length of what follows
_HELLO = struct.Struct("!4sHHIIIB")  # magic, version, then Hello's fields
_TRANSFER = struct.Struct("!II")  # number, then length or code


@dataclass(frozen=True, slots=True)
class Message:
    """A message: ``credits`` and ``read`` are what its sender gives back."""

    kind: Kind
    payload: bytes = b""
    credits: int = 0
    read: int = 0

    def encode(self) -> bytes:
        return HEADER.pack(self.kind, self.credits, self.read, len(self.payload)) + self.payload


def decode(data: bytes) -> Message:
    """The message in a filled receive. Raises BadMessage."""
    if len(data) < HEADER.size:
        raise BadMessage(f"{len(data)} bytes are no message")
    kind, credits_, read, length = HEADER.unpack_from(data)
    if kind not in set(Kind) or length != len(data) - HEADER.size:
        raise BadMessage(f"kind {kind} with {length} bytes announced and {len(data) - HEADER.size} there")
    return Message(Kind(kind), data[HEADER.size :], credits_, read)


def transfer(number: int, value: int, descriptor: bytes = b"") -> bytes:
    """The payload of SOURCE, REQUEST (a length), PULLED, TARGET and PUSHED (a code)."""
    return _TRANSFER.pack(number, value) + descriptor


def parse_transfer(payload: bytes) -> tuple[int, int, bytes]:
    """Number, length or code, and descriptor. Raises BadMessage."""
    if len(payload) < _TRANSFER.size:
        raise BadMessage(f"{len(payload)} bytes name no transfer")
    number, value = _TRANSFER.unpack_from(payload)
    return number, value, payload[_TRANSFER.size :]


@dataclass(frozen=True, slots=True)
class Hello:
    """The negotiation message: how many receives of ``message_size`` bytes are posted, how much stream data is taken
    by message before the application reads, the largest RDMA transfer, and whether the provider has WSPRdmaRead."""

    receives: int
    message_size: int
    window: int
    max_rdma: int
    can_pull: bool

    def encode(self) -> bytes:
        fields = (self.receives, self.message_size, self.window, self.max_rdma, self.can_pull)
        return _HELLO.pack(MAGIC, VERSION, *fields)

    @classmethod
    def parse(cls, payload: bytes) -> "Hello":
        """Raises BadMessage for another protocol or version, and for limits that no session can live with."""
        if len(payload) < _HELLO.size or len(payload) + HEADER.size > LONGEST_HELLO:
            raise BadMessage(f"a negotiation message of {len(payload) + HEADER.size} bytes")
        magic, version, receives, size, window, most, can_pull = _HELLO.unpack_from(payload)
        if (magic, version) != (MAGIC, VERSION):
            raise BadMessage(f"{magic!r} version {version} is not spoken here")
        if receives < FEWEST_RECEIVES or size < LONGEST_HELLO or not window or not most:
            raise BadMessage(f"{receives} receives of {size} bytes, window {window}, RDMA up to {most}")
        return cls(receives, size, window, most, bool(can_pull))


@dataclass(slots=True)
class Flow:
    """What may still be sent, and what is owed to the peer.

    ``credits``: receives that the peer has posted and we have not used; ``window``: stream bytes that it still takes by
    message. ``owed_*``: what we have posted again or read and not yet told; ``unread``: what of our own window is used.
    """

    receives: int
    own_window: int
    # The first message needs no leave: the acceptor's provider keeps it until a receive is posted (NEG-01).
    credits: int = 1
    window: int = 0
    owed_credits: int = 0
    owed_bytes: int = 0
    unread: int = 0
    peer: Hello | None = None

    def open(self, peer: Hello) -> None:
        self.peer, self.credits, self.window = peer, peer.receives, peer.window

    def spend(self) -> bool:
        """Use a credit; whether there was one."""
        self.credits -= 1
        return self.credits >= 0

    def repay(self, *, all_told: bool = False) -> tuple[int, int]:
        """What a message gives back. ``all_told``: it tells of every posted receive, so it gives back none."""
        owed = 0 if all_told else self.owed_credits, self.owed_bytes
        self.owed_credits = self.owed_bytes = 0
        self.unread -= owed[1]
        return owed

    def due(self) -> bool:
        """Whether the peer may soon stand still for want of what is owed to it."""
        return self.owed_credits * 2 >= self.receives or self.owed_bytes * 2 >= self.own_window

    def granted(self, message: Message) -> None:
        """Take what the peer gives back. Raises BadMessage when it is more than we had used."""
        if self.peer is None:
            raise BadMessage(f"{message.kind.name} before the negotiation")
        self.credits += message.credits
        self.window += message.read
        if self.credits > self.peer.receives or self.window > self.peer.window:
            raise BadMessage(f"{message.credits} receives and {message.read} bytes were never used")

    def arrived(self, length: int) -> None:
        """Note stream data that came by message. Raises BadMessage when we had not offered to take so much."""
        self.unread += length
        if self.unread > self.own_window:
            raise BadMessage(f"{self.unread} bytes for a window of {self.own_window}")


# --- what is asked of a session --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """How a session is kept. ``chunk``: the largest RDMA transfer, 0 for SO_MAX_RDMA_SIZE."""

    receives: int = 16
    sends: int = 8
    window: int = 65536
    chunk: int = 0
    suspension_timeout_s: float = 30.0


@dataclass(slots=True, eq=False)
class _Request:
    """What an application's thread waits for."""

    future: Future[Any] = field(default_factory=Future, kw_only=True)

    def fail(self, code: Code, done: int = 0) -> None:
        if not self.future.done():
            self.future.set_exception(StreamError(code, done))

    def settle(self, value: Any = None) -> None:
        if not self.future.done():
            self.future.set_result(value)


@dataclass(slots=True, eq=False)
class _Open(_Request):
    """Wait for the end of the negotiation."""


@dataclass(slots=True, eq=False)
class _Send(_Request):
    """Stream data at ``address``, or with ``last`` the END or FAREWELL that follows what was sent before."""

    address: int
    length: int
    last: Kind | None = None
    done: int = 0
    transfer: "_Outgoing | None" = None


@dataclass(slots=True, eq=False)
class _Urgent(_Request):
    """Urgent data to be sent, or to be received when there is none."""

    data: bytes = b""


@dataclass(slots=True, eq=False)
class _Read(_Request):
    address: int
    length: int
    filled: int = 0


@dataclass(slots=True, eq=False)
class _Suspend(_Request):
    """``answered``: the peer is drained; ``quiet``: so are we, and send memory is released."""

    answered: bool = False
    quiet: bool = False


@dataclass(slots=True, eq=False)
class _Resume(_Request):
    pass


@dataclass(slots=True, eq=False)
class _Outgoing:
    """One RDMA transfer of a send: exposed by ``descriptor``, or ``pushing`` from memory registered as ``handle``."""

    number: int
    send: _Send
    length: int
    descriptor: bytes = b""
    handle: int = 0
    pushing: bool = False


@dataclass(slots=True, eq=False)
class _Item:
    """A piece of the incoming stream, in order. ``data`` is None while it is still to be had by RDMA.

    ``number`` and ``length`` are a transfer's. ``source``: the peer's descriptor to pull from; without one the peer
    pushes into ``target``. ``memory``: where it goes, once it was begun.
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
class _Receive:
    slot: int
    outcome: tuple[Code, int] | None = None


# --- carrying messages -----------------------------------------------------------------------------------------------


class Carrier:
    """Messages over a connected socket. One thread owns all state and makes every call; others ask it and wait."""

    def __init__(self, switch: Switch, s: int, options: Options | None = None) -> None:
        self.switch, self.s, self.options = switch, s, options or Options()
        self.flow = Flow(self.options.receives, self.options.window)
        self.error: Code | None = None
        """How the session ended, None while it lives."""
        self.threshold = self.max_rdma = self.message_size = 0
        self._outbox: deque[tuple[Kind, bytes]] = deque()
        self._receives: deque[_Receive] = deque()
        self._slots: list[int] = []
        self._send_handle = 0
        self._started = self._under_way = 0
        self._lost: Code | None = None
        self._closed = False
        self._pools: list[Memory] = []
        self._descriptor_room = 0
        self._stopping: Future[dict[str, Any]] | None = None
        self._stop_by = 0.0
        self._answer: dict[str, Any] = {}
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._gate, self._gone = threading.Lock(), False
        self._deadlines: dict[str, tuple[float, Callable[[], object]]] = {}
        self._thread = threading.Thread(target=self._run, name=f"session {s}", daemon=True)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished():
            with contextlib.suppress(queue.Empty):
                self._step(self._inbox.get(timeout=self._patience()))
            # A peer that never stops talking must not stop the clock.
            if self._patience() == 0:
                self._step(self._expire)
        self._leave()

    def _step(self, work: Callable[[], object]) -> None:
        try:
            work()
            self._progress()
        except BadMessage as error:
            self._say("bad message", text=str(error))
            self._abort(Code.WSAECONNABORTED)
        except CallFailed as failed:
            self._say("call failed", text=str(failed))
            self._lose(failed.code) if failed.code in _GONE else self._abort(failed.code)
        except Exception:
            self.switch.journal("error", handle=0, traceback=traceback.format_exc())
            self._abort(Code.WSAECONNABORTED)

    def _put(self, work: Callable[[], object]) -> bool:
        with self._gate:
            if not self._gone:
                self._inbox.put(work)
            return not self._gone

    def _ask(self, request: _Request, timeout_s: float) -> Any:
        """Have the session's thread do ``request``. Raises StreamError, WSAETIMEDOUT after ``timeout_s``."""
        if not self._put(partial(self._admit, request)):
            raise StreamError(Code.WSAENOTSOCK)
        try:
            return request.future.result(timeout_s)
        except TimeoutError:
            self._put(partial(self._give_up, request))
            return request.future.result(2 * DRAIN_TIMEOUT_S)

    def _patience(self) -> float | None:
        first = min((at for at, _ in self._deadlines.values()), default=None)
        return None if first is None else max(first - time.monotonic(), 0.0)

    def _expire(self) -> None:
        now = time.monotonic()
        for name, (at, work) in list(self._deadlines.items()):
            if at <= now and name in self._deadlines:
                del self._deadlines[name]
                work()

    def _within(self, seconds: float, name: str, work: Callable[[], object]) -> None:
        self._deadlines[name] = (time.monotonic() + seconds, work)

    def _say(self, event: str, **facts: Any) -> None:
        self.switch.journal("session", socket=self.s, event=event, **facts)

    # --- for what is carried -----------------------------------------------------------------------------------------

    def _admit(self, request: _Request) -> None:
        raise NotImplementedError

    def _give_up(self, request: _Request) -> None:
        raise NotImplementedError

    def _on_message(self, message: Message) -> None:
        raise NotImplementedError

    def _on_end(self, code: Code) -> None:
        raise NotImplementedError

    def _on_sent(self, kind: Kind, code: Code) -> None:
        raise NotImplementedError

    def _progress(self) -> None:
        raise NotImplementedError

    # --- pools -------------------------------------------------------------------------------------------------------

    def _make_pools(self) -> None:
        """One region for the receives, one for the sends; the receives are posted at once (SWITCH-06)."""
        self.threshold = self._option(w.SO_RDMA_THRESHOLD_SIZE)
        self.max_rdma = self._option(w.SO_MAX_RDMA_SIZE)
        self.message_size = max(min(HEADER.size + self.threshold, self._option(w.SO_MAX_MSG_SIZE)), LONGEST_HELLO)
        self._receive_pool = Memory(self.options.receives * self.message_size)
        self._send_pool = Memory(self.options.sends * self.message_size)
        self._pools = [self._receive_pool, self._send_pool]
        self._register(self._receive_pool.address, self._receive_pool.size, w.MEM_WRITE)
        self._own_sends()
        self._post_receives()

    def _own_sends(self) -> None:
        self._send_handle = self._register(self._send_pool.address, self._send_pool.size, w.MEM_READ)
        self._slots = list(range(self.options.sends))

    def _release_sends(self) -> None:
        self._deregister(self._send_handle)
        self._slots = []

    def _post_receives(self) -> None:
        for slot in range(self.options.receives):
            self._post_receive(slot)

    def _option(self, name: int) -> int:
        value, length = bytearray(4), [4]
        answer = self.switch.call("WSPGetSockOpt", self.s, w.SOL_SOCKET, name, value, length)
        if answer["code"]:
            raise CallFailed("WSPGetSockOpt", Code(answer["code"]))
        return int.from_bytes(value, "little")

    def _register(self, address: int, length: int, flags: int) -> int:
        answer = self.switch.call("WSPRegisterMemory", self.s, address, length, flags)
        if not answer["result"]:
            raise CallFailed("WSPRegisterMemory", Code(answer["code"]))
        return int(answer["result"])

    def _deregister(self, handle: int) -> None:
        self.switch.call("WSPDeregisterMemory", self.s, handle)

    def _expose(self, address: int, length: int, flags: int) -> bytes:
        """Register memory for the peer's RDMA. The room for a descriptor is learnt by asking with none (RMEM-02)."""
        space, size = bytearray(self._descriptor_room), [self._descriptor_room]
        answer = self.switch.call("WSPRegisterRdmaMemory", self.s, address, length, flags, space, size)
        if not answer["code"]:
            return bytes(space[: size[0]])
        if answer["code"] == Code.WSAEFAULT and len(space) < size[0] <= LONGEST_DESCRIPTOR:
            self._descriptor_room = size[0]
            return self._expose(address, length, flags)
        raise CallFailed("WSPRegisterRdmaMemory", Code(answer["code"]))

    def _hide(self, descriptor: bytes) -> None:
        self.switch.call("WSPDeregisterRdmaMemory", self.s, descriptor, len(descriptor))

    # --- operations --------------------------------------------------------------------------------------------------

    def _start(
        self,
        function: str,
        buffers: list[WSABUF] | list[WSABUFEX],
        then: Callable[[Code, int], object],
        descriptor: bytes = b"",
    ) -> None:
        """Begin an operation that is to be notified (hEvent 0, SWITCH-12). Raises CallFailed."""
        number = self.switch.new_overlapped()
        self.switch.on_completion[number] = lambda code, count: self._put(
            partial(self._completed, number, function, then, Code(code), count)
        )
        tail = (self.switch.overlapped[number], None, None)
        if descriptor:
            arguments: tuple[Any, ...] = (self.s, buffers, 1, descriptor, len(descriptor), 0, [0], 0, *tail)
        else:
            flags = [0] if function == "WSPRecv" else self._send_flags()
            arguments = (self.s, buffers, 1, [0], flags, *tail)
        answer = self.switch.call(function, *arguments, overlapped=number)
        if answer["code"] != Code.WSA_IO_PENDING:
            self.switch.forget(number)
            raise CallFailed(function, Code(answer["code"]))
        self._started += 1
        self._under_way += function != "WSPRecv"

    def _send_flags(self) -> int:
        # Urgent data is said to be so in its message, never to the provider (SHUT-04).
        return 0

    def _completed(
        self, number: int, function: str, then: Callable[[Code, int], object], code: Code, count: int
    ) -> None:
        self.switch.forget(number)
        self._started -= 1
        self._under_way -= function != "WSPRecv"
        then(code, count)

    def _post_receive(self, slot: int) -> None:
        receive = _Receive(slot)
        buffer = WSABUF(self.message_size, self._receive_pool.address + slot * self.message_size)
        self._start("WSPRecv", [buffer], partial(self._received, receive))
        self._receives.append(receive)

    def _received(self, receive: _Receive, code: Code, count: int) -> None:
        # Some completions become visible late (UP-05): messages are taken in the order in which receives were posted.
        receive.outcome = (code, count)
        while self._receives and (outcome := self._receives[0].outcome) is not None:
            self._take(self._receives.popleft().slot, *outcome)
        self._check_drained()

    def _take(self, slot: int, code: Code, count: int) -> None:
        if self._closed or self.error is not None:
            return
        if code:
            self._lose(code)
            return
        data = self._receive_pool.read(slot * self.message_size, count)
        posted = len(self._receives)
        self._repost(slot)
        if len(self._receives) <= posted and self._lost is None:
            self.switch.misbehaves("SWITCH-09", f"a consumed receive is not posted again, {posted} are left")
        message = decode(data)
        self._say("receives", message=message.kind.name, length=len(data))
        if message.kind is not Kind.HELLO:
            self.flow.granted(message)
        self._on_message(message)

    def _repost(self, slot: int) -> None:
        """Post a consumed receive again, before anything else is done with its message (SWITCH-09)."""
        try:
            if self._lost is None:
                self._post_receive(slot)
                self.flow.owed_credits += 1
        except CallFailed as failed:
            # The connection has gone, yet what came before is still to be heard.
            self._lose(failed.code)

    def _may_send(self) -> bool:
        # The last credit is kept for giving credits back, or both sides could stand still (SWITCH-08).
        return self.flow.credits >= 2

    def _pump(self, *, quiet: bool) -> None:
        """Send what waits as far as credits and buffers go, and give back what the peer needs to go on."""
        while self._outbox and self._slots and self._may_send() and self._lost is None:
            self._transmit(*self._outbox.popleft())
        if self.flow.due() and self.flow.credits >= 1 and self._slots and self._lost is None and not quiet:
            self._transmit(Kind.CREDIT)

    def _transmit(self, kind: Kind, payload: bytes = b"") -> None:
        data = Message(kind, payload, *self.flow.repay(all_told=kind is Kind.HELLO)).encode()
        self._check_message(kind, data)
        slot = self._slots.pop()
        self._send_pool.write(slot * self.message_size, data)
        self._say("sends", message=kind.name, length=len(data))
        buffer = WSABUF(len(data), self._send_pool.address + slot * self.message_size)
        self._start("WSPSend", [buffer], partial(self._sent, slot, kind))

    def _check_message(self, kind: Kind, data: bytes) -> None:
        if kind is Kind.HELLO and len(self._receives) < self.options.receives:
            self.switch.misbehaves("SWITCH-06", f"negotiation with {len(self._receives)} receives posted")
        if kind is Kind.HELLO and len(data) > LONGEST_HELLO:
            self.switch.misbehaves("SWITCH-07", f"a negotiation message of {len(data)} bytes")
        if not self.flow.spend():
            self.switch.misbehaves("SWITCH-08", f"{kind.name} with {self.flow.credits + 1} receives at the peer")
        if self.flow.peer is not None and len(data) > self.flow.peer.message_size:
            self.switch.misbehaves("SWITCH-08", f"{len(data)} bytes for receives of {self.flow.peer.message_size}")

    def _sent(self, slot: int, kind: Kind, code: Code, count: int) -> None:
        self._slots.append(slot)
        self._on_sent(kind, code)
        if code and self.error is None:
            self._lose(code)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _lose(self, code: Code) -> None:
        """The connection is gone. What landed before is still taken: the receives say when there is no more."""
        if self._lost is None and self.error is None:
            self._say("lost", code=int(code))
            self._within(DRAIN_TIMEOUT_S, "lost", lambda: self._end(self._lost or code))
        # That there is no connection says less than why.
        if self._lost in (None, Code.WSAENOTCONN):
            self._lost = code
        self._check_drained()

    def _check_drained(self) -> None:
        if self._lost is not None and not self._receives:
            self._end(self._lost)

    def _end(self, code: Code) -> None:
        if self.error is None:
            self.error = code
            self._outbox.clear()
            self._deadlines.clear()
            self._say("ends", code=int(code))
            self._on_end(code)

    def _abort(self, code: Code) -> None:
        """End the session from here: the peer is reset."""
        self._close_socket()
        self._end(code)

    def _close_socket(self) -> dict[str, Any]:
        if self._closed:
            return {"result": 0, "code": int(Code.OK)}
        self._closed = True
        return self.switch.close_socket(self.s)

    def _stop(self, future: Future[dict[str, Any]]) -> None:
        """Close the socket; the thread ends when all that was cancelled is back."""
        self._answer = self._close_socket()
        self._end(Code.WSAENOTSOCK)
        self._stopping, self._stop_by = future, time.monotonic() + DRAIN_TIMEOUT_S
        self._within(DRAIN_TIMEOUT_S, "stop", lambda: None)

    def _finished(self) -> bool:
        return self._stopping is not None and (not self._started or time.monotonic() >= self._stop_by)

    def _leave(self) -> None:
        with self._gate:
            self._gone = True
        while not self._inbox.empty():
            self._step(self._inbox.get())
        for pool in self._pools:
            free(self.switch, pool)
        assert self._stopping is not None
        self._stopping.set_result(self._answer)


def free(switch: Switch, memory: Memory) -> None:
    """Give memory back that was registered; a provider that caches registrations is told first (CACHE-07)."""
    if "WSPMemoryRegistrationCacheCallback" in switch.functions:
        switch.call("WSPMemoryRegistrationCacheCallback", memory.address, memory.size)
    memory.free()


# --- the stream ------------------------------------------------------------------------------------------------------


class Session(Carrier):
    """A byte stream over the connected socket ``s``. Its public methods may be called by any thread.

    They raise StreamError. ``connector``: speaks first.
    """

    def __init__(self, switch: Switch, s: int, *, connector: bool, options: Options | None = None) -> None:
        super().__init__(switch, s, options)
        self.connector = connector
        self._negotiation: _Open | None = None
        self._numbers = itertools.count(1)
        self._senders: deque[_Send] = deque()
        self._readers: deque[_Read] = deque()
        self._outgoing: dict[int, _Outgoing] = {}
        self._unannounced: set[int] = set()
        self._items: deque[_Item] = deque()
        self._urgent_out: deque[bytes] = deque()
        self._urgent: deque[bytes] = deque(maxlen=MOST_URGENT)
        self._urgent_readers: deque[_Urgent] = deque()
        self._shut = self._peer_ended = self._peer_left = False
        self._farewell: _Send | None = None
        self._ours: _Suspend | None = None
        self._theirs: _Suspend | None = None
        self._next_ours: _Suspend | None = None

    # --- for applications --------------------------------------------------------------------------------------------

    def open(self, timeout_s: float) -> None:
        """Register the pools, post the receives, negotiate."""
        self._thread.start()
        self._ask(_Open(), timeout_s)

    def send(self, address: int, length: int, timeout_s: float) -> int:
        """Send ``length`` bytes at ``address``; returns when they may be reused, how many were sent."""
        return int(self._ask(_Send(address, length), timeout_s))

    def send_urgent(self, data: bytes, timeout_s: float) -> None:
        """Send a few bytes outside of the stream; no more than fit into a message."""
        if not data:
            raise StreamError(Code.WSAEINVAL)
        self._ask(_Urgent(data), timeout_s)

    def recv(self, address: int, length: int, timeout_s: float) -> int:
        """Put what has arrived, up to ``length`` bytes, at ``address``; how many, 0 at the end of the stream."""
        return int(self._ask(_Read(address, length), timeout_s))

    def recv_urgent(self, timeout_s: float) -> bytes:
        return bytes(self._ask(_Urgent(), timeout_s))

    def shutdown(self, timeout_s: float) -> None:
        """Half-close: the peer reads to the end, the connection stays (SHUT-03)."""
        self._ask(_Send(0, 0, Kind.END), timeout_s)

    def suspend(self, timeout_s: float) -> None:
        """Stop requests, drain sends and RDMA at both ends, release their memory; receives stay (SWITCH-15)."""
        self._ask(_Suspend(), timeout_s)

    def resume(self, timeout_s: float) -> None:
        self._ask(_Resume(), timeout_s)

    def close(self, linger_s: float) -> dict[str, Any]:
        """The answer of WSPCloseSocket. With ``linger_s`` 0 abortive; else what was sent and a farewell go first."""
        if linger_s:
            with contextlib.suppress(StreamError):
                self._ask(_Send(0, 0, Kind.FAREWELL), linger_s)
        future: Future[dict[str, Any]] = Future()
        if not self._put(partial(self._stop, future)):
            raise StreamError(Code.WSAENOTSOCK)
        return future.result(2 * DRAIN_TIMEOUT_S)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _admit(self, request: _Request) -> None:
        if isinstance(request, _Open):
            self._negotiation = request
            self._make_pools()
            if self.connector:
                self._say_hello()
        elif isinstance(request, _Read):
            self._readers.append(request)
        elif isinstance(request, _Urgent) and not request.data:
            self._urgent_readers.append(request)
        elif self.error is not None:
            request.fail(self.error)
        elif self._peer_left:
            request.fail(Code.WSAECONNRESET)
        else:
            self._admit_living(request)

    def _admit_living(self, request: _Request) -> None:
        if isinstance(request, _Urgent):
            if self._shut or len(request.data) > self._room():
                request.fail(Code.WSAESHUTDOWN if self._shut else Code.WSAEMSGSIZE)
                return
            self._urgent_out.append(request.data)
            request.settle()
        elif isinstance(request, _Send):
            self._admit_send(request)
        elif isinstance(request, _Suspend):
            self._begin_suspension(request)
        elif isinstance(request, _Resume):
            self._end_suspension(request)

    def _admit_send(self, send: _Send) -> None:
        if send.last is Kind.END and self._shut:
            send.settle()
        elif send.last is Kind.FAREWELL and self._held():
            send.fail(Code.WSAECONNABORTED)
        elif self._shut and send.last is not Kind.FAREWELL:
            send.fail(Code.WSAESHUTDOWN)
        else:
            self._shut = self._shut or send.last is not None
            self._senders.append(send)

    def _give_up(self, request: _Request) -> None:
        """The application's time is over: take the request back, or when the peer is at it end the session."""
        if request.future.done():
            return
        if isinstance(request, _Read):
            self._readers.remove(request)
        elif isinstance(request, _Urgent):
            self._urgent_readers.remove(request)
        elif request is self._next_ours:
            self._next_ours = None
        elif isinstance(request, _Send) and request.transfer is None:
            if request in self._senders:
                self._senders.remove(request)
            if request.done:
                request.settle(request.done)
        else:
            self._abort(Code.WSAETIMEDOUT)
        request.fail(Code.WSAETIMEDOUT)

    def _progress(self) -> None:
        self._serve()
        if self._unannounced:
            seen = f"RDMA transfers {sorted(self._unannounced)} ended and no message says so"
            self.switch.misbehaves("SWITCH-18", seen)
            self._unannounced.clear()
        if self.error is None and self._lost is None:
            self._advance()
            self._drain()
            self._pump(quiet=self._quiet())

    def _on_end(self, code: Code) -> None:
        for request in (self._negotiation, self._ours, self._next_ours, *self._urgent_readers):
            if request is not None:
                request.fail(code)
        for send in (*self._senders, *([self._farewell] if self._farewell else [])):
            send.fail(code, send.done)
        self._senders.clear()
        self._urgent_readers.clear()
        kept = list(itertools.takewhile(lambda item: item.data is not None, self._items))
        if len(kept) < len(self._items):
            # What was announced and cannot be had any more is not the stream's end.
            self._peer_ended = False
        self._free(item for item in self._items if item not in kept)
        self._items = deque(kept)
        self._serve()

    def _on_sent(self, kind: Kind, code: Code) -> None:
        if kind is Kind.FAREWELL and self._farewell is not None:
            self._farewell.fail(code) if code else self._farewell.settle()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _say_hello(self) -> None:
        self._transmit(Kind.HELLO, self._hello().encode())

    def _hello(self) -> Hello:
        can_pull = "WSPRdmaRead" in self.switch.functions
        return Hello(self.options.receives, self.message_size, self.options.window, self.max_rdma, can_pull)

    def _on_message(self, message: Message) -> None:
        if self.flow.peer is None or message.kind is Kind.HELLO:
            self._on_hello(message)
            return
        transfers = {
            Kind.SOURCE: self._on_source,
            Kind.REQUEST: self._on_request,
            Kind.PULLED: self._on_pulled,
            Kind.TARGET: self._on_target,
            Kind.PUSHED: self._on_pushed,
        }
        others = {
            Kind.DATA: self._on_data,
            Kind.URGENT: self._on_urgent,
            Kind.SUSPEND: self._on_suspend,
            Kind.SUSPENDED: self._on_suspended,
            Kind.RESUME: self._on_resume,
        }
        if message.kind in transfers:
            transfers[message.kind](*parse_transfer(message.payload))
        elif message.kind in others:
            others[message.kind](message.payload)
        elif message.kind in (Kind.END, Kind.FAREWELL):
            self._on_last(message.kind)

    def _on_hello(self, message: Message) -> None:
        if self.flow.peer is not None or message.kind is not Kind.HELLO:
            raise BadMessage(f"{message.kind.name} in the negotiation")
        peer = Hello.parse(message.payload)
        if peer.max_rdma <= self.threshold:
            raise BadMessage(f"RDMA of {peer.max_rdma} bytes, below the threshold of {self.threshold}")
        self.flow.open(peer)
        if not self.connector:
            self._say_hello()
        if self._negotiation is not None:
            self._negotiation.settle()

    def _on_last(self, kind: Kind) -> None:
        if self._peer_left or (self._peer_ended and kind is Kind.END):
            raise BadMessage(f"{kind.name} after the end")
        self._peer_ended = True
        if kind is Kind.FAREWELL:
            self._peer_left = True
            for send in self._senders:
                send.fail(Code.WSAECONNRESET, send.done)
            self._senders.clear()

    def _on_urgent(self, payload: bytes) -> None:
        if not payload:
            raise BadMessage("urgent data of no bytes")
        self._urgent.append(payload)

    def _on_data(self, payload: bytes) -> None:
        if not payload or self._peer_ended:
            raise BadMessage(f"{len(payload)} bytes of data" + (" after the end" if self._peer_ended else ""))
        self.flow.arrived(len(payload))
        self._items.append(_Item(payload))

    # --- sending -----------------------------------------------------------------------------------------------------

    def _peer(self) -> Hello:
        assert self.flow.peer is not None
        return self.flow.peer

    def _room(self) -> int:
        """The most data that one message carries."""
        return min(self.threshold, self._peer().message_size - HEADER.size) if self.flow.peer else 0

    def _by_rdma(self, length: int) -> bool:
        return length > self.threshold

    def _advance(self) -> None:
        """Send what applications have asked for, in order; a transfer by RDMA ends before the next begins."""
        if not self._held():
            self._send_urgent_first()
        while self._senders and self._senders[0].transfer is None:
            send = self._senders[0]
            left = send.length - send.done
            if not left and send.last is None:
                self._senders.popleft().settle(send.length)
            elif self._held():
                return
            elif send.last is not None:
                self._send_last(self._senders.popleft(), send.last)
            elif self._by_rdma(left):
                self._offer(send, left)
            elif not self._queue(send, left):
                return

    def _send_urgent_first(self) -> None:
        """Urgent data is an ordinary message that overtakes the others (URG)."""
        place = sum(kind is Kind.URGENT for kind, _ in self._outbox)
        while self._urgent_out:
            self._outbox.insert(place, (Kind.URGENT, self._urgent_out.popleft()))
            place += 1

    def _send_last(self, send: _Send, kind: Kind) -> None:
        self._outbox.append((kind, b""))
        if kind is Kind.END:
            send.settle()
        else:
            self._farewell = send

    def _queue(self, send: _Send, left: int) -> bool:
        """Put data into messages; whether the peer had room for any."""
        if left > self.threshold:
            self.switch.misbehaves("SWITCH-11", f"{left} bytes by message, the threshold is {self.threshold}")
        count = min(left, self.flow.window, self._room())
        if not count:
            return False
        data = ctypes.string_at(send.address + send.done, count)
        kind, before = self._outbox[-1] if self._outbox else (Kind.CREDIT, b"")
        if kind is Kind.DATA and len(before) + count <= self._room():
            self._outbox[-1] = (kind, before + data)
        else:
            self._outbox.append((Kind.DATA, data))
        self.flow.window -= count
        send.done += count
        return True

    def _offer(self, send: _Send, left: int) -> None:
        """Begin the transfer of the next chunk by RDMA: (a) expose it, (b) ask for a target."""
        most = min(self.max_rdma, self._peer().max_rdma)
        length = min(left, max(self.options.chunk, self.threshold + 1) if self.options.chunk else most, most)
        if length <= self.threshold:
            self.switch.misbehaves("SWITCH-11", f"{length} bytes by RDMA, the threshold is {self.threshold}")
        outgoing = _Outgoing(next(self._numbers), send, length)
        if self._peer().can_pull:
            try:
                outgoing.descriptor = self._expose(send.address + send.done, length, w.MEM_READ)
            except CallFailed as failed:
                self._lacks_memory(send, failed)
                return
            self._outbox.append((Kind.SOURCE, transfer(outgoing.number, length, outgoing.descriptor)))
        else:
            self._outbox.append((Kind.REQUEST, transfer(outgoing.number, length)))
        send.transfer = self._outgoing[outgoing.number] = outgoing

    def _lacks_memory(self, send: _Send, failed: CallFailed | None = None) -> None:
        """End an application's send for want of memory, here or at the peer (SWITCH-18)."""
        if failed is not None and failed.code not in _NO_MEMORY:
            raise failed
        send.transfer = None
        self._senders.remove(send)
        send.fail(self._memory_code(), send.done)
        error = send.future.exception(0)
        if not isinstance(error, StreamError) or error.code is not Code.WSAENOBUFS:
            self.switch.misbehaves("SWITCH-18", f"a send that lacks memory ended with {error}")

    def _memory_code(self) -> Code:
        return Code.WSAENOBUFS

    def _named(self, number: int, *, pushing: bool, exposed: bool) -> _Outgoing:
        outgoing = self._outgoing.get(number)
        if outgoing is None or outgoing.pushing is not pushing or bool(outgoing.descriptor) is not exposed:
            raise BadMessage(f"there is no such transfer {number}")
        return outgoing

    def _on_pulled(self, number: int, code: int, rest: bytes) -> None:
        outgoing = self._named(number, pushing=False, exposed=True)
        self._hide(outgoing.descriptor)
        self._transferred(outgoing, code)

    def _on_target(self, number: int, code: int, descriptor: bytes) -> None:
        outgoing = self._named(number, pushing=False, exposed=False)
        if code or not descriptor:
            self._transferred(outgoing, code or int(Code.WSAENOBUFS))
            return
        address = outgoing.send.address + outgoing.send.done
        try:
            outgoing.handle = self._register(address, outgoing.length, w.MEM_READ)
        except CallFailed as failed:
            del self._outgoing[number]
            self._lacks_memory(outgoing.send, failed)
            self._announce(Kind.PUSHED, number, Code.WSAENOBUFS)
            return
        outgoing.pushing = True
        buffer = WSABUFEX(outgoing.length, address, outgoing.handle)
        self._start_rdma("WSPRdmaWrite", buffer, descriptor, partial(self._wrote, outgoing))

    def _wrote(self, outgoing: _Outgoing, code: Code, count: int) -> None:
        if code:
            self._lose(code)
            return
        self._deregister(outgoing.handle)
        self._unannounced.add(outgoing.number)
        self._announce(Kind.PUSHED, outgoing.number)
        self._transferred(outgoing, 0)

    def _transferred(self, outgoing: _Outgoing, code: int) -> None:
        del self._outgoing[outgoing.number]
        if code:
            self._lacks_memory(outgoing.send)
        else:
            outgoing.send.done += outgoing.length
            outgoing.send.transfer = None

    def _start_rdma(
        self, function: str, buffer: WSABUFEX, descriptor: bytes, then: Callable[[Code, int], object]
    ) -> None:
        try:
            self._start(function, [buffer], then, descriptor)
        except CallFailed as failed:
            if failed.code in (Code.WSAEINVAL, Code.WSAEFAULT, Code.WSAEMSGSIZE):
                raise BadMessage(f"the peer's descriptor is refused: {failed}") from failed
            raise

    def _announce(self, kind: Kind, number: int, code: Code = Code.OK) -> None:
        """Say that a transfer has ended (SWITCH-18)."""
        self._unannounced.discard(number)
        self._outbox.append((kind, transfer(number, code)))

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _on_source(self, number: int, length: int, descriptor: bytes) -> None:
        if not descriptor or "WSPRdmaRead" not in self.switch.functions:
            raise BadMessage("a source that cannot be read")
        self._expect(_Item(None, 0, False, number, length, descriptor))

    def _on_request(self, number: int, length: int, rest: bytes) -> None:
        self._expect(_Item(None, 0, False, number, length))

    def _expect(self, item: _Item) -> None:
        open_items = [known for known in self._items if known.data is None]
        if self._peer_ended or not 0 < item.length <= self.max_rdma or len(open_items) >= self.options.receives:
            raise BadMessage(f"transfer {item.number} of {item.length} bytes, {len(open_items)} are open")
        if any(known.number == item.number for known in open_items):
            raise BadMessage(f"transfer {item.number} twice")
        self._items.append(item)

    def _begin(self, item: _Item) -> None:
        """Have an announced transfer made into memory of ours: (a) pull it, (b) expose a target."""
        item.memory = self.switch.new_memory(item.length)["memory"]
        address = self.switch.memories[item.memory].address
        try:
            if item.source is None:
                item.target = self._expose(address, item.length, w.MEM_WRITE)
                self._outbox.append((Kind.TARGET, transfer(item.number, 0, item.target)))
                return
            item.handle = self._register(address, item.length, w.MEM_WRITE)
        except CallFailed as failed:
            if failed.code not in _NO_MEMORY:
                raise
            self._items.remove(item)
            self._free([item])
            self._announce(Kind.TARGET if item.source is None else Kind.PULLED, item.number, Code.WSAENOBUFS)
            return
        buffer = WSABUFEX(item.length, address, item.handle)
        self._start_rdma("WSPRdmaRead", buffer, item.source, partial(self._read, item))

    def _read(self, item: _Item, code: Code, count: int) -> None:
        if code:
            self._lose(code)
            return
        self._deregister(item.handle)
        self._unannounced.add(item.number)
        self._announce(Kind.PULLED, item.number)
        self._have(item)

    def _on_pushed(self, number: int, code: int, rest: bytes) -> None:
        item = next((i for i in self._items if i.data is None and i.target and i.number == number), None)
        if item is None:
            raise BadMessage(f"there is no target {number}")
        self._hide(item.target)
        if code:
            self._items.remove(item)
            self._free([item])
        else:
            self._have(item)

    def _have(self, item: _Item) -> None:
        if item.memory is not None:
            item.data = self.switch.memories[item.memory].read(0, item.length)
            self._free([item])

    def _free(self, items: Any) -> None:
        for item in items:
            if item.memory is not None:
                free(self.switch, self.switch.memories.pop(item.memory))
                item.memory = None

    def _serve(self) -> None:
        """Give applications what has arrived; a transfer by RDMA begins when it is its turn to be read."""
        while self._urgent and self._urgent_readers:
            self._urgent_readers.popleft().settle(self._urgent.popleft())
        while self._readers:
            read = self._readers[0]
            self._fill(read)
            if not read.filled and self._items and self.error is None:
                if self._items[0].memory is None and self._lost is None:
                    self._begin(self._items[0])
                    continue
                return
            if not read.filled and not self._peer_ended and self.error is None:
                return
            self._readers.popleft()
            if read.filled or self._peer_ended:
                read.settle(read.filled)
            elif self.error is not None:
                read.fail(self.error)
        if self.error is not None:
            for urgent in self._urgent_readers:
                urgent.fail(self.error)
            self._urgent_readers.clear()

    def _fill(self, read: _Read) -> None:
        while self._items and read.filled < read.length and (data := self._items[0].data) is not None:
            item = self._items[0]
            part = data[item.taken : item.taken + read.length - read.filled]
            ctypes.memmove(read.address + read.filled, part, len(part))
            read.filled += len(part)
            item.taken += len(part)
            # The window is for data that came by message.
            if item.by_message:
                self.flow.owed_bytes += len(part)
            if item.taken == len(data):
                self._items.popleft()

    # --- suspension --------------------------------------------------------------------------------------------------

    def _held(self) -> bool:
        return self._ours is not None or self._theirs is not None

    def _quiet(self) -> bool:
        return any(s is not None and s.quiet for s in (self._ours, self._theirs))

    def _begin_suspension(self, request: _Suspend) -> None:
        if self._ours is not None or self._next_ours is not None:
            request.fail(Code.WSAEALREADY)
            return
        if self._theirs is not None and self._theirs.quiet:
            # The peer has our word that we are silent: our own suspension waits for the end of its.
            self._next_ours = request
            return
        self._ours = request
        self._outbox.append((Kind.SUSPEND, b""))
        self._bound_suspension()

    def _bound_suspension(self) -> None:
        """A suspended session ends after a time of its own (SWITCH-16)."""
        limit_s = self.options.suspension_timeout_s
        self._within(limit_s, "suspension", self._suspension_expired)
        self._within(limit_s + GRACE_S, "SWITCH-16", self._suspension_overdue)

    def _suspension_expired(self) -> None:
        self._abort(Code.WSAETIMEDOUT)

    def _suspension_overdue(self) -> None:
        seen = f"suspended for more than {self.options.suspension_timeout_s} s"
        self.switch.misbehaves("SWITCH-16", seen)

    def _unbound_suspension(self) -> None:
        if not self._held():
            self._deadlines.pop("suspension", None)
            self._deadlines.pop("SWITCH-16", None)

    def _drain(self) -> None:
        """While suspended: bring to its end what is under way, then fall silent."""
        if not self._held():
            return
        for item in list(self._items):
            if item.data is None and item.memory is None:
                self._begin(item)
        open_items = any(item.data is None for item in self._items)
        if self._outgoing or open_items or self._outbox or self._under_way:
            return
        if self._theirs is not None and not self._theirs.quiet:
            self._theirs.quiet = True
            self._outbox.append((Kind.SUSPENDED, b""))
        elif self._ours is not None and self._ours.answered and not self._ours.quiet:
            self._ours.quiet = True
            self._release_sends()
            self._ours.settle()

    def _on_suspend(self, payload: bytes) -> None:
        if self._theirs is not None:
            raise BadMessage("suspended twice")
        self._theirs = _Suspend()
        self._bound_suspension()

    def _on_suspended(self, payload: bytes) -> None:
        if self._ours is None or self._ours.answered:
            raise BadMessage("an answer that nobody asked for")
        self._ours.answered = True

    def _end_suspension(self, request: _Resume) -> None:
        if self._ours is None or not self._ours.quiet:
            request.fail(Code.WSAEINVAL)
            return
        self._own_sends()
        self._ours = None
        self._unbound_suspension()
        self._outbox.append((Kind.RESUME, b""))
        request.settle()

    def _on_resume(self, payload: bytes) -> None:
        if self._theirs is None or not self._theirs.quiet:
            raise BadMessage("nobody was suspended")
        self._theirs = None
        self._unbound_suspension()
        if (request := self._next_ours) is not None:
            self._next_ours = None
            self._begin_suspension(request)

    # --- hand-over ---------------------------------------------------------------------------------------------------

    def hand_over(self, pid: int, timeout_s: float) -> tuple[int, dict[str, Any]]:
        """WSPDuplicateSocket of the suspended session for process ``pid``: the token, and the session's state."""
        future: Future[tuple[int, dict[str, Any]]] = Future()
        if not self._put(partial(self._hand_over, pid, future)):
            raise StreamError(Code.WSAENOTSOCK)
        return future.result(timeout_s)

    def _hand_over(self, pid: int, future: Future[tuple[int, dict[str, Any]]]) -> None:
        if self.error is not None or self._ours is None or not self._ours.quiet:
            future.set_exception(StreamError(self.error or Code.WSAEINVAL))
            return
        info = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP)
        answer = self.switch.call("WSPDuplicateSocket", self.s, pid, info)
        if answer["code"]:
            future.set_exception(StreamError(Code(answer["code"])))
            return
        state = self._state()
        # Only WSPCloseSocket may follow on this descriptor (DUP-07).
        self._end(Code.WSAENOTSOCK)
        future.set_result((info.dwProviderReserved, state))

    def _state(self) -> dict[str, Any]:
        return {
            "connector": self.connector,
            "flow": asdict(self.flow),
            "items": [(item.data[item.taken :], item.by_message) for item in self._items if item.data is not None],
            "urgent": list(self._urgent),
            "next_number": next(self._numbers),
            "ends": [self._shut, self._peer_ended],
            "suspended_by_peer": self._theirs is not None,
        }

    @classmethod
    def take_over(cls, switch: Switch, s: int, state: Mapping[str, Any], options: Options | None = None) -> "Session":
        """The suspended session that ``hand_over`` told the state of, on its new descriptor ``s``; ``resume`` it."""
        session = cls(switch, s, connector=state["connector"], options=options)
        flow = dict(state["flow"])
        session.flow = Flow(**flow | {"peer": Hello(**flow["peer"])})
        session._items.extend(_Item(data, 0, by_message) for data, by_message in state["items"])
        session._urgent.extend(state["urgent"])
        session._numbers = itertools.count(state["next_number"])
        session._shut, session._peer_ended = state["ends"]
        session._theirs = _Suspend(quiet=True) if state["suspended_by_peer"] else None
        session._thread.start()
        taken: Future[None] = Future()
        session._put(partial(session._taken, taken))
        taken.result(2 * DRAIN_TIMEOUT_S)
        return session

    def _taken(self, taken: Future[None]) -> None:
        try:
            self._make_pools()
            self._release_sends()
        except CallFailed as failed:
            taken.set_exception(StreamError(failed.code))
            raise
        self._ours = _Suspend(answered=True, quiet=True)
        self._bound_suspension()
        taken.set_result(None)


# --- sessions that break one obligation each, and must say so themselves ---------------------------------------------


class NegotiatesFirst(Session):
    """Speaks before it has posted its receives: breaks SWITCH-06."""

    def _post_receives(self) -> None:
        # An acceptor needs one, or it would never be spoken to.
        if not self.connector:
            self._post_receive(0)

    def _say_hello(self) -> None:
        super()._say_hello()
        for slot in range(0 if self.connector else 1, self.options.receives):
            self._post_receive(slot)


class LongHello(Session):
    """Tells a life story in its negotiation message: breaks SWITCH-07."""

    def _say_hello(self) -> None:
        self._transmit(Kind.HELLO, self._hello().encode().ljust(LONGEST_HELLO + 1, b"?"))


class NoCredits(Session):
    """Sends whether or not the peer has a receive posted: breaks SWITCH-08."""

    def _may_send(self) -> bool:
        return True


class LateRepost(Session):
    """Posts consumed receives again only when the next message comes: breaks SWITCH-09."""

    _kept: int | None = None

    def _repost(self, slot: int) -> None:
        kept, self._kept = self._kept, slot
        if kept is not None:
            super()._repost(kept)


class WrongPath(Session):
    """Small data by RDMA, large data by message: breaks SWITCH-11."""

    def _by_rdma(self, length: int) -> bool:
        return not super()._by_rdma(length)


class SuspendsForEver(Session):
    """Never ends a suspended session: breaks SWITCH-16."""

    def _suspension_expired(self) -> None:
        return


class EndsInSilence(Session):
    """Says nothing when a transfer by RDMA has ended: breaks SWITCH-18."""

    def _announce(self, kind: Kind, number: int, code: Code = Code.OK) -> None:
        return


class OtherCode(Session):
    """A send that lacks memory ends as if its buffer were bad: breaks SWITCH-18."""

    def _memory_code(self) -> Code:
        return Code.WSAEFAULT


class UrgentFlag(Session):
    """Passes MSG_OOB on to WSPSend: breaks SHUT-04."""

    def _send_flags(self) -> int:
        return w.MSG_OOB if self.flow.peer is not None else 0


_ALL = (
    NegotiatesFirst,
    LongHello,
    NoCredits,
    LateRepost,
    WrongPath,
    SuspendsForEver,
    EndsInSilence,
    OtherCode,
    UrgentFlag,
)
MISBEHAVING: dict[str, type[Session]] = {session.__name__: session for session in _ALL}
