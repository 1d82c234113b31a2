"""WSPCleanup, and processes that end without it: cancelled operations, freed resources, unreachable memory (CLEAN).

The provider on node a ends, unless a test says otherwise. Its peers are on node b.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hil import Code
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Bench, End, Endpoint
from hil.testing.data import ABORTED, NAK_REMOTE_ACCESS, RESET, held, sent, with_memory
from hil.testing.memory import regions
from hil.winsock.codes import MEM_READ, MEM_READWRITE

pytestmark = pytest.mark.used_pair

POLLED = 1
# No other buffer on a node has this length, so the kernel's list of regions can be searched for it.
UNIQUE_LENGTH = 0x7000
# BTH opcodes of RDMA WRITE only and RDMA READ request (9.2).
WRITE_ONLY, READ_REQUEST = 0x0A, 0x0C


def clean_up(bench: Bench, endpoint: Endpoint) -> None:
    """Call an endpoint's last WSPCleanup with its sockets still open, and take the endpoint from the bench."""
    answer = endpoint.wsp("WSPCleanup", deliberately=["SWITCH-14"])
    assert (answer.result, answer.code) == (0, Code.OK)
    del bench.endpoints[endpoint.node.name]


def kill(bench: Bench, end: End) -> None:
    """Send SIGKILL to an end's provider process, and take the endpoint from the bench."""
    end.at.node.channel.kill(end.at.worker)
    assert end.at.node.channel.wait_exit(end.at.worker, 10) == -9
    del bench.endpoints[end.at.node.name]


def left(bench: Bench, node: str) -> list[dict[str, Any]]:
    """The resources a node's kernel still holds, without librdmacm's idle PD. Waits for those about to be freed."""
    end = time.monotonic() + 15
    while True:
        resources = bench.pair.nodes[node].system("resources")
        found = [r for r in resources if r["kind"] != "PD" or r.get("use_count")]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def threads(endpoint: Endpoint) -> int:
    """The number of threads of a process while no call of the bench runs in it. Waits for those about to end."""
    end = time.monotonic() + 15
    while True:
        listed = endpoint.node.system("run", command=["ls", f"/proc/{endpoint.pid}/task"])["stdout"].split()
        if len(listed) == 1 or time.monotonic() > end:
            return len(listed)
        time.sleep(0.05)


def upcalls(bench: Bench, node: str, **facts: Any) -> list[Any]:
    return bench.pair.evidence(audit=False).of(node, "upcall", **facts)


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLEAN-01")
def test_a_cleanup_without_a_start_gives_wsanotinitialised(bench: Bench) -> None:
    """WSPCleanup after the last WSPCleanup, or after a failed WSPStartupEx, gives WSANOTINITIALISED."""
    a, _ = bench.start()
    a.end()

    codes = [a.wsp("WSPCleanup").code]
    assert a.ask("start_again", version=0x0101) == Code.WSAVERNOTSUPPORTED
    codes.append(a.wsp("WSPCleanup").code)

    assert codes == [Code.WSANOTINITIALISED] * 2
    del bench.endpoints["a"]
    bench.judge()


@pytest.mark.requirement("CLEAN-03")
def test_only_the_last_cleanup_cleans_up(bench: Bench) -> None:
    """After two starts, the first WSPCleanup leaves messages, registering and connecting as they are."""
    connector, acceptor = bench.connect()
    assert connector.at.ask("start_again") == Code.OK

    first = connector.at.wsp("WSPCleanup", deliberately=["SWITCH-14"])

    assert (first.result, first.code) == (0, Code.OK)
    assert not [p for p in bench.pair.packets() if p.cm == "DREQ"]
    receive = acceptor.recv()
    connector.send(b"still here")
    assert acceptor.completion(receive) == (Code.OK, 10)
    bench.connect(CONNECTOR_PORT + 1)
    bench.judge()


