"""Hard close (CLOSE): every kind of operation, memory, kernel objects, sockets in every state, and listeners.

The network or the peer may be gone.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest

from hil import Code, Evidence, RocePacket
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Bench, End, Endpoint, Socket, UnexpectedResult
from hil.testing.data import (
    ABORTED,
    NAK_REMOTE_ACCESS,
    READ_RESPONSES,
    RESET,
    WRITES,
    completions,
    expose,
    held,
    is_rnr_nak,
    local,
    post_each,
    rdma,
    recv_each,
    send_each,
    sent,
    with_memory,
)
from hil.testing.memory import WRITE_ONLY, answers, last_packet, put_on_wire, regions, rewritten
from hil.winsock.codes import (
    CF_REJECT,
    MEM_READWRITE,
    SO_DEBUG,
    SO_DONTLINGER,
    SO_LINGER,
    SOL_SOCKET,
    WSS_OPERATION_IN_PROGRESS,
)

pytestmark = pytest.mark.used_pair

T = TypeVar("T")
CLOSED = (0, Code.OK)
COMPLETE, CLOSE_HANDLE = "WPUCompleteOverlappedRequest", "WPUCloseSocketHandle"
REJ_NO_SUCH_SERVICE, REJ_BY_CONSUMER = 8, 28
# No other buffer on a node has this length, so the kernel's list of regions can be searched for it.
UNIQUE_LENGTH = 0x7000
# Long enough for the first packets of a transfer, too short for 64 MiB at 100 Gbit/s.
UNDER_WAY_S = 0.0003


def in_background(call: Callable[..., T], *arguments: object) -> "Future[T]":
    """Make a call in its own thread."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call, *arguments)
    finally:
        pool.shutdown(wait=False)


def seconds(evidence: Evidence, node: str, socket: Socket) -> float:
    """The duration of WSPCloseSocket in seconds, by the node's own clock."""
    (call,) = evidence.of(node, "call", function="WSPCloseSocket", socket=socket.s)
    return float(call.t_ns - call.begun_ns) / 1e9


def owned(at: Endpoint, *kinds: str) -> set[tuple[str, int]]:
    """The resources of these kinds that the kernel of an endpoint's node holds."""
    return {(r["kind"], r["number"]) for r in at.node.system("resources") if r["kind"] in kinds}


def all_kinds(end: End, peer: End, hEvent: int = 0) -> list[int]:
    """A receive, a send, a write and a read of ``end``, all stalled.

    The peer has no receive for the send, and the operations behind it wait. With ``hEvent`` 1 they are polled.
    """
    target = expose(peer)
    operations = [end.at.recv(end.socket, hEvent=hEvent), end.at.send(end.socket, b"stalled", hEvent=hEvent)]
    return operations + [rdma(end, f, target, (512, 4096), hEvent=hEvent) for f in ("WSPRdmaWrite", "WSPRdmaRead")]


def state(end: End, overlapped: int) -> dict[str, int]:
    """The members of an operation's WSAOVERLAPPED."""
    return dict(end.at.ask("overlapped_state", overlapped=overlapped))


def unconnected(at: Endpoint, port: int, address: str, to: int = PORT) -> Socket:
    """A socket whose connect has begun."""
    socket = at.socket(port, FD_CONNECT)
    at.connect(socket, address, to)
    return socket


def outcome(at: Endpoint, socket: Socket) -> Code:
    """The code a connect ended with. Asserts that it ended."""
    assert at.ask("wait_event", event=socket.event, timeout_s=10.0), "the connect did not end"
    return at.connect_result(socket)


def messages(packets: list[RocePacket], name: str) -> list[RocePacket]:
    """The CM messages with this name."""
    return [p for p in packets if p.cm == name]


