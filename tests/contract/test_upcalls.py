"""Up-calls (UP): the table that the bench's switch gives its providers, and its use by a provider.

The first half tests the bench itself: a table that accepted wrong handles would hide a provider's mistakes.
"""

import threading
import time
from typing import Any

import pytest

from hil import Code
from hil.evidence.disconnect import broken
from hil.switch.switch import Switch
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Bench, End, Endpoint
from hil.winsock.codes import WSS_OPERATION_IN_PROGRESS
from hil.winsock.structures import WSAOVERLAPPED, LpErrno

pytestmark = pytest.mark.used_pair

OF_THE_MODEL = {
    "WPUCreateSocketHandle",
    "WPUCloseSocketHandle",
    "WPUQuerySocketHandleContext",
    "WPUCompleteOverlappedRequest",
}
FAILED = {"result": -1, "code": Code.WSAENOTSOCK}


def stray_upcalls(bench: Bench) -> str:
    """Judge, and check that the only broken finding is about up-calls with unknown handles. Returns those up-calls."""
    findings = broken(bench.findings())
    assert [finding.statement for finding in findings] == ["every up-call names a live handle and a pending operation"]
    return findings[0].seen


def carries_a_message(source: End, target: End) -> bool:
    receive = target.recv()
    source.send(b"hello")
    return target.completion(receive) == (Code.OK, 5)


# --- the bench's table -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("UP-01", "UP-02")
def test_a_created_handle_is_fresh_and_remembers_its_context(bench: Bench) -> None:
    """Each WPUCreateSocketHandle returns a new handle with its own context, and an unknown handle fails."""
    a, _ = bench.start()
    contexts = [0, 1, 1 << 40, 1]

    handles = [a.ask("upcall", function="WPUCreateSocketHandle", handle=context)["result"] for context in contexts]

    assert len(set(handles)) == len(handles) and -1 not in handles
    found = [a.ask("query_context", handle=handle) for handle in handles]
    assert [(f["result"], f["context"]) for f in found] == [(0, context) for context in contexts]
    unknown = a.ask("query_context", handle=max(handles) + 1)
    assert (unknown["result"], unknown["code"]) == (-1, Code.WSAENOTSOCK)
    bench.judge()


@pytest.mark.requirement("UP-01")
def test_for_want_of_handles_the_upcall_fails_and_so_does_the_provider(bench: Bench) -> None:
    """Without handles WPUCreateSocketHandle and WSPSocket give INVALID_SOCKET and WSAENOBUFS; the next succeeds."""
    a, _ = bench.start()
    a.ask("fail_next", function="WPUCreateSocketHandle", code=Code.WSAENOBUFS, times=2)

    direct = a.ask("upcall", function="WPUCreateSocketHandle", handle=1)
    through = a.wsp("WSPSocket")

    assert direct == {"result": -1, "code": Code.WSAENOBUFS}
    assert (through.result, through.code) == ("INVALID_SOCKET", Code.WSAENOBUFS)
    assert a.wsp("WSPSocket").code is Code.OK
    bench.judge()


@pytest.mark.requirement("UP-03")
def test_a_closed_handle_is_forgotten_and_a_double_close_is_found(bench: Bench) -> None:
    """A second WPUCloseSocketHandle and a query give WSAENOTSOCK, and the provider's socket lives until its close."""
    a, _ = bench.start()
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)

    assert a.ask("upcall", function="WPUCloseSocketHandle", handle=socket.handle)["result"] == 0

    assert a.ask("upcall", function="WPUCloseSocketHandle", handle=socket.handle) == FAILED
    assert a.ask("query_context", handle=socket.handle)["code"] == Code.WSAENOTSOCK
    assert a.wsp("WSPEnumNetworkEvents", s=socket.s, event=socket.event).code is Code.OK
    assert stray_upcalls(bench).count(f"WPUCloseSocketHandle handle {socket.handle}") == 2


