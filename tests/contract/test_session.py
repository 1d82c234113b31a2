"""The switch's byte streams over a provider's messages, RDMA and hard close (SHUT).

The tests check the streams of the applications, the calls into the provider, and the packets. Each test ends by judging
provider and switch.
"""

import hashlib
import signal
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from hil import Code, RocePacket
from hil.capture.pcapng import read_pcapng
from hil.evidence.journal import Call, Session, chosen
from hil.provider.descriptor import DESCRIPTOR
from hil.switch.messages import Hello, Kind, Message, transfer
from hil.testing import (
    CONNECTOR_PORT,
    FD_CONNECT,
    PORT,
    Bench,
    Done,
    End,
    Endpoint,
    Socket,
    Stream,
    StreamEndpoint,
    at_once,
    join,
    start_both,
)
from hil.testing.data import READ_REQUEST, SENDS, WRITES, is_rnr_nak
from hil.winsock.codes import SO_DEBUG, SO_KEEPALIVE, SO_LINGER, SO_MAX_RDMA_SIZE, SO_SNDBUF, SOL_SOCKET

pytestmark = pytest.mark.used_pair

MIB = 1 << 20
ACKNOWLEDGE = 0x11
TCP, UDP = 6, 17
NO_READ = {"rdma_read": False}
END = Done(Code.OK)
# Functions that a SAN provider need not have (NOTREQ). These streams might have called them.
NEVER_CALLED = {
    "WSPShutdown",
    "WSPSendDisconnect",
    "WSPRecvDisconnect",
    "WSPCancelBlockingCall",
    "WSPSelect",
    "WSPAsyncSelect",
}


def start(bench: Bench, **settings: Any) -> tuple[StreamEndpoint, StreamEndpoint]:
    """Start a switch on each node. ``settings`` are start_both's."""
    bench.endpoints.update(start_both(bench.pair, bench.provider, **settings))
    return bench.endpoints["a"], bench.endpoints["b"]


def connect(bench: Bench, *, settings: Mapping[str, Any] = {}, **options: Any) -> tuple[Stream, Stream]:
    """(connector's, acceptor's) stream. ``options`` are for both sessions."""
    a, b = start(bench, **settings)
    bench.pair.note_baseline()
    ends = join(a, b, b.listen(PORT, **options), CONNECTOR_PORT, PORT, **options)
    bench.pair.note_resources()
    return ends


def hard_close(bench: Bench, closer: Stream, peer: Stream, **more: bool) -> Any:
    """Name the WSPCloseSocket below a stream's close, to be judged."""
    ends = [End(stream.at, Socket(stream.s, stream.handle, 0)) for stream in (closer, peer)]
    return bench.hard_close(*ends, **more)


def requests(bench: Bench) -> list[RocePacket]:
    """The data packets so far, without acknowledgements, because the last of those may still be on its way."""
    return [p for p in bench.pair.packets() if not p.cm and p.opcode != ACKNOWLEDGE]


def opcodes(bench: Bench, source: str = "") -> set[int]:
    """The opcodes of the data packets so far, with ``source`` only of those that it sent."""
    packets = [p for p in bench.pair.packets() if not p.cm and p.opcode < 0x20]
    return {p.opcode for p in packets if source in ("", p.source)}


def messages(bench: Bench, node: str, event: str = "sends") -> list[str]:
    """The session messages of a node."""
    return [e.message for e in chosen(bench.pair.journal(node), Session, event=event)]


def ip_protocols(bench: Bench) -> set[int]:
    """The protocols of all IP packets on the wire."""
    frames = [frame.data for frame in read_pcapng(bench.pair.wire.path)]
    ipv4 = {data[23] for data in frames if data[12:14] == b"\x08\x00"}
    return ipv4 | {data[20] for data in frames if data[12:14] == b"\x86\xdd"}


def posted(steps: list[Call | Session]) -> list[Call]:
    """The receives that were posted, of a journal."""
    return chosen(steps, Call, function="WSPRecv", code=Code.WSA_IO_PENDING)


def check_read(reader: Stream, data: bytes, piece: int) -> None:
    """Check that ``reader`` reads ``data``, ``piece`` bytes at a time."""
    assert reader.recv_digest(len(data), piece).digest == hashlib.sha256(data).hexdigest()


def calls(bench: Bench, node: str, function: str) -> list[Call]:
    return chosen(bench.pair.journal(node), Call, function=function)


