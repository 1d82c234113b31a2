"""Carries a session's messages over one SAN connection, with pools of registered memory and credits."""

import contextlib
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from hil.switch.messages import HEADER, LONGEST_HELLO, BadMessage, Flow, Kind, Message, decode
from hil.switch.requests import Options, Receive, Request, StreamError
from hil.switch.switch import Memory, Switch
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, WSABUFEX

# This many bytes fit into the smallest receive beside the rest of a message.
LONGEST_DESCRIPTOR = 200
# Time limit for the last completions of a lost or closed connection.
DRAIN_TIMEOUT_S = 5.0
# A call ends with one of these codes when the connection is lost.
_GONE = (
    Code.WSAECONNRESET,
    Code.WSAECONNABORTED,
    Code.WSAENETRESET,
    Code.WSAENETDOWN,
    Code.WSAENOTCONN,
    Code.WSA_OPERATION_ABORTED,
)


class CallFailed(Exception):
    """A WSP function that the session needs has failed."""

    def __init__(self, function: str, code: Code) -> None:
        super().__init__(f"{function}: {code}")
        self.code = code


class Carrier:
    """Messages over a connected socket. One thread owns all state and makes every call; other threads ask it."""

    def __init__(self, switch: Switch, s: int, options: Options | None = None) -> None:
        self.switch, self.s, self.options = switch, s, options or Options()
        self.flow = Flow(self.options.receives, self.options.window)
        self.error: Code | None = None
        """The code the session ended with, None while it lives."""
        self.threshold = self.max_rdma = self.message_size = 0
        self._outbox: deque[tuple[Kind, bytes]] = deque()
        self._receives: deque[Receive] = deque()
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
            # The clock must advance even if the peer sends without a pause.
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

    def _ask(self, request: Request, timeout_s: float) -> Any:
        """Let the session's thread do ``request``. Raises StreamError, with WSAETIMEDOUT after ``timeout_s``."""
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

    # --- methods of the session --------------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        raise NotImplementedError

    def _give_up(self, request: Request) -> None:
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
        """Register one region for receives and one for sends, and post all receives (SWITCH-06)."""
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
        """Register memory for the peer's RDMA. A first call without room gives the descriptor's length (RMEM-02)."""
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
        """Begin an operation that ends by an up-call (hEvent 0, SWITCH-12). Raises CallFailed."""
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
        # The message says that its data is urgent. The provider is never told (SHUT-04).
        return 0

    def _completed(
        self, number: int, function: str, then: Callable[[Code, int], object], code: Code, count: int
    ) -> None:
        self.switch.forget(number)
        self._started -= 1
        self._under_way -= function != "WSPRecv"
        then(code, count)

    def _post_receive(self, slot: int) -> None:
        receive = Receive(slot)
        buffer = WSABUF(self.message_size, self._receive_pool.address + slot * self.message_size)
        self._start("WSPRecv", [buffer], partial(self._received, receive))
        self._receives.append(receive)

    def _received(self, receive: Receive, code: Code, count: int) -> None:
        # Some completions become visible late (UP-05).
        # Messages are therefore taken in the order in which receives were posted.
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
        """Post a consumed receive again, before its message is handled (SWITCH-09)."""
        try:
            if self._lost is None:
                self._post_receive(slot)
                self.flow.owed_credits += 1
        except CallFailed as failed:
            # The connection is lost, but earlier messages must still be handled.
            self._lose(failed.code)

    def _may_send(self) -> bool:
        # The last credit is kept for giving credits back. Otherwise both sides could block (SWITCH-08).
        return self.flow.credits >= 2

    def _pump(self, *, quiet: bool) -> None:
        """Send waiting messages as far as credits and buffers allow, and give the peer the credits it needs."""
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
        """Note that the connection is lost. Messages that arrived before are still taken, until a receive fails."""
        if self._lost is None and self.error is None:
            self._say("lost", code=int(code))
            self._within(DRAIN_TIMEOUT_S, "lost", lambda: self._end(self._lost or code))
        # The code of the cause is more useful than WSAENOTCONN.
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
        """End the session from this side. The peer is reset."""
        self._close_socket()
        self._end(code)

    def _close_socket(self) -> dict[str, Any]:
        if self._closed:
            return {"result": 0, "code": int(Code.OK)}
        self._closed = True
        return self.switch.close_socket(self.s)

    def _stop(self, future: Future[dict[str, Any]]) -> None:
        """Close the socket. The thread ends when every cancelled operation has completed."""
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
    """Free memory that was registered, after telling a provider that caches registrations (CACHE-07)."""
    if "WSPMemoryRegistrationCacheCallback" in switch.functions:
        switch.call("WSPMemoryRegistrationCacheCallback", memory.address, memory.size)
    memory.free()
