"""The emulated switch's own obligations (SWITCH): the bench names each broken one, and an ordinary run breaks none.

Other tests declare an obligation that they break (``deliberately``). These tests do not, so that the bench must name it
among the findings.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hil import Code
from hil.evidence.disconnect import broken
from hil.evidence.journal import Call, Session, chosen
from hil.switch.messages import Hello, Kind, Message
from hil.testing import (
    CONNECTOR_PORT,
    PORT,
    Bench,
    Done,
    End,
    Endpoint,
    Stream,
    StreamEndpoint,
    at_once,
    join,
    start_both,
)
from hil.testing.data import is_rnr_nak
from hil.winsock.codes import (
    MEM_READ,
    MEM_READWRITE,
    SO_DEBUG,
    SO_KEEPALIVE,
    SO_MAX_MSG_SIZE,
    SO_MAX_RDMA_SIZE,
    SOL_SOCKET,
)

pytestmark = pytest.mark.used_pair

THRESHOLD = 4096
END = Done(Code.OK)


def named(bench: Bench) -> set[str]:
    """The requirements of every finding that the bench finds broken."""
    return {requirement for finding in broken(bench.findings()) for requirement in finding.requirements}


def breaks(requirement: str, *cases: Any) -> Any:
    """A parametrize mark of ``cases``, each a way to break ``requirement``."""
    mark = pytest.mark.requirement(requirement)
    return [pytest.param(requirement, case, marks=mark, id=f"{requirement} {name_of(case)}") for case in cases]


def name_of(case: Any) -> str:
    return str(case if isinstance(case, str) else case.__name__).replace("_", " ")


# --- obligations at a call -------------------------------------------------------------------------------------------


def socket_without_the_overlapped_flag(bench: Bench) -> None:
    a, _ = bench.start()
    s = a.wsp("WSPSocket", flags=0).result
    a.wsp("close", s=s)


def send_with_a_completion_routine(bench: Bench) -> None:
    one, _ = bench.connect()
    one.wsp("WSPSend", **one_buffer(one, 8), routine=True)


def send_from_memory_not_registered(bench: Bench) -> None:
    one, _ = bench.connect()
    elsewhere = one.at.ask("memory", size=64)["address"]
    one.wsp("WSPSend", **one_buffer(one, 8, elsewhere))


def message_above_the_maximum(bench: Bench) -> None:
    one, _ = bench.connect()
    most = option(one, SO_MAX_MSG_SIZE)
    big = End(one.at, one.at.with_memory(one.socket, most + 1))
    big.wsp("WSPSend", **one_buffer(big, most + 1))


def transfer_above_the_maximum(bench: Bench) -> None:
    one, two = bench.connect()
    most = option(one, SO_MAX_RDMA_SIZE)
    _, descriptor = two.at.expose(two.socket, MEM_READWRITE)
    big = End(one.at, one.at.with_memory(one.socket, most + 1))
    buffers = [[most + 1, big.socket.address, big.socket.region]]
    overlapped = one.at.ask("overlapped")
    one.wsp("WSPRdmaWrite", buffers=buffers, descriptor=descriptor, overlapped=overlapped)


def event_selection_before_bind(bench: Bench) -> None:
    a, _ = bench.start()
    s = a.must("WSPSocket").result
    a.must("WSPEventSelect", s=s, event=a.ask("event"), mask=0x18)
    a.wsp("WSPBind", s=s, address=a.ip, port=PORT)


def options_before_bind(bench: Bench) -> None:
    a, _ = bench.start()
    s = a.must("WSPSocket").result
    a.must("WSPSetSockOpt", s=s, level=SOL_SOCKET, name=SO_DEBUG, value=1)
    a.wsp("WSPBind", s=s, address=a.ip, port=PORT)


def options_after_event_selection(bench: Bench) -> None:
    a, _ = bench.start()
    socket = a.socket(PORT, 0x18)
    a.must("WSPSetSockOpt", s=socket.s, level=SOL_SOCKET, name=SO_DEBUG, value=1)
    a.wsp("WSPListen", s=socket.s, backlog=1)


def connect_without_event_selection(bench: Bench) -> None:
    a, b = bench.start()
    s = a.must("WSPSocket").result
    a.must("WSPBind", s=s, address=a.ip, port=CONNECTOR_PORT)
    a.wsp("WSPConnect", s=s, address=b.ip, port=PORT)


def accept_without_event_selection(bench: Bench) -> None:
    a, _ = bench.start()
    listener = a.listen(PORT)
    a.must("WSPEventSelect", s=listener.s, event=0, mask=0)
    a.wsp("WSPAccept", s=listener.s)


def close_with_idle_memory(bench: Bench) -> None:
    one, _ = bench.connect()
    one.wsp("WSPCloseSocket")


def close_with_exposed_memory(bench: Bench) -> None:
    one, _ = bench.connect()
    one.at.expose(one.socket, MEM_READ)
    one.at.must("WSPDeregisterMemory", s=one.socket.s, handle=one.socket.region)
    one.wsp("WSPCloseSocket")


def deregistration_of_memory_in_use(bench: Bench) -> None:
    one, _ = bench.connect()
    one.recv()
    one.wsp("WSPDeregisterMemory", handle=one.socket.region)


def polling_of_a_notified_operation(bench: Bench) -> None:
    one, _ = bench.connect()
    one.wsp("WSPGetOverlappedResult", overlapped=one.recv())


def start_without_cleanup(bench: Bench) -> None:
    a, _ = bench.start()
    a.ask("start_again")


def cleanup_with_an_open_socket(bench: Bench) -> None:
    a, _ = bench.start()
    a.must("WSPSocket")
    a.must("WSPCleanup")
    del bench.endpoints["a"]


def duplication_with_idle_memory(bench: Bench) -> None:
    one, _ = bench.connect()
    one.wsp("WSPDuplicateSocket", pid=bench.another("a").pid)


def duplication_during_a_send(bench: Bench) -> None:
    one, _ = bench.connect()
    one.send(b"nobody receives")
    one.wsp("WSPDuplicateSocket", pid=bench.another("a").pid)


def call_after_duplication(bench: Bench) -> None:
    one, _ = bench.connect()
    one.at.must("WSPDeregisterMemory", s=one.socket.s, handle=one.socket.region)
    one.at.must("WSPDuplicateSocket", s=one.socket.s, pid=bench.another("a").pid)
    option(one, SO_MAX_MSG_SIZE)


def one_buffer(end: End, length: int, address: int = 0) -> dict[str, Any]:
    """Arguments of a WSPSend of ``length`` bytes, from the end's own memory or from ``address``."""
    return {"buffers": [[length, address or end.socket.address]], "overlapped": end.at.ask("overlapped")}