def check_transfer(reader: Stream, sender: Stream, length: int, **sending: Any) -> None:
    """Send ``length`` bytes and check that they are read with the same digest."""
    sent, read = at_once(lambda: sender.send_pattern(length, 1, **sending), lambda: reader.recv_digest(length))
    assert (sent.code, sent.done, read.code, read.done) == (Code.OK, length, Code.OK, length)
    assert read.digest == sent.digest


# --- beginning and end -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("SWITCH-06", "SWITCH-07", "SWITCH-09", "SWITCH-10", "SWITCH-12", "SWITCH-14")
def test_a_session_begins_and_ends_in_order(bench: Bench) -> None:
    """A session posts receives, then negotiates with short messages, the connector first.

    Each consumed receive is posted again before its message is handled. Operations are notified, not polled. Memory is
    deregistered before the close.
    """
    one, two = connect(bench)
    at_once(lambda: one.send(b"question"), two.recv)
    at_once(lambda: two.send(b"answer" * 1000), one.recv)
    assert [two.close(), one.close()] == [Code.OK, Code.OK]

    for name, stream in (("a", one), ("b", two)):
        kinds = Call | Session
        steps = [e for e in bench.pair.journal(name) if isinstance(e, kinds) and e.socket == stream.s]
        (said,) = chosen(steps, Session, event="sends", message="HELLO")
        hello = steps.index(said)
        assert said.length is not None and said.length <= 256
        assert len(posted(steps[:hello])) >= 16
        for i, step in enumerate(steps):
            # The farewell may be read when the connection has gone already.
            if isinstance(step, Session) and step.event == "receives" and step.message != "FAREWELL":
                assert len(posted(steps[:i])) == 17 + len(chosen(steps[:i], Session, event="receives"))
        assert not [e for e in chosen(steps, Call) if e.polled or e.function == "WSPGetOverlappedResult"]
        assert [e.function for e in chosen(steps, Call)][-2:] == ["WSPDeregisterMemory", "WSPCloseSocket"]
    bench.judge()


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-14", "SWITCH-11", "SWITCH-18")
@pytest.mark.parametrize("without", ["", "b", "ab"], ids=["both read", "one reads", "none reads"])
def test_streams_both_ways_at_once_arrive_whole(bench: Bench, without: str) -> None:
    """Two MiB each way arrive whole by RDMA read if the receiver's provider has it, else by RDMA write.

    A message reports the end of each transfer, and no byte goes by TCP.
    """
    one, two = connect(bench, settings={f"settings_{name}": NO_READ for name in without})

    at_once(
        lambda: check_transfer(two, one, 2 * MIB, piece=300_000),
        lambda: check_transfer(one, two, 2 * MIB, piece=300_000),
    )

    for name, place in zip("ab", bench.pair.places, strict=True):
        transfers, other = 7, {"a": "b", "b": "a"}[name]
        pulls, pushed_to = name not in without, other in without
        assert messages(bench, name).count("PULLED") == (transfers if pulls else 0)
        assert messages(bench, name).count("PUSHED") == (transfers if pushed_to else 0)
        sent = opcodes(bench, place.ipv4)
        assert (READ_REQUEST in sent, bool(sent & {*WRITES})) == (pulls, pushed_to)
    assert UDP in ip_protocols(bench) and TCP not in ip_protocols(bench)
    assert one.close() is Code.OK
    bench.judge(hard_close(bench, one, two))


@pytest.mark.requirement("SWITCH-03")
def test_no_transfer_is_larger_than_the_provider_allows(bench: Bench) -> None:
    """A send longer than SO_MAX_RDMA_SIZE goes in two transfers, the first of exactly that size."""
    one, two = connect(bench)
    (most,) = {
        end.at.ask("WSPGetSockOpt", s=end.s, level=SOL_SOCKET, name=SO_MAX_RDMA_SIZE)["value"] for end in (one, two)
    }

    check_transfer(two, one, most + 100_000)

    reads = [p for p in bench.pair.packets() if p.opcode == READ_REQUEST and not p.cm]
    # The adapter repeats the request for a lost response from where it broke off, inside the same range.
    begun = [p for p in reads if not any(o.address < p.address < o.address + o.length for o in reads)]
    assert sorted({p.length for p in begun}) == [100_000, most]
    bench.judge()


