"""Socket options and quality of service: readable options, settable options, and the codes for all others."""

from itertools import pairwise

import pytest

from hil import Code
from hil.evidence.disconnect import broken
from hil.evidence.journal import Misbehaves, chosen
from hil.testing import FD_CONNECT, PORT, Bench, End, Endpoint
from hil.winsock import codes as w
from hil.winsock.codes import MEM_READWRITE, SOL_SOCKET

pytestmark = pytest.mark.used_pair

LIMITS = {"SO_MAX_MSG_SIZE": w.SO_MAX_MSG_SIZE, "SO_MAX_RDMA_SIZE": w.SO_MAX_RDMA_SIZE}
READABLE = [*LIMITS.values(), w.SO_RDMA_THRESHOLD_SIZE, w.SO_DEBUG]
# Without quality of service there are no groups. The other options belong to the switch and TCP/IP.
UNSUPPORTED = [
    (SOL_SOCKET, name)
    for name in (w.SO_KEEPALIVE, w.SO_LINGER, w.SO_SNDBUF, w.SO_GROUP_ID, w.SO_GROUP_PRIORITY, 0x3002, 0x7777)
] + [(w.IPPROTO_TCP, w.TCP_NODELAY)]
QOS_CODES = {
    "SIO_GET_QOS": w.SIO_GET_QOS,
    "SIO_GET_GROUP_QOS": w.SIO_GET_GROUP_QOS,
    "SIO_SET_QOS": w.SIO_SET_QOS,
    "SIO_SET_GROUP_QOS": w.SIO_SET_GROUP_QOS,
}
QOS_REFUSALS = {Code.WSAEOPNOTSUPP, Code.WSAENOPROTOOPT, Code.WSAEINVAL}


def read(endpoint: Endpoint, s: int, name: int, level: int = SOL_SOCKET, **more: object) -> tuple[Code, int, int]:
    """(code, value, stored length) of a WSPGetSockOpt."""
    answer = endpoint.wsp("WSPGetSockOpt", s=s, level=level, name=name, **more)
    return answer.code, answer.more["value"], answer.more["length"]


def write(endpoint: Endpoint, s: int, name: int, level: int = SOL_SOCKET, **more: object) -> Code:
    """The code of a WSPSetSockOpt. The option or the time may break the switch's obligations."""
    anyway = ["OPT-06", "SWITCH-04"]
    return endpoint.wsp("WSPSetSockOpt", s=s, level=level, name=name, deliberately=anyway, **more).code


def limit(end: End, option: str) -> int:
    code, value, length = read(end.at, end.socket.s, LIMITS[option])
    assert (code, length) == (Code.OK, 4) and value > 0
    return value


@pytest.mark.requirement("OPT-01")
def test_the_largest_message_can_be_sent_and_no_larger(bench: Bench) -> None:
    """A message of SO_MAX_MSG_SIZE bytes arrives whole; one byte more is refused with WSAEMSGSIZE."""
    connector, acceptor = bench.connect()
    most = limit(connector, "SO_MAX_MSG_SIZE")
    ours, theirs = (end.at.with_memory(end.socket, most + 1) for end in (connector, acceptor))
    digest = connector.at.ask("fill_memory", memory=ours.memory, offset=0, length=most, seed=1)
    receive = acceptor.at.recv(theirs, most)
    first, second = connector.at.ask("overlapped"), connector.at.ask("overlapped")

    larger = {"buffers": [[most + 1, ours.address]], "overlapped": first, "deliberately": ["SWITCH-03"]}
    assert connector.wsp("WSPSend", **larger).code is Code.WSAEMSGSIZE
    assert connector.wsp("WSPSend", buffers=[[most, ours.address]], overlapped=second).code is Code.WSA_IO_PENDING

    assert connector.completion(second, 30) == (Code.OK, most)
    assert acceptor.completion(receive, 30) == (Code.OK, most)
    assert acceptor.at.ask("digest_memory", memory=theirs.memory, offset=0, length=most) == digest
    bench.judge()


