"""WSPConnect: its background steps, its end, its user data and its addresses (CONN).

The connector is on node a. The called address is on node b, or unused.
"""

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether

from hil import Code, RocePacket
from hil.capture.pcapng import read_pcapng
from hil.roce.frames import CMREQ, IPCM, CmAttribute, dissect
from hil.testing import CONNECTOR_PORT, FD_ACCEPT, FD_CONNECT, PORT, Bench, Endpoint, Socket
from hil.winsock.codes import CF_REJECT, FD_CONNECT_BIT, MEM_READWRITE, MEM_WRITE
from hil.wire.faults import Corrupt, Fault, Match

pytestmark = pytest.mark.used_pair

# The switch takes these codes as final. With any other code it goes on to try TCP/IP.
FINAL = {Code.WSAECONNRESET, Code.WSAECONNREFUSED, Code.WSAEHOSTUNREACH}
REJ_NO_SUCH_SERVICE, REJ_CONSUMER = 8, 28
# The offset of the reason's low byte from the BTH: BTH, DETH, the MAD's header and eleven bytes of REJ (12.6.7).
REJ_REASON = 12 + 8 + 24 + 11
RDMA_CM_LISTEN = 8
TCP, UDP = 6, 17


def attempt(a: Endpoint, address: str, port: int = PORT) -> tuple[Socket, Code]:
    """A socket of ``a`` after its connect ended, and the connect's code."""
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, address, port)
    # A connect must always end by itself (CONN-25).
    assert a.ask("wait_event", event=socket.event, timeout_s=15), "the connect did not end"
    return socket, a.connect_result(socket)


def pending_connect(a: Endpoint, b: Endpoint) -> tuple[Socket, Socket]:
    """A socket of ``a`` with a pending connect, and the listener of ``b`` at which its request waits."""
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    b.wait_request(listener)
    return socket, listener


def left_after_close(endpoint: Endpoint, socket: Socket) -> list[dict[str, Any]]:
    """Close ``socket``. Returns the resources its kernel still holds, without those of the provider itself."""
    answer = endpoint.close(socket)
    assert (answer.result, answer.code) == (0, Code.OK)
    end = time.monotonic() + 15
    while (
        left := [r for r in endpoint.node.system("resources") if not is_the_providers(r)]
    ) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def is_the_providers(resource: dict[str, Any]) -> bool:
    """Whether a resource lives as long as the provider: librdmacm's idle PD, or a listening id for hand-overs."""
    idle = resource["kind"] == "PD" and not resource.get("use_count")
    return idle or (resource["kind"] == "CM_ID" and resource.get("state") == RDMA_CM_LISTEN)


def is_set(endpoint: Endpoint, socket: Socket) -> bool:
    return bool(endpoint.ask("event_state", event=socket.event)["set"])


def cm_packets(bench: Bench, kind: str) -> list[RocePacket]:
    return [p for p in bench.pair.evidence(audit=False).packets if p.cm == kind]


def requests_on_the_wire(bench: Bench) -> Iterator[tuple[CMREQ, IPCM]]:
    """Each REQ of the capture, with the addresses in its private data."""
    bench.pair.wire.counts()
    for frame in read_pcapng(bench.pair.wire.path):
        packet = dissect(frame.data)
        if packet is not None and packet.haslayer(CMREQ):
            yield packet[CMREQ], IPCM(bytes(packet[CMREQ].private_data))


def ip_protocol(frame: bytes) -> int:
    """The protocol of an IPv4 frame or the next header of an IPv6 frame, -1 for any other frame."""
    return {b"\x08\x00": frame[23], b"\x86\xdd": frame[20]}.get(frame[12:14], -1)


def address_text(address: bytes) -> str:
    """The text of a 16-byte address of the RDMA IP CM service. An IPv4 address fills the last four bytes."""
    return str(ipaddress.ip_address(address.removeprefix(bytes(12))))


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin ``work`` in a thread. Returns a function that waits for the result of ``work``."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def wait() -> Any:
        thread.join()
        return results[0]

    return wait