@pytest.mark.requirement("SWITCH-11")
def test_small_data_rides_in_messages(bench: Bench) -> None:
    """Data up to the threshold is sent as messages only, and one byte more goes by RDMA."""
    one, two = connect(bench)

    for data in (b"x", b"y" * 4096, b"z" * 50):
        assert one.send(data).code is Code.OK
        assert two.recv_digest(len(data)).digest == hashlib.sha256(data).hexdigest()
    assert opcodes(bench) <= {*SENDS, ACKNOWLEDGE}

    check_transfer(two, one, 4097)
    assert READ_REQUEST in opcodes(bench)
    bench.judge()


@pytest.mark.requirement("NEG-08", "SWITCH-08")
def test_thousands_of_tiny_sends_never_overrun_a_slow_reader(bench: Bench) -> None:
    """The sender stops when the reader or its whole process stops, and goes on with it.

    After the negotiation every message meets a posted receive.
    """
    one, two = connect(bench, receives=4, window=4096)
    data = bytes(range(256)) * 82

    two.at.node.channel.kill(two.at.worker, signal.SIGSTOP)
    stuck = one.send(data, 10, timeout_s=3.0)
    two.at.node.channel.kill(two.at.worker, signal.SIGCONT)
    assert (stuck.code, stuck.done) == (Code.WSAETIMEDOUT, 4096)
    at_once(
        lambda: one.send(data[4096:], 10),
        lambda: check_read(two, data, 256),
    )

    # The acceptor may post late (NEG-07), so only the connector's HELLO may be repeated.
    hello = next(p for p in requests(bench) if p.source == one.at.ip)
    assert not [p for p in bench.pair.packets() if is_rnr_nak(p) and p.psn != hello.psn]
    bench.judge()


@pytest.mark.requirement("SEND-15", "SHUT-04")
def test_urgent_data_is_an_ordinary_message(bench: Bench) -> None:
    """Urgent data overtakes the stream at the peer's switch, and is an ordinary send for provider and wire."""
    one, two = connect(bench)
    one.send(b"ordinary")

    assert one.send_urgent(b"!").code is Code.OK

    assert two.recv_urgent().data == b"!"
    assert two.recv().data == b"ordinary"
    assert opcodes(bench) <= {*SENDS, ACKNOWLEDGE}
    bench.judge()


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SHUT-03")
@pytest.mark.parametrize("by", ["connector", "acceptor"])
def test_a_shutdown_leaves_the_connection_open(bench: Bench, by: str) -> None:
    """After a shutdown the peer reads to the end and still answers, and no DREQ is sent until a socket is closed."""
    ends = connect(bench)
    one, two = ends if by == "connector" else ends[::-1]
    one.send(b"last words")

    assert one.shutdown().code is Code.OK

    assert two.recv().data == b"last words"
    assert two.recv() == END
    assert one.send(b"more").code is Code.WSAESHUTDOWN
    two.send(b"answer")
    assert one.recv().data == b"answer"
    assert not [p for p in bench.pair.packets() if p.cm in ("DREQ", "DREP")]
    assert two.close() is Code.OK
    assert one.recv() == END
    bench.judge(hard_close(bench, two, one))


@pytest.mark.requirement("SHUT-01", "SHUT-02")
def test_the_provider_never_hears_of_shutdown_or_cancelling(bench: Bench) -> None:
    """Half-close, cancelled reads, graceful and abortive close call only functions that a SAN provider must have."""
    one, two = connect(bench)
    assert one.recv(timeout_s=0.1).code is Code.WSAETIMEDOUT
    one.shutdown()
    assert two.recv() == END
    assert [two.close(), one.close(0)] == [Code.OK, Code.OK]

    called = {e.function for name in "ab" for e in chosen(bench.pair.journal(name), Call)}
    assert not called & NEVER_CALLED
    assert {"WSPSend", "WSPRecv", "WSPCloseSocket"} <= called
    assert not NEVER_CALLED & {*one.at.ask("surface")["table"]}
    bench.judge()


def test_a_graceful_close_is_read_as_the_end_after_all_data(bench: Bench) -> None:
    """After a graceful close the peer reads all data and then the end; WSPCloseSocket is an ordinary hard close."""
    one, two = connect(bench)
    for _ in range(10):
        one.send(b"data")

    assert one.close() is Code.OK

    assert two.recv_digest(1000).digest == hashlib.sha256(b"data" * 10).hexdigest()
    assert two.recv() == END
    assert two.send(b"too late").code is Code.WSAECONNRESET
    bench.judge(hard_close(bench, one, two))


