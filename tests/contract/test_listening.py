"""WSPListen: the length and the order of the queue of requests.

test_binding shows that a wildcard listener serves every adapter (LISTEN-10).
"""

import time

import pytest

from hil import Code
from hil.testing import FD_ACCEPT, FD_CONNECT, PORT, Answer, Bench, Endpoint, Socket
from hil.winsock.codes import CF_ACCEPT, CF_REJECT, FD_CONNECT_BIT, SOMAXCONN

pytestmark = pytest.mark.used_pair

# Shorter than the time after which the connection manager repeats an unanswered request.
AT_ONCE_NS = 4_000_000_000
CONSUMER_REJECT = 28


def request(a: Endpoint, b: Endpoint, port: int) -> Socket:
    """A socket whose connect from ``port`` to node b's listener has begun."""
    socket = a.socket(port, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    return socket


def queued(a: Endpoint, b: Endpoint, listener: Socket, port: int) -> Socket:
    """A socket whose connect from ``port`` waits in the listener's queue, signalled and reported."""
    socket = request(a, b, port)
    assert b.ask("wait_event", event=listener.event, timeout_s=10), f"the request from port {port} was not signalled"
    assert b.wsp("WSPEnumNetworkEvents", s=listener.s, event=listener.event).more["events"] == FD_ACCEPT
    return socket


def ended(a: Endpoint, socket: Socket) -> Code | None:
    """The code a connect ended with, None when it did not end."""
    if not a.ask("wait_event", event=socket.event, timeout_s=10):
        return None
    return Code(a.must("WSPEnumNetworkEvents", s=socket.s, event=socket.event).more["codes"][FD_CONNECT_BIT])


def accept(b: Endpoint, listener: Socket, decision: int = CF_ACCEPT) -> tuple[Code, int]:
    """The code of a WSPAccept, and the port of the connector that the condition function was called for."""
    answer: Answer = b.wsp("WSPAccept", s=listener.s, decision=decision)
    return answer.code, answer.more["asked"].get("caller_id", ["", 0])[1]


@pytest.mark.requirement("LISTEN-01", "LISTEN-11")
def test_requests_queue_in_order_up_to_the_backlog(bench: Bench) -> None:
    """Three requests wait in a queue of three, and are accepted in the order of their arrival."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=3)
    ports = [6003, 6001, 6002]
    sockets = [queued(a, b, listener, port) for port in ports]

    assert [accept(b, listener) for _ in ports] == [(Code.OK, port) for port in ports]

    assert [ended(a, socket) for socket in sockets] == [Code.OK] * 3
    assert accept(b, listener)[0] is Code.WSAEWOULDBLOCK
    bench.judge()


@pytest.mark.requirement("LISTEN-02")
def test_somaxconn_leaves_a_reasonable_length_to_the_provider(bench: Bench) -> None:
    """With SOMAXCONN sixteen requests wait at once, none is refused, and all are accepted."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=SOMAXCONN)
    sockets = [request(a, b, 6000 + i) for i in range(16)]
    bench.wait_journal("b", "cm", 16, event="CONNECT_REQUEST")

    accepted = []
    while len(accepted) < 16:
        assert b.ask("wait_event", event=listener.event, timeout_s=10), f"no request is signalled after {accepted}"
        accepted.append(accept(b, listener))

    assert sorted(accepted) == [(Code.OK, 6000 + i) for i in range(16)]
    assert {ended(a, socket) for socket in sockets} == {Code.OK}
    bench.judge()


@pytest.mark.requirement("LISTEN-03")
def test_only_a_bound_socket_listens(bench: Bench) -> None:
    """WSPListen of an unbound socket gives WSAEINVAL, of a connected one WSAEISCONN, of an unknown one WSAENOTSOCK."""
    connector, acceptor = bench.connect()
    b = acceptor.at
    unbound = b.must("WSPSocket").result

    def listen(s: int) -> Code:
        return b.wsp("WSPListen", s=s, backlog=1, deliberately=["SWITCH-04", "SWITCH-05"]).code

    assert listen(unbound) is Code.WSAEINVAL
    assert listen(acceptor.socket.s) is Code.WSAEISCONN
    assert listen(1) is Code.WSAENOTSOCK
    b.must("WSPCloseSocket", s=unbound)
    assert listen(unbound) is Code.WSAENOTSOCK

    receive = acceptor.recv()
    connector.send(b"still connected")
    assert acceptor.completion(receive) == (Code.OK, 15)
    bench.judge()


@pytest.mark.requirement("LISTEN-04")
@pytest.mark.needs("inline wire", "own nodes")
def test_shortages_and_a_dead_network_have_codes_of_their_own(bench: Bench) -> None:
    """A listener too many gives WSAEMFILE or WSAENOBUFS, a dead network WSAENETDOWN; with room again it listens."""
    _, b = bench.start(settings_b={"max_listeners": 1})
    first, second = b.socket(PORT, FD_ACCEPT), b.socket(PORT + 1, FD_ACCEPT)

    def listen(socket: Socket) -> Code:
        return b.wsp("WSPListen", s=socket.s, backlog=1).code

    with bench.port_down("b"):
        assert listen(first) is Code.WSAENETDOWN
    assert listen(first) is Code.OK
    assert listen(second) in (Code.WSAEMFILE, Code.WSAENOBUFS)
    b.close(first)
    assert listen(second) is Code.OK
    bench.judge()


@pytest.mark.requirement("LISTEN-04")
def test_a_kernel_without_room_has_a_code_of_its_own(bench: Bench) -> None:
    """WSPListen gives WSAENOBUFS or WSAEMFILE while the kernel's connection manager has no room, and works later."""
    _, b = bench.start()
    listener = b.socket(PORT, FD_ACCEPT)

    full = b.ask("full_cm", call="WSPListen", arguments={"s": listener.s, "backlog": 1})

    assert full["result"] == -1 and full["code"] in (Code.WSAEMFILE, Code.WSAENOBUFS)
    assert b.wsp("WSPListen", s=listener.s, backlog=1).code is Code.OK
    bench.judge()


@pytest.mark.requirement("LISTEN-05")
def test_a_port_in_use_is_not_the_providers_business(bench: Bench) -> None:
    """Of two sockets on one address and port each listens or gives a shortage code, and one that listens is served.

    Neither gets WSAEADDRINUSE, WSAEOPNOTSUPP or WSAEINPROGRESS.
    """
    a, b = bench.start()
    one, two = b.socket(PORT, FD_ACCEPT), b.socket(PORT, FD_ACCEPT)

    codes = [b.wsp("WSPListen", s=socket.s, backlog=1).code for socket in (one, two)]
    b.close(two)
    codes.append(b.wsp("WSPListen", s=one.s, backlog=1).code)

    assert set(codes) <= {Code.OK, Code.WSAENOBUFS, Code.WSAEMFILE}
    assert codes[2] is Code.OK
    queued(a, b, one, 6000)
    bench.judge()


@pytest.mark.requirement("LISTEN-06")
def test_a_request_signals_as_soon_as_it_comes(bench: Bench) -> None:
    """The event object is signalled within two seconds of the REQ on the wire, without a call to the provider."""
    a, b = bench.start()
    listener = b.listen(PORT)
    request(a, b, 6000)

    assert b.ask("wait_event", event=listener.event, timeout_s=10)

    signalled_ns = time.monotonic_ns()
    assert b.wsp("WSPEnumNetworkEvents", s=listener.s, event=listener.event).more["events"] == FD_ACCEPT
    evidence = bench.judge()
    first = next(p for p in evidence.packets if p.cm == "REQ")
    assert signalled_ns - evidence.packet_times_ns[first.frame] < AT_ONCE_NS


@pytest.mark.requirement("LISTEN-01", "LISTEN-07", "LISTEN-08", "LISTEN-09")
def test_a_request_beyond_the_backlog_is_refused_at_once_without_a_signal(bench: Bench) -> None:
    """A third connector to a queue of two gets WSAECONNREFUSED, by a REJ that follows its REQ at once.

    The listener's event object stays reset, no event is reported, and the two requests are accepted later.
    """
    a, b = bench.start()
    listener = b.listen(PORT, backlog=2)
    waiting = [queued(a, b, listener, port) for port in (6000, 6001)]
    signals = b.ask("event_state", event=listener.event)

    refused = request(a, b, 6002)
    assert ended(a, refused) is Code.WSAECONNREFUSED

    assert b.ask("event_state", event=listener.event) == signals == {"set": 0, "set_count": 2}
    assert b.wsp("WSPEnumNetworkEvents", s=listener.s, event=listener.event).more["events"] == 0
    assert [accept(b, listener) for _ in range(3)] == [(Code.OK, 6000), (Code.OK, 6001), (Code.WSAEWOULDBLOCK, 0)]
    assert [ended(a, socket) for socket in waiting] == [Code.OK] * 2
    evidence = bench.judge()
    third = [p for p in evidence.packets if p.cm == "REQ"][2]
    answers = [p for p in evidence.packets if p.cm and p.remote_comm_id == third.local_comm_id]
    assert [(p.cm, p.reason) for p in answers] == [("REJ", CONSUMER_REJECT)]
    assert answers[0].time_ns - third.time_ns < AT_ONCE_NS


@pytest.mark.requirement("LISTEN-12")
def test_a_place_in_the_queue_is_freed_by_accept_by_reject_and_by_giving_up(bench: Bench) -> None:
    """In a queue of one, the next request is queued after the first was accepted, rejected or withdrawn."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=1)
    queued(a, b, listener, 6000)
    assert ended(a, request(a, b, 6001)) is Code.WSAECONNREFUSED

    assert accept(b, listener) == (Code.OK, 6000)
    queued(a, b, listener, 6002)

    assert accept(b, listener, CF_REJECT) == (Code.WSAECONNREFUSED, 6002)
    gives_up = queued(a, b, listener, 6003)

    a.must("WSPCloseSocket", s=gives_up.s)
    bench.wait_packets(lambda p: p.cm == "REJ" and p.source == a.ip)
    last = queued(a, b, listener, 6004)

    codes = [accept(b, listener), accept(b, listener)]
    assert (Code.OK, 6004) in codes
    assert ended(a, last) is Code.OK
    bench.judge()


@pytest.mark.requirement("LISTEN-13")
def test_listening_again_changes_the_backlog(bench: Bench) -> None:
    """A second WSPListen with a longer backlog succeeds, and so many requests are queued."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=1)

    assert b.wsp("WSPListen", s=listener.s, backlog=3).code is Code.OK

    for port in (6000, 6001, 6002):
        queued(a, b, listener, port)
    assert ended(a, request(a, b, 6003)) is Code.WSAECONNREFUSED
    bench.judge()
