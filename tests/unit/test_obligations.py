"""The switch's obligations and its session, over an emulated provider in memory.

``Cable`` joins two switches. A send fills the peer's first posted receive, and waits for one as RC does (RNR).
"""

import contextlib
import ctypes
import hashlib
import itertools
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hil.mutants import sessions as mutants
from hil.switch.messages import HEADER, BadMessage, Flow, Hello, Kind, Message, decode, parse_transfer, transfer
from hil.switch.obligations import Obligations
from hil.switch.requests import Options, StreamError
from hil.switch.session import Session
from hil.switch.switch import Memory, Switch
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, WSABUFEX, WSAOVERLAPPED, WSAPROTOCOL_INFOW, LpErrno

THRESHOLD, MAX_RDMA, MAX_MESSAGE = 1000, 30_000, 100_000
LIMITS = {w.SO_RDMA_THRESHOLD_SIZE: THRESHOLD, w.SO_MAX_RDMA_SIZE: MAX_RDMA, w.SO_MAX_MSG_SIZE: MAX_MESSAGE}
HELLO = Hello(16, 1012, 65536, MAX_RDMA, True)
WAIT_S = 5.0


# --- a provider in memory --------------------------------------------------------------------------------------------


class Cable:
    """The connection between two ends. Every transfer takes its lock."""

    def __init__(self, seed: int = 1, can_pull: tuple[bool, bool] = (True, True)) -> None:
        self.lock = threading.RLock()
        self.up = True
        self.ends = [End(self, number, seed, can_pull[number]) for number in (0, 1)]
        self.sent: list[tuple[int, bytes]] = []

    def cut(self, code: Code = Code.WSAECONNRESET) -> None:
        with self.lock:
            self.up = False
            for end in self.ends:
                end.flush(code)

    def stop(self) -> None:
        for end in self.ends:
            end.completions.put(None)
            end.thread.join()


