"""Requirements on error codes of every function (ERR): the same sweep of calls under different conditions."""

from typing import Any

import pytest

from hil import Code
from hil.capture.pcapng import read_pcapng
from hil.evidence.journal import Call, chosen
from hil.roce.frames import dissect
from hil.roce.layers.cm import CMREQ
from hil.testing import CONNECTOR_PORT, FD_ACCEPT, FD_CONNECT, PORT, Bench, End, Endpoint, Socket
from hil.testing.data import RESET
from hil.winsock.codes import (
    MEM_READ,
    MEM_READWRITE,
    SIO_ADDRESS_LIST_QUERY,
    SO_DEBUG,
    SO_MAX_MSG_SIZE,
    SOL_SOCKET,
    failed,
)

pytestmark = pytest.mark.used_pair

INVALID_SOCKET = (1 << 64) - 1
UNUSED_PID = 1 << 22
IPV6, ARP = bytes.fromhex("86dd"), bytes.fromhex("0806")
# The sweeps break these obligations of the switch, because they call functions that a state does not allow.
BROKEN_OBLIGATIONS = ["SWITCH-01", "SWITCH-02", "SWITCH-04", "SWITCH-05", "SWITCH-12", "SWITCH-15"]


def functions(endpoint: Endpoint, peer_ip: str) -> dict[str, dict[str, Any]]:
    """Every function of the dispatch table that takes a descriptor, with arguments, except WSPCloseSocket.

    Functions that can change a socket's state come last.
    """
    overlapped, memory = endpoint.ask("overlapped"), endpoint.ask("memory", size=4096)
    data = {"buffers": [[8, memory["address"]]], "overlapped": overlapped, "deliberately": BROKEN_OBLIGATIONS}
    return {
        "WSPEventSelect": {"event": endpoint.ask("event"), "mask": FD_ACCEPT | FD_CONNECT},
        "WSPEnumNetworkEvents": {"event": 0},
        "WSPGetOverlappedResult": {"overlapped": overlapped, "deliberately": BROKEN_OBLIGATIONS},
        "WSPGetQOSByName": {},
        "WSPGetSockOpt": {"level": SOL_SOCKET, "name": SO_MAX_MSG_SIZE},
        "WSPSetSockOpt": {"level": SOL_SOCKET, "name": SO_DEBUG, "deliberately": BROKEN_OBLIGATIONS},
        "WSPIoctl": {"code": SIO_ADDRESS_LIST_QUERY},
        "WSPSend": data,
        "WSPRecv": data,
        "WSPDuplicateSocket": {"pid": UNUSED_PID, "deliberately": BROKEN_OBLIGATIONS},
        "WSPAccept": {"deliberately": BROKEN_OBLIGATIONS},
        "WSPBind": {"address": endpoint.ip, "port": 7100, "deliberately": BROKEN_OBLIGATIONS},
        "WSPListen": {"backlog": 1, "deliberately": BROKEN_OBLIGATIONS},
        "WSPConnect": {"address": peer_ip, "port": PORT, "deliberately": BROKEN_OBLIGATIONS},
    }


def in_every_state(bench: Bench) -> dict[str, Socket]:
    """A socket of node a in each state, by the state's name."""
    connected, _ = bench.connect()
    reset, closer = bench.connect(CONNECTOR_PORT + 1)
    a, b, pending = connected.at, closer.at, reset.recv()
    closer.close()
    assert reset.completion(pending) == RESET
    failed, connecting = (a.socket(port, FD_CONNECT) for port in (7001, 7002))
    a.connect(failed, b.ip, 5555)
    assert a.connect_result(failed) is Code.WSAECONNRESET
    a.connect(connecting, b.ip, PORT)
    return {
        "new": Socket(a.must("WSPSocket").result, 0, 0),
        "bound": a.socket(7003, FD_CONNECT),
        "listening": a.listen(7004),
        "connecting": connecting,
        "connected": connected.socket,
        "failed": failed,
        "reset": reset.socket,
    }


# --- codes that are never returned -----------------------------------------------------------------------------------


