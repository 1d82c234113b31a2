"""The address list, and the form of addresses: IP addresses at the switch, GIDs on the wire."""

import json

import pytest

from hil import Code
from hil.capture.pcapng import read_pcapng
from hil.evidence.packets import roce_packets
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Answer, Bench, Endpoint
from hil.winsock.codes import AF_INET, AF_INET6, SIO_ADDRESS_LIST_QUERY

pytestmark = pytest.mark.used_pair

# SOCKET_ADDRESS_LIST: a count, a pointer and a length for each address (64-bit layout), then the sockaddrs.
HEAD, ENTRY = 8, 16
SOCKADDR = {AF_INET: 16, AF_INET6: 28}


def query(endpoint: Endpoint, family: int = AF_INET, room: int = 4096) -> Answer:
    """SIO_ADDRESS_LIST_QUERY on a fresh socket."""
    made = endpoint.wsp("WSPSocket", af=family)
    assert made.code is Code.OK
    return endpoint.wsp("WSPIoctl", s=made.result, code=SIO_ADDRESS_LIST_QUERY, room=room)


def addresses_of(bench: Bench, name: str, netdev: str, family: int) -> list[str]:
    """The addresses that the node's own kernel reports for a netdev."""
    (link,) = json.loads(bench.run(name, "ip", "-json", "address", "show", "dev", netdev))
    wanted = {AF_INET: "inet", AF_INET6: "inet6"}[family]
    return sorted(a["local"] for a in link["addr_info"] if a["family"] == wanted)


@pytest.mark.requirement("ADDR-01", "ADDR-04", "ADDR-05", "ADDR-10")
@pytest.mark.needs("own nodes")
def test_the_list_holds_every_address_of_the_adapter_from_the_start(bench: Bench) -> None:
    """The first list holds every address of the adapter's netdev, two of them IPv4, and the byte count fits it."""
    bench.run("a", "ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
    a, _ = bench.start()

    for family, at_least in ((AF_INET, ["10.77.0.1", "10.77.0.11"]), (AF_INET6, ["fd77::1"])):
        answer = query(a, family)
        assert answer.code is Code.OK
        assert sorted(answer.more["out"]) == addresses_of(bench, "a", "eth0", family)
        assert set(at_least) <= set(answer.more["out"])
        assert answer.more["returned"] == HEAD + len(answer.more["out"]) * (ENTRY + SOCKADDR[family])
    bench.judge()


@pytest.mark.requirement("ADDR-01", "ADDR-02", "ADDR-03")
@pytest.mark.needs("own nodes")
def test_the_addresses_of_a_vlan_on_the_adapter_are_its_own(bench: Bench) -> None:
    """An address of a VLAN on the adapter's netdev is listed, and its connection's packets are all tagged."""
    for name in "ab":
        bench.run(name, "ip", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
        bench.run(name, "ip", "link", "set", "eth0.5", "up")
    a, b = bench.start()
    for n, endpoint in enumerate((a, b), 1):
        assert query(endpoint).more["out"] == [f"10.77.0.{n}"]
        bench.run(endpoint.node.name, "ip", "address", "add", f"10.5.0.{n}/24", "dev", "eth0.5")
        assert sorted(query(endpoint).more["out"]) == [f"10.5.0.{n}", f"10.77.0.{n}"]
        endpoint.ip = f"10.5.0.{n}"

    closer, peer = bench.connect()
    receive = peer.recv()
    closer.close()
    assert peer.completion(receive) == (Code.WSAECONNRESET, 0)

    bench.judge()
    frames = [f.data for f in read_pcapng(bench.pair.wire.path) if next(roce_packets([f]), None)]
    assert frames and {data[12:16] for data in frames} == {b"\x81\x00\x00\x05"}


@pytest.mark.requirement("ADDR-03", "ADDR-05")
@pytest.mark.needs("own nodes")
def test_an_address_comes_and_goes_with_the_netdev(bench: Bench) -> None:
    """An address added to the adapter's netdev is in the next list; after its removal it is not."""
    a, _ = bench.start()
    assert query(a).more["out"] == ["10.77.0.1"]

    bench.run("a", "ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
    assert sorted(query(a).more["out"]) == ["10.77.0.1", "10.77.0.11"]

    bench.run("a", "ip", "address", "del", "10.77.0.11/24", "dev", "eth0")
    assert query(a).more["out"] == ["10.77.0.1"]
    bench.judge()


@pytest.mark.requirement("ADDR-02", "ADDR-06")
@pytest.mark.needs("own nodes")
def test_news_of_a_foreign_netdev_changes_nothing(bench: Bench) -> None:
    """Changes of a netdev without RDMA, its addresses and its state, leave the list and connections as they are."""
    connector, acceptor = bench.connect()
    a, receive = connector.at, acceptor.recv()
    bench.run("a", "ip", "link", "add", "link", "eth0", "name", "eth1", "type", "macvlan", "mode", "private")

    for state in ("up", "down", "up"):
        bench.run("a", "ip", "link", "set", "eth1", state)
        bench.run("a", "ip", "address", "replace", "192.0.2.1/24", "dev", "eth1")
        assert query(a).more["out"] == ["10.77.0.1"]
    bench.run("a", "ip", "link", "del", "eth1")

    assert query(a).more["out"] == ["10.77.0.1"]
    connector.send(b"undisturbed")
    assert acceptor.completion(receive) == (Code.OK, 11)
    assert bench.judge().of("a", "network") == []


@pytest.mark.requirement("ADDR-07", "ADDR-08")
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.needs("IPv6"))])
def test_the_acceptor_is_told_ip_addresses_and_the_wire_gids(bench: Bench, family: str) -> None:
    """WSPAccept and the condition function get both ends' IP addresses and ports; the REQ carries their GIDs."""
    a, b = bench.start(ipv6=family == "ipv6")
    listener = b.listen(PORT)
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    b.wait_request(listener)

    answer = b.wsp("WSPAccept", s=listener.s)

    assert answer.code is Code.OK
    assert (answer.more["address"], answer.more["port"]) == (a.ip, CONNECTOR_PORT)
    assert answer.more["addrlen"] == SOCKADDR[AF_INET6 if family == "ipv6" else AF_INET]
    assert answer.more["asked"]["caller_id"] == [a.ip, CONNECTOR_PORT]
    assert answer.more["asked"]["callee_id"] == [b.ip, PORT]
    assert a.connect_result(socket) is Code.OK
    (connection,) = bench.judge().connections()
    assert (connection.active, connection.passive) == (a.ip, b.ip)
    assert connection.gids == (a.ip, b.ip)


@pytest.mark.requirement("ADDR-09")
def test_a_buffer_too_small_for_the_list_is_refused(bench: Bench) -> None:
    """A buffer at least one byte shorter than the list gives WSAEFAULT, and nothing is stored."""
    a, _ = bench.start()
    needed = query(a).more["returned"]

    for room in (0, 4, needed - 1):
        answer = query(a, room=room)
        assert (answer.result, answer.code) == (-1, Code.WSAEFAULT)
        assert (answer.more["out"], answer.more["returned"]) == ([], 0)
    assert query(a, room=needed).code is Code.OK
    bench.judge()