class End:
    """One side's switch, its socket ``s``, and the emulated provider's functions."""

    def __init__(self, cable: Cable, number: int, seed: int, can_pull: bool) -> None:
        self.cable, self.number, self.can_pull = cable, number, can_pull
        self.events: list[dict[str, Any]] = []
        self.switch = Switch(self.events.append, seed=seed + number)
        self.handles = itertools.count(1)
        self.receives: deque[tuple[Any, WSABUF]] = deque()
        self.waiting: deque[tuple[Any, bytes]] = deque()
        self.memory: dict[Any, tuple[int, int]] = {}
        self.short_of_memory = False
        self.completions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._complete, daemon=True)
        self.thread.start()
        absent = () if can_pull else ("WSPRdmaRead",)
        names = [name for name in dir(self) if name.startswith("WSP") and name not in absent]
        self.switch.functions.update({name: self._function(getattr(self, name)) for name in names})
        info = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP)
        self.switch.call("WSPSocket", w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP, info, 0, w.WSA_FLAG_OVERLAPPED)

    @property
    def peer(self) -> "End":
        return self.cable.ends[1 - self.number]

    def misbehaved(self) -> set[str]:
        return {e["requirement"] for e in self.events if e["kind"] == "misbehaves" and not e["deliberate"]}

    def said(self, event: str) -> list[str]:
        return [e["message"] for e in self.events if e["kind"] == "session" and e["event"] == event]

    def _function(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with self.cable.lock:
                answer = work(*arguments[:-1])
            if isinstance(answer, Code):
                arguments[-1].value = answer
                return None if work.__name__ == "WSPRegisterMemory" else -1
            return answer

        return call

    def _complete(self) -> None:
        while (done := self.completions.get()) is not None:
            self.switch.table().lpWPUCompleteOverlappedRequest(self.handle, *done, LpErrno())

    def finish(self, overlapped: WSAOVERLAPPED, code: Code = Code.OK, count: int = 0) -> None:
        self.completions.put((overlapped, code, count))

    def begin(self, overlapped: WSAOVERLAPPED) -> Code:
        overlapped.Internal = w.WSS_OPERATION_IN_PROGRESS
        return Code.WSA_IO_PENDING

    def flush(self, code: Code) -> None:
        for overlapped, _ in (*self.receives, *self.waiting):
            self.finish(overlapped, code)
        self.receives.clear()
        self.waiting.clear()

    def move(self) -> None:
        """Deliver the waiting sends of this end as far as the peer has receives."""
        while self.waiting and self.peer.receives:
            (overlapped, data), (receive, buffer) = self.waiting.popleft(), self.peer.receives.popleft()
            fits = len(data) <= buffer.len
            ctypes.memmove(buffer.buf, data[: buffer.len], min(len(data), buffer.len))
            self.peer.finish(receive, Code.OK if fits else Code.WSAEMSGSIZE, len(data) if fits else 0)
            self.finish(overlapped, Code.OK, len(data))

    # The provider's functions. A returned Code is the error to be stored.

    def WSPSocket(self, *arguments: Any) -> int:
        self.handle = self.switch.table().lpWPUCreateSocketHandle(0, 1, LpErrno())
        return 1

    def WSPIoctl(self, *arguments: Any) -> Code:
        return Code.WSAEOPNOTSUPP

    def WSPGetSockOpt(self, s: int, level: int, name: int, value: bytearray, length: list[int]) -> int:
        value[:4] = LIMITS[name].to_bytes(4, "little")
        return 0

    def WSPRegisterMemory(self, s: int, address: int, length: int, flags: int) -> int | Code:
        if not self.cable.up or self.short_of_memory:
            return Code.WSAENOBUFS if self.cable.up else Code.WSAENOTCONN
        handle = next(self.handles)
        self.memory[handle] = (address, length)
        return handle

    def WSPDeregisterMemory(self, s: int, handle: int) -> int | Code:
        return 0 if self.memory.pop(handle, None) else Code.WSAEINVAL

    def WSPRegisterRdmaMemory(
        self, s: int, address: int, length: int, flags: int, space: bytearray, size: list[int]
    ) -> int | Code:
        room, size[0] = size[0], 8
        if room < 8:
            return Code.WSAEFAULT
        handle = self.WSPRegisterMemory(s, address, length, flags)
        if isinstance(handle, Code):
            return handle
        descriptor = handle.to_bytes(8, "big")
        self.memory[descriptor] = self.memory.pop(handle)
        space[:8] = descriptor
        return 0

    def WSPDeregisterRdmaMemory(self, s: int, descriptor: bytes, length: int) -> int | Code:
        return self.WSPDeregisterMemory(s, descriptor)  # type: ignore[arg-type]

    def WSPSend(self, s: int, buffers: list[WSABUF], count: int, sent: Any, flags: int, o: Any, *rest: Any) -> Code:
        if flags or not self.cable.up:
            return Code.WSAEOPNOTSUPP if flags else Code.WSAECONNRESET
        data = ctypes.string_at(buffers[0].buf, buffers[0].len)
        self.cable.sent.append((self.number, data))
        self.waiting.append((o, data))
        code = self.begin(o)
        self.move()
        return code

    def WSPRecv(self, s: int, buffers: list[WSABUF], count: int, got: Any, flags: Any, o: Any, *rest: Any) -> Code:
        if not self.cable.up:
            return Code.WSAECONNRESET
        code = self.begin(o)
        self.receives.append((o, buffers[0]))
        self.peer.move()
        return code

    def WSPRdmaRead(self, s: int, buffers: list[WSABUFEX], count: int, descriptor: bytes, *rest: Any) -> Code:
        return self._rdma(buffers[0], descriptor, rest[4], read=True)

    def WSPRdmaWrite(self, s: int, buffers: list[WSABUFEX], count: int, descriptor: bytes, *rest: Any) -> Code:
        return self._rdma(buffers[0], descriptor, rest[4], read=False)

    def _rdma(self, buffer: WSABUFEX, descriptor: bytes, o: Any, *, read: bool) -> Code:
        address, length = self.peer.memory.get(descriptor, (0, 0))
        if not self.cable.up or length < buffer.len:
            return Code.WSAEINVAL if self.cable.up else Code.WSAECONNRESET
        code = self.begin(o)
        places = (buffer.buf, address) if read else (address, buffer.buf)
        ctypes.memmove(*places, buffer.len)
        self.finish(o, Code.OK, buffer.len)
        return code

    def WSPDuplicateSocket(self, s: int, pid: int, info: WSAPROTOCOL_INFOW) -> int:
        self.flush(Code.OK)
        info.dwProviderReserved = 77
        return 0

    def WSPCloseSocket(self, s: int) -> int:
        self.flush(Code.WSA_OPERATION_ABORTED)
        self.cable.up = False
        self.peer.flush(Code.WSAECONNRESET)
        return 0


@pytest.fixture
def make() -> Iterator[Callable[..., Cable]]:
    """A function that makes cables."""
    made: list[Cable] = []

    def new(**arguments: Any) -> Cable:
        made.append(Cable(**arguments))
        return made[-1]

    yield new
    for cable in made:
        cable.stop()


def sessions(cable: Cable, mutant: str = "", **options: Any) -> tuple[Session, Session]:
    """(connector, acceptor) after the negotiation. ``mutant`` is the connector's class."""
    kinds = (getattr(mutants, mutant) if mutant else Session, Session)
    made = [
        kind(end.switch, 1, connector=not end.number, options=Options(**options))
        for kind, end in zip(kinds, cable.ends, strict=True)
    ]
    both(lambda: made[0].open(WAIT_S), lambda: made[1].open(WAIT_S))
    return made[0], made[1]


def both(*works: Callable[[], Any]) -> list[Any]:
    """Call several functions at once. Returns the result of each, or the code it ended with."""
    results: list[Any] = [None] * len(works)

    def one(place: int, work: Callable[[], Any]) -> None:
        try:
            results[place] = work()
        except StreamError as error:
            results[place] = error.code

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "it hangs"
    return results


def send(session: Session, data: bytes, timeout_s: float = WAIT_S) -> int:
    memory = Memory(len(data))
    memory.write(0, data)
    return session.send(memory.address, len(data), timeout_s)


def recv(session: Session, most: int = 4096, timeout_s: float = WAIT_S) -> bytes:
    memory = Memory(most)
    return memory.read(0, session.recv(memory.address, most, timeout_s))


def recv_all(session: Session, most: int = 4096) -> bytes:
    """All data up to the end of the stream."""
    return b"".join(iter(lambda: recv(session, most), b""))


def wait_until(happened: Callable[[], Any]) -> None:
    """Wait until ``happened`` returns true. Raises AssertionError after a time limit."""
    end = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.005)


def code_of(work: Callable[[], Any]) -> Code:
    """The code of a call that must fail."""
    with pytest.raises(StreamError) as raised:
        work()
    return raised.value.code


# --- obligations at each call ----------------------------------------------------------------------------------------

