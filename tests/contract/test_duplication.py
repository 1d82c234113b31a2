"""WSPDuplicateSocket (DUP): a socket moves from one process to another, and the peer does not notice."""

import time

import pytest

from hil import Code
from hil.evidence.journal import Completed, UpCall
from hil.testing import FD_ACCEPT, FD_CONNECT, PORT, Answer, Bench, End, Endpoint, Socket
from hil.winsock.codes import SO_DEBUG, SOL_SOCKET

pytestmark = pytest.mark.used_pair

RESET = (Code.WSAECONNRESET, 0)
LARGEST_PID = 0xFFFFFFFF
PRIVATE = {"early_messages": 2}


def make_idle(end: End) -> None:
    """Release send memory, as the switch must before a hand-over (SWITCH-15)."""
    end.at.must("WSPDeregisterMemory", s=end.socket.s, handle=end.socket.region)


def duplicate(end: End, to: Endpoint) -> int:
    """Hand ``end`` over to process ``to``. Returns the token."""
    return int(end.at.must("WSPDuplicateSocket", s=end.socket.s, pid=to.pid).more["token"])


def socket_of(by: Endpoint, token: int) -> End:
    """The socket of ``token`` in process ``by``, with a new buffer."""
    s = by.must("WSPSocket", token=token).result
    return End(by, by.with_memory(Socket(s, by.handle_of(s), by.ask("event"))))


def handed_over(bench: Bench) -> tuple[End, End, End]:
    """(former, new, peer): a connection whose connector was handed to another process on the same node."""
    former, peer = bench.connect()
    other = bench.another("a")
    make_idle(former)
    return former, socket_of(other, duplicate(former, other)), peer


def exchange(sender: End, receiver: End, message: bytes) -> None:
    """Send one message and check that it arrives whole."""
    receive = receiver.recv()
    send = sender.send(message)
    assert sender.completion(send) == (Code.OK, len(message))
    assert receiver.completion(receive) == (Code.OK, len(message))
    assert receiver.at.data(receiver.socket, len(message)) == message


def upcalls(bench: Bench, node: str, function: str, **facts: object) -> list[UpCall]:
    return bench.pair.evidence(audit=False).of(node, "upcall", function=function, **facts)


def cm_messages(bench: Bench) -> list[str]:
    return [p.cm for p in bench.pair.evidence(audit=False).packets if p.cm]


@pytest.mark.requirement("DUP-01", "DUP-09", "DUP-10", "DUP-13", "CLOSE-46")
@pytest.mark.parametrize("who", ["connector", "acceptor"])
def test_the_new_process_goes_on_with_the_connection(bench: Bench, who: str) -> None:
    """After a hand-over of either end messages flow both ways, also once the old process has closed its descriptor."""
    ends = bench.connect()
    former, peer = ends if who == "connector" else ends[::-1]
    other = bench.another(former.at.node.name)
    make_idle(former)
    handles = len(upcalls(bench, former.at.node.name, "WPUCreateSocketHandle"))

    new = socket_of(other, duplicate(former, other))

    assert len(upcalls(bench, former.at.node.name, "WPUCreateSocketHandle")) == handles + 1
    exchange(new, peer, b"from the new process")
    assert former.close() == (0, Code.OK)
    exchange(peer, new, b"to the new process")
    exchange(new, peer, b"again")
    # The hand-over makes a new connection: REQ, REP and RTU of the new one, DREQ and DREP of the old one.
    seen = cm_messages(bench)
    assert (seen.count("REQ"), seen.count("DREQ"), seen.count("DREP")) == (2, 1, 1), seen
    assert new.close() == (0, Code.OK)
    bench.judge(bench.hard_close(new, peer))