@pytest.mark.requirement("CLEAN-02", "ERR-04")
@pytest.mark.parametrize("network", ["up", pytest.param("down", marks=pytest.mark.needs("inline wire", "own nodes"))])
def test_cleanup_never_gives_wsaeinval(bench: Bench, network: str) -> None:
    """WSPCleanup with new, listening and connecting sockets succeeds or gives WSAENETDOWN, and has cleaned up."""
    a, _ = bench.start()
    a.must("WSPSocket")
    a.listen(7001)
    pending = a.socket(7002, FD_CONNECT)
    a.connect(pending, bench.unused_address, PORT)
    if network == "down":
        bench.pair.wire.cut()
        bench.run("a", "ip", "link", "set", "eth0", "down")
        bench.wait_journal("a", "network", event="down")

    codes = [a.wsp("WSPCleanup", deliberately=["SWITCH-14"]).code for _ in range(2)]

    assert codes == [Code.WSAENETDOWN if network == "down" else Code.OK, Code.WSANOTINITIALISED]
    assert left(bench, "a") == []
    del bench.endpoints["a"]
    bench.judge()


# --- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLEAN-05", "CLEAN-06")
def test_pending_operations_are_cancelled_after_their_memory_is_released(bench: Bench) -> None:
    """Receives and sends of two connections each end once with WSA_OPERATION_ABORTED, after their memory is freed."""
    connectors = [bench.connect(port)[0] for port in (6000, 6001)]
    a = connectors[0].at
    pending = {end.socket.handle: [end.recv(), end.recv(offset=256), end.send(b"nobody")] for end in connectors}
    polled = a.recv(connectors[0].socket, offset=512, hEvent=POLLED)

    clean_up(bench, a)

    for handle, operations in pending.items():
        calls = upcalls(bench, "a", handle=handle)
        done = [e for e in calls if e.function == "WPUCompleteOverlappedRequest"]
        assert sorted(e.overlapped for e in done) == sorted(operations)
        assert {(e.code, e.transferred) for e in done} == {ABORTED}
        assert calls[-1].function == "WPUCloseSocketHandle"
        released = bench.pair.evidence(audit=False).of("a", "mr", handle=handle, event="released")
        assert released and max(e.t_ns for e in released) < min(e.t_ns for e in done)
    state = a.ask("overlapped_state", overlapped=polled)
    assert (state["Internal"], state["InternalHigh"], state["OffsetHigh"]) == (0, 0, Code.WSA_OPERATION_ABORTED)
    bench.judge()


@pytest.mark.requirement("CLEAN-06")
def test_inside_a_cancelled_operations_upcall_its_memory_is_released(bench: Bench) -> None:
    """Inside WSPCleanup's up-call for an aborted operation, the kernel holds no region for its buffer."""
    connector, _ = bench.connect()
    a = connector.at
    receive = with_memory(connector, UNIQUE_LENGTH).recv()
    assert len(regions(bench, "a", UNIQUE_LENGTH)) == 1

    with ThreadPoolExecutor(1) as pool, held(a, "WPUCompleteOverlappedRequest") as held_upcall:
        cleaning = pool.submit(clean_up, bench, a)
        held_upcall.wait()
        during = regions(bench, "a", UNIQUE_LENGTH)

    cleaning.result()
    assert during == []
    assert a.completion(receive, 1) == ABORTED
    bench.judge()


@pytest.mark.requirement("CLEAN-07", "CLEAN-08", "CLOSE-24")
def test_a_socket_that_is_being_made_is_closed_as_well(bench: Bench) -> None:
    """WSPCleanup during another thread's WSPSocket closes the switch's handle, and leaves nothing."""
    a, _ = bench.start()
    with ThreadPoolExecutor(2) as pool, held(a, "WPUCreateSocketHandle") as made:
        making = pool.submit(a.wsp, "WSPSocket")
        made.wait()
        cleaning = pool.submit(clean_up, bench, a)
        bench.wait_journal("a", "begin", function="WSPCleanup")

    making.result()
    cleaning.result()
    (created,) = upcalls(bench, "a", function="WPUCreateSocketHandle")
    closed = upcalls(bench, "a", function="WPUCloseSocketHandle")
    assert [e.handle for e in closed] == [created.handle]
    (call,) = bench.pair.evidence(audit=False).of("a", "call", function="WSPCleanup")
    assert closed[0].t_ns < call.t_ns
    bench.judge()