S, HANDLE, ADDRESS = 1, 9, 0x10000
BUFFERS, TWO = [WSABUF(8, ADDRESS)], [WSABUF(8, ADDRESS), WSABUF(8, ADDRESS + 8)]
BOUND = [("WSPBind", (S, "name", 16), 0)]
SELECTED = [*BOUND, ("WSPEventSelect", (S, None, 0x18), 0)]
REGISTERED = [("WSPRegisterMemory", (S, ADDRESS, 4096, 3), HANDLE)]
DEBUG = ("WSPSetSockOpt", (S, w.SOL_SOCKET, w.SO_DEBUG, b"", 4), 0)
EXPOSED = [("WSPRegisterRdmaMemory", (S, ADDRESS, 4096, 3, bytearray(b"key!"), [4]), 0)]


def data_call(function: str, *, buffers: Any = BUFFERS, o: Any = "new", routine: Any = None, flags: int = 0) -> Any:
    """A WSPSend or WSPRecv that pends."""
    o = WSAOVERLAPPED(Internal=w.WSS_OPERATION_IN_PROGRESS) if o == "new" else o
    return function, (S, buffers, len(buffers), [0], flags, o, routine, None), Code.WSA_IO_PENDING


def option(name: int, value: int) -> Any:
    return "WSPGetSockOpt", (S, w.SOL_SOCKET, name, value.to_bytes(4, "little"), [4]), 0


PENDING = WSAOVERLAPPED(Internal=w.WSS_OPERATION_IN_PROGRESS)
POLLED = WSAOVERLAPPED(Internal=w.WSS_OPERATION_IN_PROGRESS, hEvent=1)
RIGHT = [
    [*SELECTED, ("WSPConnect", (S, "name", 16, None, None, None, None), Code.WSAEWOULDBLOCK)],
    [*SELECTED, ("WSPListen", (S, 5), 0), ("WSPAccept", (S, None, None, None, 0), 2)],
    [*REGISTERED, data_call("WSPSend", buffers=TWO), data_call("WSPRecv"), ("WSPCloseSocket", (S,), 0)],
    [*REGISTERED, ("WSPDeregisterMemory", (S, HANDLE), 0), ("WSPCloseSocket", (S,), 0), ("WSPCleanup", (), 0)],
    [*EXPOSED, ("WSPDeregisterRdmaMemory", (S, b"key!", 4), 0), ("WSPCloseSocket", (S,), 0)],
    [*REGISTERED, data_call("WSPRecv"), ("WSPDuplicateSocket", (S, 7, None), 0), ("WSPCloseSocket", (S,), 0)],
    [*REGISTERED, option(w.SO_MAX_MSG_SIZE, 16), data_call("WSPSend", buffers=TWO)],
    [*REGISTERED, data_call("WSPRecv", o=POLLED), ("WSPGetOverlappedResult", (S, POLLED, [0], False, [0]), False)],
    [*BOUND, DEBUG, *SELECTED[len(BOUND) :], ("WSPListen", (S, 5), 0), DEBUG],
]
WRONG = [
    ("SWITCH-01", [*REGISTERED, data_call("WSPSend", routine=print)]),
    ("SWITCH-01", [*REGISTERED, data_call("WSPRecv", o=None)]),
    ("SWITCH-02", [data_call("WSPSend")]),
    ("SWITCH-02", [*REGISTERED, data_call("WSPRecv", buffers=[WSABUF(4097, ADDRESS)])]),
    ("SWITCH-03", [*REGISTERED, option(w.SO_MAX_MSG_SIZE, 15), data_call("WSPSend", buffers=TWO)]),
    ("SWITCH-04", [("WSPEventSelect", (S, None, 0x18), 0), *BOUND]),
    ("SWITCH-04", [("WSPEventSelect", (S, None, 0x18), 0), ("WSPListen", (S, 5), 0)]),
    ("SWITCH-04", [*SELECTED, DEBUG]),
    ("SWITCH-05", [*BOUND, ("WSPConnect", (S, "name", 16, None, None, None, None), Code.WSAEWOULDBLOCK)]),
    ("SWITCH-05", [*BOUND, ("WSPListen", (S, 5), 0)]),
    ("SWITCH-05", [*BOUND, ("WSPAccept", (S, None, None, None, 0), 2)]),
    ("SWITCH-10", [*REGISTERED, ("WSPCloseSocket", (S,), 0)]),
    ("SWITCH-10", [*EXPOSED, ("WSPCloseSocket", (S,), 0)]),
    ("SWITCH-10", [*REGISTERED, data_call("WSPRecv"), ("WSPDeregisterMemory", (S, HANDLE), Code.WSAEINVAL)]),
    ("SWITCH-12", [*REGISTERED, data_call("WSPRecv", o=PENDING), ("WSPGetOverlappedResult", (S, PENDING), False)]),
    ("SWITCH-14", [("WSPCleanup", (), 0)]),
    ("SWITCH-15", [*REGISTERED, ("WSPDuplicateSocket", (S, 7, None), 0)]),
    ("SWITCH-15", [*EXPOSED, ("WSPDuplicateSocket", (S, 7, None), 0)]),
    ("SWITCH-15", [*REGISTERED, data_call("WSPSend"), ("WSPDuplicateSocket", (S, 7, None), 0)]),
    ("SWITCH-15", [("WSPDuplicateSocket", (S, 7, None), 0), ("WSPGetSockOpt", (S, 0, 0, b"", [4]), 0)]),
    ("OPT-06", [*BOUND, ("WSPSetSockOpt", (S, w.SOL_SOCKET, w.SO_LINGER, b"", 4), 0)]),
    ("SHUT-04", [*REGISTERED, data_call("WSPSend", flags=w.MSG_OOB)]),
]