@pytest.mark.requirement("OPT-02")
@pytest.mark.parametrize("function", ["WSPRdmaWrite", "WSPRdmaRead"])
def test_the_largest_rdma_transfer_can_be_made_and_no_larger(bench: Bench, function: str) -> None:
    """A transfer of SO_MAX_RDMA_SIZE bytes moves all of them, and one byte more is refused."""
    connector, acceptor = bench.connect()
    most = limit(connector, "SO_MAX_RDMA_SIZE")
    ours = connector.at.with_memory(connector.socket, most + 1)
    theirs, descriptor = acceptor.at.expose(acceptor.socket, MEM_READWRITE, most + 1)
    places = [(connector.at, ours.memory), (acceptor.at, theirs)]
    (source_at, source), (target_at, target) = places if function == "WSPRdmaWrite" else places[::-1]
    digest = source_at.ask("fill_memory", memory=source, offset=0, length=most, seed=2)

    def transfer(length: int, **more: object) -> tuple[int, Code]:
        overlapped = connector.at.ask("overlapped")
        buffers = [[length, ours.address, ours.region]]
        answer = connector.wsp(function, buffers=buffers, descriptor=descriptor, overlapped=overlapped, **more)
        return overlapped, answer.code

    assert transfer(most + 1, deliberately=["SWITCH-03"])[1] is Code.WSAEMSGSIZE
    overlapped, code = transfer(most)
    assert code is Code.WSA_IO_PENDING

    assert connector.completion(overlapped, 60) == (Code.OK, most)
    assert target_at.ask("digest_memory", memory=target, offset=0, length=most) == digest
    bench.judge()


@pytest.mark.requirement("OPT-10", "OPT-13", "OPT-14", "OPT-03")
def test_options_are_read_in_every_state_and_limits_do_not_shrink(bench: Bench) -> None:
    """In every state of a socket each option is 4 bytes long and has its value, and no limit shrinks.

    The RDMA threshold is no larger than the largest message.
    """
    a, b = bench.start()
    values: dict[str, list[dict[int, int]]] = {"connector": [], "listener": [], "refused": []}

    def note(endpoint: Endpoint, s: int, which: str) -> None:
        answers = {name: read(endpoint, s, name, room=8) for name in READABLE}
        assert {(code, length) for code, _, length in answers.values()} == {(Code.OK, 4)}
        values[which].append({name: value for name, (_, value, _) in answers.items()})

    s, event = a.must("WSPSocket").result, a.ask("event")
    note(a, s, "connector")
    # The switch always binds first. This test reads the option before that.
    a.must("WSPBind", s=s, address=a.ip, port=6000, deliberately=["SWITCH-04"])
    note(a, s, "connector")
    listener = b.listen(PORT)
    note(b, listener.s, "listener")
    a.must("WSPEventSelect", s=s, event=event, mask=FD_CONNECT)
    a.must("WSPConnect", Code.WSAEWOULDBLOCK, s=s, address=b.ip, port=PORT)
    note(a, s, "connector")
    accepted = b.accept(listener)
    assert a.ask("wait_event", event=event, timeout_s=10)
    note(a, s, "connector")
    b.close(accepted)
    bench.wait_journal("a", "cm", event="DISCONNECTED")
    note(a, s, "connector")
    refused = a.socket(6001, FD_CONNECT)
    note(a, refused.s, "refused")
    a.connect(refused, b.ip, PORT + 1)
    assert a.connect_result(refused) is not Code.OK
    note(a, refused.s, "refused")

    for seen in values.values():
        for name in LIMITS.values():
            assert all(earlier[name] <= later[name] for earlier, later in pairwise(seen))
        assert all(0 < value[w.SO_RDMA_THRESHOLD_SIZE] <= value[w.SO_MAX_MSG_SIZE] for value in seen)
    bench.judge()


@pytest.mark.requirement("OPT-04")
def test_debug_output_can_be_switched_on_and_off(bench: Bench) -> None:
    """SO_DEBUG is off at first, and reads back as set, for its own socket only."""
    a, _ = bench.start()
    s, other = a.must("WSPSocket").result, a.must("WSPSocket").result

    for value in (1, 0, 1):
        assert write(a, s, w.SO_DEBUG, value=value) is Code.OK
        assert [read(a, known, w.SO_DEBUG)[1] for known in (s, other)] == [value, 0]
    bench.judge()


@pytest.mark.requirement("OPT-06")
def test_a_switch_that_sets_another_option_is_named(bench: Bench) -> None:
    """The bench names a switch that sets another option than SO_DEBUG and SO_GROUP_PRIORITY."""
    a, _ = bench.start()
    s = a.must("WSPSocket").result
    for name in (w.SO_DEBUG, w.SO_GROUP_PRIORITY):
        a.wsp("WSPSetSockOpt", s=s, level=SOL_SOCKET, name=name, value=1)
    allowed = chosen(bench.pair.journal("a"), Misbehaves)

    a.wsp("WSPSetSockOpt", s=s, level=SOL_SOCKET, name=w.SO_KEEPALIVE, value=1)

    (named,) = broken(bench.findings())
    assert (allowed, named.requirements) == ([], ("OPT-06",))