def option(end: End, name: int) -> int:
    return int(end.wsp("WSPGetSockOpt", level=SOL_SOCKET, name=name).more["value"])


@pytest.mark.parametrize(
    ("requirement", "case"),
    [
        *breaks("SWITCH-01", socket_without_the_overlapped_flag, send_with_a_completion_routine),
        *breaks("SWITCH-02", send_from_memory_not_registered),
        *breaks("SWITCH-03", message_above_the_maximum, transfer_above_the_maximum),
        *breaks("SWITCH-04", event_selection_before_bind, options_before_bind),
        *breaks("SWITCH-04", options_after_event_selection),
        *breaks("SWITCH-05", connect_without_event_selection, accept_without_event_selection),
        *breaks("SWITCH-10", close_with_idle_memory, close_with_exposed_memory, deregistration_of_memory_in_use),
        *breaks("SWITCH-12", polling_of_a_notified_operation),
        *breaks("SWITCH-14", cleanup_with_an_open_socket),
        *breaks("SWITCH-15", duplication_with_idle_memory, duplication_during_a_send, call_after_duplication),
    ],
)
def test_a_call_that_breaks_an_obligation_is_named(
    bench: Bench, requirement: str, case: Callable[[Bench], None]
) -> None:
    """The bench names the broken obligation and no other, independent of the provider's answer."""
    case(bench)
    assert named(bench) == {requirement}


@pytest.mark.requirement("SWITCH-13")
def test_a_start_without_its_cleanup_is_named(bench: Bench) -> None:
    """After two WSPStartupEx and one WSPCleanup the bench names SWITCH-13 and the provider's leaked resources."""
    start_without_cleanup(bench)
    assert "SWITCH-13" in named(bench)


# --- obligations of the session --------------------------------------------------------------------------------------


def start(
    bench: Bench, mutant: str = "", settings_b: Mapping[str, Any] | None = None
) -> tuple[StreamEndpoint, StreamEndpoint]:
    """Start a switch on each node. Node a's switch breaks an obligation."""
    made = start_both(bench.pair, bench.provider, mutant, settings_b=settings_b)
    bench.endpoints.update(made)
    return made["a"], made["b"]


def connect(bench: Bench, mutant: str, **options: Any) -> tuple[Stream, Stream]:
    """(connector's, acceptor's) stream."""
    a, b = start(bench, mutant)
    return join(a, b, b.listen(PORT, **options), CONNECTOR_PORT, PORT, **options)