def reported(calls: list[Any]) -> list[str]:
    """The obligations reported for these calls, in order, on a new socket.

    Each call is (function, arguments, result or code).
    """
    found: list[str] = []
    obligations = Obligations(lambda requirement, seen: found.append(requirement))
    info = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP)
    calls = [("WSPSocket", (2, 1, 6, info, 0, w.WSA_FLAG_OVERLAPPED), S), *calls]
    for function, arguments, result in calls:
        obligations.before(function, arguments)
        code = result if isinstance(result, Code) else Code.OK
        obligations.after(function, arguments, -1 if code else result, code)
    return found


@pytest.mark.parametrize("calls", RIGHT, ids=range(len(RIGHT)))
def test_calls_in_order_are_not_reported(calls: list[Any]) -> None:
    """A right sequence of calls breaks no obligation."""
    assert reported(calls) == []


@pytest.mark.parametrize(("requirement", "calls"), WRONG)
def test_a_broken_obligation_is_reported_by_its_number(requirement: str, calls: list[Any]) -> None:
    """A call that breaks an obligation is reported once, by its number, and no other obligation is reported."""
    assert reported(calls) == [requirement]


def test_a_socket_without_the_overlapped_flag_is_reported() -> None:
    """WSPSocket without the overlapped flag is reported at once (SWITCH-01)."""
    found: list[str] = []
    Obligations(lambda requirement, seen: found.append(requirement)).before("WSPSocket", (2, 1, 6, None, 0, 0))
    assert found == ["SWITCH-01"]


def test_idle_memory_is_found_once_for_each_registration() -> None:
    """Memory registered twice is listed twice for deregistration, and memory that an operation uses is not listed."""
    obligations = Obligations(lambda requirement, seen: None)
    obligations.after("WSPSocket", (2, 1, 6, None, 0, 1), S, 0)
    for function, arguments, result in REGISTERED * 2:
        obligations.after(function, arguments, result, 0)
    assert obligations.begin_close(S) == [HANDLE, HANDLE]
    function, arguments, code = data_call("WSPRecv", o=WSAOVERLAPPED(Internal=w.WSS_OPERATION_IN_PROGRESS))
    obligations.after(function, arguments, -1, code)
    assert obligations.begin_close(S) == []


def test_memory_that_falls_idle_during_a_close_may_be_left() -> None:
    """Memory may stay registered if its last operation ends between the switch's check and its close."""
    found: list[str] = []
    obligations = Obligations(lambda requirement, seen: found.append(requirement))
    obligations.after("WSPSocket", (2, 1, 6, None, 0, 1), S, 0)
    o = WSAOVERLAPPED(Internal=w.WSS_OPERATION_IN_PROGRESS)
    obligations.after(*REGISTERED[0], 0)
    function, arguments, code = data_call("WSPRecv", o=o)
    obligations.after(function, arguments, -1, code)
    assert obligations.begin_close(S) == []
    o.Internal = 0
    obligations.before("WSPCloseSocket", (S,))
    assert found == []


# --- obligations of the session --------------------------------------------------------------------------------------


def stream_a_little(one: Session, two: Session) -> None:
    """Send small and large data one way, and close."""
    both(lambda: [send(one, bytes(900)) for _ in range(12)], lambda: [recv(two, 900) for _ in range(12)])
    both(lambda: send(one, bytes(5000), 0.3), lambda: recv(two, 5000, 0.3))
    one.close(0)


@pytest.mark.parametrize(
    ("mutant", "requirement"),
    [
        ("NegotiatesFirst", "SWITCH-06"),
        ("LateRepost", "SWITCH-09"),
        ("WrongPath", "SWITCH-11"),
        ("UrgentFlag", "SHUT-04"),
    ],
)
def test_a_mutant_session_reports_its_broken_obligation(
    make: Callable[..., Cable], mutant: str, requirement: str
) -> None:
    """A mutant session reports the obligation that it breaks, because the mutant does not change the check."""
    cable = make()
    with contextlib.suppress(StreamError):
        stream_a_little(*sessions(cable, mutant, receives=4))
    assert cable.ends[0].misbehaved() == {requirement}


def test_sending_without_a_credit_is_reported(make: Callable[..., Cable]) -> None:
    """The fifth message to a peer that posts only four receives is reported (SWITCH-08)."""
    cable = make()
    session = mutants.NoCredits(cable.ends[1].switch, 1, connector=False)
    Hostile(cable.ends[0]).send(Message(Kind.HELLO, Hello(4, 1012, 65536, MAX_RDMA, True).encode()).encode())
    session.open(WAIT_S)
    for _ in range(3):
        send(session, bytes(900))
    wait_until(lambda: cable.ends[1].said("sends").count("DATA") == 3)
    assert cable.ends[1].misbehaved() == set()
    send(session, bytes(900))
    wait_until(cable.ends[1].misbehaved)
    assert cable.ends[1].misbehaved() == {"SWITCH-08"}


def test_the_last_credit_gives_credits_back(make: Callable[..., Cable]) -> None:
    """Data never uses the last credit, so that a message can still give credits back to the peer."""
    cable = make()
    session, peer = victim(cable)
    peer.send(Message(Kind.HELLO, Hello(4, 1012, 65536, MAX_RDMA, True).encode()).encode())
    session.open(WAIT_S)
    for _ in range(3):
        send(session, bytes(900))
    session.shutdown(WAIT_S)
    wait_until(lambda: cable.ends[1].said("sends") == ["HELLO", "DATA", "DATA"])

    for _ in range(8):
        peer.send(Message(Kind.DATA, b"x").encode())

    wait_until(lambda: cable.ends[1].said("sends") == ["HELLO", "DATA", "DATA", "CREDIT"])
    peer.send(Message(Kind.CREDIT, credits=4).encode())
    wait_until(lambda: cable.ends[1].said("sends")[4:] == ["DATA", "END"])
    assert cable.ends[1].misbehaved() == set()