# --- its result ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLOSE-03", "CLOSE-28")
@pytest.mark.needs("own nodes")
def test_the_adapter_is_gone(bench: Bench) -> None:
    """After its adapter is removed a socket stays open until WSPCloseSocket, which closes it and gives WSAENETDOWN."""
    closer, _ = bench.connect()
    receive = closer.recv()
    removal = threading.Thread(target=closer.at.node.system, args=("delete_rdma",), kwargs={"device": "rxe0"})
    removal.start()

    assert closer.completion(receive) == (Code.WSAENETDOWN, 0)
    assert not bench.pair.evidence(audit=False).of("a", "upcall", function=CLOSE_HANDLE)
    assert closer.close() == (-1, Code.WSAENETDOWN)
    assert closer.close() == (-1, Code.WSAENOTSOCK)
    assert len(bench.pair.evidence(audit=False).of("a", "upcall", function=CLOSE_HANDLE)) == 1
    # The kernel removes the device when no process has librdmacm loaded any more.
    closer.at.node.channel.kill(closer.at.worker)
    closer.at.node.channel.wait_exit(closer.at.worker, 10)
    removal.join(20)
    assert not removal.is_alive()
    del bench.endpoints["a"]
    bench.judge()


@pytest.mark.requirement("CLOSE-04", "CLOSE-05", "CLOSE-06", "CLOSE-11")
def test_nothing_makes_a_close_wait_or_be_asked_again(bench: Bench) -> None:
    """In non-blocking mode, with sends queued and calls in other threads, each close returns 0 at the first call.

    No call gives WSAEWOULDBLOCK or WSAEINPROGRESS.
    """
    pairs = [bench.connect(port) for port in (6000, 6001, 6002)]
    assert all(
        closer.wsp("WSPEventSelect", event=closer.socket.event, mask=FD_CONNECT).code == 0 for closer, _ in pairs
    )
    sends = [send_each(closer, [b"queued"] * 80) for closer, _ in pairs]
    busy, stop = ThreadPoolExecutor(3), threading.Event()

    def work(end: End) -> set[Code]:
        codes = set()
        while not stop.is_set():
            arguments = {"buffers": [[8, end.socket.address]], "overlapped": end.at.ask("overlapped")}
            codes.add(end.wsp("WSPRecv", **arguments).code)
        return codes

    workers = [busy.submit(work, closer) for closer, _ in pairs]
    closes = [closer.close() for closer, _ in pairs]
    stop.set()
    codes = set().union(*(worker.result() for worker in workers))
    busy.shutdown()

    assert closes == [CLOSED] * 3
    assert codes <= {Code.WSA_IO_PENDING, Code.WSAENOTSOCK, Code.WSA_OPERATION_ABORTED}
    for (closer, _), numbers in zip(pairs, sends, strict=True):
        assert completions(closer, numbers) == [ABORTED] * 80
    bench.judge()


@pytest.mark.requirement("CLOSE-07")
def test_there_is_nothing_to_make_it_linger(bench: Bench) -> None:
    """SO_LINGER and SO_DONTLINGER are refused, and a close does not wait for queued data."""
    closer, peer = bench.connect()
    sends = send_each(closer, [b"unsent", b"unsent"])
    option = {"level": SOL_SOCKET, "deliberately": ["OPT-06"]}

    codes = [closer.wsp("WSPSetSockOpt", name=name, value=1, **option).code for name in (SO_LINGER, SO_DONTLINGER)]
    assert closer.close() == CLOSED

    assert codes == [Code.WSAENOPROTOOPT] * 2
    assert completions(closer, sends, 1) == [ABORTED] * 2
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-08")
def test_the_other_functions_do_not_know_the_closed_descriptor_either(bench: Bench) -> None:
    """Option, QoS, duplication, RDMA and RDMA memory calls on a closed descriptor give WSAENOTSOCK."""
    closer, peer = bench.connect()
    descriptor, address = expose(peer).descriptor, closer.socket.address
    transfer = {"buffers": [[8, address, closer.socket.region]], "descriptor": descriptor}
    transfer["overlapped"] = closer.at.ask("overlapped")
    closer.close()

    calls = {
        "WSPGetSockOpt": {"level": SOL_SOCKET, "name": SO_DEBUG},
        "WSPSetSockOpt": {"level": SOL_SOCKET, "name": SO_DEBUG},
        "WSPGetQOSByName": {},
        "WSPDuplicateSocket": {"pid": closer.at.pid},
        "WSPRegisterRdmaMemory": {"address": address, "length": 4096, "flags": MEM_READWRITE},
        "WSPDeregisterRdmaMemory": {"descriptor": descriptor},
        "WSPRdmaWrite": transfer,
        "WSPRdmaRead": transfer,
    }
    codes = {name: closer.wsp(name, **arguments).code for name, arguments in calls.items()}

    assert codes == dict.fromkeys(calls, Code.WSAENOTSOCK)
    bench.judge(bench.hard_close(closer, peer))


