"""WSPSocket: descriptor and switch handle, refused arguments, and clean failures."""

import pytest

from hil import Code
from hil.evidence.journal import HandleMade, chosen
from hil.testing import FD_ACCEPT, FD_CONNECT, PORT, Bench
from hil.winsock.codes import SO_DEBUG, SOL_SOCKET

pytestmark = pytest.mark.used_pair

UNKNOWN_DESCRIPTOR, TEST_NET = 1, "192.0.2.1"


@pytest.mark.requirement("SOCK-01", "SOCK-02", "SOCK-03")
def test_each_socket_gets_one_switch_handle_and_a_descriptor_of_its_own(bench: Bench) -> None:
    """Three sockets have three different descriptors, and exactly one WPUCreateSocketHandle each."""
    a, _ = bench.start()

    answers = [a.wsp("WSPSocket") for _ in range(3)]

    assert [answer.code for answer in answers] == [Code.OK] * 3
    descriptors = [answer.result for answer in answers]
    assert len(set(descriptors)) == 3
    made = chosen(bench.pair.journal("a"), HandleMade)
    assert sorted(e.context for e in made) == sorted(descriptors)
    # Down-calls know a socket by what WSPSocket returned, and not by the handle the switch has for it.
    assert [a.wsp("WSPEventSelect", s=s, event=0, mask=0).code for s in descriptors] == [Code.OK] * 3
    handles = {a.handle_of(s) for s in descriptors} - set(descriptors)
    assert {a.wsp("WSPEventSelect", s=h, event=0, mask=0).code for h in handles} <= {Code.WSAENOTSOCK}
    bench.judge()


@pytest.mark.requirement("SOCK-02", "SOCK-03", "SOCK-04")
def test_upcalls_carry_the_switch_handle(bench: Bench) -> None:
    """Connecting and accepting make one switch handle for each socket, and every up-call names it."""
    connector, acceptor = bench.connect()
    sockets = {"a": connector.socket, "b": acceptor.socket}
    receive = acceptor.recv()
    send = connector.send(b"by handle")
    assert (connector.completion(send), acceptor.completion(receive)) == ((Code.OK, 9), (Code.OK, 9))
    connector.close()
    acceptor.close()

    evidence = bench.judge()

    for name, socket in sockets.items():
        (made,) = evidence.of(name, "upcall", function="WPUCreateSocketHandle", context=socket.s)
        assert made.handle == socket.handle
        assert evidence.of(name, "upcall", function="WPUCloseSocketHandle", handle=socket.handle)
        done = evidence.of(name, "upcall", function="WPUCompleteOverlappedRequest")
        assert [e.handle for e in done] == [socket.handle]


@pytest.mark.requirement("SOCK-05")
def test_without_a_switch_handle_there_is_no_socket(bench: Bench) -> None:
    """WSPSocket fails when WPUCreateSocketHandle fails, and leaves nothing, not even a count of sockets."""
    a, _ = bench.start(settings_a={"max_sockets": 2})
    first = a.must("WSPSocket").result
    before, held = a.ask("process")["descriptors"], bench.pair.nodes["a"].system("resources")
    a.ask("fail_next", function="WPUCreateSocketHandle", code=Code.WSAENOBUFS, times=4)

    answers = [a.wsp("WSPSocket") for _ in range(4)]

    assert {(answer.result, answer.code) for answer in answers} == {("INVALID_SOCKET", Code.WSAENOBUFS)}
    # Either count may include a descriptor of the thread that counts.
    assert a.ask("process")["descriptors"] < before + len(answers)
    assert bench.pair.nodes["a"].system("resources") == held
    assert a.wsp("WSPSocket").result not in ("INVALID_SOCKET", first)
    closed = [e for e in bench.judge().of("a", "upcall", function="WPUCloseSocketHandle")]
    assert len(closed) == 2


@pytest.mark.requirement("SOCK-06", "SOCK-07", "SOCK-08", "SOCK-09")
def test_a_socket_that_is_not_tcp_is_refused(bench: Bench) -> None:
    """Each wrong argument of WSPSocket gives INVALID_SOCKET and its own code, and makes no switch handle."""
    a, _ = bench.start()
    datagram, raw, udp = 2, 3, 17
    wrong_type = {Code.WSAESOCKTNOSUPPORT, Code.WSAEPROTOTYPE}
    refusals = [
        ({"af": 99}, {Code.WSAEAFNOSUPPORT}),
        ({"af": 0}, {Code.WSAEAFNOSUPPORT}),
        ({"type": datagram}, wrong_type),
        ({"type": datagram, "protocol": udp}, wrong_type),
        ({"type": raw}, wrong_type),
        ({"protocol": 200}, {Code.WSAEPROTONOSUPPORT}),
        ({"g": 0x1234}, {Code.WSAEINVAL}),
    ]

    for arguments, codes in refusals:
        answer = a.wsp("WSPSocket", **arguments)
        assert answer.result == "INVALID_SOCKET" and answer.code in codes, arguments

    assert a.wsp("WSPSocket").code is Code.OK
    assert len(bench.judge().of("a", "upcall", function="WPUCreateSocketHandle")) == 1


