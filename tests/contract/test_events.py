"""WSPEventSelect and WSPEnumNetworkEvents: each event is reported once, at its place in iErrorCode."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from hil import Code
from hil.testing import CONNECTOR_PORT, FD_ACCEPT, FD_CONNECT, PORT, Answer, Bench, End, Endpoint, Socket
from hil.winsock.codes import CF_REJECT, FD_ACCEPT_BIT, FD_CONNECT_BIT, FD_MAX_EVENTS, WSS_OPERATION_IN_PROGRESS

pytestmark = pytest.mark.used_pair

AT_ONCE_NS = 4_000_000_000
PATTERN = 77


def enumerate_events(endpoint: Endpoint, socket: Socket, **more: object) -> Answer:
    """WSPEnumNetworkEvents with the socket's event object, into an iErrorCode filled with a pattern."""
    return endpoint.wsp("WSPEnumNetworkEvents", s=socket.s, event=socket.event, fill=PATTERN, **more)


def only(bit: int, code: Code) -> list[int]:
    """The iErrorCode in which only the place of ``bit`` was written."""
    return [code if place == bit else PATTERN for place in range(FD_MAX_EVENTS)]


def is_set(endpoint: Endpoint, event: int) -> bool:
    return bool(endpoint.ask("event_state", event=event)["set"])


def request(a: Endpoint, b: Endpoint, port: int, to: int = PORT) -> Socket:
    """A socket whose connect from ``port`` has begun."""
    socket = a.socket(port, FD_CONNECT)
    a.connect(socket, b.ip, to)
    return socket


def is_signalled(b: Endpoint, listener: Socket) -> bool:
    """Whether the listener's event object is signalled within a short time."""
    return bool(b.ask("wait_event", event=listener.event, timeout_s=10))


@pytest.mark.requirement("EVT-01", "EVT-13")
def test_accept_and_connect_can_be_selected_and_nothing_else(bench: Bench) -> None:
    """FD_ACCEPT and FD_CONNECT can be selected; other bits or no event object give WSAEINVAL, junk WSAENOTSOCK."""
    a, _ = bench.start()
    s, event = a.must("WSPSocket").result, a.ask("event")

    def select(mask: int, s: int = s, event: int = event) -> Code:
        return a.wsp("WSPEventSelect", s=s, event=event, mask=mask).code

    assert [select(mask) for mask in (0x08, 0x10, 0x18)] == [Code.OK] * 3
    others = [1 << bit for bit in range(31) if bit not in (FD_ACCEPT_BIT, FD_CONNECT_BIT)]
    assert {select(mask) for mask in (*others, 0x18 | 0x20, -1)} == {Code.WSAEINVAL}
    assert select(FD_CONNECT, event=0) is Code.WSAEINVAL
    assert select(FD_CONNECT, s=1) is Code.WSAENOTSOCK
    assert a.wsp("WSPEnumNetworkEvents", s=s, event=event, null=True).code is Code.WSAEINVAL
    assert a.wsp("WSPEnumNetworkEvents", s=1, event=event).code is Code.WSAENOTSOCK
    a.must("WSPCloseSocket", s=s)
    assert select(FD_CONNECT) is Code.WSAENOTSOCK
    assert a.wsp("WSPEnumNetworkEvents", s=s, event=event).code is Code.WSAENOTSOCK
    bench.judge()


@pytest.mark.requirement("EVT-02")
@pytest.mark.needs("inline wire")
def test_connect_and_accept_do_not_wait(bench: Bench) -> None:
    """WSPConnect to a silent peer and WSPAccept without a request return at once."""
    a, b = bench.start()
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    bench.pair.wire.cut()

    assert a.wsp("WSPConnect", s=socket.s, address=b.ip, port=PORT).code is Code.WSAEWOULDBLOCK
    assert b.wsp("WSPAccept", s=listener.s).code is Code.WSAEWOULDBLOCK

    assert not is_set(a, socket.event)
    bench.pair.wire.mend()
    evidence = bench.judge()
    for node, function in (("a", "WSPConnect"), ("b", "WSPAccept")):
        (call,) = evidence.of(node, "call", function=function)
        assert call.t_ns - call.begun_ns < AT_ONCE_NS