# --- cancelled operations --------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLOSE-11", "CLOSE-12", "CLOSE-13", "CLOSE-16", "CLOSE-19", "CLOSE-36")
def test_all_four_kinds_of_operation_are_cancelled(bench: Bench) -> None:
    """A receive, a send, an RDMA write and a read against a stalled peer all end aborted with zero bytes."""
    closer, peer = bench.connect()
    operations = all_kinds(closer, peer)
    bench.wait_packets(is_rnr_nak)

    assert closer.close() == CLOSED

    assert completions(closer, operations, 1) == [ABORTED] * 4
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-34", "CLOSE-31")
def test_all_four_kinds_of_operation_end_at_the_peer(bench: Bench) -> None:
    """The peer's pending operations of all four kinds end with WSAECONNRESET and zero bytes."""
    closer, peer = bench.connect()
    operations = all_kinds(peer, closer)
    bench.wait_packets(is_rnr_nak)

    assert closer.close() == CLOSED

    assert completions(peer, operations) == [RESET] * 4
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-49")
def test_polled_operations_end_as_well(bench: Bench) -> None:
    """Polled operations get no up-call, and their structures say 'done, aborted' after the close."""
    closer, peer = bench.connect()
    operations = all_kinds(closer, peer, hEvent=1)
    assert {state(closer, o)["Internal"] for o in operations} == {WSS_OPERATION_IN_PROGRESS}

    assert closer.close() == CLOSED

    ended = {"Internal": 0, "InternalHigh": 0, "Offset": 0, "OffsetHigh": Code.WSA_OPERATION_ABORTED, "hEvent": 1}
    assert [state(closer, o) for o in operations] == [ended] * 4
    evidence = bench.judge(bench.hard_close(closer, peer))
    assert not evidence.of("a", "upcall", function=COMPLETE)