@pytest.mark.requirement("DUP-15", "DUP-16")
def test_the_peer_notices_nothing(bench: Bench) -> None:
    """Through a hand-over the peer's receives stay pending without an up-call, and the next message fills the first."""
    former, peer = bench.connect()
    receives = [peer.recv(offset=256 * i) for i in range(3)]
    memory, descriptor = peer.at.expose(peer.socket, 3)
    event = peer.at.ask("event_state", event=peer.socket.event)
    quiet = len(bench.pair.evidence(audit=False).of("b", "upcall"))
    other = bench.another("a")
    make_idle(former)

    new = socket_of(other, duplicate(former, other))

    assert len(bench.pair.evidence(audit=False).of("b", "upcall")) == quiet
    assert peer.at.ask("event_state", event=peer.socket.event) == event
    for message, receive in zip((b"one", b"two", b"three"), receives, strict=True):
        new.send(message)
        assert peer.completion(receive) == (Code.OK, len(message))
    assert peer.at.data(peer.socket, 3, 0) == b"one" and peer.at.data(peer.socket, 5, 512) == b"three"
    # The new process reaches the peer's exposed memory with the same descriptor.
    new.at.ask("write_memory", memory=new.socket.memory, offset=0, data=b"written")
    write = new.at.rdma("WSPRdmaWrite", new.socket, descriptor, 7, offset=100)
    assert new.completion(write) == (Code.OK, 7)
    assert peer.at.ask("read_memory", memory=memory, offset=100, length=7) == b"written"
    former.close()
    new.close()
    bench.judge(bench.hard_close(new, peer))


@pytest.mark.requirement("DUP-05", "DUP-06")
def test_pending_receives_complete_with_success_and_nothing(bench: Bench) -> None:
    """WSPDuplicateSocket completes each pending receive with success and zero bytes, and releases its memory.

    Polled receives end in their structure, without an up-call (Q22, as Q1).
    """
    former, peer = bench.connect()
    receives = [former.recv(offset=256 * i) for i in range(4)]
    polled = [former.at.recv(former.socket, offset=2048 + 256 * i, hEvent=1) for i in range(4)]
    other = bench.another("a")

    token = duplicate(former, other)

    assert [former.completion(r, 1) for r in receives] == [(Code.OK, 0)] * 4
    states = [former.at.ask("overlapped_state", overlapped=o) for o in polled]
    assert [(o["Internal"], o["OffsetHigh"], o["InternalHigh"]) for o in states] == [(0, Code.OK, 0)] * 4
    told = {e.overlapped for e in bench.pair.evidence(audit=False).of("a", Completed)}
    assert told == set(receives)
    held = bench.pair.nodes["a"].system("resources")
    assert not [r for r in held if r["kind"] in ("MR", "QP") and r["pid"] == former.at.pid], held
    new = socket_of(other, token)
    exchange(new, peer, b"hello")
    former.close()
    new.close()
    bench.judge()


@pytest.mark.requirement("DUP-02", "DUP-03", "DUP-24")
def test_a_token_is_unique_for_one_process_and_for_one_use(bench: Bench) -> None:
    """Two sockets have two tokens; a third process cannot use a token, and no process can use one twice."""
    one, peer = bench.connect()
    two, peer_two = bench.connect(port=6001)
    other, third = bench.another("a"), bench.another("a")
    make_idle(one)
    make_idle(two)
    tokens = duplicate(one, other), duplicate(two, other)
    assert tokens[0] != tokens[1] and all(tokens)

    stolen = third.wsp("WSPSocket", token=tokens[0])
    assert (stolen.result, stolen.code) == ("INVALID_SOCKET", Code.WSAEINVAL)
    guessed = other.wsp("WSPSocket", token=(tokens[0] ^ 0x5A5A) or 1)
    assert (guessed.result, guessed.code) == ("INVALID_SOCKET", Code.WSAEINVAL)

    new_two = socket_of(other, tokens[1])
    new = socket_of(other, tokens[0])
    again = other.wsp("WSPSocket", token=tokens[0])
    assert (again.result, again.code) == ("INVALID_SOCKET", Code.WSAEINVAL)
    exchange(new, peer, b"first")
    exchange(new_two, peer_two, b"second")
    bench.judge()


@pytest.mark.requirement("DUP-08")
def test_the_old_descriptor_stays_until_it_is_closed(bench: Bench) -> None:
    """No new socket of the old process gets the handed-over descriptor's value, and its close succeeds once."""
    former, new, peer = handed_over(bench)

    made = [former.at.must("WSPSocket").result for _ in range(8)]

    assert former.socket.s not in made
    assert former.close() == (0, Code.OK)
    assert former.close() == (-1, Code.WSAENOTSOCK)
    exchange(new, peer, b"goes on")
    bench.judge()