# --- going on by itself ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CONN-01", "CONN-02")
def test_a_connect_pends_and_goes_on_in_a_thread_of_the_providers(bench: Bench) -> None:
    """WSPConnect returns WSAEWOULDBLOCK before the peer accepts; another thread does every later step."""
    a, b = bench.start()
    socket, listener = pending_connect(a, b)

    b.must("WSPAccept", s=listener.s)

    assert a.connect_result(socket) is Code.OK
    evidence = bench.pair.evidence(audit=False)
    (called,) = evidence.of("a", "call", function="WSPConnect")
    assert (called.result, called.code) == (-1, Code.WSAEWOULDBLOCK)
    steps = evidence.of("a", "cm", handle=socket.handle)
    assert "CONNECT_RESPONSE" in {step.event for step in steps}
    assert called.thread not in {step.thread for step in steps}
    bench.judge()


@pytest.mark.requirement("CONN-03", "CONN-04")
@pytest.mark.parametrize(
    ("decision", "code"), [(0, Code.OK), (CF_REJECT, Code.WSAECONNREFUSED)], ids=["success", "failure"]
)
def test_the_end_of_a_connect_signals_fd_connect_with_its_code(bench: Bench, decision: int, code: Code) -> None:
    """The event object is set when the connect ends, not before; FD_CONNECT is reported once, with the final code."""
    a, b = bench.start()
    socket, listener = pending_connect(a, b)
    assert not is_set(a, socket)

    b.wsp("WSPAccept", s=listener.s, decision=decision)

    assert a.ask("wait_event", event=socket.event, timeout_s=10)
    first = a.must("WSPEnumNetworkEvents", s=socket.s, event=socket.event).more
    assert (first["events"], Code(first["codes"][FD_CONNECT_BIT])) == (FD_CONNECT, code)
    again = a.must("WSPEnumNetworkEvents", s=socket.s, event=socket.event).more
    assert again["events"] == 0
    bench.judge()


@pytest.mark.requirement("CONN-20")
def test_success_is_reported_only_when_the_peers_switch_has_accepted(bench: Bench) -> None:
    """The connect pends while the request waits and while the condition function runs; the answer ends it."""
    a, b = bench.start()
    socket, listener = pending_connect(a, b)
    assert not is_set(a, socket)
    accepting = in_background(lambda: b.must("WSPAccept", s=listener.s, delay_s=3.0))

    bench.wait_journal("b", "condition", event="begins")
    assert not a.ask("wait_event", event=socket.event, timeout_s=0.3)
    accepting()

    assert a.connect_result(socket) is Code.OK
    evidence = bench.pair.evidence(audit=False)
    (answered,) = evidence.of("b", "condition", event="answers")
    (response,) = evidence.of("a", "cm", event="CONNECT_RESPONSE")
    assert response.at_ns > answered.at_ns - 2 * evidence.uncertainty_ns
    bench.judge()


@pytest.mark.requirement("CONN-19")
def test_a_connected_socket_can_be_used_at_once(bench: Bench) -> None:
    """WSPRegisterMemory and WSPRecv succeed right after success, and the first message fills the receive."""
    a, b = bench.start()
    socket, listener = pending_connect(a, b)
    accepted = b.accept(listener)
    memory, overlapped = a.ask("memory", size=4096), a.ask("overlapped")
    assert a.connect_result(socket) is Code.OK

    registered = a.wsp("WSPRegisterMemory", s=socket.s, address=memory["address"], length=4096, flags=MEM_READWRITE)
    received = a.wsp("WSPRecv", s=socket.s, buffers=[[256, memory["address"]]], overlapped=overlapped)

    assert (registered.code, received.code) == (Code.OK, Code.WSA_IO_PENDING)
    b.send(accepted, b"the first message")
    assert a.completion(overlapped) == (Code.OK, 17)
    assert a.ask("read_memory", memory=memory["memory"], offset=0, length=17) == b"the first message"
    bench.judge()


