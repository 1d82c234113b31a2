"""Overlapped operations: each begins at once and ends once, by an up-call or by polling, never by both."""

import threading
import time
from typing import Any

import pytest

from hil import Code
from hil.testing import FD_CONNECT, PORT, Bench, End, Socket
from hil.testing.data import ABORTED, RESET, completions, held, pieces, recv_each, send_each
from hil.winsock.codes import INVALID_HANDLE_VALUE, MEM_READWRITE, SIO_ADDRESS_LIST_QUERY, WSS_OPERATION_IN_PROGRESS

pytestmark = pytest.mark.used_pair

NOTIFIED, POLLED = 0, 1
COMPLETE = "WPUCompleteOverlappedRequest"
FUNCTIONS = ("WSPSend", "WSPRecv", "WSPRdmaWrite", "WSPRdmaRead")
MESSAGE = b"a message of sixty-four bytes".ljust(64, b".")


def begin(end: End, function: str, descriptor: bytes = b"", hEvent: int = NOTIFIED) -> int:
    """Begin an operation of 64 bytes, which must pend. Returns its WSAOVERLAPPED's number."""
    overlapped, at = int(end.at.ask("overlapped", hEvent=hEvent)), 0
    if function == "WSPSend":
        at = 32768
        end.at.ask("write_memory", memory=end.socket.memory, offset=at, data=MESSAGE)
    remote: dict[str, Any] = {"descriptor": descriptor} if descriptor and "Rdma" in function else {}
    buffer = [64, end.socket.address + at] + [end.socket.region] * bool(remote)
    assert end.wsp(function, buffers=[buffer], overlapped=overlapped, **remote).code is Code.WSA_IO_PENDING
    return overlapped


def address_list(end: End, hEvent: int = NOTIFIED) -> int:
    """Begin an overlapped query of the address list, which must pend. Returns its WSAOVERLAPPED's number."""
    overlapped = int(end.at.ask("overlapped", hEvent=hEvent))
    arguments = {"code": SIO_ADDRESS_LIST_QUERY, "overlapped": overlapped}
    end.at.must("WSPIoctl", Code.WSA_IO_PENDING, s=end.socket.s, **arguments)
    return overlapped


def poll(end: End, overlapped: int, *, wait: bool = False, **more: Any) -> tuple[bool, Code, int, int]:
    """(result, code, bytes, flags) of WSPGetOverlappedResult. Bytes and flags hold other values before."""
    answer = end.wsp("WSPGetOverlappedResult", overlapped=overlapped, wait=wait, fill=0xABCD, **more)
    return answer.result, answer.code, answer.more["transferred"], answer.more["flags"]


def polled(end: End, overlapped: int) -> tuple[bool, Code, int, int]:
    """Poll until the operation is no longer pending, for ten seconds at most. Returns the last answer."""
    until = time.monotonic() + 10
    while (found := poll(end, overlapped))[1] is Code.WSA_IO_INCOMPLETE and time.monotonic() < until:
        time.sleep(0.001)
    return found


def done(length: int) -> tuple[bool, Code, int, int]:
    """The answer to a poll of a successful operation of ``length`` bytes."""
    return True, Code.OK, length, 0


def notified(bench: Bench, end: End) -> list[tuple[int, Code, int]]:
    """(operation, code, bytes) of each completion up-call for an end's switch handle, in order."""
    upcalls = bench.pair.evidence(audit=False).of(end.at.node.name, "upcall", function=COMPLETE)
    return [(e.overlapped, Code(e.code), e.transferred) for e in upcalls if e.handle == end.socket.handle]


# --- beginning and ending --------------------------------------------------------------------------------------------