@pytest.mark.requirement("CLOSE-15")
def test_an_operation_done_before_the_close_is_not_cancelled_as_well(bench: Bench) -> None:
    """Each operation completes once: with its data if the message landed before the close, else aborted.

    The switch holds an up-call, so the provider has not reported the landed messages when the close begins.
    """
    closer, peer = bench.connect()
    receives = recv_each(closer, [8] * 6)
    with held(closer.at, COMPLETE) as first:
        sends = send_each(peer, [b"message%d" % i for i in range(4)])
        first.wait()
        assert completions(peer, sends) == [(Code.OK, 8)] * 4
        close = in_background(closer.close)
        bench.wait_packets(lambda p: p.cm == "DREQ")

    assert close.result(10) == CLOSED
    ended = completions(closer, receives, 1)
    assert ended[0] == (Code.OK, 8)
    for i in range(1, 4):
        assert ended[i] in ((Code.OK, 8), ABORTED)
        if ended[i] != ABORTED:
            assert closer.at.data(closer.socket, 8, 8 * i) == b"message%d" % i
    assert ended[4:] == [ABORTED, ABORTED]
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-44", "RDMA-17", "CLOSE-36")
@pytest.mark.parametrize("function", ["WSPRdmaWrite", "WSPRdmaRead"])
def test_a_long_transfer_is_ended(bench: Bench, function: str) -> None:
    """A close in the middle of eight transfers of 8 MiB aborts the unfinished ones.

    No aborted write reaches its last packet. No packet of a read follows the peer's answer to the reset.
    """
    closer, peer = bench.connect()
    size = 8 << 20
    own, target = with_memory(closer, size), expose(peer, MEM_READWRITE, size)

    transfers = [int(closer.at.ask("overlapped")) for _ in range(8)]
    arguments = {"descriptor": target.descriptor, "buffers": local(own, (size, 0)), "s": own.socket.s}
    # Runs on the node, because a fast adapter finishes one transfer in less than a millisecond.
    *begun, _, closed = closer.at.ask(
        "in_a_row",
        calls=[
            *((function, arguments | {"overlapped": transfer}) for transfer in transfers),
            ("pause", {"seconds": UNDER_WAY_S}),
            ("close", {"s": own.socket.s}),
        ],
    )

    assert [answer["code"] for answer in (*begun, closed)] == [Code.WSA_IO_PENDING] * 8 + [Code.OK]
    ended = [closer.completion(transfer, 1) for transfer in transfers]
    done = ended.count((Code.OK, size))
    assert ended == [(Code.OK, size)] * done + [ABORTED] * (8 - done) and done < 8
    packets = bench.judge(bench.hard_close(closer, peer)).packets
    assert sent(packets, closer, WRITES) or sent(packets, peer, READ_RESPONSES)
    assert len(sent(packets, closer, WRITES[2:])) <= done


@pytest.mark.requirement("CLOSE-47", "CLOSE-19", "CLOSE-35")
@pytest.mark.needs("inline wire")
def test_a_dead_peer_does_not_hold_it_up(bench: Bench) -> None:
    """On a dead wire the close promptly aborts every kind of operation, and the reset is repeated until it arrives."""
    closer, peer = bench.connect()
    receive, target = peer.recv(), expose(peer)
    bench.pair.wire.cut()
    operations = [rdma(closer, f, target, (512, 0)) for f in ("WSPRdmaWrite", "WSPRdmaRead")]
    operations += [closer.send(b"into the void"), closer.recv()]

    assert closer.close() == CLOSED

    assert completions(closer, operations, 1) == [ABORTED] * 4
    assert seconds(bench.pair.evidence(audit=False), "a", closer.socket) < 4
    bench.pair.wire.mend()
    assert peer.completion(receive, 25) == RESET
    bench.judge(bench.hard_close(closer, peer))