@pytest.mark.requirement("CONN-21")
def test_the_connection_is_served_to_its_end_without_tcp(bench: Bench) -> None:
    """Messages and half a MiB of RDMA travel over one connection, without a TCP segment on the wire."""
    connector, acceptor = bench.connect()
    _, descriptor = acceptor.at.expose(acceptor.socket, MEM_WRITE)
    for number in range(8):
        writes = connector.at.rdma("WSPRdmaWrite", connector.socket, descriptor, 65536)
        receive = acceptor.recv()
        connector.send(b"%d" % number)
        assert (acceptor.completion(receive), connector.completion(writes)) == ((Code.OK, 1), (Code.OK, 65536))

    assert len(cm_packets(bench, "REQ")) == 1
    protocols = [ip_protocol(frame.data) for frame in read_pcapng(bench.pair.wire.path)]
    assert protocols.count(UDP) > 8 * 65536 / 1500
    assert TCP not in protocols
    assert connector.close() == (0, Code.OK)
    bench.judge(bench.hard_close(connector, acceptor))


# --- addresses and user data -----------------------------------------------------------------------------------------


@pytest.mark.requirement("CONN-11", "CONN-17")
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.needs("IPv6"))])
def test_the_request_goes_to_the_address_called_and_names_the_bound_one(bench: Bench, family: str) -> None:
    """The REQ goes to the called address, and the wire and the acceptor's switch see the connector's bound address."""
    a, b = bench.start(ipv6=family == "ipv6")
    listener = b.listen(PORT)
    socket = a.socket(6123, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    b.wait_request(listener)

    accepted = b.must("WSPAccept", s=listener.s).more

    (packet,) = cm_packets(bench, "REQ")
    assert (packet.source, packet.destination, packet.local_gid, packet.remote_gid) == (a.ip, b.ip, a.ip, b.ip)
    ((request, addresses),) = requests_on_the_wire(bench)
    assert (request.service_id & 0xFFFF, addresses.source_port) == (PORT, 6123)
    assert [address_text(addresses.source_address), address_text(addresses.destination_address)] == [a.ip, b.ip]
    assert (accepted["address"], accepted["port"]) == (a.ip, 6123)
    assert accepted["asked"]["caller_id"] == [a.ip, 6123]
    bench.judge()


@pytest.mark.requirement("CONN-22")
def test_user_data_travels_with_the_request_and_back(bench: Bench) -> None:
    """lpCallerData reaches the condition function with the REQ, and its answer reaches lpCalleeData with the REP."""
    a, b = bench.start()
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    place = a.ask("memory", size=64)["memory"]
    question, answer = b"who goes there? ", b"a friend, it is."

    a.connect(socket, b.ip, PORT, caller_data=question, callee_memory=place, callee_room=32)
    b.wait_request(listener)
    asked = b.must("WSPAccept", s=listener.s, callee_data=answer).more["asked"]

    assert asked["caller_data"] == question
    assert a.connect_result(socket) is Code.OK
    assert a.ask("callee_length") == len(answer)
    assert a.ask("read_memory", memory=place, offset=0, length=len(answer)) == answer
    assert question in bytes(next(requests_on_the_wire(bench))[0].private_data)
    bench.judge()


@pytest.mark.requirement("CONN-23", "ERR-07")
def test_user_data_that_cannot_travel_is_refused(bench: Bench) -> None:
    """Caller data too long for a REQ makes WSPConnect fail, and nothing is sent; a call without it succeeds."""
    a, b = bench.start()
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)

    refused = a.wsp("WSPConnect", s=socket.s, address=b.ip, port=PORT, caller_data=b"x" * 100)

    assert refused.result == -1
    assert refused.code in (Code.WSAEINVAL, Code.WSAEPROTONOSUPPORT)
    assert not cm_packets(bench, "REQ")
    a.connect(socket, b.ip, PORT)
    b.accept(listener)
    assert a.connect_result(socket) is Code.OK
    bench.judge()