@pytest.mark.requirement("OVL-01")
@pytest.mark.needs("inline wire")
def test_every_function_pends_and_returns_at_once(bench: Bench) -> None:
    """On a cut wire each data function returns WSA_IO_PENDING at once; on the mended wire each completes."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)
    b.recv()
    begun = {function: a.at.ask("overlapped") for function in FUNCTIONS}
    plain, remote = {"buffers": [[64, a.socket.address]]}, {"buffers": [[64, a.socket.address, a.socket.region]]}
    arguments = dict.fromkeys(FUNCTIONS[:2], plain) | dict.fromkeys(FUNCTIONS[2:], remote | {"descriptor": descriptor})

    bench.pair.wire.cut()
    answers = [a.wsp(function, overlapped=begun[function], **arguments[function]) for function in FUNCTIONS]
    ended = [a.completion(overlapped, 0) for overlapped in begun.values()]
    bench.pair.wire.mend()
    b.send(MESSAGE)

    assert [(answer.result, answer.code) for answer in answers] == [(-1, Code.WSA_IO_PENDING)] * 4
    assert ended == [None] * 4
    assert [a.completion(overlapped) for overlapped in begun.values()] == [(Code.OK, 64)] * 4
    calls = [e for e in bench.pair.evidence(audit=False).of("a", "call") if e.function in FUNCTIONS]
    assert max(call.t_ns - call.begun_ns for call in calls) < 4_000_000_000
    bench.judge()


@pytest.mark.requirement("OVL-02")
def test_a_pending_operation_completes_once_and_a_refused_one_never(bench: Bench) -> None:
    """After messages and the close four pending receives have one completion each, and two refused calls none."""
    a, b = bench.connect()
    pending = [b.recv(offset=256 * i) for i in range(4)]
    refused = [b.at.ask("overlapped") for _ in range(2)]
    unregistered = [[64, b.at.ask("memory", size=4096)["address"]]]
    codes = [
        b.wsp("WSPRecv", buffers=unregistered, overlapped=refused[0], deliberately=["SWITCH-02"]).code,
        b.wsp("WSPSend", buffers=unregistered, overlapped=refused[1], deliberately=["SWITCH-02"]).code,
    ]
    assert {Code.OK, Code.WSA_IO_PENDING}.isdisjoint(codes)
    for _ in range(2):
        assert a.completion(a.send(b"told")) == (Code.OK, 4)

    assert b.close() == (0, Code.OK)

    assert notified(bench, b) == [(o, Code.OK, 4) for o in pending[:2]] + [(o, *ABORTED) for o in pending[2:]]
    bench.judge(bench.hard_close(b, a))


@pytest.mark.requirement("OVL-04", "OVL-05")
def test_an_up_call_tells_which_operation_ended_how(bench: Bench) -> None:
    """A completion up-call names the socket's switch handle, the operation, its code and its bytes."""
    a, b = bench.connect()
    other, others_peer = bench.connect(6001)
    receives = {end.socket.s: [end.recv(offset=256 * i) for i in range(2)] for end in (b, others_peer)}

    for sender, receiver, message in ((a, b, b"to the one"), (other, others_peer, b"to the other one")):
        sender.send(message)
        assert receiver.completion(receives[receiver.socket.s][0]) == (Code.OK, len(message))
        sender.close()
        assert receiver.completion(receives[receiver.socket.s][1]) == RESET

    for receiver, length in ((b, 10), (others_peer, 16)):
        first, second = receives[receiver.socket.s]
        assert notified(bench, receiver) == [(first, Code.OK, length), (second, *RESET)]
    bench.judge()


@pytest.mark.requirement("OVL-06")
@pytest.mark.parametrize("function", ["WSPSend", "WSPRecv", "WSPRdmaWrite", "WSPRdmaRead", "WSPIoctl"])
def test_a_completion_routine_and_a_thread_are_ignored(bench: Bench, function: str) -> None:
    """With junk for completion routine and thread an operation ends by an up-call, and the routine is not called."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)
    own = [64, a.socket.address]
    remote = {"buffers": [[*own, a.socket.region]], "descriptor": descriptor, "deliberately": ["SWITCH-01"]}
    local = {"buffers": [own], "deliberately": ["SWITCH-01"]}
    arguments = {"WSPSend": local, "WSPRecv": local, "WSPIoctl": {"code": SIO_ADDRESS_LIST_QUERY}}.get(function, remote)
    overlapped, receive = a.at.ask("overlapped"), b.recv()

    begun = a.wsp(function, overlapped=overlapped, routine=True, **arguments)
    b.send(MESSAGE)

    assert begun.code is Code.WSA_IO_PENDING
    code, transferred = a.completion(overlapped) or (None, 0)
    assert code is Code.OK and (transferred == 64 or function == "WSPIoctl")
    assert function != "WSPSend" or b.completion(receive) == (Code.OK, 64)
    # That the routine was called would be in the journal as an error, and break a finding.
    bench.judge()


@pytest.mark.requirement("OVL-21", "OVL-23")
def test_each_of_many_operations_has_its_own_result(bench: Bench) -> None:
    """Each of thirty pending receives gets the length of its own message, independent of its buffer's length."""
    a, b = bench.connect()
    messages = [bytes([i]) * (i + 1) for i in range(30)]
    receives = recv_each(b, [256] * 30)

    sends = send_each(a, messages)

    expected = [(Code.OK, len(message)) for message in messages]
    assert completions(b, receives) == expected
    assert completions(a, sends) == expected
    assert pieces(b, [256] * 30) == [message.ljust(256, b"\0") for message in messages]
    bench.judge()