@pytest.mark.requirement("OPT-07", "OPT-08", "OPT-09", "OPT-12")
@pytest.mark.needs("inline wire", "own nodes")
def test_wrong_option_calls_are_refused_with_their_codes(bench: Bench) -> None:
    """Unknown options give WSAENOPROTOOPT, unknown levels WSAEINVAL, and missing or short buffers WSAEFAULT.

    Unknown descriptors give WSAENOTSOCK and a dead network WSAENETDOWN. No other code is returned.
    """
    a, _ = bench.start()
    s = a.must("WSPSocket").result

    for level, name in UNSUPPORTED:
        assert read(a, s, name, level)[0] is Code.WSAENOPROTOOPT
        assert write(a, s, name, level) is Code.WSAENOPROTOOPT
    for name in (*LIMITS.values(), w.SO_RDMA_THRESHOLD_SIZE):
        assert write(a, s, name) is Code.WSAENOPROTOOPT
    for level in (77, 0, -1):
        assert (read(a, s, w.SO_DEBUG, level)[0], write(a, s, w.SO_DEBUG, level)) == (Code.WSAEINVAL, Code.WSAEINVAL)
    for small in (0, 1, 3):
        assert read(a, s, w.SO_DEBUG, room=small)[0] is Code.WSAEFAULT
        assert write(a, s, w.SO_DEBUG, length=small) is Code.WSAEFAULT
    assert (read(a, s, w.SO_DEBUG, null=True)[0], write(a, s, w.SO_DEBUG, null=True)) == (Code.WSAEFAULT,) * 2
    assert (read(a, 1, w.SO_DEBUG)[0], write(a, 1, w.SO_DEBUG)) == (Code.WSAENOTSOCK,) * 2
    with bench.port_down("a"):
        assert (read(a, s, w.SO_DEBUG)[0], write(a, s, w.SO_DEBUG)) == (Code.WSAENETDOWN,) * 2
    bench.judge()


@pytest.mark.requirement("OPT-11")
def test_an_invalid_value_is_wsaeinval_and_a_reset_connection_wsaenotconn(bench: Bench) -> None:
    """SO_DEBUG refuses 2 and -1 with WSAEINVAL and any value after a reset with WSAENOTCONN, and keeps its value."""
    connector, acceptor = bench.connect()
    a, s = connector.at, connector.socket.s
    assert write(a, s, w.SO_DEBUG, value=1) is Code.OK

    assert [write(a, s, w.SO_DEBUG, value=value) for value in (2, 0xFFFFFFFF)] == [Code.WSAEINVAL] * 2
    receive = connector.recv()
    acceptor.close()
    assert connector.completion(receive) == (Code.WSAECONNRESET, 0)
    assert write(a, s, w.SO_DEBUG, value=0) is Code.WSAENOTCONN

    assert read(a, s, w.SO_DEBUG) == (Code.OK, 1, 4)
    bench.judge()


@pytest.mark.requirement("QOS-01", "QOS-04")
def test_without_quality_of_service_every_call_for_it_fails_cleanly(bench: Bench) -> None:
    """Without quality of service WSPGetQOSByName gives FALSE with WSAEOPNOTSUPP, and ioctls and options are refused.

    The calls store and send nothing, and the connection goes on.
    """
    connector, acceptor = bench.connect()
    a, s = connector.at, connector.socket.s
    before = len(bench.pair.packets())

    asked = connector.wsp("WSPGetQOSByName")
    assert (asked.result, asked.code) == (False, Code.WSAEOPNOTSUPP)
    for name, code in QOS_CODES.items():
        answer = connector.wsp("WSPIoctl", code=code, given="x" * 64)
        assert answer.result == -1 and answer.code in QOS_REFUSALS, name
        assert (answer.more["out"], answer.more["returned"]) == ([], 0)
    for option in (w.SO_GROUP_ID, w.SO_GROUP_PRIORITY):
        assert read(a, s, option)[0] is Code.WSAENOPROTOOPT

    assert len(bench.pair.packets()) == before
    receive = acceptor.recv()
    connector.send(b"goes on")
    assert acceptor.completion(receive) == (Code.OK, 7)
    bench.judge()