@pytest.mark.requirement("CLEAN-07")
def test_open_sockets_are_reset_as_if_closed(bench: Bench) -> None:
    """WSPCleanup sends a DREQ on every connection, and the peers' receives end with WSAECONNRESET."""
    ends = [bench.connect(port) for port in (6000, 6001)]
    a, receives = ends[0][0].at, [(peer, peer.recv()) for _, peer in ends]

    clean_up(bench, a)

    assert [peer.completion(receive) for peer, receive in receives] == [RESET] * 2
    evidence = bench.pair.evidence(audit=False)
    (call,) = evidence.of("a", "call", function="WSPCleanup")
    begun_ns = call.at_ns - (call.t_ns - call.begun_ns)
    resets = [evidence.packet_times_ns[p.frame] for p in evidence.packets if p.source == a.ip and p.cm == "DREQ"]
    assert len(resets) == 2
    assert begun_ns - evidence.uncertainty_ns < min(resets) and max(resets) < call.at_ns + 100_000_000
    bench.judge(*(bench.hard_close(closer, peer, killed=True) for closer, peer in ends))


@pytest.mark.requirement("CLEAN-08")
def test_no_upcall_follows_the_last_cleanup(bench: Bench) -> None:
    """With receives and a connect pending and a peer that sends and closes, no up-call follows WSPCleanup's return."""
    connector, acceptor = bench.connect()
    a = connector.at
    for n in range(3):
        connector.recv(offset=256 * n)
    pending = a.socket(7002, FD_CONNECT)
    a.connect(pending, bench.unused_address, PORT)
    acceptor.send(b"crosses the clean-up")

    clean_up(bench, a)

    # Once the peer has closed and the adapter is silent, no late completion can arrive.
    acceptor.close()
    evidence = bench.judge()
    (returned,) = evidence.of("a", "call", function="WSPCleanup")
    told = evidence.of("a", "upcall")
    assert len([e for e in told if e.function == "WPUCompleteOverlappedRequest"]) == 3
    assert [e.function for e in told if e.t_ns > returned.t_ns] == []
    assert not a.ask("event_state", event=pending.event)["set"]


# --- freeing ---------------------------------------------------------------------------------------------------------


def allocate_most(bench: Bench, port: int) -> None:
    """Make the provider allocate most kinds of resource: connect, send a message, expose and cache memory."""
    connector, acceptor = bench.connect(port)
    receive = acceptor.recv()
    connector.send(b"hello")
    assert acceptor.completion(receive)
    connector.at.expose(connector.socket, MEM_READWRITE)
    extra = connector.at.with_memory(connector.socket, 8192, MEM_READ)
    connector.at.must("WSPDeregisterMemory", s=extra.s, handle=extra.region)
    connector.recv()


@pytest.mark.requirement("CLEAN-04", "CLEAN-09")
def test_the_last_cleanup_frees_everything(bench: Bench) -> None:
    """WSPCleanup leaves no kernel resource and no thread, and a second start and clean-up add no file descriptor."""
    a, _ = bench.start()
    allocate_most(bench, 6000)
    a.end()
    assert left(bench, "a") == []
    assert threads(a) == 1
    first = a.ask("process")

    assert a.ask("start_again") == Code.OK
    allocate_most(bench, 6001)
    a.end()

    assert left(bench, "a") == []
    assert threads(a) == 1
    assert a.ask("process")["descriptors"] == first["descriptors"]
    del bench.endpoints["a"]
    bench.judge()