@pytest.mark.requirement("OVL-22")
def test_event_selection_makes_no_difference(bench: Bench) -> None:
    """Operations begin, poll and complete alike on a socket never selected, one deselected and one selected."""
    a, b = bench.start()
    listener = b.listen(PORT)
    bench.pair.note_baseline()
    connector = a.socket(6000, FD_CONNECT)
    a.connect(connector, b.ip, PORT)
    b.wait_request(listener)
    s = b.must("WSPAccept", s=listener.s).result
    never = End(b, b.with_memory(Socket(s, b.handle_of(s), 0)))
    selected = End(a, a.connected(connector))
    bench.pair.note_resources()

    assert same_for_both(never, selected)
    assert same_for_both(selected, never)
    deselected = selected
    assert deselected.wsp("WSPEventSelect", event=0, mask=0).code is Code.OK
    assert same_for_both(deselected, never)
    bench.judge()


def same_for_both(sender: End, receiver: End) -> bool:
    """Whether two messages end as documented, the first by up-calls and the second by polling at both ends."""
    notified_receive, asked = begin(receiver, "WSPRecv"), begin(receiver, "WSPRecv", hEvent=POLLED)
    before = poll(receiver, asked)
    sends = begin(sender, "WSPSend"), begin(sender, "WSPSend", hEvent=POLLED)
    results = (
        before[:2],
        receiver.completion(notified_receive),
        polled(receiver, asked),
        sender.completion(sends[0]),
        polled(sender, sends[1]),
    )
    return results == ((False, Code.WSA_IO_INCOMPLETE), (Code.OK, 64), done(64), (Code.OK, 64), done(64))


@pytest.mark.requirement("OVL-24")
def test_an_ended_operations_memory_is_not_touched(bench: Bench) -> None:
    """Messages and the close leave buffer and WSAOVERLAPPED of ended operations as the switch wrote them."""
    a, b = bench.connect()
    ended = {"told": b.recv(64), "polled": begin(b, "WSPRecv", hEvent=POLLED)}
    sent = begin(a, "WSPSend")
    begin(a, "WSPSend")
    assert (b.completion(ended["told"]), polled(b, ended["polled"])) == ((Code.OK, 64), done(64))
    assert a.completion(sent) == (Code.OK, 64)
    poison = b"poison!!" * 8
    b.at.ask("write_memory", memory=b.socket.memory, offset=0, data=poison)
    a.at.ask("write_memory", memory=a.socket.memory, offset=32768, data=poison)
    before = [b.at.ask("overlapped_state", overlapped=o) for o in ended.values()]

    receive = b.recv(64, offset=1024)
    assert a.completion(a.send(MESSAGE, offset=40960)) == (Code.OK, 64)
    assert b.completion(receive) == (Code.OK, 64)
    assert b.close() == (0, Code.OK)

    assert b.at.data(b.socket, 64) == poison
    assert a.at.data(a.socket, 64, 32768) == poison
    assert [b.at.ask("overlapped_state", overlapped=o) for o in ended.values()] == before
    bench.judge()


@pytest.mark.requirement("OVL-25")
def test_the_switch_may_call_again_while_it_is_in_an_up_call(bench: Bench) -> None:
    """During an up-call its own thread and other threads send, receive, register and poll on the same socket."""
    a, b = bench.connect()
    first, second = b.recv(), begin(b, "WSPRecv", hEvent=POLLED)
    buffers = [[64, b.socket.address + 1024]]
    third = b.at.ask("overlapped")

    with held(b.at, COMPLETE) as upcall:
        a.send(b"the first")
        upcall.wait()
        began = time.monotonic()
        calls = [
            b.wsp("WSPGetOverlappedResult", overlapped=second),
            b.wsp("WSPSend", buffers=buffers, overlapped=b.at.ask("overlapped")),
            b.wsp("WSPRegisterMemory", address=b.socket.address, length=4096, flags=MEM_READWRITE),
        ]
        # The switch holds an up-call for 25 seconds, so a call that waits for it returns too late.
        assert time.monotonic() - began < 15
    assert [call.code for call in calls] == [Code.WSA_IO_INCOMPLETE, Code.WSA_IO_PENDING, Code.OK]
    assert b.completion(first) == (Code.OK, 9)

    arguments = {"s": b.socket.s, "buffers": buffers, "overlapped": third}
    b.at.ask("in_next_completion", call="WSPRecv", arguments=arguments)
    fourth = b.recv(offset=2048)
    a.send(b"the second")
    a.send(b"the fourth")
    assert b.at.ask("answer_in_completion")["code"] == Code.WSA_IO_PENDING
    a.send(b"the third")
    assert polled(b, second) == done(10)
    assert (b.completion(fourth), b.completion(third)) == ((Code.OK, 10), (Code.OK, 9))
    bench.judge()


