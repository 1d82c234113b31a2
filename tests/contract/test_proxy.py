"""Duties of a proxy driver to its service provider; a user-space build gets them from verbs and netlink (PROXY)."""

import threading
import time

import pytest

from hil import Code
from hil.adapters.provision import gid_of
from hil.evidence.journal import NetworkChanged, chosen
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Bench, End, Endpoint, Socket
from hil.testing.data import RESET
from hil.testing.memory import regions
from hil.winsock.codes import MEM_READWRITE, SIO_ADDRESS_LIST_QUERY

pytestmark = pytest.mark.used_pair

ANY = "0.0.0.0"
MIB = 1 << 20


def addresses(endpoint: Endpoint, socket: Socket) -> list[str]:
    """The addresses of an SIO_ADDRESS_LIST_QUERY."""
    return sorted(endpoint.must("WSPIoctl", s=socket.s, code=SIO_ADDRESS_LIST_QUERY).more["out"])


def add_address(bench: Bench, node: str, address: str) -> None:
    """Add an address to a node's adapter, and wait until the kernel has made its GID."""
    bench.run(node, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    search = ["grep", "-r", gid_of(address), "/sys/class/infiniband/rxe0/ports/1/gids"]
    end = time.monotonic() + 10
    while bench.pair.nodes[node].system("run", command=search)["status"]:
        assert time.monotonic() < end, f"the kernel made no GID of {address}"


def connected_over(bench: Bench, listener: Socket, own: str, address: str, port: int) -> tuple[End, End]:
    """(connector, acceptor) of a connection from node a's address ``own`` to node b's ``address``."""
    a, b = bench.endpoints["a"], bench.endpoints["b"]
    socket = a.socket(port, FD_CONNECT, own)
    a.connect(socket, address, PORT)
    accepted = b.accept(listener)
    return End(a, a.connected(socket)), End(b, accepted)


def carries_a_message(source: End, target: End) -> bool:
    receive = target.recv()
    source.send(b"hello")
    return target.completion(receive) == (Code.OK, 5)


def pinned(end: End) -> int:
    """The memory that the kernel has pinned for an end's process, in bytes."""
    return int(end.at.ask("process")["pinned"])


@pytest.mark.requirement("PROXY-01", "PROXY-02")
@pytest.mark.needs("own nodes")
def test_an_address_given_to_the_adapter_can_be_used_at_once(bench: Bench) -> None:
    """New addresses of both ends are listed, are GIDs in the REQ, and are IP addresses at the other switch."""
    a, b = bench.start()
    listener = b.listen(PORT, address=ANY)
    for node, address in (("a", "10.77.0.11"), ("b", "10.77.0.12")):
        add_address(bench, node, address)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT, "10.77.0.11")
    assert addresses(a, socket) == ["10.77.0.1", "10.77.0.11"]
    assert addresses(b, listener) == ["10.77.0.12", "10.77.0.2"]

    a.connect(socket, "10.77.0.12", PORT)
    b.wait_request(listener)

    asked = b.must("WSPAccept", s=listener.s).more["asked"]
    assert asked["caller_id"] == ["10.77.0.11", CONNECTOR_PORT]
    assert asked["callee_id"] == ["10.77.0.12", PORT]
    (request,) = [p for p in bench.pair.packets() if p.cm == "REQ"]
    assert (request.local_gid, request.remote_gid) == ("10.77.0.11", "10.77.0.12")
    bench.judge()


@pytest.mark.requirement("PROXY-01")
@pytest.mark.needs("own nodes")
def test_an_address_taken_away_is_not_listed_any_more(bench: Bench) -> None:
    """An address removed from the adapter leaves the list and can no longer be bound."""
    a, _ = bench.start()
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    add_address(bench, "a", "10.77.0.11")
    assert addresses(a, socket) == ["10.77.0.1", "10.77.0.11"]

    bench.run("a", "ip", "address", "del", "10.77.0.11/24", "dev", "eth0")

    assert addresses(a, socket) == ["10.77.0.1"]
    s = a.must("WSPSocket").result
    assert a.wsp("WSPBind", s=s, address="10.77.0.11", port=7001).code is Code.WSAEADDRNOTAVAIL
    bench.judge()


@pytest.mark.requirement("PROXY-01")
@pytest.mark.needs("inline wire", "own nodes")
def test_news_of_the_port_comes_unasked(bench: Bench) -> None:
    """The provider's own thread notices that a port goes down and comes up, without a call."""
    a, _ = bench.start()

    with bench.port_down("a"):
        pass

    heard = [e.event for e in chosen(bench.pair.journal("a"), NetworkChanged)]
    assert heard == ["down", "up"]
    assert a.wsp("WSPSocket").code is Code.OK
    bench.judge()