@pytest.mark.requirement("UP-04")
def test_a_completion_for_a_foreign_handle_is_refused_and_found(bench: Bench) -> None:
    """A completion for a descriptor or for another process's handle gives WSAEINVAL, and completes nothing."""
    a, b = bench.start()
    mine, theirs = a.socket(CONNECTOR_PORT, FD_CONNECT), b.socket(CONNECTOR_PORT, FD_CONNECT)
    overlapped = a.ask("overlapped")

    wrong = [
        a.ask("upcall", function="WPUCompleteOverlappedRequest", handle=handle, overlapped=overlapped)
        for handle in (mine.s, theirs.handle + 7, 0)
    ]

    assert wrong == [{"result": -1, "code": Code.WSAEINVAL}] * 3
    assert a.completion(overlapped, 0.1) is None
    assert stray_upcalls(bench).count("WPUCompleteOverlappedRequest") == 3


@pytest.mark.requirement("UP-05")
def test_the_byte_count_becomes_visible_before_the_end_and_perhaps_late() -> None:
    """InternalHigh is always stored before Internal, and some results become visible only after the up-call."""
    switch = Switch(lambda entry: None, seed=7)
    table = switch.table()
    handle = table.lpWPUCreateSocketHandle(0, 1, LpErrno())
    late = 0
    for count in range(1, 101):
        overlapped = Recorded()

        assert table.lpWPUCompleteOverlappedRequest(handle, overlapped, 0, count, LpErrno()) == 0

        late += overlapped.Internal == WSS_OPERATION_IN_PROGRESS
        assert overlapped.ended.wait(10.0)
        assert overlapped.stored == [("InternalHigh", count), ("Internal", 0)]
    assert 0 < late < 100


class Recorded(WSAOVERLAPPED):
    """A WSAOVERLAPPED in progress that records each store."""

    __slots__ = ("__dict__",)

    def __init__(self) -> None:
        self.__dict__["stored"], self.__dict__["ended"] = [], threading.Event()
        super().__init__(Internal=WSS_OPERATION_IN_PROGRESS)
        self.stored.clear()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.stored.append((name, value))
        if name == "Internal" and value == 0:
            self.ended.set()


# --- the provider's use of it ----------------------------------------------------------------------------------------


@pytest.mark.requirement("UP-06")
def test_the_provider_does_not_rely_on_the_state_being_visible_at_once(bench: Bench) -> None:
    """Of dozens of operations many results are visible late, each has one up-call, and a close waits for none."""
    connector, acceptor = bench.connect()
    for _ in range(30):
        receive, send = acceptor.recv(), connector.send(b"hello")
        assert (acceptor.completion(receive), connector.completion(send)) == ((Code.OK, 5), (Code.OK, 5))
    pending = [connector.recv(offset=256 * n) for n in range(30)]

    assert connector.close() == (0, Code.OK)

    assert {connector.completion(receive) for receive in pending} == {(Code.WSA_OPERATION_ABORTED, 0)}
    bench.judge(bench.hard_close(connector, acceptor))


@pytest.mark.requirement("UP-06")
def test_neither_the_next_upcall_nor_a_close_waits_for_the_state(bench: Bench) -> None:
    """Later up-calls and the close do not wait for results that the switch stores many seconds late."""
    connector, acceptor = bench.connect()
    late_s = 20.0
    acceptor.at.ask("late_by", seconds=late_s)
    done = [acceptor.recv(offset=256 * n) for n in range(2)]
    for _ in done:
        connector.send(b"hello")
    bench.wait_journal("b", "upcall", 2, function="WPUCompleteOverlappedRequest")
    pending = [acceptor.recv(offset=1024 * n) for n in range(1, 4)]

    assert acceptor.close() == (0, Code.OK)

    states = [acceptor.at.ask("overlapped_state", overlapped=o)["Internal"] for o in (*done, *pending)]
    assert states == [WSS_OPERATION_IN_PROGRESS] * 5
    told = bench.wait_journal("b", "upcall", 5, function="WPUCompleteOverlappedRequest")
    assert [e.overlapped for e in told][:2] == done and {e.overlapped for e in told[2:]} == set(pending)
    assert [e.code for e in told] == [Code.OK] * 2 + [Code.WSA_OPERATION_ABORTED] * 3
    # The switch's own threads that still wait would be taken for left over.
    end_ns = time.monotonic_ns() + int(2 * late_s * 1e9)
    while any(
        acceptor.at.ask("overlapped_state", overlapped=o)["Internal"] == WSS_OPERATION_IN_PROGRESS
        for o in (*done, *pending)
    ):
        assert time.monotonic_ns() < end_ns, "the switch never stored the results"
        time.sleep(0.2)
    bench.judge()