@pytest.mark.requirement("CONN-24")
def test_a_quality_of_service_is_ignored_without_side_effect(bench: Bench) -> None:
    """A connect with an lpSQOS succeeds, and the connection carries a message."""
    a, b = bench.start()
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)

    a.connect(socket, b.ip, PORT, qos=True)

    accepted = b.accept(listener)
    receive = b.recv(accepted)
    a.send(a.connected(socket), b"hello")
    assert b.completion(receive) == (Code.OK, 5)
    bench.judge()


# --- how a connect fails ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("CONN-05", "CONN-10")
@pytest.mark.parametrize("before", ["nothing", "a closed listener"])
def test_a_host_without_a_listener(bench: Bench, before: str) -> None:
    """A reachable host with no listener, or a closed one, answers "no such service": WSAECONNRESET."""
    a, b = bench.start()
    if before == "a closed listener":
        b.close(b.listen(PORT))

    socket, code = attempt(a, b.ip)

    assert code is Code.WSAECONNRESET
    assert [(p.source, p.reason) for p in cm_packets(bench, "REJ")] == [(b.ip, REJ_NO_SUCH_SERVICE)]
    assert left_after_close(a, socket) == []
    bench.judge()


@pytest.mark.requirement("CONN-06", "CONN-10")
@pytest.mark.parametrize("why", ["CF_REJECT", "full backlog"])
def test_the_peer_refuses(bench: Bench, why: str) -> None:
    """A refusal by the condition function and a full queue both give a consumer's reject and WSAECONNREFUSED."""
    a, b = bench.start()
    listener = b.listen(PORT, backlog=1)
    first = a.socket(CONNECTOR_PORT + 1, FD_CONNECT)
    if why == "full backlog":
        a.connect(first, b.ip, PORT)
        b.wait_request(listener)
        socket, code = attempt(a, b.ip)
    else:
        socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
        a.connect(socket, b.ip, PORT)
        b.wait_request(listener)
        b.wsp("WSPAccept", s=listener.s, decision=CF_REJECT)
        code = a.connect_result(socket)

    assert code is Code.WSAECONNREFUSED
    assert [(p.source, p.reason) for p in cm_packets(bench, "REJ")] == [(b.ip, REJ_CONSUMER)]
    a.close(first)
    assert left_after_close(a, socket) == []
    bench.judge()


@pytest.mark.requirement("CONN-06", "CONN-08", "CONN-10")
@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (REJ_CONSUMER, Code.WSAECONNREFUSED),
        (REJ_NO_SUCH_SERVICE, Code.WSAECONNRESET),
        (3, Code.WSAETIMEDOUT),
        (1, Code.WSAETIMEDOUT),
        (10, Code.WSAETIMEDOUT),
    ],
    ids=["consumer", "no such service", "no resources", "no queue pair", "stale connection"],
)
@pytest.mark.needs("inline wire")
def test_only_a_refusal_that_tcp_would_meet_too_is_final(bench: Bench, reason: int, code: Code) -> None:
    """The wire changes the REJ's reason: a reason that TCP/IP would not meet gives a code that is not final."""
    a, b = bench.start()
    listener = b.listen(PORT)
    if changed := reason ^ REJ_CONSUMER:
        lie = Corrupt(offset=REJ_REASON, mask=changed, repaired=True)
        bench.pair.wire.add_fault(Fault("another reason", lie, Match(cm=(CmAttribute.REJ,))))
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    b.wait_request(listener)
    b.wsp("WSPAccept", s=listener.s, decision=CF_REJECT)

    assert a.connect_result(socket) is code

    assert {p.reason for p in bench.pair.evidence(audit=False).delivered if p.cm == "REJ"} == {reason}
    assert left_after_close(a, socket) == []
    bench.judge()


@pytest.mark.requirement("CONN-07", "CONN-10")
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.needs("IPv6"))])
def test_the_host_does_not_exist(bench: Bench, family: str) -> None:
    """A connect to an address without a host gives WSAEHOSTUNREACH, because TCP/IP could not reach it either."""
    a, _ = bench.start(ipv6=family == "ipv6")

    socket, code = attempt(a, bench.pair.unused_address(ipv6=family == "ipv6"))

    assert code is Code.WSAEHOSTUNREACH
    assert not cm_packets(bench, "REQ")
    if family == "ipv4":
        arps = [e[ARP] for e in (Ether(f.data) for f in read_pcapng(bench.pair.wire.path)) if e.haslayer(ARP)]
        assert {arp.op for arp in arps if bench.unused_address in (arp.psrc, arp.pdst)} == {1}
    assert left_after_close(a, socket) == []
    bench.judge()