@pytest.mark.requirement("RECV-13", "RECV-14")
def test_an_abortive_close_breaks_the_peers_stream(bench: Bench) -> None:
    """After an abortive close the peer reads the data that had arrived, and then gets WSAECONNRESET, not the end."""
    one, two = connect(bench)
    one.send(b"data")
    bench.wait_journal("b", "session", message="DATA")

    assert one.close(0) is Code.OK

    assert two.recv().data == b"data"
    assert two.recv().code is Code.WSAECONNRESET
    bench.judge(hard_close(bench, one, two))


def test_a_killed_peer_breaks_every_call(bench: Bench) -> None:
    """Pending reads and a send end with WSAECONNRESET when the peer's process is killed."""
    one, two = connect(bench)
    timer = threading.Timer(0.5, lambda: one.at.node.channel.kill(one.at.worker))
    timer.start()

    codes = [done.code for done in at_once(two.recv, two.recv_urgent, lambda: two.send(bytes(100_000)))]

    assert codes == [Code.WSAECONNRESET] * 3
    del bench.endpoints["a"]
    bench.judge(hard_close(bench, one, two, killed=True))


def test_a_connect_without_a_listener_leaves_no_socket(bench: Bench) -> None:
    """A connect without a listener gives WSAECONNRESET, and the SAN socket is closed (SWITCH-14)."""
    a, b = start(bench)
    assert a.connect_code(CONNECTOR_PORT, b.ip, PORT) is Code.WSAECONNRESET
    assert len(calls(bench, "a", "WSPCloseSocket")) == 1
    bench.judge()


# --- want of memory, changed addresses, options ----------------------------------------------------------------------


@pytest.mark.requirement("SWITCH-18")
@pytest.mark.parametrize("short", ["sender", "receiver"])
@pytest.mark.needs("own nodes")
def test_a_send_that_lacks_memory_ends_with_enobufs(bench: Bench, short: str) -> None:
    """If either adapter takes no more memory a large send ends with WSAENOBUFS, and small data still flows."""
    one, two = connect(bench)
    end = one if short == "sender" else two
    end.at.node.system("limit_rdma", pid=end.at.pid, device="rxe0", objects=0)

    read, (large, small) = at_once(two.recv, lambda: (one.send(bytes(100_000)), one.send(b"small")))

    assert (large.code, large.done) == (Code.WSAENOBUFS, 0)
    assert (small.code, read.data) == (Code.OK, b"small")
    bench.judge()


@pytest.mark.requirement("SWITCH-17")
@pytest.mark.needs("own nodes")
def test_the_switch_asks_again_when_addresses_change(bench: Bench) -> None:
    """The switch lists and uses a new address that TCP/IP reports, and drops a removed one."""
    a, _ = start(bench)
    assert a.ask("addresses") == ["10.77.0.1"]

    bench.run("a", "ip", "address", "add", "10.77.0.11/24", "dev", "eth0")
    assert a.ask("wait_address", address="10.77.0.11", there=True, timeout_s=10)
    assert sorted(a.ask("addresses")) == ["10.77.0.1", "10.77.0.11"]

    bench.run("a", "ip", "address", "del", "10.77.0.11/24", "dev", "eth0")
    assert a.ask("wait_address", address="10.77.0.11", there=False, timeout_s=10)
    bench.judge()


@pytest.mark.requirement("OPT-06", "SWITCH-04", "SWITCH-05")
def test_only_the_providers_own_options_are_passed_on(bench: Bench) -> None:
    """Of the application's options only SO_DEBUG is passed on, between bind and event selection, and reads back."""
    a, b = start(bench)
    listener = b.listen(PORT)
    options = [(SO_KEEPALIVE, 1), (SO_DEBUG, 1), (SO_LINGER, 1), (SO_SNDBUF, 65536)]

    one, _ = join(a, b, listener, CONNECTOR_PORT, PORT, socket_options=options)

    of_stream = [e.function for e in chosen(bench.pair.journal("a"), Call, socket=one.s)]
    assert of_stream[:4] == ["WSPBind", "WSPSetSockOpt", "WSPEventSelect", "WSPConnect"]
    assert of_stream.count("WSPSetSockOpt") == 1
    assert a.ask("WSPGetSockOpt", s=one.s, level=SOL_SOCKET, name=SO_DEBUG)["value"] == 1
    bench.judge()


# --- suspension and hand-over ----------------------------------------------------------------------------------------


