"""WSPAccept: the condition function's arguments and decisions, and their effect on the connector and the wire (ACC).

The connector is on node a, the listener on node b.
"""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hil import Code
from hil.testing import CONNECTOR_PORT, FD_ACCEPT, FD_CONNECT, PORT, Bench, End, Endpoint, Socket
from hil.winsock.codes import CF_ACCEPT, CF_DEFER, CF_REJECT, FD_ACCEPT_BIT, MEM_READWRITE, SO_DEBUG, SOL_SOCKET

pytestmark = pytest.mark.used_pair

REJ_CONSUMER = 28
SOCKADDR_LENGTH = {"ipv4": 16, "ipv6": 28}


def listening(bench: Bench, **settings: Any) -> tuple[Endpoint, Endpoint, Socket]:
    """The endpoints of nodes a and b, and a listener on node b. ``settings`` are for node b's provider."""
    a, b = bench.start(settings_b=settings)
    return a, b, b.listen(PORT)


def request(a: Endpoint, b: Endpoint, listener: Socket, port: int = CONNECTOR_PORT) -> Socket:
    """A socket of ``a`` whose request waits at ``listener``. The listener's event object stays set."""
    socket = a.socket(port, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    b.wait_request(listener)
    return socket


def second_request(a: Endpoint, b: Endpoint, listener: Socket, port: int = CONNECTOR_PORT + 1) -> Socket:
    """As ``request``, while another waits already. The event object is reset first, so it is set for this request."""
    b.must("WSPEnumNetworkEvents", s=listener.s, event=listener.event)
    return request(a, b, listener, port)


def is_set(endpoint: Endpoint, socket: Socket) -> bool:
    return bool(endpoint.ask("event_state", event=socket.event)["set"])


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin ``work`` in a thread. Returns a function that waits for the result of ``work``."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def wait() -> Any:
        thread.join()
        return results[0]

    return wait


# --- asking the condition function -----------------------------------------------------------------------------------


@pytest.mark.requirement("ACC-01")
def test_the_condition_function_is_called_in_the_thread_of_wspaccept(bench: Bench) -> None:
    """WSPAccept calls the condition function in its own thread, and returns only after the answer."""
    a, b, listener = listening(bench)
    request(a, b, listener)

    answer = b.must("WSPAccept", s=listener.s, delay_s=0.2)

    assert answer.more["asked"]["thread"] == answer.more["thread"]
    evidence = bench.pair.evidence(audit=False)
    (returned,) = evidence.of("b", "call", function="WSPAccept")
    (answered,) = evidence.of("b", "condition", event="answers")
    assert returned.begun_ns < answered.t_ns < returned.t_ns
    bench.judge()


@pytest.mark.requirement("ACC-13", "ACC-14", "ACC-15")
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.needs("IPv6"))])
def test_the_condition_function_is_told_who_calls_whom(bench: Bench, family: str) -> None:
    """The condition function gets the connector's bound address, the called address, no caller data and the cookie."""
    a, b = bench.start(ipv6=family == "ipv6")
    listener = b.listen(PORT)
    request(a, b, listener)
    cookie = 0xFEED_FACE_CAFE_F00D

    asked = b.must("WSPAccept", s=listener.s, callback_data=cookie).more["asked"]

    assert asked["callback_data"] == cookie
    assert asked["caller_id"] == [a.ip, CONNECTOR_PORT]
    assert asked["callee_id"] == [b.ip, PORT]
    assert not asked["caller_data"]
    bench.judge()