# --- freed resources -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLOSE-17")
def test_inside_an_aborted_operations_upcall_its_memory_is_released(bench: Bench) -> None:
    """Inside the up-call for an aborted operation, the kernel holds no region for its buffer."""
    closer, peer = bench.connect()
    receive = with_memory(closer, UNIQUE_LENGTH).recv()
    assert len(regions(bench, "a", UNIQUE_LENGTH)) == 1

    with held(closer.at, COMPLETE) as held_upcall:
        close = in_background(closer.close)
        held_upcall.wait()
        assert regions(bench, "a", UNIQUE_LENGTH) == []

    assert close.result(10) == CLOSED
    assert closer.completion(receive, 1) == ABORTED
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-18")
def test_memory_in_use_is_unpinned_and_deregistered(bench: Bench) -> None:
    """After the close, buffers of pending operations are neither pinned nor registered."""
    closer, peer = bench.connect()
    before = closer.at.ask("process")["pinned"]
    large = with_memory(closer, 1 << 20)
    operations = [large.recv(4096, 4096 * i) for i in range(3)] + [closer.send(b"stuck")]
    assert closer.at.ask("process")["pinned"] >= before + (1 << 20)

    assert closer.close() == CLOSED

    assert closer.at.ask("process")["pinned"] <= before - 65536
    assert not owned(closer.at, "MR")
    assert completions(closer, operations, 1) == [ABORTED] * 4
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-26", "CLOSE-27")
def test_the_rest_is_freed_after_the_last_upcall(bench: Bench) -> None:
    """Inside WPUCloseSocketHandle all operations are complete and the QP exists; after it the QP and CQ are gone."""
    closer, peer = bench.connect()
    receive, kept = closer.recv(), owned(closer.at, "QP", "CQ")
    assert len(kept) == 2

    with held(closer.at, CLOSE_HANDLE) as last:
        close = in_background(closer.close)
        last.wait()
        assert closer.completion(receive, 1) == ABORTED
        assert owned(closer.at, "QP", "CQ") == kept

    assert close.result(10) == CLOSED
    assert not owned(closer.at, "QP", "CQ")
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-37")
def test_memory_that_was_exposed_is_out_of_reach(bench: Bench) -> None:
    """After a close, the descriptor of exposed memory gets a remote access NAK on another connection.

    Frames forged for the old connection get no answer, and the memory keeps its content.
    """
    peer, closer = bench.connect()
    attacker, _ = bench.connect(port=6001)
    target = expose(closer)
    assert peer.completion(rdma(peer, "WSPRdmaWrite", target, (64, 0))) == (Code.OK, 64)
    forged = rewritten(last_packet(bench, WRITE_ONLY), b"!" * 64)
    before = target.fill(65536, seed=1)

    assert closer.wsp("WSPCloseSocket", deliberately=["SWITCH-10"]).code is Code.OK

    last = bench.pair.packets()[-1].frame
    put_on_wire(bench, "a", forged)
    attack = rdma(attacker, "WSPRdmaWrite", target, (64, 0))
    code, _ = attacker.completion(attack) or (Code.OK, 0)
    assert code is Code.WSAECONNABORTED
    assert target.digest(65536) == before
    peer.close()
    packets = [p for p in bench.judge().packets if p.frame > last]
    assert answers(packets, target.descriptor) == [-1, NAK_REMOTE_ACCESS]


@pytest.mark.requirement("CLOSE-10")
def test_an_unread_message_is_gone(bench: Bench) -> None:
    """An unread message in a private receive is not delivered to the next connection between the same addresses."""
    bench.start(settings_b={"early_messages": 4})
    sender, closer = bench.connect()
    assert sender.completion(sender.send(b"old news")) == (Code.OK, 8)
    assert [end.close() for end in (closer, sender)] == [CLOSED, CLOSED]

    sender, closer = bench.connect()
    receives = recv_each(closer, [16, 16])
    sender.send(b"news")

    assert closer.completion(receives[0]) == (Code.OK, 4)
    assert closer.at.data(closer.socket, 4) == b"news"
    assert closer.completion(receives[1], 0) is None
    bench.judge()


@pytest.mark.requirement("CLOSE-09")
def test_its_addresses_are_free_again(bench: Bench) -> None:
    """After connector, acceptor and listener are closed, all three can use the same addresses again."""
    connector, acceptor = bench.connect()
    assert bench.listener is not None
    assert [end.close() for end in (connector, acceptor)] == [CLOSED, CLOSED]
    assert acceptor.at.close(bench.listener).code is Code.OK

    bench.listener = None
    try:
        connector, acceptor = bench.connect()
    except UnexpectedResult as error:
        raise AssertionError(f"an address is still taken: {error}") from error
    receive = acceptor.recv()
    connector.send(b"hello")
    assert acceptor.completion(receive) == (Code.OK, 5)
    assert len(messages(bench.judge().packets, "REQ")) == 2