@pytest.mark.requirement("DUP-07", "DUP-18", "DUP-20")
def test_only_the_close_may_follow_and_the_switch_is_held_to_it(bench: Bench) -> None:
    """The bench names other calls on the old descriptor, idle memory and sends in progress as the switch's mistakes."""
    former, _ = bench.connect()
    other = bench.another("a")
    former.send(b"in progress")
    busy = former.wsp("WSPDuplicateSocket", pid=other.pid, deliberately=["SWITCH-15"])
    assert busy.code is Code.WSAEINVAL

    late, _ = bench.connect(port=6001)
    late.at.must("WSPDuplicateSocket", s=late.socket.s, pid=other.pid, deliberately=["SWITCH-15"])
    buffers, overlapped = [[8, late.socket.address]], late.at.ask("overlapped")
    call = late.wsp("WSPRecv", buffers=buffers, overlapped=overlapped, deliberately=["SWITCH-15"])

    assert call.code is Code.WSAEINVAL
    seen = [e.seen for e in bench.pair.evidence(audit=False).of("a", "misbehaves", requirement="SWITCH-15")]
    assert len(seen) == 3, seen
    assert "['WSPSend'] in progress" in seen[0] and "1 idle" in seen[1] and "WSPRecv on a descriptor" in seen[2]
    bench.judge()


@pytest.mark.requirement("DUP-11")
def test_the_socket_comes_back_to_the_process_that_had_it(bench: Bench) -> None:
    """A socket that comes back to its first process has its old descriptor and handle, and no new handle is made."""
    former, new, peer = handed_over(bench)
    exchange(new, peer, b"away")
    handles = len(upcalls(bench, "a", "WPUCreateSocketHandle"))
    make_idle(new)

    back = former.at.must("WSPSocket", token=duplicate(new, former.at)).result

    assert back == former.socket.s
    assert former.at.handle_of(back) == former.socket.handle
    assert len(upcalls(bench, "a", "WPUCreateSocketHandle")) == handles
    home = End(former.at, former.at.with_memory(Socket(back, former.socket.handle, former.socket.event)))
    exchange(home, peer, b"home")
    exchange(peer, home, b"again")
    new.close()
    home.close()
    bench.judge(bench.hard_close(home, peer))


@pytest.mark.requirement("DUP-14")
def test_the_state_goes_with_the_socket(bench: Bench) -> None:
    """The new process has the socket's options and connection, and gets a message that the peer had not delivered."""
    former, peer = bench.connect()
    former.at.must("WSPSetSockOpt", s=former.socket.s, level=SOL_SOCKET, name=SO_DEBUG, value=1)
    undelivered = peer.send(b"sent too early")
    other = bench.another("a")
    make_idle(former)

    new = socket_of(other, duplicate(former, other))

    receive = new.recv()
    assert new.completion(receive) == (Code.OK, 14)
    assert peer.completion(undelivered) == (Code.OK, 14)
    assert new.at.data(new.socket, 14) == b"sent too early"
    assert new.wsp("WSPGetSockOpt", level=SOL_SOCKET, name=SO_DEBUG).more["value"] == 1
    again = new.wsp("WSPConnect", address=peer.at.ip, port=PORT, deliberately=["SWITCH-04", "SWITCH-05"])
    assert again.code is Code.WSAEISCONN
    bench.judge()


@pytest.mark.requirement("DUP-14", "DUP-09", "NEG-05")
def test_unread_messages_go_with_the_socket(bench: Bench) -> None:
    """With private receives, unread and later messages reach the new process, in order, both ways."""
    former, peer = with_private_receives(bench)
    send_each(peer, b"unread")
    other = bench.another("a", **PRIVATE)
    make_idle(former)

    new = socket_of(other, duplicate(former, other))

    send_each(peer, b"one", b"two", b"three")
    assert read_each(new, 4) == [b"unread", b"one", b"two", b"three"]
    send_each(new, b"un", b"deux", b"trois")
    assert read_each(peer, 3) == [b"un", b"deux", b"trois"]
    bench.judge()