@pytest.mark.requirement("ACC-02")
@pytest.mark.parametrize(("decision", "expected"), [(CF_ACCEPT, "REP"), (CF_REJECT, "REJ")], ids=["accept", "reject"])
def test_the_peer_is_told_nothing_before_the_condition_function_has_answered(
    bench: Bench, decision: int, expected: str
) -> None:
    """The REP or REJ leaves only after the condition function's answer, even when the answer takes seconds."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)

    b.wsp("WSPAccept", s=listener.s, decision=decision, delay_s=0.4)

    a.connect_result(connector)
    evidence = bench.pair.evidence(audit=False)
    (answered,) = evidence.of("b", "condition", event="answers")
    answers = [p for p in evidence.packets if p.source == b.ip and p.cm in ("REP", "REJ")]
    assert [p.cm for p in answers] == [expected]
    assert evidence.packet_times_ns[answers[0].frame] > answered.at_ns - evidence.uncertainty_ns
    bench.judge()


# --- accepting -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("ACC-03")
def test_cf_accept_accepts_on_the_wire_and_at_the_connector(bench: Bench) -> None:
    """CF_ACCEPT is answered by a REP, the connector confirms with an RTU, and its connect succeeds."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)

    assert b.wsp("WSPAccept", s=listener.s, decision=CF_ACCEPT).code is Code.OK

    assert a.connect_result(connector) is Code.OK
    # The kernel may send an MRA ("please wait") on its own.
    packets = [p for p in bench.pair.evidence(audit=False).packets if p.cm and p.cm != "MRA"]
    assert [(p.source, p.cm) for p in packets] == [(a.ip, "REQ"), (b.ip, "REP"), (a.ip, "RTU")]
    bench.judge()


@pytest.mark.requirement("ACC-05")
def test_each_accepted_connection_is_a_socket_of_its_own(bench: Bench) -> None:
    """Each accepted socket has its own descriptor and one switch handle, and the listener goes on listening."""
    a, b, listener = listening(bench)
    accepted = []
    for port in (6000, 6001):
        connector = request(a, b, listener, port)
        accepted.append(b.must("WSPAccept", s=listener.s).result)
        assert a.connect_result(connector) is Code.OK

    created = bench.pair.evidence(audit=False).of("b", "upcall", function="WPUCreateSocketHandle")
    assert len({listener.s, *accepted}) == 3
    assert len(created) == len({e.handle for e in created}) == 3
    bench.judge()


@pytest.mark.requirement("ACC-08")
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.needs("IPv6"))])
def test_addr_receives_the_connectors_address(bench: Bench, family: str) -> None:
    """``addr`` receives the connector's bound address and port, and ``addrlen`` the length of that sockaddr."""
    a, b = bench.start(ipv6=family == "ipv6")
    listener = b.listen(PORT)
    request(a, b, listener, 6123)

    answer = b.must("WSPAccept", s=listener.s, room=128)

    stored = (answer.more["address"], answer.more["port"], answer.more["addrlen"])
    assert stored == (a.ip, 6123, SOCKADDR_LENGTH[family])
    bench.judge()


@pytest.mark.requirement("ACC-18")
def test_an_accepted_socket_can_be_used_at_once(bench: Bench) -> None:
    """WSPRegisterMemory and WSPRecv succeed right after WSPAccept, and the first message fills the receive."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)
    s = b.must("WSPAccept", s=listener.s).result
    memory, overlapped = b.ask("memory", size=4096), b.ask("overlapped")

    registered = b.wsp("WSPRegisterMemory", s=s, address=memory["address"], length=4096, flags=MEM_READWRITE)
    received = b.wsp("WSPRecv", s=s, buffers=[[256, memory["address"]]], overlapped=overlapped)

    assert (registered.code, received.code) == (Code.OK, Code.WSA_IO_PENDING)
    a.send(a.connected(connector), b"the first message")
    assert b.completion(overlapped) == (Code.OK, 17)
    assert b.ask("read_memory", memory=memory["memory"], offset=0, length=17) == b"the first message"
    bench.judge()


@pytest.mark.requirement("ACC-19")
def test_an_accepted_socket_inherits_the_listeners_options(bench: Bench) -> None:
    """A socket accepted before SO_DEBUG is set at the listener has it off; one accepted afterwards has it on."""
    a, b, listener = listening(bench)
    found = []
    for port, value in ((6000, 0), (6001, 1)):
        b.must("WSPSetSockOpt", s=listener.s, level=SOL_SOCKET, name=SO_DEBUG, value=value)
        request(a, b, listener, port)
        s = b.must("WSPAccept", s=listener.s).result
        found.append(b.must("WSPGetSockOpt", s=s, level=SOL_SOCKET, name=SO_DEBUG).more["value"])

    assert found == [0, 1]
    bench.judge()


@pytest.mark.requirement("ACC-20")
def test_closing_a_just_accepted_socket_tears_the_connection_down(bench: Bench) -> None:
    """Closing an accepted socket at once sends the DREQ, and the connector's receives fail with WSAECONNRESET."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)
    s = b.must("WSPAccept", s=listener.s).result
    accepted = Socket(s, b.handle_of(s), 0)

    assert b.close(accepted).code is Code.OK

    assert a.connect_result(connector) is Code.OK
    bench.wait_journal("a", "cm", event="DISCONNECTED")
    receive = {"buffers": [[64, 4096]], "overlapped": a.ask("overlapped")}
    refused = a.wsp("WSPRecv", s=connector.s, **receive, deliberately=["SWITCH-02"])
    assert (refused.result, refused.code) == (-1, Code.WSAECONNRESET)
    bench.judge(bench.hard_close(End(b, accepted), End(a, connector)))