@pytest.mark.requirement("SWITCH-06")
@pytest.mark.parametrize("by", ["connector", "acceptor"])
def test_negotiating_before_receives_are_posted_is_named(bench: Bench, by: str) -> None:
    """The bench names a switch of either side that negotiates before it has posted receives."""
    a, b = start(bench, "NegotiatesFirst")
    one, two = (a, b) if by == "connector" else (b, a)
    one_stream, two_stream = join(one, two, two.listen(PORT), CONNECTOR_PORT, PORT)
    one_stream.send(b"it works")
    assert two_stream.recv().data == b"it works"
    assert named(bench) == {"SWITCH-06"}


@pytest.mark.requirement("SWITCH-07")
def test_a_long_negotiation_message_is_named(bench: Bench) -> None:
    """The bench names a negotiation message of 257 bytes, and the other switch refuses it."""
    a, b = start(bench, "LongHello")
    listener = b.listen(PORT)
    codes = at_once(
        lambda: a.connect_code(CONNECTOR_PORT, b.ip, PORT),
        lambda: Code(b.ask("accept", listener=listener, timeout_s=10)["code"]),
    )
    assert codes == [Code.WSAECONNRESET, Code.WSAECONNABORTED]
    assert named(bench) == {"SWITCH-07"}


@pytest.mark.requirement("SWITCH-08")
def test_sending_without_a_credit_is_named(bench: Bench) -> None:
    """The bench names a fifth message to a peer with four receives, and the peer's adapter sends an RNR NAK."""
    a = StreamEndpoint(bench.pair.nodes["a"], bench.pair.place("a").ipv4, bench.provider, "NoCredits")
    b = Endpoint(bench.pair.nodes["b"], bench.pair.place("b").ipv4, bench.provider)
    bench.endpoints.update(a=a, b=b)
    listener = b.listen(PORT)
    hello = Message(Kind.HELLO, Hello(4, 8192, 65536, 1 << 20, True).encode()).encode()

    def peer() -> None:
        two = End(b, b.accept(listener))
        receives = [two.recv(8192, 8192 * i) for i in range(5)]
        two.completion(receives[0])
        two.send(hello, 40960)

    one, _ = at_once(lambda: a.connect(CONNECTOR_PORT, b.ip, PORT), peer)
    for _ in range(5):
        assert one.send(bytes(THRESHOLD)).code is Code.OK

    bench.wait_packets(is_rnr_nak)
    assert named(bench) == {"SWITCH-08"}


@pytest.mark.requirement("SWITCH-09")
def test_a_consumed_receive_that_is_posted_late_is_named(bench: Bench) -> None:
    """The bench names a switch that posts each consumed receive again only after the next message."""
    one, two = connect(bench, "LateRepost")
    two.send(b"hello")
    assert one.recv().data == b"hello"
    assert named(bench) == {"SWITCH-09"}


@pytest.mark.requirement("SWITCH-11")
@pytest.mark.parametrize("length", [100, 10_000], ids=["small data by RDMA", "large data by message"])
def test_the_wrong_path_for_data_is_named(bench: Bench, length: int) -> None:
    """The bench names a switch that does not keep the threshold between messages and RDMA; the data arrives."""
    one, two = connect(bench, "WrongPath")
    sent, read = at_once(lambda: one.send_pattern(length, 1), lambda: two.recv_digest(length))
    assert sent.digest == read.digest
    assert named(bench) == {"SWITCH-11"}


@pytest.mark.requirement("SWITCH-16")
def test_a_suspension_without_end_is_named(bench: Bench) -> None:
    """The bench names a session that stays suspended after its limit of half a second."""
    a, b = start(bench, "SuspendsForEver")
    one, _ = join(a, b, b.listen(PORT), CONNECTOR_PORT, PORT, suspension_timeout_s=0.5)
    one.suspend()
    bench.wait_journal("a", "misbehaves")
    assert named(bench) == {"SWITCH-16"}