@pytest.mark.requirement("DUP-11", "DUP-14")
def test_a_message_is_not_found_again_when_the_socket_comes_back(bench: Bench) -> None:
    """An unread message goes away and back with its socket, and is read once, before later messages."""
    former, peer = with_private_receives(bench)
    send_each(peer, b"unread")
    other = bench.another("a", **PRIVATE)
    make_idle(former)
    new = socket_of(other, duplicate(former, other))
    make_idle(new)

    back = former.at.must("WSPSocket", token=duplicate(new, former.at)).result

    assert back == former.socket.s
    home = End(former.at, former.at.with_memory(former.socket))
    send_each(peer, b"later")
    assert read_each(home, 2) == [b"unread", b"later"]
    bench.judge()


def with_private_receives(bench: Bench) -> tuple[End, End]:
    bench.start(settings_a=PRIVATE, settings_b=PRIVATE)
    return bench.connect()


def send_each(end: End, *messages: bytes) -> None:
    """Send the messages, each from its own memory."""
    for n, message in enumerate(messages):
        end.send(message, offset=32768 + 64 * n)


def read_each(end: End, count: int) -> list[bytes]:
    """The next ``count`` messages, one for each receive; b"" for a message that did not come."""
    receives = [end.recv(offset=256 * n) for n in range(count)]
    lengths = [(end.completion(receive) or (None, 0))[1] for receive in receives]
    return [end.at.data(end.socket, length, 256 * n) for n, length in enumerate(lengths)]


@pytest.mark.requirement("DUP-11", "DUP-14", "EVT-04", "CONN-22")
def test_the_connect_of_a_hand_over_is_not_the_switchs(bench: Bench) -> None:
    """A socket's return to the connecting process signals no event and leaves its WSPConnect's lpCalleeData alone."""
    a, b = bench.start()
    listener, socket = b.listen(PORT), a.socket(6000, FD_CONNECT)
    callee = a.ask("memory", size=4096)["memory"]
    a.connect(socket, b.ip, PORT, callee_memory=callee, callee_room=64)
    b.wait_request(listener)
    b.must("WSPAccept", s=listener.s, callee_data=b"answer")
    former = End(a, a.connected(socket))
    assert a.ask("callee_length") == 6
    event = a.ask("event_state", event=socket.event)
    other = bench.another("a")
    make_idle(former)
    new = socket_of(other, duplicate(former, other))
    make_idle(new)

    assert a.must("WSPSocket", token=duplicate(new, a)).result == socket.s

    assert a.ask("event_state", event=socket.event) == event
    assert a.must("WSPEnumNetworkEvents", s=socket.s, event=0).more["events"] == 0
    assert (a.ask("callee_length"), a.ask("read_memory", memory=callee, offset=0, length=7)) == (6, b"answer\0")
    bench.judge()


@pytest.mark.requirement("DUP-04", "DUP-21")
def test_misuse_is_refused(bench: Bench) -> None:
    """An unknown process, an unconnected socket, sends in progress or a reset connection gives WSAEINVAL."""
    end, peer = bench.connect()
    other = bench.another("a")
    fresh = end.at.socket(6100, FD_ACCEPT)
    refused: list[Answer] = [
        end.wsp("WSPDuplicateSocket", pid=LARGEST_PID, deliberately=["SWITCH-15"]),
        end.wsp("WSPDuplicateSocket", pid=0, deliberately=["SWITCH-15"]),
        end.wsp("WSPDuplicateSocket", pid=other.pid, null=True, deliberately=["SWITCH-15"]),
        end.at.wsp("WSPDuplicateSocket", s=fresh.s, pid=other.pid),
    ]
    end.send(b"nobody receives this")
    refused.append(end.wsp("WSPDuplicateSocket", pid=other.pid, deliberately=["SWITCH-15"]))
    unknown = end.at.wsp("WSPDuplicateSocket", s=77, pid=other.pid)
    peer.close()
    waits_until_reset(end)
    refused.append(end.wsp("WSPDuplicateSocket", pid=other.pid, deliberately=["SWITCH-15"]))

    assert [(a.result, a.code) for a in refused] == [(-1, Code.WSAEINVAL)] * 6
    assert (unknown.result, unknown.code) == (-1, Code.WSAENOTSOCK)
    bench.judge()


