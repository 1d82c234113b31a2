"""WSPBind: the provider keeps to the address and port that the switch gives, up to the wire."""

import ipaddress
import struct

import pytest

from hil import Code
from hil.capture.pcapng import read_pcapng
from hil.roce.frames import CMREQ, dissect
from hil.testing import FD_CONNECT, PORT, Bench, Endpoint

pytestmark = pytest.mark.used_pair

TEST_NET = "192.0.2.1"
# The private data of a REQ of the RDMA IP CM service begins with version, IP version, source port, both addresses;
# its service id ends with the destination port (InfiniBand annex A11).
IP_CM = struct.Struct("!BBH16s16s")
TCP_PORT_SPACE = 0x01060000


def requests(bench: Bench) -> list[tuple[str, int, str, int]]:
    """Source address and port, destination address and port of each REQ on the wire."""
    bench.pair.wire.counts()
    packets = [dissect(frame.data) for frame in read_pcapng(bench.pair.wire.path)]
    found = []
    for request in [p[CMREQ] for p in packets if p is not None and p.haslayer(CMREQ)]:
        _, _, port, source, destination = IP_CM.unpack_from(request.private_data)
        assert request.service_id & ~0xFFFF == TCP_PORT_SPACE
        ends = (str(ipaddress.IPv4Address(raw[12:])) for raw in (source, destination))
        found.append((next(ends), port, next(ends), request.service_id & 0xFFFF))
    return found


def bind(endpoint: Endpoint, s: int, address: str, port: int, **more: object) -> Code:
    """The code of a WSPBind. The call may break the switch's own obligations."""
    return endpoint.wsp("WSPBind", s=s, address=address, port=port, deliberately=["SWITCH-04"], **more).code