def test_a_long_negotiation_message_is_reported_and_refused(make: Callable[..., Cable]) -> None:
    """The sender reports a long negotiation message (SWITCH-07), and the peer refuses it."""
    cable = make()
    one = mutants.LongHello(cable.ends[0].switch, 1, connector=True)
    two = Session(cable.ends[1].switch, 1, connector=False)
    assert both(lambda: one.open(1), lambda: two.open(1)) == [Code.WSAECONNRESET, Code.WSAECONNABORTED]
    assert cable.ends[0].misbehaved() == {"SWITCH-07"}


@pytest.mark.parametrize("can_pull", [True, False])
def test_a_transfer_without_a_final_message_is_reported(make: Callable[..., Cable], can_pull: bool) -> None:
    """A transfer by RDMA read or write that ends without a message is reported (SWITCH-18)."""
    cable = make(can_pull=(can_pull, can_pull))
    one, two = sessions(cable, "EndsInSilence")
    source, sink = (two, one) if can_pull else (one, two)
    both(lambda: send(source, bytes(5000), 0.3), lambda: recv(sink, 5000, 0.3))
    assert cable.ends[0].misbehaved() == {"SWITCH-18"}


def test_another_code_for_lack_of_memory_is_reported(make: Callable[..., Cable]) -> None:
    """A send that lacks memory and ends with another code than WSAENOBUFS is reported (SWITCH-18)."""
    cable = make()
    one, _ = sessions(cable, "OtherCode")
    cable.ends[0].short_of_memory = True
    assert code_of(lambda: send(one, bytes(5000))) == Code.WSAEFAULT
    assert cable.ends[0].misbehaved() == {"SWITCH-18"}


def test_a_suspension_without_end_is_reported(make: Callable[..., Cable]) -> None:
    """The end without a limit reports its long suspension (SWITCH-16), and the other ends the session."""
    cable = make()
    one, two = sessions(cable, "SuspendsForEver", suspension_timeout_s=0.1)
    two.options = Options(suspension_timeout_s=30)
    one.suspend(WAIT_S)
    wait_until(lambda: cable.ends[0].misbehaved())
    assert cable.ends[0].misbehaved() == {"SWITCH-16"}


# --- messages and credits --------------------------------------------------------------------------------------------


def test_every_kind_of_message_is_decoded_as_encoded() -> None:
    """Header and payload of every kind of message survive encoding and decoding."""
    for kind in Kind:
        message = Message(kind, bytes(range(kind)), 3, 70_000)
        assert decode(message.encode()) == message
    assert Hello.parse(HELLO.encode()) == HELLO
    assert parse_transfer(transfer(7, 5000, b"key")) == (7, 5000, b"key")
    assert len(Message(Kind.HELLO, HELLO.encode()).encode()) <= 256


def test_random_bytes_are_no_message() -> None:
    """Decoding random bytes raises BadMessage."""
    rng = random.Random(5)
    for _ in range(1000):
        with pytest.raises(BadMessage):
            decode(rng.randbytes(rng.randrange(HEADER.size + 20)))


def test_credits_and_window_come_back_and_never_more_than_was_used() -> None:
    """One side may use exactly the credits and the window that the other gives back."""
    one, two = Flow(16, 1000), Flow(16, 1000)
    hello = Hello(16, 1012, 1000, MAX_RDMA, True)
    for flow in (one, two):
        flow.open(hello)
    for _ in range(8):
        assert one.spend()
        one.window -= 100
        two.arrived(100)
        two.owed_credits += 1
    assert two.due()
    two.owed_bytes += 800
    one.granted(Message(Kind.CREDIT, b"", *two.repay()))
    assert (one.credits, one.window, two.unread, two.due()) == (16, 1000, 0, False)
    with pytest.raises(BadMessage):
        one.granted(Message(Kind.CREDIT, credits=1))
    with pytest.raises(BadMessage):
        two.arrived(1001)
    three = Flow(16, 1000)
    three.open(hello)
    assert [three.spend() for _ in range(17)] == [True] * 16 + [False]


# --- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_pull", [(True, True), (False, False), (True, False)])
def test_streams_both_ways_at_once_arrive_whole(make: Callable[..., Cable], can_pull: tuple[bool, bool]) -> None:
    """Data sent and read in pieces of random size, by message and by RDMA, has the same digest at both ends."""
    cable = make(can_pull=can_pull)
    ends = sessions(cable, receives=4, window=3000)
    rng = random.Random(7)
    data = [rng.randbytes(300_000) for _ in ends]

    def sender(session: Session, content: bytes) -> None:
        at, sizes = 0, random.Random(len(content) + content[0])
        while at < len(content):
            piece = content[at : at + sizes.choice((1, 20, 999, 1000, 1001, 5000, 70_000))]
            at += send(session, piece)
        session.shutdown(WAIT_S)

    works = [lambda i=i: sender(ends[i], data[i]) for i in (0, 1)]
    works += [lambda i=i: hashlib.sha256(recv_all(ends[i], 2500)).digest() for i in (0, 1)]
    results = both(*works)

    assert results[2:] == [hashlib.sha256(data[1]).digest(), hashlib.sha256(data[0]).digest()]
    assert [session.close(WAIT_S)["code"] for session in ends] == [0, 0]
    assert [end.misbehaved() for end in cable.ends] == [set(), set()]
    assert [e for end in cable.ends for e in end.events if e["kind"] == "error"] == []