@pytest.mark.requirement("EVT-03")
def test_data_functions_stay_overlapped(bench: Bench) -> None:
    """With events selected WSPRecv, WSPSend and WSPRdmaWrite still pend and end by their completions."""
    connector, acceptor = bench.connect()
    for end in (connector, acceptor):
        end.at.must("WSPEventSelect", s=end.socket.s, event=end.socket.event, mask=FD_ACCEPT | FD_CONNECT)
    a, b = connector.at, acceptor.at
    o = {name: end.ask("overlapped") for name, end in (("recv", b), ("send", a), ("write", a))}
    buffer, region = connector.socket.address, connector.socket.region
    _, descriptor = b.expose(acceptor.socket, 3)

    posted = acceptor.wsp("WSPRecv", buffers=[[64, acceptor.socket.address]], overlapped=o["recv"])
    assert (posted.result, posted.code) == (-1, Code.WSA_IO_PENDING)
    write = {"buffers": [[64, buffer, region]], "descriptor": descriptor, "overlapped": o["write"]}
    assert connector.wsp("WSPRdmaWrite", **write).code is Code.WSA_IO_PENDING
    assert a.completion(o["write"]) == (Code.OK, 64)
    assert b.ask("overlapped_state", overlapped=o["recv"])["Internal"] == WSS_OPERATION_IN_PROGRESS

    assert connector.wsp("WSPSend", buffers=[[9, buffer]], overlapped=o["send"]).code is Code.WSA_IO_PENDING
    assert (a.completion(o["send"]), b.completion(o["recv"])) == ((Code.OK, 9), (Code.OK, 9))
    bench.judge()


@pytest.mark.requirement("EVT-04", "EVT-05", "EVT-06", "EVT-07", "EVT-10")
def test_each_request_is_signalled_and_reported_once(bench: Bench) -> None:
    """Each of three requests signals the event object and is reported once, with code 0 at FD_ACCEPT's place.

    No other place is written, and the enumeration leaves the event object reset.
    """
    a, b = bench.start()
    listener = b.listen(PORT)

    for port in (6000, 6001, 6002):
        assert not is_set(b, listener.event)
        request(a, b, port)
        assert is_signalled(b, listener)

        reported = enumerate_events(b, listener)
        assert (reported.result, reported.code) == (0, Code.OK)
        assert reported.more["events"] == FD_ACCEPT
        assert reported.more["codes"] == only(FD_ACCEPT_BIT, Code.OK)
        assert not is_set(b, listener.event)
        assert enumerate_events(b, listener).more["events"] == 0
    bench.judge()


@pytest.mark.requirement("EVT-04", "EVT-05", "EVT-06", "EVT-10")
def test_a_connects_result_is_reported_at_its_place(bench: Bench) -> None:
    """iErrorCode[4] is WSAECONNREFUSED for a refused connect, 0 for an accepted one; other places stay unchanged."""
    a, b = bench.start()
    listener = b.listen(PORT)

    for port, decision, code in ((6000, CF_REJECT, Code.WSAECONNREFUSED), (6001, 0, Code.OK)):
        socket = request(a, b, port)
        b.wait_request(listener)
        b.wsp("WSPAccept", s=listener.s, decision=decision)
        assert a.ask("wait_event", event=socket.event, timeout_s=10)

        reported = enumerate_events(a, socket)
        assert (reported.more["events"], reported.more["codes"]) == (FD_CONNECT, only(FD_CONNECT_BIT, code))
        assert enumerate_events(a, socket).more["events"] == 0
    bench.judge()


def reports_a_request(b: Endpoint, listener: Socket) -> bool:
    """Whether one of a few enumerations in a row reports a request.

    Until then a signalled event object must stay set; otherwise the switch would never enumerate again.
    """
    signals = b.ask("event_state", event=listener.event)["set_count"]
    for _ in range(8):
        if enumerate_events(b, listener).more["events"]:
            return True
        state = b.ask("event_state", event=listener.event)
        assert state["set"] or state["set_count"] == signals, "the event object was reset before a report"
    return False