@pytest.mark.requirement("ERR-01", "ERR-02", "ERR-03")
def test_no_function_returns_a_code_of_blocking_calls_in_any_state(bench: Bench) -> None:
    """No function gives WSAEINPROGRESS or WSAEINTR; only a pending connect or an empty queue gives WSAEWOULDBLOCK."""
    sockets = in_every_state(bench)
    a, b = bench.endpoints["a"], bench.endpoints["b"]

    codes = {
        (state, function): a.wsp(function, s=socket.s, **arguments).code
        for state, socket in sockets.items()
        for function, arguments in functions(a, b.ip).items()
    }

    assert not {Code.WSAEINPROGRESS, Code.WSAEINTR} & set(codes.values())
    waiting = {place for place, code in codes.items() if code is Code.WSAEWOULDBLOCK}
    assert waiting == {("listening", "WSPAccept")}
    late = chosen(bench.pair.journal("a"), Call, code=Code.WSAEWOULDBLOCK)
    assert {e.function for e in late} == {"WSPAccept", "WSPConnect"}
    bench.judge()


# --- unknown descriptors ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("ERR-05", "CLOSE-02")
def test_an_unknown_descriptor_gives_wsaenotsock_in_every_function(bench: Bench) -> None:
    """All fifteen functions give WSAENOTSOCK for a number that is no descriptor of this provider."""
    a, b = bench.start()
    closed, mine, theirs = a.socket(7001, FD_CONNECT), a.socket(7002, FD_CONNECT), bench.another("a")
    a.close(closed)
    junk = {
        "never made": mine.s + 1000,
        "0": 0,
        "INVALID_SOCKET": INVALID_SOCKET,
        "closed": closed.s,
        "another process's": theirs.socket(7003, FD_CONNECT).s,
        "a switch handle": mine.handle,
    }

    answers = {
        (kind, function): a.wsp(function, s=descriptor, **arguments)
        for kind, descriptor in junk.items()
        for function, arguments in (functions(a, b.ip) | {"WSPCloseSocket": {}}).items()
    }

    assert len(answers) == 6 * 15
    assert {call: answer.code for call, answer in answers.items()} == dict.fromkeys(answers, Code.WSAENOTSOCK)
    assert all(failed(function, answer.result) for (_, function), answer in answers.items())
    bench.judge()


# --- the network is down ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("ERR-04")
@pytest.mark.needs("inline wire", "own nodes")
def test_a_failed_network_gives_wsaenetdown_in_every_function(bench: Bench) -> None:
    """With the port down every function except the memory extensions gives WSAENETDOWN; with it up they work again."""
    connector, acceptor = bench.connect()
    a = connector.at
    new = Socket(a.must("WSPSocket").result, 0, 0)
    bound, listening, spare = a.socket(7001, FD_CONNECT), a.listen(7002), a.socket(7003, FD_CONNECT)
    receive = a.recv(connector.socket, hEvent=1)
    sockets = {"WSPBind": new, "WSPListen": bound, "WSPConnect": bound, "WSPAccept": listening, "WSPCloseSocket": spare}
    calls = functions(a, acceptor.at.ip) | {"WSPCloseSocket": {}}
    calls["WSPGetOverlappedResult"] = {"overlapped": receive}
    calls["WSPDuplicateSocket"] = {"pid": a.pid, "deliberately": ["SWITCH-15"]}
    buffers = [[8, connector.socket.address, connector.socket.region]]
    for function in ("WSPRdmaWrite", "WSPRdmaRead"):
        calls[function] = {"buffers": buffers, "descriptor": bytes(20), "overlapped": a.ask("overlapped")}
    with bench.port_down("a"):
        codes = {f: a.wsp(f, s=sockets.get(f, connector.socket).s, **arguments).code for f, arguments in calls.items()}
        codes["WSPSocket"] = a.wsp("WSPSocket").code
        memory = a.ask("memory", size=4096)
        region = {"address": memory["address"], "length": 4096, "flags": MEM_READWRITE}
        registered = connector.wsp("WSPRegisterMemory", **region)
        deregistered = connector.wsp("WSPDeregisterMemory", handle=registered.result)

    assert codes == dict.fromkeys(codes, Code.WSAENETDOWN)
    assert len(codes) == 18
    assert (registered.code, deregistered.code) == (Code.OK, Code.OK)
    later = acceptor.recv()
    connector.send(b"up again")
    assert acceptor.completion(later) == (Code.OK, 8)
    bench.judge()