# --- rejecting and deferring -----------------------------------------------------------------------------------------


@pytest.mark.requirement("ACC-04")
def test_cf_reject_refuses_on_the_wire_and_at_both_ends(bench: Bench) -> None:
    """WSPAccept and the connector's connect both end with WSAECONNREFUSED, by a REJ with the consumer's reason."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)

    refused = b.wsp("WSPAccept", s=listener.s, decision=CF_REJECT)

    assert (refused.result, refused.code) == ("INVALID_SOCKET", Code.WSAECONNREFUSED)
    assert a.connect_result(connector) is Code.WSAECONNREFUSED
    evidence = bench.pair.evidence(audit=False)
    assert [(p.source, p.reason) for p in evidence.packets if p.cm == "REJ"] == [(b.ip, REJ_CONSUMER)]
    assert len(evidence.of("b", "upcall", function="WPUCreateSocketHandle")) == 1
    bench.judge()


@pytest.mark.requirement("ACC-16")
def test_cf_defer_keeps_the_request_at_the_head_of_the_queue(bench: Bench) -> None:
    """A deferred request stays in the queue, and the next WSPAccept gets it again, before the request behind it."""
    a, b, listener = listening(bench)
    connectors = [request(a, b, listener), second_request(a, b, listener)]

    deferred = b.wsp("WSPAccept", s=listener.s, decision=CF_DEFER)

    assert (deferred.result, deferred.code) == ("INVALID_SOCKET", Code.WSATRY_AGAIN)
    assert not any(is_set(a, connector) for connector in connectors)
    order = [b.must("WSPAccept", s=listener.s).more["port"] for _ in connectors]
    assert order == [CONNECTOR_PORT, CONNECTOR_PORT + 1]
    assert [a.connect_result(connector) for connector in connectors] == [Code.OK, Code.OK]
    assert not [p for p in bench.pair.evidence(audit=False).packets if p.cm == "REJ"]
    bench.judge()


# --- the event object ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("ACC-06")
def test_wspaccept_resets_the_event_object_when_no_request_is_left(bench: Bench) -> None:
    """WSPAccept of the only request resets the event object, and the next request sets it again."""
    a, b, listener = listening(bench)
    request(a, b, listener)
    assert is_set(b, listener)

    b.must("WSPAccept", s=listener.s)

    assert not is_set(b, listener)
    request(a, b, listener, CONNECTOR_PORT + 1)
    bench.judge()


@pytest.mark.requirement("ACC-07")
@pytest.mark.parametrize("decision", [CF_ACCEPT, CF_REJECT, CF_DEFER], ids=["accept", "reject", "defer"])
def test_a_request_still_queued_signals_the_switch_again(bench: Bench, decision: int) -> None:
    """After one WSPAccept of two requests the event object is set for the other request, and FD_ACCEPT is reported."""
    a, b, listener = listening(bench)
    connectors = [request(a, b, listener), second_request(a, b, listener)]
    b.must("WSPEnumNetworkEvents", s=listener.s, event=listener.event)

    b.wsp("WSPAccept", s=listener.s, decision=decision)

    assert is_set(b, listener)
    events = b.must("WSPEnumNetworkEvents", s=listener.s, event=listener.event).more
    assert events["events"] & FD_ACCEPT and events["codes"][FD_ACCEPT_BIT] == Code.OK
    for _ in range(2 if decision == CF_DEFER else 1):
        b.must("WSPAccept", s=listener.s)
    assert a.connect_result(connectors[1]) is Code.OK
    bench.judge()


@pytest.mark.requirement("ACC-16")
def test_a_deferred_request_alone_is_no_news(bench: Bench) -> None:
    """A switch that deferred the only request is not signalled for it again, and can accept it later."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)

    b.wsp("WSPAccept", s=listener.s, decision=CF_DEFER)

    assert not is_set(b, listener)
    b.must("WSPAccept", s=listener.s)
    assert a.connect_result(connector) is Code.OK
    bench.judge()