def test_urgent_data_overtakes_the_stream(make: Callable[..., Cable]) -> None:
    """Urgent data overtakes data that waits to be sent, and is read apart from the stream, which arrives whole."""
    cable = make()
    one, two = sessions(cable, sends=1)
    held: list[Any] = []
    cable.ends[0].finish = lambda *done: held.append(done)  # type: ignore[method-assign]
    send(one, b"goes at once, ")
    wait_until(lambda: "DATA" in cable.ends[0].said("sends"))
    send(one, b"waits")
    one.send_urgent(b"!", WAIT_S)
    del cable.ends[0].finish  # type: ignore[method-assign]
    for done in held:
        cable.ends[0].finish(*done)

    assert two.recv_urgent(WAIT_S) == b"!"
    wait_until(lambda: cable.ends[1].said("receives")[-3:] == ["DATA", "URGENT", "DATA"])
    assert recv(two) == b"goes at once, waits"


def test_half_close_leaves_the_other_half(make: Callable[..., Cable]) -> None:
    """After a shutdown the peer reads to the end and can still send, and this end can no longer send."""
    one, two = sessions(make())
    send(one, b"last words")
    one.shutdown(WAIT_S)

    assert recv_all(two) == b"last words"
    assert code_of(lambda: send(one, b"more")) == Code.WSAESHUTDOWN
    send(two, b"answer")
    assert recv(one) == b"answer"


def test_a_farewell_ends_the_stream_and_a_reset_breaks_it(make: Callable[..., Cable]) -> None:
    """After all arrived data a graceful close reads as the stream's end, and an abortive one as WSAECONNRESET."""
    for linger_s, last in ((WAIT_S, b""), (0, Code.WSAECONNRESET)):
        one, two = sessions(make())
        send(one, b"data")
        assert one.close(linger_s)["code"] == 0
        assert recv(two) == b"data"
        assert both(lambda two=two: recv(two)) == [last]
        assert code_of(lambda two=two: send(two, b"too late")) == Code.WSAECONNRESET
        assert two.close(0)["code"] == 0


def test_a_call_that_takes_too_long_ends_and_leaves_the_stream_usable(make: Callable[..., Cable]) -> None:
    """A read without data and a small send without room time out, and later data is not lost."""
    one, two = sessions(make(), window=2000)
    assert code_of(lambda: recv(two, timeout_s=0.05)) == Code.WSAETIMEDOUT
    send(one, bytes(1000)), send(one, bytes(1000))
    assert code_of(lambda: send(one, b"no room", timeout_s=0.05)) == Code.WSAETIMEDOUT
    assert len(recv(two)) == 2000
    send(one, b"room again")
    assert recv(two) == b"room again"


def test_a_transfer_that_takes_too_long_ends_the_session(make: Callable[..., Cable]) -> None:
    """A transfer that times out closes the connection, because the peer may still access its memory (BLOCK)."""
    one, two = sessions(make())
    assert code_of(lambda: send(one, bytes(5000), timeout_s=0.05)) == Code.WSAETIMEDOUT
    assert code_of(lambda: recv(two)) == Code.WSAECONNRESET


def test_a_broken_connection_ends_every_call(make: Callable[..., Cable]) -> None:
    """A broken connection ends pending sends, reads, urgent reads and a suspension with its own code."""
    cable = make()
    one, two = sessions(cable)
    waits = (lambda: send(one, bytes(5000)), lambda: recv(one), lambda: two.recv_urgent(WAIT_S))
    timer = threading.Timer(0.1, cable.cut)
    timer.start()
    assert both(*waits) == [Code.WSAECONNRESET] * 3
    assert code_of(lambda: one.suspend(WAIT_S)) == Code.WSAECONNRESET
    assert [s.close(WAIT_S)["code"] for s in (one, two)] == [0, 0]


@pytest.mark.parametrize("can_pull", [True, False])
@pytest.mark.parametrize("short", [0, 1])
def test_lack_of_memory_ends_the_send_alone(make: Callable[..., Cable], can_pull: bool, short: int) -> None:
    """If either side lacks memory for a transfer the send ends with WSAENOBUFS, and the stream goes on (SWITCH-18)."""
    cable = make(can_pull=(can_pull, can_pull))
    one, two = sessions(cable)
    cable.ends[short].short_of_memory = True
    reader = threading.Thread(target=lambda: both(lambda: recv(two, timeout_s=0.3)))
    reader.start()
    assert code_of(lambda: send(one, bytes(5000))) == Code.WSAENOBUFS
    reader.join()
    cable.ends[short].short_of_memory = False
    assert both(lambda: send(one, b"x" * 5000), lambda: recv(two, 5000)) == [5000, b"x" * 5000]
    assert cable.ends[0].misbehaved() == set()


# --- suspension and hand-over ----------------------------------------------------------------------------------------


def test_a_suspended_session_is_silent_and_then_goes_on(make: Callable[..., Cable]) -> None:
    """A suspended session is drained and keeps only its receives' memory, and later requests wait for the resume."""
    cable = make()
    one, two = sessions(cable, window=1000)
    send(one, b"s" * 1000)
    results: list[Any] = []
    large = threading.Thread(target=lambda: results.append(both(lambda: send(one, b"L" * 5000))))
    large.start()
    wait_until(lambda: "SOURCE" in cable.ends[0].said("sends"))
    one.suspend(WAIT_S)
    large.join()
    assert results == [[5000]]
    assert len(cable.ends[0].memory) == 1 and cable.ends[0].receives and not cable.ends[0].waiting
    silent = len(cable.sent)
    assert recv(two, 1000) == b"s" * 1000 and recv(two, 5000) == b"L" * 5000
    for session in (one, two):
        assert code_of(lambda session=session: send(session, b"not now", 0.05)) == Code.WSAETIMEDOUT
        session.send_urgent(b"nor this", WAIT_S)
    assert len(cable.sent) == silent
    one.resume(WAIT_S)
    assert (one.recv_urgent(WAIT_S), two.recv_urgent(WAIT_S)) == (b"nor this", b"nor this")
    assert both(lambda: send(two, b"later"), lambda: recv(one)) == [5, b"later"]
    assert [end.misbehaved() for end in cable.ends] == [set(), set()]