@pytest.mark.requirement("ERR-04", "ADDR-05")
@pytest.mark.needs("inline wire", "own nodes")
def test_without_a_descriptor_the_network_is_still_watched(bench: Bench) -> None:
    """A process without a free file descriptor still notices that the port goes down and comes back.

    It learns of addresses added meanwhile as soon as it can open a descriptor.
    """
    connector, acceptor = bench.connect()
    a, new = connector.at, "10.77.0.11"
    unbound, other = (a.must("WSPSocket").result for _ in range(2))
    a.ask("exhaust_descriptors")

    def bind(s: int, address: str) -> Code:
        return a.wsp("WSPBind", s=s, address=address, port=7001, deliberately=["SWITCH-04"]).code

    with bench.port_down("a"):
        down = bind(unbound, a.ip)
    bench.run("a", "ip", "address", "add", f"{new}/24", "dev", bench.pair.place("a").netdev)
    unknown, known = bind(other, new), bind(unbound, a.ip)
    a.ask("free_descriptors")
    later = bind(other, new)

    assert [down, unknown, known, later] == [Code.WSAENETDOWN, Code.WSAEADDRNOTAVAIL, Code.OK, Code.OK]
    receive = acceptor.recv()
    connector.send(b"up again")
    assert acceptor.completion(receive) == (Code.OK, 8)
    bench.judge()


# --- nothing on the wire ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("ERR-07")
def test_a_call_that_fails_puts_nothing_on_the_wire(bench: Bench) -> None:
    """Dozens of refused calls on sockets in every state make node a send no frame."""
    sockets = in_every_state(bench)
    connector = End(bench.endpoints["a"], sockets.pop("connected"))
    a, b = connector.at, bench.endpoints["b"]
    for state in ("new", "bound"):
        a.close(sockets.pop(state))
    b.wait_request(bench.listener)
    before = frames(bench)

    codes = [a.wsp(f, s=s.s, **arguments).code for s in sockets.values() for f, arguments in functions(a, b.ip).items()]
    unregistered = a.ask("memory", size=4096)["address"]
    data = {"overlapped": a.ask("overlapped"), "deliberately": ["SWITCH-02", "SWITCH-03", "SHUT-04"]}
    good, bad = [[8, connector.socket.address]], [[8, unregistered]]
    codes += [
        connector.wsp("WSPSend", buffers=bad, **data).code,
        connector.wsp("WSPSend", buffers=good, flags=1, **data).code,
        connector.wsp("WSPSend", buffers=[[1 << 30, connector.socket.address]], **data).code,
        connector.wsp("WSPRdmaWrite", buffers=[[8, unregistered, 77]], descriptor=b"x" * 20, **data).code,
        connector.wsp("WSPRdmaRead", buffers=[[*good[0], connector.socket.region]], descriptor=b"x", **data).code,
        connector.wsp("WSPRegisterMemory", address=0, length=4096, flags=MEM_READ).code,
        connector.wsp("WSPDeregisterMemory", handle=77).code,
        connector.wsp("WSPConnect", address=b.ip, port=PORT).code,
        connector.wsp("WSPListen", backlog=1, deliberately=["SWITCH-05"]).code,
        connector.wsp("WSPDuplicateSocket", pid=UNUSED_PID, deliberately=BROKEN_OBLIGATIONS).code,
        connector.wsp("WSPIoctl", code=0x77).code,
    ]

    assert Code.WSA_IO_PENDING not in codes
    assert sum(code is not Code.OK for code in codes) > 40
    assert frames(bench) == before
    bench.judge()


def frames(bench: Bench) -> int:
    """The number of frames node a has sent.

    The kernel's neighbour and multicast messages do not count, nor a REQ that the CM repeats for want of an answer.
    """
    bench.pair.wire.counts()
    captured = read_pcapng(bench.pair.wire.path)
    sent = [f for f in captured if f.interface == "side-a" and f.data[12:14] not in (IPV6, ARP)]
    packets = [dissect(frame.data) for frame in sent]
    requests = [packet[CMREQ].local_comm_id for packet in packets if packet is not None and packet.haslayer(CMREQ)]
    return len(sent) - len(requests) + len(set(requests))