def waits_until_reset(end: End) -> None:
    """Wait until ``end`` knows of the peer's reset."""
    overlapped = end.at.ask("overlapped")
    buffers = [[64, end.socket.address]]
    deadline = time.monotonic() + 10
    while end.wsp("WSPRecv", buffers=buffers, overlapped=overlapped).code is not Code.WSAECONNRESET:
        assert time.monotonic() < deadline, "the reset did not come within 10 s"
        overlapped = end.at.ask("overlapped")


@pytest.mark.requirement("DUP-21")
def test_a_shortage_in_the_new_process_is_reported(bench: Bench) -> None:
    """A new process without a descriptor gets WSAEMFILE, and without a handle or CM id WSAENOBUFS.

    No failure uses up the token: with room again the socket is there.
    """
    former, peer = bench.connect()
    other = bench.another("a", max_sockets=1)
    in_the_way = other.must("WSPSocket").result
    make_idle(former)
    token = duplicate(former, other)

    full = other.wsp("WSPSocket", token=token)
    other.must("WSPCloseSocket", s=in_the_way)
    other.ask("fail_next", function="WPUCreateSocketHandle", code=Code.WSAENOBUFS)
    nameless = other.wsp("WSPSocket", token=token)
    starved = other.ask("full_cm", call="WSPSocket", arguments={"token": token})

    assert (full.result, full.code) == ("INVALID_SOCKET", Code.WSAEMFILE)
    assert (nameless.result, nameless.code) == ("INVALID_SOCKET", Code.WSAENOBUFS)
    assert (starved["result"], starved["code"]) == ("INVALID_SOCKET", Code.WSAENOBUFS)
    exchange(socket_of(other, token), peer, b"in the end")
    bench.judge()


@pytest.mark.requirement("DUP-21")
def test_a_shortage_in_the_old_process_leaves_the_connection(bench: Bench) -> None:
    """Without descriptors for a token WSPDuplicateSocket gives WSAEMFILE, and the connection stays as it is."""
    former, peer = bench.connect()
    other = bench.another("a")
    pending = former.recv(offset=1024)
    former.at.ask("exhaust_descriptors")

    answer = former.wsp("WSPDuplicateSocket", pid=other.pid, deliberately=["SWITCH-15"])

    assert (answer.result, answer.code) == (-1, Code.WSAEMFILE)
    former.at.ask("free_descriptors")
    assert former.completion(pending, 0.1) is None
    peer.send(b"still here")
    assert former.completion(pending) == (Code.OK, 10)
    make_idle(former)
    exchange(socket_of(other, duplicate(former, other)), peer, b"handed over")
    bench.judge()


@pytest.mark.requirement("DUP-22")
def test_an_unfinished_hand_over_resets_the_peer(bench: Bench) -> None:
    """The receiving process dies before it takes the connection, and the provider's time-out resets the peer."""
    bench.start(settings_a={"handover_timeout_s": 5.0})
    former, peer = bench.connect()
    pending = peer.recv()
    other = bench.another("a")
    make_idle(former)
    duplicate(former, other)
    assert peer.completion(pending, 0.2) is None

    other.node.channel.kill(other.worker)
    other.node.channel.wait_exit(other.worker, 10)
    bench.more.remove(other)

    assert peer.completion(pending, 20) == RESET
    assert former.close() == (0, Code.OK)
    bench.judge()


@pytest.mark.requirement("DUP-22")
def test_an_interrupted_hand_over_resets_the_peer(bench: Bench) -> None:
    """The old process dies before the new one takes the connection, and the peer's receives end with WSAECONNRESET."""
    former, peer = bench.connect()
    pending = peer.recv()
    other = bench.another("a")
    make_idle(former)
    token = duplicate(former, other)
    assert peer.completion(pending, 0.2) is None

    former.at.node.channel.kill(former.at.worker)
    former.at.node.channel.wait_exit(former.at.worker, 10)
    del bench.endpoints["a"]

    assert peer.completion(pending) == RESET
    late = other.wsp("WSPSocket", token=token)
    assert (late.result, late.code) == ("INVALID_SOCKET", Code.WSAENOBUFS)
    bench.endpoints["a"] = bench.more.pop()
    bench.judge()