@pytest.mark.requirement("CONN-08", "CONN-09", "CONN-10")
@pytest.mark.needs("own nodes")
def test_the_host_speaks_plain_ip_only(bench: Bench) -> None:
    """A host that answers a ping but has no RDMA adapter gives WSAETIMEDOUT, after unanswered REQs."""
    a, b = bench.start(settings_a={"connect_timeout_s": 8.0})
    bench.pair.nodes["b"].system("delete_rdma", device="rxe0")
    bench.run("a", "ping", "-c", "1", b.ip)

    socket, code = attempt(a, b.ip)

    assert code not in FINAL
    assert code is Code.WSAETIMEDOUT
    packets = bench.pair.evidence(audit=False).packets
    assert {p.source for p in packets} == {a.ip}
    requests = [p for p in packets if p.cm != "REJ"]
    assert len(requests) >= 2
    assert {(p.cm, p.local_comm_id) for p in requests} == {("REQ", requests[0].local_comm_id)}
    assert left_after_close(a, socket) == []
    bench.judge()


@pytest.mark.requirement("CONN-08", "CONN-10", "CONN-25")
@pytest.mark.needs("inline wire")
def test_a_black_hole_ends_the_connect_in_time(bench: Bench) -> None:
    """Without an answer of a resolved peer the provider's own time-out ends the connect with WSAETIMEDOUT."""
    a, b = bench.start(settings_a={"connect_timeout_s": 2.0})
    b.listen(PORT)
    bench.run("a", "ping", "-c", "1", b.ip)
    bench.pair.wire.cut()
    begun = time.monotonic()

    socket, code = attempt(a, b.ip)

    assert code is Code.WSAETIMEDOUT
    assert 1.9 < time.monotonic() - begun < 15
    assert left_after_close(a, socket) == []
    bench.judge()


@pytest.mark.requirement("CONN-08", "CONN-26", "ERR-07")
@pytest.mark.parametrize("address", ["own address", "127.0.0.1"])
def test_a_connect_to_oneself_is_left_to_tcp(bench: Bench, address: str) -> None:
    """A connect to the node's own address gives no final code and sends no packet, with a listener there or without."""
    a, _ = bench.start()
    address = a.ip if address == "own address" else address
    a.listen(PORT)
    codes = []
    for number, port in enumerate((PORT, 5555)):
        socket = a.socket(CONNECTOR_PORT + number, FD_CONNECT)
        answer = a.wsp("WSPConnect", s=socket.s, address=address, port=port)
        codes.append(a.connect_result(socket) if answer.code is Code.WSAEWOULDBLOCK else answer.code)

    assert not FINAL & set(codes), codes
    assert Code.OK not in codes
    assert not bench.pair.evidence(audit=False).packets
    bench.judge()


# --- calls refused at once -------------------------------------------------------------------------------------------


@pytest.mark.requirement("CONN-12")
def test_a_second_connect_while_one_runs_gives_wsaealready(bench: Bench) -> None:
    """A second WSPConnect is refused with WSAEALREADY, and the first connect goes on."""
    a, b = bench.start()
    socket, listener = pending_connect(a, b)

    second = a.wsp("WSPConnect", s=socket.s, address=b.ip, port=PORT)

    assert (second.result, second.code) == (-1, Code.WSAEALREADY)
    b.accept(listener)
    assert a.connect_result(socket) is Code.OK
    assert len(cm_packets(bench, "REQ")) == 1
    bench.judge()


