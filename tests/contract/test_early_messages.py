"""Messages that arrive before the switch has posted a receive for them (NEG).

There are two ways to keep them. The transport asks the sender to repeat them (RNR NAK). For an adapter without flow
control, the provider takes them into private receives; the tests of those switch the sender's repeats off.
"""

import pytest

from hil import Code
from hil.evidence.journal import Completed
from hil.testing import Bench, End
from hil.testing.data import SENDS, completions, is_rnr_nak, pieces, recv_each, send_each, sent, with_memory

pytestmark = pytest.mark.used_pair

NO_RNR_RETRY = {"rnr_retry_count": 0}
PRIVATE_RECEIVES = {"early_messages": 8, **NO_RNR_RETRY}
# The size of a private receive: the provider's RDMA threshold. The switch sends no longer messages.
PRIVATE_SIZE = 4096
# Longer than seven tries with the longest wait that an RNR NAK can ask for, 655 ms each (9.7.5.2.8).
LATE_S = 8.0

sender = pytest.mark.parametrize("sender", ["connector", "acceptor"])


def ends(bench: Bench, sender: str = "connector") -> tuple[End, End]:
    """(first sender, the other end) of a new connection."""
    connector, acceptor = bench.connect()
    return (connector, acceptor) if sender == "connector" else (acceptor, connector)


def start_with_private_receives(bench: Bench) -> None:
    """Start providers with private receives, whose senders do not repeat a message."""
    bench.start(settings_a=PRIVATE_RECEIVES, settings_b=PRIVATE_RECEIVES)


def received(end: End, receive: int, offset: int = 0) -> bytes:
    """The message that completed a receive."""
    code, length = end.completion(receive) or (None, 0)
    assert code is Code.OK, f"the receive ended with {code}"
    return end.at.data(end.socket, length, offset)


def check_both_ways(one: End, other: End) -> None:
    """Check that the connection carries a message each way."""
    for source, target in ((one, other), (other, one)):
        receive = target.recv()
        send = source.send(b"later")
        assert (received(target, receive), source.completion(send)) == (b"later", (Code.OK, 5))


# --- held by the transport -------------------------------------------------------------------------------------------


@pytest.mark.requirement("NEG-01", "NEG-02", "NEG-07", "SEND-16")
@sender
def test_the_transport_holds_a_message_until_a_receive_is_posted(bench: Bench, sender: str) -> None:
    """A message sent first by either side gets RNR NAKs until a late receive is posted, and fills it."""
    first, late = ends(bench, sender)
    send = first.send(b"are you there?")
    bench.wait_packets(is_rnr_nak)
    assert first.completion(send, 0.1) is None

    receive = late.recv()

    assert received(late, receive) == b"are you there?"
    assert first.completion(send) == (Code.OK, 14)
    check_both_ways(first, late)
    assert not [p for p in bench.pair.packets() if p.cm == "DREQ"]
    bench.judge()


@pytest.mark.requirement("NEG-02", "NEG-01")
@pytest.mark.parametrize("count", [1, 5])
def test_the_transport_holds_messages_for_as_long_as_it_takes(bench: Bench, count: int) -> None:
    """A receive posted later than all tries of an unanswered packet would take still gets its message."""
    first, late = bench.connect()
    messages = [b"%d: still there?" % n for n in range(count)]
    sends = send_each(first, messages)
    bench.wait_packets(is_rnr_nak)
    assert completions(first, sends, LATE_S) == [None] * count

    receives = recv_each(late, map(len, messages))

    assert completions(late, receives) == [(Code.OK, len(m)) for m in messages]
    assert pieces(late, map(len, messages)) == messages
    assert completions(first, sends) == [(Code.OK, len(m)) for m in messages]
    check_both_ways(first, late)
    bench.judge()


@pytest.mark.requirement("SEND-16")
def test_without_patience_or_private_receives_the_connection_breaks_visibly(bench: Bench) -> None:
    """A send that may not be repeated fails as a transport error; the message is not silently dropped."""
    bench.start(settings_a=NO_RNR_RETRY, settings_b=NO_RNR_RETRY)
    first, _ = ends(bench)

    send = first.send(b"are you there?")

    assert first.completion(send) == (Code.WSAECONNABORTED, 0)
    packets = bench.pair.packets()
    refused = next(p for p in packets if is_rnr_nak(p))
    assert not [p for p in sent(packets, first, SENDS) if p.frame > refused.frame], "it was tried again"
    bench.judge()


# --- taken into private receives -------------------------------------------------------------------------------------


@pytest.mark.requirement("NEG-01", "NEG-02", "NEG-03", "NEG-07")
@sender
def test_private_receives_take_messages_where_the_sender_does_not_try_again(bench: Bench, sender: str) -> None:
    """A send first by either side succeeds before a receive is posted, and the late receive gets the message."""
    start_with_private_receives(bench)
    first, late = ends(bench, sender)
    send = first.send(b"are you there?")
    assert first.completion(send) == (Code.OK, 14)

    receive = late.recv()

    assert received(late, receive) == b"are you there?"
    check_both_ways(first, late)
    assert not [p for p in bench.pair.packets() if is_rnr_nak(p)]
    assert not [p for p in bench.pair.packets() if p.cm == "DREQ"]
    bench.judge()