@pytest.mark.requirement("CLOSE-45")
def test_the_other_sockets_of_a_process_go_on(bench: Bench) -> None:
    """Memory registered for two sockets stays usable for the open one: its pending receive and a send complete."""
    closer, _ = bench.connect()
    stays, peer = bench.connect(port=6001)
    shared = closer.socket
    region = {"address": shared.address, "length": 65536, "flags": MEM_READWRITE}
    handle = stays.at.must("WSPRegisterMemory", s=stays.socket.s, **region).result
    both = End(stays.at, Socket(stays.socket.s, stays.socket.handle, 0, shared.address, shared.memory, handle))
    receives = {"closer": closer.recv(offset=0), "stays": both.recv(offset=256)}

    assert closer.close() == CLOSED

    assert closer.completion(receives["closer"], 1) == ABORTED
    message = peer.recv()
    both.at.ask("write_memory", memory=shared.memory, offset=512, data=b"out of it")
    post_each("WSPSend", both, [9], offset=512)
    assert peer.completion(message) == (Code.OK, 9)
    assert peer.at.data(peer.socket, 9) == b"out of it"
    peer.send(b"into it")
    assert stays.completion(receives["stays"]) == (Code.OK, 7)
    assert both.at.data(both.socket, 7, 256) == b"into it"
    bench.judge()


# --- sockets that are not connected ----------------------------------------------------------------------------------


@pytest.mark.requirement("CLOSE-41")
def test_a_socket_just_made_or_bound_is_closed_in_silence(bench: Bench) -> None:
    """WSPCloseSocket of a new or bound socket returns 0, closes the handle, and sends nothing."""
    a, _ = bench.start()
    created, bound = a.must("WSPSocket").result, a.socket(7000, FD_CONNECT).s
    handles = [a.handle_of(s) for s in (created, bound)]

    codes = [a.wsp("WSPCloseSocket", s=s).code for s in (created, bound)]

    assert codes == [Code.OK, Code.OK]
    evidence = bench.judge()
    assert [e.handle for e in evidence.of("a", "upcall", function=CLOSE_HANDLE)] == handles
    assert evidence.packets == []


@pytest.mark.requirement("CLOSE-20", "CLOSE-21")
def test_a_connect_whose_address_is_being_resolved_is_aborted(bench: Bench) -> None:
    """A close during address resolution is prompt, leaves no CM id, and signals no event object."""
    a, _ = bench.start()
    none = owned(a, "CM_ID")
    socket = unconnected(a, CONNECTOR_PORT, bench.unused_address)

    assert a.close(socket).code is Code.OK

    assert owned(a, "CM_ID") == none
    assert a.ask("wait_event", event=socket.event, timeout_s=4.0) is False
    evidence = bench.judge()
    assert seconds(evidence, "a", socket) < 4
    assert evidence.packets == []


@pytest.mark.requirement("CLOSE-20", "CLOSE-21")
@pytest.mark.needs("inline wire")
def test_a_connect_whose_request_is_unanswered_is_aborted(bench: Bench) -> None:
    """Of two unanswered connects one is closed promptly: its request is not repeated, its CM id and QP are gone.

    Its event object is not set. The other connect's request is repeated.
    """
    a, b = bench.start()
    bench.connect()
    bench.pair.wire.cut()
    before = owned(a, "QP", "CM_ID")
    closed = unconnected(a, 6001, b.ip)
    bench.wait_packets(lambda p: p.cm == "REQ", count=2)
    request = messages(bench.pair.packets(), "REQ")[-1].local_comm_id

    assert a.close(closed).code is Code.OK

    assert owned(a, "QP", "CM_ID") == before
    waits = unconnected(a, 6002, b.ip)
    bench.wait_packets(lambda p: p.cm == "REQ" and p.local_comm_id != request, count=3, timeout_s=15)
    assert a.ask("event_state", event=closed.event) == {"set": 0, "set_count": 0}
    assert len([p for p in messages(bench.pair.packets(), "REQ") if p.local_comm_id == request]) == 1
    bench.pair.wire.mend()
    assert a.close(waits).code is Code.OK
    assert seconds(bench.judge(), "a", closed) < 4