@pytest.mark.requirement("EVT-05", "EVT-08")
def test_no_wake_up_is_lost_between_report_and_reset(bench: Bench) -> None:
    """Each of twelve requests during enumerations is reported by one of them, or leaves the event object set."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=20)
    with ThreadPoolExecutor(1) as other_thread:
        for port in range(6000, 6012):
            socket = a.socket(port, FD_CONNECT)
            connecting = other_thread.submit(a.connect, socket, b.ip, PORT)
            reported = reports_a_request(b, listener)
            connecting.result()
            if not reported:
                assert is_signalled(b, listener), f"the request from port {port} was neither reported nor signalled"
                assert enumerate_events(b, listener).more["events"] == FD_ACCEPT
            assert enumerate_events(b, listener).more["events"] == 0
    bench.judge()


@pytest.mark.requirement("EVT-09")
def test_a_failed_enumeration_changes_nothing(bench: Bench) -> None:
    """A failed enumeration leaves the event object set, and the next good one still reports the request."""
    a, b = bench.start()
    listener = b.listen(PORT)
    request(a, b, CONNECTOR_PORT)
    assert is_signalled(b, listener)

    assert enumerate_events(b, listener, null=True).result == -1
    assert b.wsp("WSPEnumNetworkEvents", s=1, event=listener.event).result == -1

    assert is_set(b, listener.event)
    assert enumerate_events(b, listener).more["events"] == FD_ACCEPT
    bench.judge()


@pytest.mark.requirement("EVT-11", "EVT-15")
def test_a_request_while_deselected_signals_on_the_next_selection(bench: Bench) -> None:
    """After a selection of 0 a request signals nothing; a new selection of FD_ACCEPT signals it at once."""
    a, b = bench.start()
    listener, second = b.listen(PORT), b.listen(PORT + 1)
    b.must("WSPEventSelect", s=listener.s, event=listener.event, mask=0)
    request(a, b, 6000)
    # Requests are handled in order.
    # When the second listener has its request, the first listener's request has been handled.
    bench.wait_journal("b", "cm", event="CONNECT_REQUEST")
    request(a, b, 6001, PORT + 1)
    assert is_signalled(b, second)
    assert b.ask("event_state", event=listener.event)["set_count"] == 0

    event = b.ask("event")
    b.must("WSPEventSelect", s=listener.s, event=event, mask=FD_ACCEPT)

    assert is_set(b, event)
    assert b.wsp("WSPEnumNetworkEvents", s=listener.s, event=event).more["events"] == FD_ACCEPT
    bench.judge()


@pytest.mark.requirement("EVT-12", "EVT-14")
def test_data_and_disconnection_are_no_events(bench: Bench) -> None:
    """From connect to reset only FD_ACCEPT and FD_CONNECT are reported; the peer's close shows as a failed receive."""
    connector, acceptor = bench.connect()
    assert bench.listener is not None
    listener = End(acceptor.at, bench.listener)
    ends = (connector, acceptor, listener)
    for end in ends:
        end.at.must("WSPEventSelect", s=end.socket.s, event=end.socket.event, mask=FD_ACCEPT | FD_CONNECT)
        enumerate_events(end.at, end.socket)
    counts = [end.at.ask("event_state", event=end.socket.event)["set_count"] for end in ends]

    receives = [connector.recv(), connector.recv(offset=256)]
    acceptor.send(b"data")
    assert connector.completion(receives[0]) == (Code.OK, 4)
    acceptor.close()
    assert connector.completion(receives[1]) == (Code.WSAECONNRESET, 0)

    assert [enumerate_events(end.at, end.socket).more["events"] for end in (connector, listener)] == [0, 0]
    assert [end.at.ask("event_state", event=end.socket.event)["set_count"] for end in ends] == counts
    assert connector.close() == (0, Code.OK)
    bench.judge(bench.hard_close(acceptor, connector))