@pytest.mark.requirement("SOCK-10")
@pytest.mark.needs("inline wire", "own nodes")
def test_shortages_and_a_dead_network_have_codes_of_their_own(bench: Bench) -> None:
    """WSPSocket gives WSAEMFILE without a descriptor, WSAENOBUFS without buffers, WSAENETDOWN without a network."""
    a, _ = bench.start(settings_a={"max_sockets": 2})

    a.ask("fail_next", function="WPUCreateSocketHandle", code=Code.WSAENOBUFS)
    assert a.wsp("WSPSocket").code is Code.WSAENOBUFS

    with bench.port_down("a"):
        answer = a.wsp("WSPSocket")
        assert (answer.result, answer.code) == ("INVALID_SOCKET", Code.WSAENETDOWN)

    first, _ = a.wsp("WSPSocket"), a.must("WSPSocket")
    answer = a.wsp("WSPSocket")
    assert (answer.result, answer.code) == ("INVALID_SOCKET", Code.WSAEMFILE)
    a.must("WSPCloseSocket", s=first.result)
    assert a.wsp("WSPSocket").code is Code.OK
    bench.judge()


@pytest.mark.requirement("SOCK-11")
def test_after_a_failure_the_socket_closes_cleanly(bench: Bench) -> None:
    """After a failed WSPBind or WSPSetSockOpt the close succeeds and no packet is sent: the switch takes TCP/IP."""
    a, _ = bench.start()
    before = bench.pair.nodes["a"].system("resources")
    unbound, bound = a.must("WSPSocket").result, a.must("WSPSocket").result
    a.must("WSPBind", s=bound, address=a.ip, port=6000)

    assert a.wsp("WSPBind", s=unbound, address=TEST_NET, port=6001).result == -1
    for s in (unbound, bound):
        assert a.wsp("WSPSetSockOpt", s=s, level=77, name=SO_DEBUG, value=1).result == -1
        answer = a.wsp("WSPCloseSocket", s=s)
        assert (answer.result, answer.code) == (0, Code.OK)
        assert a.wsp("WSPCloseSocket", s=s).code is Code.WSAENOTSOCK

    kept = [r for r in bench.pair.nodes["a"].system("resources") if r not in before and r["kind"] != "PD"]
    assert kept == []
    evidence = bench.judge()
    assert evidence.packets == []
    assert len(evidence.of("a", "upcall", function="WPUCloseSocketHandle")) == 2


@pytest.mark.requirement("SOCK-12")
def test_options_are_set_right_after_creation_and_last(bench: Bench) -> None:
    """SO_DEBUG, set again on the companion socket after its bind, reads back then and after the connect."""
    a, b = bench.start()
    listener = b.listen(PORT)
    s = a.must("WSPSocket").result
    a.must("WSPBind", s=s, address=a.ip, port=6000)

    assert a.wsp("WSPSetSockOpt", s=s, level=SOL_SOCKET, name=SO_DEBUG, value=1).code is Code.OK

    assert a.wsp("WSPGetSockOpt", s=s, level=SOL_SOCKET, name=SO_DEBUG).more["value"] == 1
    event = a.ask("event")
    a.must("WSPEventSelect", s=s, event=event, mask=FD_CONNECT)
    a.must("WSPConnect", Code.WSAEWOULDBLOCK, s=s, address=b.ip, port=PORT)
    b.accept(listener)
    assert a.ask("wait_event", event=event, timeout_s=10)
    assert a.wsp("WSPGetSockOpt", s=s, level=SOL_SOCKET, name=SO_DEBUG).more["value"] == 1
    other = a.must("WSPSocket").result
    assert a.wsp("WSPGetSockOpt", s=other, level=SOL_SOCKET, name=SO_DEBUG).more["value"] == 0
    bench.judge()


@pytest.mark.requirement("SOCK-13")
def test_a_descriptor_is_taken_until_it_is_closed(bench: Bench) -> None:
    """No new socket gets the descriptor of a socket whose peer was killed until that socket is closed."""
    connector, acceptor = bench.connect()
    receive = connector.recv()
    acceptor.at.node.channel.kill(acceptor.at.worker)
    assert connector.completion(receive) == (Code.WSAECONNRESET, 0)
    del bench.endpoints["b"]
    a, s = connector.at, connector.socket.s

    others = [a.must("WSPSocket").result for _ in range(30)]

    assert s not in others and len(set(others)) == 30
    # The descriptor still names the reset socket. A new socket could select events and listen.
    a.must("WSPEventSelect", s=s, event=connector.socket.event, mask=FD_ACCEPT)
    assert a.wsp("WSPListen", s=s, backlog=1).code is Code.WSAEISCONN
    assert connector.close() == (0, Code.OK)
    bench.judge()