def test_the_second_to_suspend_waits_for_the_first(make: Callable[..., Cable]) -> None:
    """A suspended end sends its own request to suspend only when the other has resumed."""
    one, two = sessions(make())
    one.suspend(WAIT_S)
    assert code_of(lambda: two.suspend(0.05)) == Code.WSAETIMEDOUT
    assert both(lambda: two.suspend(WAIT_S), lambda: one.resume(WAIT_S)) == [None, None]
    two.resume(WAIT_S)
    assert both(lambda: send(one, b"a"), lambda: recv(two)) == [1, b"a"]


@pytest.mark.parametrize("late_s", [0, 0.001, 0.003])
def test_both_may_suspend_at_once(make: Callable[..., Cable], late_s: float) -> None:
    """Requests go on when both ends have resumed, in either order of the suspensions."""
    one, two = sessions(make())

    def later() -> None:
        time.sleep(late_s)
        with contextlib.suppress(StreamError):
            two.suspend(0.3)

    both(lambda: one.suspend(WAIT_S), later)
    with contextlib.suppress(StreamError):
        two.resume(WAIT_S)
    one.resume(WAIT_S)
    assert both(lambda: send(one, b"a"), lambda: recv(two), lambda: send(two, b"b"), lambda: recv(one)) == [
        1,
        b"a",
        1,
        b"b",
    ]


def test_a_suspended_session_ends_after_its_time(make: Callable[..., Cable]) -> None:
    """Each end limits the time of a suspension by itself (SWITCH-16)."""
    cable = make()
    one, two = sessions(cable, suspension_timeout_s=0.3)
    one.suspend(WAIT_S)
    assert both(lambda: recv(one), lambda: recv(two))[0] == Code.WSAETIMEDOUT
    assert [end.misbehaved() for end in cable.ends] == [set(), set()]


def test_a_handed_over_session_goes_on_where_it_was(make: Callable[..., Cable]) -> None:
    """A handed-over session keeps unread data and credits, and only WSPCloseSocket follows on the old descriptor."""
    cable = make()
    one, two = sessions(cable)
    send(two, b"unread")
    wait_until(lambda: "DATA" in cable.ends[0].said("receives"))
    one.suspend(WAIT_S)
    token, state = one.hand_over(4711, WAIT_S)
    assert token == 77
    # The old descriptor's records stay in the old process. The new descriptor belongs to another process.
    old, cable.ends[0] = cable.ends[0], End(cable, 0, 9, True)
    new = Session.take_over(cable.ends[0].switch, 1, state, Options())
    new.resume(WAIT_S)
    assert recv(new) == b"unread"
    assert both(lambda: send(two, b"z" * 5000), lambda: recv(new, 5000)) == [5000, b"z" * 5000]
    calls = [e["function"] for e in old.events if e["kind"] == "call"]
    assert calls[-1] == "WSPDuplicateSocket"
    assert old.misbehaved() == cable.ends[0].misbehaved() == set()
    old.completions.put(None)


# --- bad peers -------------------------------------------------------------------------------------------------------

NEGOTIATION = [
    b"",
    b"junk",
    Message(Kind.DATA, b"too early").encode(),
    Message(Kind.HELLO, HELLO.encode().replace(b"SANS", b"SANX")).encode(),
    Message(Kind.HELLO, HELLO.encode().replace(b"SANS\0\1", b"SANS\0\2")).encode(),
    Message(Kind.HELLO, HELLO.encode() + bytes(300)).encode(),
    Message(Kind.HELLO, Hello(1, 1012, 65536, MAX_RDMA, True).encode()).encode(),
    Message(Kind.HELLO, Hello(16, 16, 65536, MAX_RDMA, True).encode()).encode(),
    Message(Kind.HELLO, Hello(16, 1012, 0, MAX_RDMA, True).encode()).encode(),
    Message(Kind.HELLO, Hello(16, 1012, 65536, THRESHOLD, True).encode()).encode(),
]
LATER = [
    *NEGOTIATION[:2],
    Message(Kind.HELLO, HELLO.encode()).encode(),
    Message(Kind.DATA).encode(),
    Message(Kind.DATA, b"x").encode() + b"more",
    bytes([99]) + Message(Kind.DATA, b"x").encode()[1:],
    Message(Kind.CREDIT, credits=17).encode(),
    Message(Kind.CREDIT, read=1).encode(),
    Message(Kind.URGENT).encode(),
    Message(Kind.SOURCE, b"short").encode(),
    Message(Kind.SOURCE, transfer(1, 2000)).encode(),
    Message(Kind.SOURCE, transfer(1, 0, b"descriptor")).encode(),
    Message(Kind.SOURCE, transfer(1, MAX_RDMA + 1, b"descriptor")).encode(),
    Message(Kind.SOURCE, transfer(1, 2000, b"descriptor")).encode(),
    Message(Kind.REQUEST, transfer(1, MAX_RDMA + 1)).encode(),
    Message(Kind.PULLED, transfer(1, 0)).encode(),
    Message(Kind.TARGET, transfer(1, 0, b"descriptor")).encode(),
    Message(Kind.PUSHED, transfer(1, 0)).encode(),
    Message(Kind.SUSPENDED).encode(),
    Message(Kind.RESUME).encode(),
]