@pytest.mark.requirement("DUP-23")
def test_every_process_can_close_its_descriptor(bench: Bench) -> None:
    """Closing the socket in both processes, the new one first, succeeds twice and resets the peer once."""
    former, new, peer = handed_over(bench)
    pending = peer.recv()

    assert new.close() == (0, Code.OK)
    assert former.close() == (0, Code.OK)

    assert peer.completion(pending) == RESET
    bench.judge(bench.hard_close(new, peer))


@pytest.mark.requirement("DUP-23", "CLOSE-46")
def test_the_old_descriptor_may_close_before_the_new_process_takes_the_socket(bench: Bench) -> None:
    """Closing the old descriptor between WSPDuplicateSocket and WSPSocket does not end the connection."""
    former, peer = bench.connect()
    pending = peer.recv()
    other = bench.another("a")
    make_idle(former)
    token = duplicate(former, other)

    assert former.close() == (0, Code.OK)

    new = socket_of(other, token)
    new.send(b"still here")
    assert peer.completion(pending) == (Code.OK, 10)
    new.close()
    bench.judge(bench.hard_close(new, peer))


@pytest.mark.requirement("DUP-19")
def test_a_listener_is_handed_over(bench: Bench) -> None:
    """The new process accepts for a handed-over listener; requests during the hand-over are refused with a code."""
    a, b = bench.start()
    listener = b.listen(PORT)
    other = bench.another("b")
    queued = a.socket(6200, 0x10)
    a.connect(queued, b.ip, PORT)
    b.wait_request(listener)

    token = int(b.must("WSPDuplicateSocket", s=listener.s, pid=other.pid).more["token"])

    assert a.connect_result(queued) is Code.WSAECONNREFUSED
    between = a.socket(6201, 0x10)
    a.connect(between, b.ip, PORT)
    assert a.connect_result(between) is Code.WSAECONNRESET
    s = other.must("WSPSocket", token=token).result
    event = other.ask("event")
    other.must("WSPEventSelect", s=s, event=event, mask=FD_ACCEPT)
    ends = bench.join(a, other, Socket(s, other.handle_of(s), event), 6202)
    exchange(*ends, b"accepted by the new process")
    assert b.close(listener).code is Code.OK
    bench.judge()


@pytest.mark.requirement("DUP-12")
def test_many_swaps_leave_nothing_behind(bench: Bench) -> None:
    """After ten hand-overs to and fro the connection works, and neither kernel nor process holds more than before."""
    end, peer = bench.connect()
    home, other = end.at, bench.another("a")
    sizes = []
    for turn in range(10):
        make_idle(end)
        target = other if end.at is home else home
        token = duplicate(end, target)
        s = target.must("WSPSocket", token=token).result
        end = End(target, target.with_memory(Socket(s, target.handle_of(s), 0)))
        exchange(end, peer, b"turn %d" % turn)
        sizes.append(home.ask("process")["descriptors"])
    assert sizes[-2:] == sizes[:2] or max(sizes[2:]) <= max(sizes[:2]), sizes
    qps = [r for r in bench.pair.nodes["b"].system("resources") if r["kind"] == "QP" and r["pid"] == peer.at.pid]
    assert len(qps) == 1, qps
    bench.judge()


def test_traffic_of_a_third_party_cannot_take_a_connection(bench: Bench) -> None:
    """A connect to the hand-over port without the connection's secret is refused, and the connection goes on."""
    end, peer = bench.connect()
    ports = [port for port in hand_over_ports(bench) if port]
    stranger = end.at.socket(6300, 0x10)
    assert ports, "no hand-over listener was found"
    end.at.connect(stranger, peer.at.ip, ports[0])

    assert end.at.connect_result(stranger) is Code.WSAECONNREFUSED
    exchange(end, peer, b"unharmed")
    bench.judge()


def hand_over_ports(bench: Bench) -> list[int]:
    """Ports of node b's listeners that the test did not make."""
    done = bench.pair.nodes["b"].system("run", command=["rdma", "res", "show", "cm_id"])
    ports = [int(word.rsplit(":", 1)[1]) for word in done["stdout"].split() if word.startswith("0.0.0.0:")]
    return [port for port in ports if port not in (0, PORT)]