@pytest.mark.requirement("NEG-04")
@pytest.mark.parametrize("length", [1, 256, PRIVATE_SIZE])
def test_a_private_receive_holds_a_whole_negotiation_message(bench: Bench, length: int) -> None:
    """A first message of one byte, of 256 bytes (the longest of a negotiation) or of the threshold arrives whole."""
    start_with_private_receives(bench)
    first, late = ends(bench)
    message = bytes(n % 251 for n in range(length))
    send = first.send(message)
    assert first.completion(send) == (Code.OK, length)

    assert received(late, late.recv(PRIVATE_SIZE)) == message
    bench.judge()


@pytest.mark.requirement("NEG-05")
def test_early_messages_fill_one_receive_each_in_order_before_later_ones(bench: Bench) -> None:
    """Five early and two later messages of different lengths fill seven receives, whole and in order."""
    start_with_private_receives(bench)
    first, late = ends(bench)
    messages = [b"%d" % n * (10 + n) for n in range(7)]
    early = [first.send(m, offset=32768 + 64 * n) for n, m in enumerate(messages[:5])]
    assert all(first.completion(send) for send in early)

    receives = [late.recv(offset=256 * n) for n in range(7)]
    later = [first.send(m, offset=36864 + 64 * n) for n, m in enumerate(messages[5:])]

    assert [received(late, r, 256 * n) for n, r in enumerate(receives)] == messages
    assert all(first.completion(send) for send in later)
    order = [e.overlapped for e in bench.pair.evidence(audit=False).of("b", Completed) if e.overlapped]
    assert order == receives
    bench.judge()


@pytest.mark.requirement("NEG-01", "NEG-05")
def test_more_early_messages_than_private_receives_stay_in_order(bench: Bench) -> None:
    """With two private receives and four early messages the transport holds two, and the order is kept."""
    settings = {"early_messages": 2}
    bench.start(settings_a=settings, settings_b=settings)
    first, late = ends(bench)
    messages = [b"one", b"two two", b"three", b"four"]
    for n, message in enumerate(messages):
        first.send(message, offset=32768 + 64 * n)
    bench.wait_packets(is_rnr_nak)

    receives = [late.recv(offset=256 * n) for n in range(4)]

    assert [received(late, r, 256 * n) for n, r in enumerate(receives)] == messages
    bench.judge()


@pytest.mark.requirement("NEG-01", "RECV-14")
def test_early_messages_outlive_the_connection(bench: Bench) -> None:
    """After the sender closed, late receives still get its early messages, and then WSAECONNRESET."""
    start_with_private_receives(bench)
    first, late = ends(bench)
    sends = [first.send(message, offset=32768 + 64 * n) for n, message in enumerate((b"one", b"two"))]
    assert [first.completion(send) for send in sends] == [(Code.OK, 3)] * 2
    assert first.close() == (0, Code.OK)
    bench.wait_journal("b", "cm", event="DISCONNECTED")

    assert [received(late, late.recv()) for _ in range(2)] == [b"one", b"two"]
    overlapped = late.at.ask("overlapped")
    answer = late.wsp("WSPRecv", buffers=[[64, late.socket.address]], overlapped=overlapped)
    assert answer.code is Code.WSAECONNRESET
    bench.judge(bench.hard_close(first, late))


@pytest.mark.requirement("NEG-06")
def test_later_messages_are_larger_than_all_private_memory(bench: Bench) -> None:
    """Messages larger than all private memory arrive once the private receives are used up.

    The provider has registered less memory for itself, so they went into the switch's own buffer.
    """
    start_with_private_receives(bench)
    first, late = ends(bench)
    for n in range(PRIVATE_RECEIVES["early_messages"]):
        first.send(b"early %d" % n)
        assert received(late, late.recv()) == b"early %d" % n
    own = [r["length"] for r in bench.pair.nodes["b"].system("resources") if r["kind"] == "MR" and "length" in r]
    own.remove(65536)
    large = sum(own) + 4096
    source, target = with_memory(first, 1 << 20), with_memory(late, 1 << 20)
    assert own and large <= 1 << 20

    for n in range(10):
        message = bytes([n + 1]) * large
        receive = target.recv(large)
        source.send(message, offset=0)
        assert received(target, receive) == message
    bench.judge()


@pytest.mark.requirement("NEG-06")
def test_a_drained_store_is_out_of_the_way(bench: Bench) -> None:
    """Once eight receives have used up the private ones, a larger message lands in the switch's own buffer."""
    start_with_private_receives(bench)
    first, late = ends(bench)
    for n in range(PRIVATE_RECEIVES["early_messages"]):
        first.send(b"early %d" % n)
        assert received(late, late.recv()) == b"early %d" % n

    receive = late.recv(2 * PRIVATE_SIZE)
    send = first.send(b"x" * 2 * PRIVATE_SIZE)

    assert received(late, receive) == b"x" * 2 * PRIVATE_SIZE
    assert first.completion(send) == (Code.OK, 2 * PRIVATE_SIZE)
    bench.judge()