@pytest.mark.requirement("PROXY-03")
@pytest.mark.parametrize("kind", ["messages", "RDMA"])
def test_memory_is_pinned_while_it_is_registered(bench: Bench, kind: str) -> None:
    """Registering pins the pages and makes one region; deregistering, or the close, releases both."""
    bench.start(settings_a={"cache": False})
    end, _ = bench.connect()
    before = pinned(end)
    made = end.at.ask("memory", size=MIB)
    region = {"address": made["address"], "length": MIB, "flags": MEM_READWRITE}
    register, deregister = "WSPRegisterMemory", "WSPDeregisterMemory"
    if kind == "RDMA":
        register, deregister = "WSPRegisterRdmaMemory", "WSPDeregisterRdmaMemory"

    for _ in range(2):
        answer = end.wsp(register, **region)
        assert answer.code is Code.OK
        assert (pinned(end) - before, len(regions(bench, "a", MIB))) == (MIB, 1)
        name = {"descriptor": answer.more["descriptor"]} if kind == "RDMA" else {"handle": answer.result}
        assert end.wsp(deregister, **name).code is Code.OK
        assert (pinned(end) - before, len(regions(bench, "a", MIB))) == (0, 0)

    end.wsp(register, **region)
    end.at.wsp("WSPCloseSocket", s=end.socket.s, deliberately=["SWITCH-10"])
    assert (pinned(end), regions(bench, "a", MIB)) == (0, [])
    bench.judge()


@pytest.mark.requirement("PROXY-04")
def test_a_cached_buffer_is_guarded_against_its_release(bench: Bench) -> None:
    """The application maps new pages in place of cached memory, and a send carries the content of the new pages."""
    sender, receiver = bench.connect()
    made = End(sender.at, sender.at.with_memory(sender.socket, 4096))
    sent = made.send(b"old pages", offset=0)
    assert receiver.completion(receiver.recv()) == (Code.OK, 9)
    assert made.completion(sent) == (Code.OK, 9)
    made.wsp("WSPDeregisterMemory", handle=made.socket.region)
    assert len(regions(bench, "a", 4096)) == 1

    made.at.ask("remap_memory", memory=made.socket.memory)
    address = made.socket.address
    assert made.wsp("WSPRegisterMemory", address=address, length=4096, flags=MEM_READWRITE).code is Code.OK

    receive = receiver.recv()
    made.send(b"new pages", offset=0)
    assert receiver.completion(receive) == (Code.OK, 9)
    assert receiver.at.data(receiver.socket, 9) == b"new pages"
    bench.judge()


@pytest.mark.requirement("PROXY-05", "CLOSE-28")
@pytest.mark.needs("guests")
def test_an_adapter_comes_and_goes_at_run_time(bench: Bench) -> None:
    """A listener gets requests through an adapter added later, and its removal ends only its own connections."""
    _, b = bench.start()
    listener = b.listen(PORT, address=ANY)
    staying = bench.join(bench.endpoints["a"], b, listener)
    second = bench.second_adapter("b")
    leaving = connected_over(bench, listener, "10.78.0.1", second, CONNECTOR_PORT + 1)
    assert carries_a_message(*leaving) and carries_a_message(*staying)
    assert addresses(b, listener) == [b.ip, second]
    receives = [end.recv() for end in leaving]

    removal = threading.Thread(target=b.node.system, args=("delete_rdma",), kwargs={"device": "rxe1"})
    removal.start()

    assert leaving[0].completion(receives[0]) == RESET
    assert leaving[1].completion(receives[1]) == (Code.WSAENETDOWN, 0)
    buffers = [[8, leaving[1].socket.address]]
    later = leaving[1].wsp("WSPRecv", buffers=buffers, overlapped=b.ask("overlapped"))
    assert (later.result, later.code) == (-1, Code.WSAENETDOWN)
    assert leaving[1].close() == (0, Code.OK)
    assert [r for r in b.node.system("resources") if r["device"] == "rxe1"] == []
    assert addresses(b, listener) == [b.ip]
    assert carries_a_message(*staying)

    # The kernel frees the device after the last process that used it has ended. Then it can be added again.
    b.end()
    b.node.channel.kill(b.worker)
    removal.join()
    b.node.system("add_rxe", device="rxe1", netdev="eth1")
    heir = bench.endpoints["b"] = Endpoint(b.node, b.ip)
    again = connected_over(bench, heir.listen(PORT, address=ANY), "10.78.0.1", second, CONNECTOR_PORT + 2)
    assert carries_a_message(*again)
    bench.judge()