@pytest.mark.requirement("LISTEN-01", "LISTEN-07")
def test_a_request_the_condition_function_thinks_about_keeps_its_place(bench: Bench) -> None:
    """With a backlog of one, a second connector is refused while the condition function runs for the first request."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=1)
    first = request(a, b, listener)
    accepting = in_background(lambda: b.wsp("WSPAccept", s=listener.s, decision=CF_DEFER, delay_s=3.0))
    bench.wait_journal("b", "condition", event="begins")
    second = a.socket(CONNECTOR_PORT + 1, FD_CONNECT)
    a.connect(second, b.ip, PORT)

    assert accepting().code is Code.WSATRY_AGAIN

    assert a.ask("wait_event", event=second.event, timeout_s=15.0), "the second connect did not end"
    assert a.connect_result(second) is Code.WSAECONNREFUSED
    b.must("WSPAccept", s=listener.s)
    assert a.connect_result(first) is Code.OK
    bench.judge()


# --- refused calls ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("ACC-09")
@pytest.mark.parametrize(
    "wrong", [{"room": 15}, {"room": 0}, {"condition": "junk"}], ids=["short addrlen", "addrlen 0", "junk condition"]
)
def test_bad_pointers_give_wsaefault_and_cost_no_request(bench: Bench, wrong: dict[str, Any]) -> None:
    """A too small addrlen or an invalid condition pointer gives WSAEFAULT, and the request can still be accepted."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)

    answer = b.wsp("WSPAccept", s=listener.s, **wrong)

    assert (answer.result, answer.code) == ("INVALID_SOCKET", Code.WSAEFAULT)
    assert b.wsp("WSPAccept", s=listener.s).code is Code.OK
    assert a.connect_result(connector) is Code.OK
    bench.judge()


@pytest.mark.requirement("ACC-10")
def test_a_socket_that_does_not_listen_gives_wsaeinval(bench: Bench) -> None:
    """WSPAccept on a bound or connected socket gives WSAEINVAL."""
    _, acceptor = bench.connect()
    bound = acceptor.at.socket(7000, FD_ACCEPT)

    codes = [acceptor.at.wsp("WSPAccept", s=s).code for s in (bound.s, acceptor.socket.s)]

    assert codes == [Code.WSAEINVAL, Code.WSAEINVAL]
    bench.judge()


@pytest.mark.requirement("ACC-10")
@pytest.mark.parametrize("wrong", [{"decision": 77}, {"group": 5}], ids=["result 77", "group 5"])
def test_an_invalid_answer_of_the_condition_function_gives_wsaeinval(bench: Bench, wrong: dict[str, int]) -> None:
    """An unknown result or group gives WSAEINVAL and no new socket, and the listener goes on listening."""
    a, b, listener = listening(bench)
    request(a, b, listener)

    answer = b.wsp("WSPAccept", s=listener.s, **wrong)

    assert (answer.result, answer.code) == ("INVALID_SOCKET", Code.WSAEINVAL)
    next_one = request(a, b, listener, CONNECTOR_PORT + 1)
    assert b.wsp("WSPAccept", s=listener.s).more["port"] == CONNECTOR_PORT + 1
    assert a.connect_result(next_one) is Code.OK
    bench.judge()