class Hostile:
    """A connector's end that sends arbitrary messages in the right format."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.memory = Memory(1 << 16)
        for _ in range(16):
            self._start("WSPRecv", WSABUF(1012, self.memory.address), [0])

    def send(self, data: bytes) -> None:
        memory = Memory(max(len(data), 1))
        memory.write(0, data)
        self._start("WSPSend", WSABUF(len(data), memory.address), 0)

    def _start(self, function: str, buffer: WSABUF, flags: Any) -> None:
        with self.end.cable.lock:
            getattr(self.end, function)(1, [buffer], 1, [0], flags, WSAOVERLAPPED())


def victim(cable: Cable) -> tuple[Session, Hostile]:
    session = Session(cable.ends[1].switch, 1, connector=False)
    return session, Hostile(cable.ends[0])


def check_ended(cable: Cable, session: Session) -> None:
    """Check that the session has closed its socket, that every call fails, and that no thread raised an error."""
    assert code_of(lambda: send(session, b"x")) == Code.WSAECONNABORTED
    assert session.close(WAIT_S)["code"] == 0
    assert [e for e in cable.ends[1].events if e["kind"] == "error"] == []
    assert cable.ends[1].misbehaved() == set()


@pytest.mark.parametrize("data", NEGOTIATION, ids=range(len(NEGOTIATION)))
def test_a_bad_negotiation_message_ends_the_session(make: Callable[..., Cable], data: bytes) -> None:
    """The acceptor closes with an error on another protocol, another version or impossible limits."""
    cable = make()
    session, peer = victim(cable)
    peer.send(data)
    assert code_of(lambda: session.open(WAIT_S)) == Code.WSAECONNABORTED
    check_ended(cable, session)


@pytest.mark.parametrize("data", LATER, ids=range(len(LATER)))
def test_a_bad_message_ends_the_session(make: Callable[..., Cable], data: bytes) -> None:
    """An invalid message ends the session with an error: pending reads fail, and the socket is closed."""
    cable = make()
    session, peer = victim(cable)
    peer.send(Message(Kind.HELLO, HELLO.encode()).encode())
    session.open(WAIT_S)
    timer = threading.Timer(0.05, peer.send, (data,))
    timer.start()
    assert both(lambda: recv(session)) == [Code.WSAECONNABORTED]
    check_ended(cable, session)


def test_an_announced_transfer_that_never_comes_is_not_the_end(make: Callable[..., Cable]) -> None:
    """A stream that ends behind an unreadable source gives an error, not the end of the stream."""
    cable = make()
    session, peer = victim(cable)
    for message in (
        Message(Kind.HELLO, HELLO.encode()),
        Message(Kind.SOURCE, transfer(1, 2000, b"descriptor")),
        Message(Kind.END),
    ):
        peer.send(message.encode())
    session.open(WAIT_S)
    wait_until(lambda: "END" in cable.ends[1].said("receives"))
    assert code_of(lambda: recv(session)) == Code.WSAECONNABORTED
    check_ended(cable, session)


def test_more_than_the_window_and_data_after_the_end_are_bad(make: Callable[..., Cable]) -> None:
    """Data beyond the window or after the end ends the session, after all valid data was read."""
    for messages in (
        [Message(Kind.DATA, bytes(1000))] * 66,
        [Message(Kind.DATA, b"x"), Message(Kind.END), Message(Kind.DATA, b"y")],
        [Message(Kind.END), Message(Kind.END)],
        [Message(Kind.SUSPEND), Message(Kind.SUSPEND)],
    ):
        cable = make()
        session, peer = victim(cable)
        for message in (Message(Kind.HELLO, HELLO.encode()), *messages):
            peer.send(message.encode())
        session.open(WAIT_S)
        wait_until(lambda session=session: session.error is not None)
        check_ended(cable, session)


def test_a_session_that_always_has_something_to_do_keeps_its_times(make: Callable[..., Cable]) -> None:
    """A suspended session that always has work still ends after its time limit (SWITCH-16)."""
    cable = make()
    one, _ = sessions(cable, suspension_timeout_s=0.2)
    one.suspend(WAIT_S)

    def again() -> None:
        if one.error is None:
            one._put(again)

    again()
    wait_until(lambda: one.error is Code.WSAETIMEDOUT)


def test_random_messages_neither_crash_nor_hang_a_session(make: Callable[..., Cable]) -> None:
    """With each of a thousand random peers a session goes on or ends with an error, and can be closed."""
    rng = random.Random(3)
    for _ in range(150):
        cable = make()
        session, peer = victim(cable)
        peer.send(Message(Kind.HELLO, HELLO.encode()).encode())
        session.open(WAIT_S)
        for _ in range(rng.randrange(1, 12)):
            kind = rng.choice(list(Kind))
            payload = rng.choice(
                (b"", rng.randbytes(rng.randrange(40)), transfer(rng.randrange(3), rng.randrange(3000)))
            )
            peer.send(Message(kind, payload, rng.choice((0, 0, 0, 1)), rng.choice((0, 0, 0, 9))).encode())
        both(lambda session=session: recv(session, timeout_s=0.01), lambda session=session: send(session, b"x", 0.01))
        assert session.close(0.01)["code"] in (Code.OK,)
        assert [e for e in cable.ends[1].events if e["kind"] == "error"] == []
        assert cable.ends[1].misbehaved() == set()