@pytest.mark.requirement("UP-07", "UP-09")
def test_a_provider_uses_the_extended_table_and_nothing_else(bench: Bench) -> None:
    """From accept to close the provider completes operations by the table's entry, and uses no other table."""
    connector, acceptor = bench.connect()
    assert carries_a_message(connector, acceptor)
    pending = acceptor.recv()
    connector.close()
    assert acceptor.completion(pending) == (Code.WSAECONNRESET, 0)
    acceptor.close()

    evidence = bench.judge()

    for node, completions in (("a", 1), ("b", 2)):
        names = [e.function for e in evidence.of(node, "upcall")]
        assert set(names) <= OF_THE_MODEL
        assert names.count("WPUCompleteOverlappedRequest") == completions


@pytest.mark.requirement("UP-08")
def test_a_completion_that_the_switch_refuses_harms_no_socket(bench: Bench) -> None:
    """While WPUCompleteOverlappedRequest fails, each operation has one up-call, and the connection goes on."""
    connector, acceptor = bench.connect()
    for end in (connector, acceptor):
        end.at.ask("fail_next", function="WPUCompleteOverlappedRequest", code=Code.WSAEINVAL, times=4)
    assert all(carries_a_message(connector, acceptor) for _ in range(6))

    pending = [acceptor.recv(offset=256 * n) for n in range(3)]
    acceptor.at.ask("fail_next", function="WPUCompleteOverlappedRequest", code=Code.WSAENOTSOCK, times=3)
    assert connector.close() == (0, Code.OK)
    assert [acceptor.completion(receive) for receive in pending] == [(Code.WSAECONNRESET, 0)] * 3
    bench.judge(bench.hard_close(connector, acceptor))


@pytest.mark.requirement("UP-08", "UP-01")
def test_an_accept_without_a_handle_refuses_the_connector(bench: Bench) -> None:
    """If WPUCreateSocketHandle fails in WSPAccept the connector is refused, and the listener serves the next one."""
    a, b = bench.start()
    listener = b.listen(PORT)
    refused = begin(a, b, 6000)
    b.wait_request(listener)
    served = begin(a, b, 6001)
    b.ask("fail_next", function="WPUCreateSocketHandle", code=Code.WSAENOBUFS)

    answer = b.wsp("WSPAccept", s=listener.s)

    assert (answer.result, answer.code) == ("INVALID_SOCKET", Code.WSAENOBUFS)
    assert a.connect_result(refused) is Code.WSAECONNREFUSED
    b.accept(listener)
    assert a.connect_result(served) is Code.OK
    bench.judge()


def begin(a: Endpoint, b: Endpoint, port: int) -> Any:
    socket = a.socket(port, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    return socket


@pytest.mark.requirement("UP-08")
def test_a_handle_that_cannot_be_closed_does_not_stop_the_close(bench: Bench) -> None:
    """WSPCloseSocket closes even when WPUCloseSocketHandle fails, and the peer's receive is reset."""
    connector, acceptor = bench.connect()
    receive = acceptor.recv()
    connector.at.ask("fail_next", function="WPUCloseSocketHandle", code=Code.WSAENOTSOCK)

    assert connector.close() == (0, Code.OK)

    assert acceptor.completion(receive) == (Code.WSAECONNRESET, 0)
    again = connector.at.wsp("WSPCloseSocket", s=connector.socket.s)
    assert again.code is Code.WSAENOTSOCK
    bench.judge(bench.hard_close(connector, acceptor))