@pytest.mark.requirement("SWITCH-17")
@pytest.mark.needs("own nodes")
def test_a_list_of_addresses_that_is_not_renewed_is_named(bench: Bench) -> None:
    """The bench names a switch that does not query the provider again after TCP/IP reported a change."""
    start(bench, "Deaf")
    bench.run("a", "ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
    bench.wait_journal("a", "addresses")
    assert named(bench) == {"SWITCH-17"}


@pytest.mark.requirement("SWITCH-18")
@pytest.mark.parametrize("rdma_read", [True, False], ids=["pulled", "pushed"])
def test_a_transfer_that_ends_in_silence_is_named(bench: Bench, rdma_read: bool) -> None:
    """The bench names a switch that moves the data but sends no message about the end of the transfer."""
    a, b = start(bench, "EndsInSilence", {"rdma_read": rdma_read})
    one, two = join(a, b, b.listen(PORT), CONNECTOR_PORT, PORT)
    sender, reader = (two, one) if rdma_read else (one, two)
    at_once(lambda: sender.send(bytes(10_000), timeout_s=1), lambda: reader.recv(timeout_s=1))
    assert named(bench) == {"SWITCH-18"}


@pytest.mark.requirement("SWITCH-18")
@pytest.mark.needs("own nodes")
def test_another_code_than_enobufs_for_want_of_memory_is_named(bench: Bench) -> None:
    """The bench names a switch that gives WSAEFAULT when the adapter takes no more memory."""
    one, _ = connect(bench, "OtherCode")
    bench.pair.nodes["a"].system("limit_rdma", pid=one.at.pid, device="rxe0", objects=0)
    assert one.send(bytes(10_000)).code is Code.WSAEFAULT
    assert named(bench) == {"SWITCH-18"}


@pytest.mark.requirement("SHUT-04")
def test_an_urgent_flag_for_the_provider_is_named(bench: Bench) -> None:
    """The bench names a switch that calls WSPSend with MSG_OOB instead of sending an urgent message."""
    one, _ = connect(bench, "UrgentFlag")
    one.send_urgent(b"!")
    bench.wait_journal("a", "misbehaves")
    assert named(bench) == {"SHUT-04"}


# --- all kept --------------------------------------------------------------------------------------------------------

EVERY = [f"SWITCH-{number:02}" for number in range(1, 19)]
OCCASIONS = """
WSPStartupEx WSPSocket WSPBind WSPSetSockOpt WSPEventSelect WSPConnect WSPListen WSPAccept WSPGetSockOpt WSPIoctl
WSPRegisterMemory WSPRegisterRdmaMemory WSPSend WSPRecv WSPRdmaRead WSPRdmaWrite WSPDeregisterMemory
WSPDeregisterRdmaMemory WSPDuplicateSocket WSPCloseSocket
"""


@pytest.mark.requirement(*EVERY, "SHUT-04", "OPT-06")
@pytest.mark.needs("own nodes")
def test_an_ordinary_run_breaks_none(bench: Bench) -> None:
    """A run with an occasion to break each obligation breaks none.

    The switches connect with options, stream small, large and urgent data both ways, change addresses, suspend, hand
    over, lack memory, half-close and close.
    """
    a, b = start(bench, settings_b={"rdma_read": False})
    other = StreamEndpoint(a.node, a.ip, bench.provider)
    bench.more.append(other)
    listener = b.listen(PORT)
    one, two = join(a, b, listener, CONNECTOR_PORT, PORT, socket_options=[(SO_DEBUG, 1), (SO_KEEPALIVE, 1)])

    at_once(*both_ways(one, two, 600_000, 60_000))
    one.send_urgent(b"!")
    assert two.recv_urgent().data == b"!"
    bench.run("a", "ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
    assert a.ask("wait_address", address="10.77.0.11", there=True, timeout_s=10)

    one.suspend()
    token, state = one.hand_over(other.pid)
    new = other.take_over(token, state)
    new.resume()
    assert one.close(0) is Code.OK
    at_once(*both_ways(new, two, 20_000, 4000))

    bench.pair.nodes["b"].system("limit_rdma", pid=b.pid, device="rxe0", objects=0)
    assert two.send(bytes(50_000)).code is Code.WSAENOBUFS
    new.shutdown()
    assert two.recv() == END
    assert two.close() is Code.OK
    assert new.close() is Code.OK

    seen = [e for name in "ab" for e in bench.pair.journal(name)]
    said = {e.message for e in chosen(seen, Session) if e.message}
    assert said >= {kind.name for kind in Kind} - {"CREDIT"}
    called = {e.function for e in chosen(seen, Call)}
    assert called >= {*OCCASIONS.split()}
    assert named(bench) == set()


def both_ways(one: Stream, two: Stream, length: int, piece: int) -> list[Callable[[], Any]]:
    """Functions that send and read a stream of data each way, to be called at once."""

    def arrives(sender: Stream, reader: Stream) -> None:
        sent, read = at_once(lambda: sender.send_pattern(length, 1, piece), lambda: reader.recv_digest(length))
        assert sent.digest == read.digest

    return [lambda: arrives(one, two), lambda: arrives(two, one)]