# --- the structure ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("OVL-08", "OVL-09", "OVL-10")
@pytest.mark.parametrize("hEvent", [0x5550, 0x5551], ids=["notified", "polled"])
def test_the_structure_tells_how_an_operation_stands(bench: Bench, hEvent: int) -> None:
    """The structure says 'in progress' at once, then holds error and flags, and hEvent stays as the switch set it."""
    a, b = bench.connect()
    good, bad = (b.at.recv(b.socket, 64, 256 * i, hEvent=hEvent) for i in range(2))
    state = {"begun": [b.at.ask("overlapped_state", overlapped=o) for o in (good, bad)]}

    a.send(MESSAGE)
    end_of = polled if hEvent & POLLED else End.completion
    end_of(b, good)
    a.close()
    end_of(b, bad)
    state["ended"] = [b.at.ask("overlapped_state", overlapped=o) for o in (good, bad)]

    fresh = {"InternalHigh": 0, "Offset": 0, "OffsetHigh": 0, "hEvent": hEvent}
    assert state["begun"] == [fresh | {"Internal": WSS_OPERATION_IN_PROGRESS}] * 2
    assert all(ended.pop("Internal") != WSS_OPERATION_IN_PROGRESS for ended in state["ended"])
    codes = (Code.OK, 64), RESET
    assert state["ended"] == [fresh | {"InternalHigh": length, "OffsetHigh": int(code)} for code, length in codes]
    bench.judge()


# --- polling ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("OVL-03", "OVL-11", "OVL-14", "OVL-17")
def test_every_function_is_polled_and_then_never_told(bench: Bench) -> None:
    """With bit 0 of hEvent set polling finds each function's result, bytes and flags, and no up-call comes."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)
    b.recv()
    begun = {function: begin(a, function, descriptor, POLLED) for function in FUNCTIONS}
    begun["WSPIoctl"] = address_list(a, POLLED)
    b.send(MESSAGE)

    results = {function: polled(a, overlapped) for function, overlapped in begun.items()}

    length = results["WSPIoctl"][2]
    assert results == dict.fromkeys(FUNCTIONS, done(64)) | {"WSPIoctl": done(length)}
    assert 0 < length < 0xABCD
    assert [poll(a, overlapped) for overlapped in begun.values()] == list(results.values())
    assert a.close() == (0, Code.OK)
    assert notified(bench, a) == []
    bench.judge()


@pytest.mark.requirement("OVL-04", "OVL-17")
def test_every_function_is_told_and_may_then_be_asked(bench: Bench) -> None:
    """With bit 0 of hEvent clear each function ends by one up-call, and a later poll gives the same result."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)
    b.recv()
    begun = {function: begin(a, function, descriptor) for function in FUNCTIONS}
    begun["WSPIoctl"] = address_list(a)
    b.send(MESSAGE)

    completed = {function: a.completion(overlapped) for function, overlapped in begun.items()}
    asked = {function: poll(a, overlapped) for function, overlapped in begun.items()}

    assert {function: completed[function] for function in FUNCTIONS} == dict.fromkeys(FUNCTIONS, (Code.OK, 64))
    assert {f: (True, code, length, 0) for f, (code, length) in completed.items()} == asked
    assert sorted(o for o, _, _ in notified(bench, a)) == sorted(begun.values())
    bench.judge()


@pytest.mark.requirement("OVL-07")
def test_polling_and_notification_mix_on_one_socket(bench: Bench) -> None:
    """Of six receives every second is polled, and each ends in the way that its own hEvent asks for."""
    a, b = bench.connect()
    receives = [b.at.recv(b.socket, 64, 256 * i, hEvent=i % 2) for i in range(6)]

    for i in range(6):
        a.send(bytes(i + 1), offset=32768 + 64 * i)

    assert [b.completion(r) for r in receives[::2]] == [(Code.OK, i + 1) for i in (0, 2, 4)]
    assert [polled(b, r) for r in receives[1::2]] == [done(i + 1) for i in (1, 3, 5)]
    assert notified(bench, b) == [(receives[i], Code.OK, i + 1) for i in (0, 2, 4)]
    bench.judge()