@pytest.mark.requirement("BIND-01", "BIND-02", "BIND-10")
@pytest.mark.parametrize("address", ["10.77.0.1", "10.77.0.11"], ids=["first address", "second address"])
@pytest.mark.needs("own nodes")
def test_the_peer_sees_exactly_the_bound_address_and_port(bench: Bench, address: str) -> None:
    """The REQ and the peer's condition function both carry the bound address and port, and the called port."""
    bench.run("a", "ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
    a, b = bench.start()
    listener = b.listen(5123)
    s, event = a.must("WSPSocket").result, a.ask("event")

    assert bind(a, s, address, 6789, namelen=16) is Code.OK

    a.must("WSPEventSelect", s=s, event=event, mask=FD_CONNECT)
    a.must("WSPConnect", Code.WSAEWOULDBLOCK, s=s, address=b.ip, port=5123)
    b.wait_request(listener)
    accepted = b.must("WSPAccept", s=listener.s)
    assert accepted.more["asked"]["caller_id"] == [address, 6789]
    assert accepted.more["asked"]["callee_id"] == [b.ip, 5123]
    assert requests(bench) == [(address, 6789, b.ip, 5123)]
    bench.judge()


@pytest.mark.requirement("BIND-03", "LISTEN-10")
@pytest.mark.needs("guests")
def test_the_wildcard_address_means_every_adapter(bench: Bench) -> None:
    """A listener bound to 0.0.0.0 gets connectors through the node's first adapter and through its second."""
    second = bench.second_adapter("b")
    a, b = bench.start()
    s, event = b.must("WSPSocket").result, b.ask("event")

    assert bind(b, s, "0.0.0.0", PORT) is Code.OK

    b.must("WSPEventSelect", s=s, event=event, mask=0x08)
    b.must("WSPListen", s=s, backlog=2)
    for port, address, own in ((6000, b.ip, a.ip), (6001, second, "10.78.0.1")):
        a.connect(a.socket(port, FD_CONNECT, own), address, PORT)
        assert b.ask("wait_event", event=event, timeout_s=10)
        accepted = b.must("WSPAccept", s=s)
        assert accepted.more["asked"]["callee_id"] == [address, PORT]
        assert accepted.more["asked"]["caller_id"] == [own, port]
    queue_pairs = [r for r in b.node.system("resources") if r["kind"] == "QP"]
    assert {r["device"] for r in queue_pairs} == {"rxe0", "rxe1"}
    bench.judge()


@pytest.mark.requirement("BIND-04")
@pytest.mark.needs("own nodes")
def test_an_address_of_no_adapter_here_is_not_available(bench: Bench) -> None:
    """An unused address, the peer's and one of this node without an adapter give WSAEADDRNOTAVAIL, and no packet."""
    bench.run("a", "ip", "address", "add", "192.0.2.77/32", "dev", "lo")
    a, b = bench.start()
    s = a.must("WSPSocket").result

    assert [bind(a, s, address, 6000) for address in (TEST_NET, b.ip, "192.0.2.77", "127.0.0.1")] == [
        Code.WSAEADDRNOTAVAIL
    ] * 4

    assert bind(a, s, a.ip, 6000) is Code.OK
    assert bench.judge().packets == []


@pytest.mark.requirement("BIND-05")
def test_a_malformed_address_is_wsaefault(bench: Bench) -> None:
    """A NULL pointer, 15 bytes or an IPv6 address for an IPv4 socket gives WSAEFAULT, and the socket stays usable."""
    a, _ = bench.start()
    s = a.must("WSPSocket").result

    assert bind(a, s, a.ip, 6000, null=True) is Code.WSAEFAULT
    assert bind(a, s, a.ip, 6000, namelen=15) is Code.WSAEFAULT
    assert bind(a, s, "fd77::1", 6000) is Code.WSAEFAULT

    assert bind(a, s, a.ip, 6000) is Code.OK
    bench.judge()


@pytest.mark.requirement("BIND-06")
def test_a_second_bind_is_refused_and_changes_nothing(bench: Bench) -> None:
    """A second bind of a bound, listening or connected socket gives WSAEINVAL, and its address stays the same."""
    connector, acceptor = bench.connect()
    assert bench.listener is not None
    b = acceptor.at
    s = b.must("WSPSocket").result
    assert bind(b, s, b.ip, 7000) is Code.OK

    assert [bind(b, known, b.ip, 7001) for known in (s, bench.listener.s, acceptor.socket.s)] == [Code.WSAEINVAL] * 3

    connector.close()
    again, _ = bench.connect(port=6001)
    again.close()
    assert requests(bench) == [(connector.at.ip, port, b.ip, PORT) for port in (6000, 6001)]
    bench.judge()


@pytest.mark.requirement("BIND-07")
@pytest.mark.needs("inline wire", "own nodes")
def test_shortages_junk_and_a_dead_network_have_codes_of_their_own(bench: Bench) -> None:
    """Too many bound sockets give WSAENOBUFS, an unknown descriptor WSAENOTSOCK, a dead network WSAENETDOWN."""
    a, _ = bench.start(settings_a={"max_bound": 1})
    one, two = a.must("WSPSocket").result, a.must("WSPSocket").result

    assert bind(a, 1, a.ip, 6000) is Code.WSAENOTSOCK
    with bench.port_down("a"):
        assert bind(a, one, a.ip, 6000) is Code.WSAENETDOWN
    assert bind(a, one, a.ip, 6000) is Code.OK
    assert bind(a, two, a.ip, 6001) is Code.WSAENOBUFS

    a.must("WSPCloseSocket", s=one)
    assert bind(a, two, a.ip, 6001) is Code.OK
    bench.judge()


@pytest.mark.requirement("BIND-07")
def test_a_kernel_without_room_gives_wsaenobufs(bench: Bench) -> None:
    """WSPBind gives WSAENOBUFS while the kernel's connection manager has no room for an id, and succeeds afterwards."""
    a, _ = bench.start()
    s = a.must("WSPSocket").result

    full = a.ask("full_cm", call="WSPBind", arguments={"s": s, "address": a.ip, "port": 6000})

    assert (full["result"], full["code"]) == (-1, Code.WSAENOBUFS)
    assert bind(a, s, a.ip, 6000) is Code.OK
    bench.judge()


@pytest.mark.requirement("BIND-08", "BIND-09")
def test_an_address_in_use_is_not_the_providers_business(bench: Bench) -> None:
    """Two sockets bind to one address and port, and no unusual call gives a code that WSPBind must not return."""
    a, _ = bench.start()
    sockets = [a.must("WSPSocket").result for _ in range(4)]
    assert [bind(a, s, a.ip, 6000) for s in sockets[:2]] == [Code.OK] * 2
    assert bind(a, sockets[2], "0.0.0.0", 6000) is Code.OK

    addresses = (a.ip, "0.0.0.0", TEST_NET, "255.255.255.255", "224.0.0.1", "::", "::1")
    odd = [(s, address, port, namelen) for s in (sockets[3], sockets[0], 0) for address in addresses
           for port, namelen in ((0, 0), (65535, 3), (6000, 200))]  # fmt: skip
    codes = {bind(a, s, address, port, namelen=namelen) for s, address, port, namelen in odd}

    assert codes <= {Code.OK, Code.WSAEADDRNOTAVAIL, Code.WSAEFAULT, Code.WSAEINVAL, Code.WSAENOBUFS, Code.WSAENOTSOCK}
    bench.judge()