@pytest.mark.requirement("SWITCH-15", "DUP-18", "DUP-20")
def test_a_suspended_stream_goes_on_in_another_process(bench: Bench) -> None:
    """A suspended stream is handed over, and the new process reads the unread data and goes on.

    While suspended the connection is silent, and only receives pend and hold memory. The peer's switch does not notice
    the hand-over.
    """
    one, two = connect(bench)
    other = StreamEndpoint(one.at.node, one.at.ip, bench.provider)
    bench.more.append(other)
    two.send(b"unread")
    bench.wait_journal("a", "session", message="DATA")

    assert one.suspend().code is Code.OK
    silent = len(requests(bench))
    waiting = threading.Thread(target=two.send, args=(b"sent while suspended",))
    waiting.start()
    token, state = one.hand_over(other.pid)
    new = other.take_over(token, state)
    assert len(requests(bench)) == silent
    new.resume()

    received = new.recv().data
    while len(received) < len(b"unreadsent while suspended"):
        received += new.recv().data
    assert received == b"unreadsent while suspended"
    waiting.join()
    at_once(lambda: check_transfer(new, two, 100_000), lambda: check_transfer(two, new, 100_000))
    assert one.close(0) is Code.OK
    check_transfer(two, new, 5000)
    assert new.close() is Code.OK
    assert two.recv() == END
    bench.judge()


@pytest.mark.requirement("SWITCH-16")
def test_a_suspended_stream_ends_after_a_time_of_its_own(bench: Bench) -> None:
    """A suspended stream that is not resumed ends at both ends soon after its time limit, and calls fail."""
    one, two = connect(bench, suspension_timeout_s=1.0)
    assert one.suspend().code is Code.OK

    codes = [done.code for done in at_once(one.recv, two.recv)]

    assert codes[0] is Code.WSAETIMEDOUT
    assert codes[1] in (Code.WSAETIMEDOUT, Code.WSAECONNRESET)
    for name in "ab":
        (begun,) = [e.t_ns for e in chosen(bench.pair.journal(name), Session, message="SUSPEND")]
        (ended,) = [e.t_ns for e in chosen(bench.pair.journal(name), Session, event="ends")]
        assert ended - begun < 10e9
    bench.judge()


# --- bad peers -------------------------------------------------------------------------------------------------------

HELLO = Message(Kind.HELLO, Hello(6, 4200, 65536, 8 * MIB, True).encode()).encode()
BAD = {
    "no session": [b"GET / HTTP/1.0"],
    "other version": [HELLO.replace(b"SANS\0\1", b"SANS\0\2")],
    "no transfer": [HELLO, Message(Kind.PULLED, transfer(1, 0)).encode()],
    "forged key": [HELLO, Message(Kind.SOURCE, transfer(1, 8192, DESCRIPTOR.pack(0xBAD, 1 << 40, 8192))).encode()],
    "other key": [HELLO, Message(Kind.SOURCE, transfer(1, 8192, b"not of this provider")).encode()],
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
def test_a_peer_that_breaks_the_rules_is_reset(bench: Bench, said: list[bytes]) -> None:
    """A session whose peer sends invalid messages ends with an error and a reset, without a crash or a hang."""
    bench.endpoints["a"] = raw = Endpoint(bench.pair.nodes["a"], bench.pair.place("a").ipv4, bench.provider)
    bench.endpoints["b"] = b = StreamEndpoint(bench.pair.nodes["b"], bench.pair.place("b").ipv4, bench.provider)
    listener = b.listen(PORT)
    socket = raw.socket(CONNECTOR_PORT, FD_CONNECT)
    raw.connect(socket, b.ip, PORT)

    def peer() -> list[int]:
        end = End(raw, raw.connected(socket))
        receives = [end.recv(4200, 4200 * i) for i in range(6)]
        for i, message in enumerate(said):
            end.send(message, 32768 + 1024 * i)
        return receives

    accepted, receives = at_once(lambda: b.ask("accept", listener=listener, timeout_s=10), peer)

    if len(said) == 1:
        assert accepted["code"] == Code.WSAECONNABORTED
    else:
        stream = Stream(b, accepted["stream"], accepted["s"], accepted["handle"])
        assert stream.recv().code in (Code.WSAECONNABORTED, Code.WSAECONNRESET)
    # A NAK has already broken the peer's queue pair when the reset comes.
    assert raw.completion(receives[-1]) in ((Code.WSAECONNRESET, 0), (Code.WSAECONNABORTED, 0))
    bench.judge()