@pytest.mark.requirement("OVL-12", "OVL-13")
@pytest.mark.parametrize("hEvent", [POLLED, NOTIFIED], ids=["polled", "notified"])
def test_a_waiting_poll_returns_when_the_operation_is_done(bench: Bench, hEvent: int) -> None:
    """A poll with fWait returns when the message has come; one without gives WSA_IO_INCOMPLETE for a pending receive.

    Both hold for notified and for polled receives.
    """
    a, b = bench.connect()
    receive = begin(b, "WSPRecv", hEvent=hEvent)
    # The bench's switch must not poll an operation that ends by an up-call.
    deliberately = [] if hEvent == POLLED else ["SWITCH-12"]
    assert poll(b, receive, deliberately=deliberately)[:2] == (False, Code.WSA_IO_INCOMPLETE)
    found: list[tuple[bool, Code, int, int]] = []
    waiting = threading.Thread(
        target=lambda: found.append(poll(b, receive, wait=True, deliberately=deliberately)),
    )
    waiting.start()
    while len(bench.pair.evidence(audit=False).of("b", "begin", function="WSPGetOverlappedResult")) < 2:
        time.sleep(0.01)

    assert poll(b, receive, deliberately=deliberately)[:2] == (False, Code.WSA_IO_INCOMPLETE)
    assert waiting.is_alive()
    a.send(MESSAGE)
    waiting.join(10)

    assert found == [done(64)]
    bench.judge()


@pytest.mark.requirement("OVL-15", "OVL-23")
def test_a_poll_tells_how_an_operation_failed(bench: Bench) -> None:
    """Each poll of a receive that the peer's close ended gives FALSE with WSAECONNRESET and zero bytes."""
    a, b = bench.connect()
    receives = [begin(b, "WSPRecv", hEvent=POLLED) for _ in range(2)]

    assert a.close() == (0, Code.OK)

    assert [polled(b, r) for r in receives] == [(False, *RESET, 0)] * 2
    assert poll(b, receives[0]) == (False, *RESET, 0)
    assert notified(bench, b) == []
    bench.judge()


@pytest.mark.requirement("OVL-16")
def test_polling_needs_no_other_thread(bench: Bench) -> None:
    """Polls alone find finished operations of a provider whose own thread never looks at completions."""
    bench.start(provider_b="LooksAway")
    a, b = bench.connect()
    receive = begin(b, "WSPRecv", hEvent=POLLED)
    notified_receive = b.recv()
    a.send(MESSAGE)
    a.send(MESSAGE)

    assert polled(b, receive) == done(64)
    send = begin(b, "WSPSend", hEvent=POLLED)
    a.recv()
    assert polled(b, send) == done(64)
    assert b.completion(notified_receive) == (Code.OK, 64)
    bench.judge()


@pytest.mark.requirement("OVL-18")
def test_a_bad_event_and_an_unknown_socket_are_refused(bench: Bench) -> None:
    """An hEvent that is no handle gives WSA_INVALID_HANDLE; an unknown or closed descriptor gives WSAENOTSOCK."""
    _, b = bench.connect()
    broken = b.at.ask("overlapped", hEvent=INVALID_HANDLE_VALUE)
    fine = b.at.ask("overlapped", hEvent=POLLED)
    closed = b.at.must("WSPSocket", af=2).result
    b.at.must("WSPCloseSocket", s=closed)

    answers = [b.at.wsp("WSPGetOverlappedResult", s=b.socket.s, overlapped=broken)]
    unknown = (closed, 0, -1, b.socket.handle)
    answers += [b.at.wsp("WSPGetOverlappedResult", s=s, overlapped=fine) for s in unknown]

    assert [answer.result for answer in answers] == [False] * 5
    assert [answer.code for answer in answers] == [Code.WSA_INVALID_HANDLE] + [Code.WSAENOTSOCK] * 4
    bench.judge()


@pytest.mark.requirement("OVL-19")
def test_results_are_found_in_any_order(bench: Bench) -> None:
    """Of four finished receives the newest is polled first, and each has its own result."""
    a, b = bench.connect()
    receives = [b.at.recv(b.socket, 64, 64 * i, hEvent=POLLED) for i in range(4)]
    for i in range(4):
        assert a.completion(a.send(bytes(i + 1))) == (Code.OK, i + 1)

    assert [polled(b, r) for r in receives[::-1]] == [done(n) for n in (4, 3, 2, 1)]
    bench.judge()