@pytest.mark.requirement("CLOSE-42")
@pytest.mark.parametrize(
    "code", [Code.WSAECONNRESET, Code.WSAECONNREFUSED, Code.WSAEHOSTUNREACH, Code.WSAETIMEDOUT], ids=lambda c: c.name
)
@pytest.mark.needs("inline wire")
def test_a_failed_connect_is_closed(bench: Bench, code: Code) -> None:
    """After a failed connect the socket closes with 0, and its CM id and QP are gone."""
    a, b = bench.start(settings_a={"connect_timeout_s": 5 if code is Code.WSAETIMEDOUT else 15})
    bench.connect()
    before = owned(a, "CM_ID", "QP")
    if code is Code.WSAETIMEDOUT:
        bench.pair.wire.cut()
    address = bench.unused_address if code is Code.WSAEHOSTUNREACH else b.ip
    socket = unconnected(a, 6001, address, PORT + (code is Code.WSAECONNRESET))
    if code is Code.WSAECONNREFUSED:
        assert bench.listener is not None
        b.wait_request(bench.listener)
        b.must("WSPAccept", Code.WSAECONNREFUSED, s=bench.listener.s, decision=CF_REJECT)
    assert outcome(a, socket) is code

    assert a.close(socket).code is Code.OK

    assert owned(a, "CM_ID", "QP") == before
    bench.pair.wire.mend()
    assert len(bench.judge().of("a", "upcall", function=CLOSE_HANDLE, handle=socket.handle)) == 1


# --- listeners -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLOSE-38", "CLOSE-40")
def test_a_closed_listener_listens_no_more_but_what_it_accepted_goes_on(bench: Bench) -> None:
    """After a listener closes, the CM refuses a connect with WSAECONNRESET, and the accepted connection goes on."""
    connector, acceptor = bench.connect()
    assert bench.listener is not None

    assert acceptor.at.close(bench.listener).code is Code.OK

    late = unconnected(connector.at, 6001, acceptor.at.ip)
    assert outcome(connector.at, late) is Code.WSAECONNRESET
    for sender, receiver in ((connector, acceptor), (acceptor, connector)):
        receive = receiver.recv()
        sender.send(b"still here")
        assert receiver.completion(receive) == (Code.OK, 10)
    packets = bench.pair.packets()
    assert [p.reason for p in messages(packets, "REJ")] == [REJ_NO_SUCH_SERVICE]
    assert not messages(packets, "DREQ")
    bench.judge()


@pytest.mark.requirement("CLOSE-39")
def test_requests_queued_at_a_closing_listener_are_refused(bench: Bench) -> None:
    """Connectors whose requests wait at a closing listener get WSAECONNREFUSED, by a REJ each."""
    a, b = bench.start()
    listener = b.listen(PORT)
    connectors = [unconnected(a, 6000 + i, b.ip) for i in range(3)]
    bench.wait_journal("b", "cm", 3, event="CONNECT_REQUEST")

    assert b.close(listener).code is Code.OK

    assert [outcome(a, c) for c in connectors] == [Code.WSAECONNREFUSED] * 3
    assert [p.reason for p in messages(bench.judge().packets, "REJ")] == [REJ_BY_CONSUMER] * 3


@pytest.mark.requirement("CLOSE-21")
def test_a_request_that_arrives_while_a_listener_closes_is_refused_in_silence(bench: Bench) -> None:
    """A connect during a closing listener's last up-call is refused on the wire, and no event object is signalled."""
    a, b = bench.start()
    listener = b.listen(PORT)
    with held(b, CLOSE_HANDLE) as last:
        close = in_background(b.close, listener)
        last.wait()
        late = unconnected(a, CONNECTOR_PORT, b.ip)
        assert outcome(a, late) in (Code.WSAECONNREFUSED, Code.WSAECONNRESET)
        assert b.ask("event_state", event=listener.event) == {"set": 0, "set_count": 0}

    assert close.result(10).code is Code.OK
    assert b.ask("event_state", event=listener.event) == {"set": 0, "set_count": 0}
    assert len(messages(bench.judge().packets, "REJ")) == 1