# --- processes that die ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CLEAN-10", "CLEAN-12")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with messages under way"])
def test_a_killed_process_is_noticed_and_its_resources_are_reclaimed(bench: Bench, busy: bool) -> None:
    """After SIGKILL the kernel's DREQ ends the peer's receives with WSAECONNRESET, and all resources are freed."""
    survivor, victim = bench.connect()
    victim.at.expose(victim.socket, MEM_READWRITE)
    receives = [survivor.recv(offset=256 * n) for n in range(3)]
    sends = [survivor.send(b"never taken", offset=32768 + 64 * n) for n in range(3)] if busy else []

    kill(bench, victim)

    assert [survivor.completion(receive) for receive in receives] == [RESET] * 3
    assert [survivor.completion(send) for send in sends] == [RESET] * len(sends)
    assert left(bench, "b") == []
    assert survivor.close() == (0, Code.OK)
    bench.judge(bench.hard_close(victim, survivor, killed=True))


@pytest.mark.requirement("CLEAN-11")
@pytest.mark.parametrize("function", ["WSPRdmaWrite", "WSPRdmaRead"])
def test_memory_of_a_dead_process_cannot_be_reached(bench: Bench, function: str) -> None:
    """A dead process's descriptor gets no answer on the old connection, and a NAK on a new one."""
    bench.start(provider_a="IgnoresReset")
    attacker, victim = bench.connect()
    a = attacker.at
    _, stale = victim.at.expose(victim.socket, MEM_READWRITE)
    assert attacker.completion(a.rdma(function, attacker.socket, stale, 64)) == (Code.OK, 64)

    kill(bench, victim)
    assert left(bench, "b") == []
    heir = bench.endpoints["b"] = Endpoint(victim.at.node, victim.at.ip)
    fresh, _ = bench.join(a, heir, heir.listen(PORT), CONNECTOR_PORT + 1)
    before = len(sent(bench.pair.packets(), attacker, (WRITE_ONLY, READ_REQUEST)))

    assert attacker.completion(a.rdma(function, attacker.socket, stale, 64)) == (Code.WSAECONNABORTED, 0)
    assert attacker.completion(a.rdma(function, fresh.socket, stale, 64)) == (Code.WSAECONNABORTED, 0)

    packets = bench.pair.packets()
    requests = sent(packets, attacker, (WRITE_ONLY, READ_REQUEST))[before:]
    assert {p.rkey for p in requests} == {int.from_bytes(stale[:4], "big")}
    assert len({p.dest_qp for p in requests}) == 2
    answers = [p.syndrome for p in packets if p.frame > requests[0].frame and p.source == heir.ip and p.syndrome >= 0]
    assert answers == [NAK_REMOTE_ACCESS]
    bench.judge()


@pytest.mark.requirement("CLEAN-10", "CLEAN-12")
def test_a_connectors_process_is_killed(bench: Bench) -> None:
    """SIGKILL of the connector ends the peer's receives with WSAECONNRESET, and leaves nothing in the kernel."""
    closer, peer = bench.connect()
    receives = [peer.recv(offset=256 * i) for i in range(2)]

    kill(bench, closer)

    assert [peer.completion(r) for r in receives] == [RESET] * 2
    bench.judge(bench.hard_close(closer, peer, killed=True))


@pytest.mark.requirement("CLEAN-05", "CLEAN-07", "CLOSE-24")
def test_cleanup_closes_what_is_open(bench: Bench) -> None:
    """WSPCleanup aborts an open connection's receives, closes its handle, and resets the peer's receives."""
    closer, peer = bench.connect()
    own, theirs = closer.recv(), peer.recv()

    clean_up(bench, closer.at)

    assert closer.completion(own, 5) == ABORTED
    assert peer.completion(theirs) == RESET
    upcalls = [e.function for e in bench.pair.evidence(audit=False).of("a", "upcall")]
    assert upcalls[-1] == "WPUCloseSocketHandle"
    assert upcalls.count("WPUCloseSocketHandle") == upcalls.count("WPUCreateSocketHandle") == 1
    assert peer.close() == (0, Code.OK)
    bench.judge(bench.hard_close(closer, peer, killed=True))