@pytest.mark.requirement("ACC-11")
def test_no_free_descriptor_gives_wsaemfile_only_when_a_request_waits(bench: Bench) -> None:
    """With every descriptor in use WSPAccept gives WSAEMFILE; the request is accepted once a descriptor is free."""
    a, b, listener = listening(bench, max_sockets=2)
    spare = b.socket(7000, FD_CONNECT)
    assert b.wsp("WSPAccept", s=listener.s).code is Code.WSAEWOULDBLOCK
    connector = request(a, b, listener)

    full = b.wsp("WSPAccept", s=listener.s)

    assert (full.result, full.code) == ("INVALID_SOCKET", Code.WSAEMFILE)
    b.close(spare)
    assert b.wsp("WSPAccept", s=listener.s).code is Code.OK
    assert a.connect_result(connector) is Code.OK
    bench.judge()


@pytest.mark.requirement("ACC-11")
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_process_without_descriptors_gives_wsaemfile_and_keeps_the_request(bench: Bench, spare: int) -> None:
    """A process with only ``spare`` file descriptors left gives WSAEMFILE, and the connector is not refused."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)
    b.ask("exhaust_descriptors", spare=spare)

    answers = [b.wsp("WSPAccept", s=listener.s) for _ in range(2)]

    assert [(answer.result, answer.code) for answer in answers] == [("INVALID_SOCKET", Code.WSAEMFILE)] * 2
    assert not is_set(a, connector)
    bench.judge()


@pytest.mark.requirement("ACC-12", "ERR-03")
def test_an_empty_queue_gives_wsaewouldblock(bench: Bench) -> None:
    """Without a request WSPAccept returns WSAEWOULDBLOCK at once, and the condition function is not called."""
    _, b, listener = listening(bench)

    answer = b.wsp("WSPAccept", s=listener.s)

    assert (answer.result, answer.code) == ("INVALID_SOCKET", Code.WSAEWOULDBLOCK)
    assert not answer.more["asked"]
    bench.judge()


# --- connectors that give up -----------------------------------------------------------------------------------------


@pytest.mark.requirement("ACC-17")
@pytest.mark.parametrize("how", ["closes", "dies"])
def test_a_connector_that_withdraws_makes_wspaccept_fail(bench: Bench, how: str) -> None:
    """A withdrawn request ends WSPAccept with WSAECONNRESET or WSAEACCES; the listener serves the next connector."""
    a, b, listener = listening(bench)
    other = bench.another("a")
    connector = request(other, b, listener)
    if how == "closes":
        other.close(connector)
    else:
        other.node.channel.kill(other.worker)
        bench.more.remove(other)
    bench.wait_packets(lambda p: p.source == a.ip and p.cm == "REJ")

    # The provider may not have heard of the withdrawal yet.
    # It then calls the condition function, which takes a while.
    answer = b.wsp("WSPAccept", s=listener.s, delay_s=2.0)

    assert answer.result == "INVALID_SOCKET"
    assert answer.code in (Code.WSAECONNRESET, Code.WSAEACCES)
    next_one = request(a, b, listener, CONNECTOR_PORT + 1)
    assert b.wsp("WSPAccept", s=listener.s).code is Code.OK
    assert a.connect_result(next_one) is Code.OK
    bench.judge()


@pytest.mark.requirement("ACC-17")
def test_a_connector_that_withdraws_while_the_condition_function_thinks(bench: Bench) -> None:
    """A CF_ACCEPT after the connector withdrew makes WSPAccept fail, and no part of the new socket is left."""
    a, b, listener = listening(bench)
    connector = request(a, b, listener)
    accepting = in_background(lambda: b.wsp("WSPAccept", s=listener.s, delay_s=3.0))
    bench.wait_journal("b", "condition", event="begins")

    assert a.close(connector).code is Code.OK

    answer = accepting()
    assert answer.result == "INVALID_SOCKET"
    assert answer.code in (Code.WSAECONNRESET, Code.WSAEACCES)
    bench.judge()