@pytest.mark.requirement("CONN-13")
def test_a_connected_socket_gives_wsaeisconn(bench: Bench) -> None:
    """A second connect of either end gives WSAEISCONN, and the connection goes on carrying messages."""
    connector, acceptor = bench.connect()

    ends = ((connector, acceptor), (acceptor, connector))
    call = {"port": PORT, "deliberately": ["SWITCH-04"]}
    codes = [end.wsp("WSPConnect", address=other.at.ip, **call).code for end, other in ends]

    assert codes == [Code.WSAEISCONN] * 2
    receive = acceptor.recv()
    connector.send(b"hello")
    assert acceptor.completion(receive) == (Code.OK, 5)
    bench.judge()


@pytest.mark.requirement("CONN-14")
def test_a_listening_socket_gives_wsaeinval(bench: Bench) -> None:
    """WSPConnect on a listener gives WSAEINVAL, and the listener goes on listening."""
    a, b = bench.start()
    listener = b.socket(PORT, FD_ACCEPT | FD_CONNECT)
    b.must("WSPListen", s=listener.s, backlog=5)

    answer = b.wsp("WSPConnect", s=listener.s, address=a.ip, port=PORT)

    assert (answer.result, answer.code) == (-1, Code.WSAEINVAL)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    b.accept(listener)
    assert a.connect_result(socket) is Code.OK
    bench.judge()


@pytest.mark.requirement("CONN-15", "ERR-07")
def test_a_zero_address_or_port_gives_wsaeaddrnotavail(bench: Bench) -> None:
    """A zero address or port gives WSAEADDRNOTAVAIL and no packet, and the socket can still connect."""
    a, b = bench.start()
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)

    wrong = [{"address": "0.0.0.0", "port": PORT}, {"address": b.ip, "port": 0}]
    answers = [a.wsp("WSPConnect", s=socket.s, **name) for name in wrong]

    assert [(answer.result, answer.code) for answer in answers] == [(-1, Code.WSAEADDRNOTAVAIL)] * 2
    assert not cm_packets(bench, "REQ")
    a.connect(socket, b.ip, PORT)
    b.accept(listener)
    assert a.connect_result(socket) is Code.OK
    bench.judge()


@pytest.mark.requirement("CONN-16", "ERR-04")
@pytest.mark.needs("inline wire", "own nodes")
def test_a_port_that_is_down_gives_wsaenetdown(bench: Bench) -> None:
    """WSPConnect gives WSAENETDOWN while the adapter's port is down; when it is up the same socket connects."""
    a, b = bench.start()
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)

    with bench.port_down("a"):
        answer = a.wsp("WSPConnect", s=socket.s, address=b.ip, port=PORT)

    assert (answer.result, answer.code) == (-1, Code.WSAENETDOWN)
    a.connect(socket, b.ip, PORT)
    b.accept(listener)
    assert a.connect_result(socket) is Code.OK
    bench.judge()


# --- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CONN-18", "CONN-10")
@pytest.mark.parametrize("while_it", ["resolves the address", "waits for an answer", "waits for acceptance"])
@pytest.mark.needs("inline wire")
def test_a_close_cancels_a_pending_connect(bench: Bench, while_it: str) -> None:
    """A close is prompt and withdraws the pending connect's request; FD_CONNECT is never signalled, nothing is left."""
    a, b = bench.start()
    if while_it == "waits for acceptance":
        socket, _ = pending_connect(a, b)
    else:
        bench.run("a", "ping", "-c", "1", b.ip)
        bench.pair.wire.cut()
        socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
        a.connect(socket, b.ip if while_it == "waits for an answer" else bench.unused_address, PORT)
    asked = while_it != "resolves the address"
    if asked:
        bench.wait_packets(lambda p: p.cm == "REQ")

    left = left_after_close(a, socket)

    bench.pair.wire.mend()
    assert left == []
    assert not is_set(a, socket)
    evidence = bench.pair.evidence(audit=False)
    (closed,) = evidence.of("a", "call", function="WSPCloseSocket")
    assert closed.t_ns - closed.begun_ns < 4_000_000_000
    sent = [p.cm for p in evidence.packets if p.source == a.ip]
    assert sent == (["REQ", "REJ"] if asked else [])
    bench.judge()
