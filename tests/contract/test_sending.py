"""WSPSend (SEND): one send is one message, whole and in order, or an error."""

import threading

import pytest

from hil import Code
from hil.testing import Bench
from hil.testing.data import (
    BROKEN,
    READ_REQUEST,
    READ_RESPONSE_ENDS,
    RESET,
    SEND_ENDS,
    SENDS,
    completions,
    digest,
    fill,
    first_sent,
    is_rnr_nak,
    pieces,
    post_each,
    recv_each,
    refusal,
    send_each,
    sent,
    with_memory,
)
from hil.winsock.codes import MEM_READ, MEM_WRITE, MSG_OOB, SO_MAX_MSG_SIZE, SOL_SOCKET

pytestmark = pytest.mark.used_pair

QUEUE_DEPTH = 64


def numbered(count: int, step: int) -> list[bytes]:
    """``count`` messages of different content and length. The longest has ``count * step`` bytes."""
    return [bytes([i]) * (i * step) for i in range(1, count + 1)]


def successes(messages: list[bytes]) -> list[tuple[Code, int]]:
    """The completions of these messages, at both ends, without an error."""
    return [(Code.OK, len(message)) for message in messages]


# --- one send, one message -------------------------------------------------------------------------------------------


@pytest.mark.requirement("SEND-01", "SEND-02", "SEND-15")
def test_each_send_is_one_message_in_one_receive_in_order(bench: Bench) -> None:
    """Sends of one or more packets each fill one receive, in order, with ordinary SEND packets of rising PSN."""
    sender, receiver = bench.connect()
    messages = numbered(12, 300)
    receives = recv_each(receiver, map(len, messages))

    sends = send_each(sender, messages)

    assert completions(receiver, receives) == successes(messages)
    assert pieces(receiver, map(len, messages)) == messages
    assert completions(sender, sends) == successes(messages)
    packets = first_sent(sent(bench.judge().packets, sender, range(0x20)))
    assert {p.opcode for p in packets} == set(SENDS)
    assert len([p for p in packets if p.opcode in SEND_ENDS]) == len(messages)
    assert [(p.psn - packets[0].psn) % (1 << 24) for p in packets] == list(range(len(packets)))


@pytest.mark.requirement("SEND-02")
@pytest.mark.needs("inline wire")
def test_a_wire_that_drops_frames_loses_and_doubles_nothing(bench: Bench) -> None:
    """Messages sent while every frame is dropped arrive once and in order when the wire carries frames again."""
    sender, receiver = bench.connect()
    messages = numbered(6, 500)
    receives = recv_each(receiver, [*map(len, messages), 256])

    bench.pair.wire.cut()
    sends = send_each(sender, messages)
    bench.wait_packets(lambda p: p.source == sender.at.ip and p.opcode == SENDS[-1], count=2)
    bench.pair.wire.mend()

    assert completions(sender, sends) == successes(messages)
    assert completions(receiver, receives[:-1]) == successes(messages)
    assert pieces(receiver, map(len, messages)) == messages
    assert receiver.completion(receives[-1], 0) is None
    bench.judge()


@pytest.mark.requirement("SEND-04")
def test_several_buffers_are_gathered_into_one_message(bench: Bench) -> None:
    """Three buffers arrive as one message, in the order of the array and not of their addresses."""
    sender, receiver = bench.connect()
    base = sender.socket.address
    sender.at.ask("write_memory", memory=sender.socket.memory, offset=0, data=b"-third-first-second")
    receive, send = receiver.recv(), sender.at.ask("overlapped")

    buffers = [[6, base + 6], [7, base + 12], [6, base]]
    sender.at.must("WSPSend", Code.WSA_IO_PENDING, s=sender.socket.s, buffers=buffers, overlapped=send)

    assert receiver.completion(receive) == (Code.OK, 19)
    assert receiver.at.data(receiver.socket, 19) == b"-first-second-third"
    assert sender.completion(send) == (Code.OK, 19)
    assert len(first_sent(sent(bench.judge().packets, sender, SEND_ENDS))) == 1


@pytest.mark.requirement("SEND-12")
def test_two_threads_on_one_socket_do_not_mix_their_messages(bench: Bench) -> None:
    """Long messages that two threads send at once arrive whole, each thread's in order."""
    sender, receiver = bench.connect()
    messages = {name: [bytes([name, i]) * 1250 for i in range(12)] for name in (1, 2)}
    own = {name: with_memory(sender, 65536) for name in messages}
    into = with_memory(receiver, 65536)
    receives = recv_each(into, [2500] * 24)
    sends: list[int] = []

    threads = [
        threading.Thread(target=lambda n=name: sends.extend(send_each(own[n], messages[n], 0))) for name in messages
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert completions(receiver, receives) == [(Code.OK, 2500)] * 24
    assert completions(sender, sends) == [(Code.OK, 2500)] * 24
    arrived = pieces(into, [2500] * 24)
    assert {name: [m for m in arrived if m[0] == name] for name in messages} == messages
    bench.judge()


# --- how large, how many ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("SEND-05", "SEND-06")
def test_the_largest_message_passes_and_a_larger_one_is_refused(bench: Bench) -> None:
    """A message of SO_MAX_MSG_SIZE bytes arrives intact; one byte more gives WSAEMSGSIZE, and sends nothing."""
    sender, receiver = bench.connect()
    most = sender.wsp("WSPGetSockOpt", level=SOL_SOCKET, name=SO_MAX_MSG_SIZE).more["value"]
    source, target = with_memory(sender, most + 1), with_memory(receiver, most)
    whole = fill(sender.at, source.socket.memory, most, seed=1)

    over = [[most + 1, source.socket.address]]
    assert refusal(source, "WSPSend", buffers=over, deliberately=["SWITCH-03"]) is Code.WSAEMSGSIZE
    assert not sent(bench.pair.packets(), sender, SENDS)

    receive, (send,) = target.recv(most), post_each("WSPSend", source, [most])
    assert receiver.completion(receive) == (Code.OK, most)
    assert digest(receiver.at, target.socket.memory, most) == whole
    assert sender.completion(send) == (Code.OK, most)
    bench.judge()


@pytest.mark.requirement("SEND-11")
def test_a_burst_beyond_the_queue_depth_is_queued(bench: Bench) -> None:
    """Four times as many sends as the adapter's queue holds, posted before any receive, all arrive in order."""
    sender, receiver = bench.connect()
    messages = [i.to_bytes(4, "big") for i in range(4 * QUEUE_DEPTH)]

    sends = send_each(sender, messages)
    receives = recv_each(receiver, map(len, messages))

    assert completions(receiver, receives) == successes(messages)
    assert receiver.at.data(receiver.socket, 4 * len(messages)) == b"".join(messages)
    assert completions(sender, sends) == successes(messages)
    bench.judge()


# --- guarantees of a completion --------------------------------------------------------------------------------------


@pytest.mark.requirement("SEND-09")
def test_a_completed_send_needs_its_buffer_no_more(bench: Bench) -> None:
    """Overwriting the buffer inside the send's up-call does not change the message that the peer receives later."""
    sender, receiver = bench.connect()
    message = bytes(range(256)) * 16
    junk = {"memory": sender.socket.memory, "offset": 32768, "data": b"!" * len(message)}
    sender.at.ask("in_next_completion", call="write_memory", arguments=junk)

    send = sender.send(message)
    # The adapter refuses the message until a receive is posted. A completion before that would come too early.
    bench.wait_packets(is_rnr_nak)
    receive = receiver.recv(len(message))

    assert receiver.completion(receive) == (Code.OK, len(message))
    assert receiver.at.data(receiver.socket, len(message)) == message
    assert sender.completion(send) == (Code.OK, len(message))
    sender.at.ask("answer_in_completion")
    assert sender.at.data(sender.socket, len(message), 32768) == junk["data"]
    bench.judge()


@pytest.mark.requirement("SEND-16")
def test_a_send_without_a_receive_is_held_until_there_is_one(bench: Bench) -> None:
    """Messages sent without credits get RNR NAKs, wait, and arrive whole when receives are posted."""
    sender, receiver = bench.connect()
    sends = send_each(sender, [b"one", b"two"])
    bench.wait_packets(lambda p: is_rnr_nak(p) and p.source == receiver.at.ip)
    assert completions(sender, sends, 0) == [None, None]

    receives = recv_each(receiver, [3, 3])

    assert completions(receiver, receives) == [(Code.OK, 3)] * 2
    assert pieces(receiver, [3, 3]) == [b"one", b"two"]
    assert completions(sender, sends) == [(Code.OK, 3)] * 2
    bench.judge()


@pytest.mark.requirement("SEND-16")
def test_a_send_without_a_receive_fails_the_connection_when_retries_are_bounded(bench: Bench) -> None:
    """With one RNR retry the send and those behind it end with WSAECONNABORTED, a transport error."""
    once = {"rnr_retry_count": 1}
    bench.start(settings_a=once, settings_b=once)
    sender, receiver = bench.connect()

    sends = send_each(sender, [b"nobody", b"waits"])

    assert completions(sender, sends) == [BROKEN, BROKEN]
    assert refusal(sender, "WSPSend") is Code.WSAECONNABORTED
    assert len([p for p in bench.judge().packets if is_rnr_nak(p) and p.source == receiver.at.ip]) >= 2


@pytest.mark.requirement("SEND-08")
def test_sends_pending_when_the_peer_resets_end_with_an_error(bench: Bench) -> None:
    """Sends that wait for the peer's receives end with WSAECONNRESET when it closes, and later sends fail at once."""
    sender, receiver = bench.connect()
    sends = send_each(sender, [b"all", b"in", b"vain"])
    bench.wait_packets(is_rnr_nak)

    assert receiver.close() == (0, Code.OK)

    assert completions(sender, sends) == [RESET] * 3
    assert refusal(sender, "WSPSend") is Code.WSAECONNRESET
    bench.judge(bench.hard_close(receiver, sender))


# --- order with RDMA -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SEND-13", "RDMA-15")
def test_a_send_never_announces_a_write_that_is_not_placed(bench: Bench) -> None:
    """Inside the up-call for a message after two writes to one place, the target holds the second write."""
    writer, target = bench.connect()
    size = 96 * 1024
    source = with_memory(writer, 2 * size)
    place, descriptor = target.at.expose(target.socket, MEM_WRITE, size)
    fill(writer.at, source.socket.memory, size, seed=1)
    second = fill(writer.at, source.socket.memory, size, seed=2, offset=size)
    look = {"memory": place, "offset": 0, "length": size}
    target.at.ask("in_next_completion", call="digest_memory", arguments=look)
    receive = target.recv()

    writes = [writer.at.rdma("WSPRdmaWrite", source.socket, descriptor, size, at=at) for at in (0, size)]
    send = writer.send(b"written")

    assert target.completion(receive) == (Code.OK, 7)
    assert target.at.ask("answer_in_completion") == second
    assert completions(writer, [*writes, send]) == [(Code.OK, size), (Code.OK, size), (Code.OK, 7)]
    bench.judge()


@pytest.mark.requirement("SEND-14")
@pytest.mark.needs("inline wire")
def test_a_send_does_not_overtake_a_read(bench: Bench) -> None:
    """A send behind a read leaves after all read data has arrived.

    The peer overwrites the source when it gets the message, and the read data stays unchanged.
    """
    reader, source = bench.connect()
    # Soft-RoCE waits by itself while 128 packets are not acknowledged, so a longer read would need no fence.
    size = 64 * 1024
    place, descriptor = source.at.expose(source.socket, MEM_READ, size)
    old = fill(source.at, place, size, seed=1)
    overwrite = {"memory": place, "offset": 0, "length": size, "seed": 2}
    source.at.ask("in_next_completion", call="fill_memory", arguments=overwrite)
    receive, into = source.recv(), with_memory(reader, size)

    # On the cut wire the read cannot end, so a send that leaves now leaves before the read's data.
    bench.pair.wire.cut()
    read = reader.at.rdma("WSPRdmaRead", into.socket, descriptor, size)
    send = reader.send(b"have it")
    bench.wait_packets(lambda p: p.opcode == READ_REQUEST, count=2)
    bench.pair.wire.mend()

    assert source.completion(receive) == (Code.OK, 7)
    assert source.at.ask("answer_in_completion") != old
    assert completions(reader, [read, send]) == [(Code.OK, size), (Code.OK, 7)]
    assert digest(reader.at, into.socket.memory, size) == old
    packets = bench.judge().packets
    assert sent(packets, reader, SENDS)[0].frame > sent(packets, source, READ_RESPONSE_ENDS)[0].frame


# --- refused calls ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("SEND-03")
def test_flags_are_refused(bench: Bench) -> None:
    """WSPSend with MSG_OOB fails at once, and sends nothing."""
    sender, _ = bench.connect()

    assert refusal(sender, "WSPSend", flags=MSG_OOB, deliberately=["SHUT-04"]) is Code.WSAEOPNOTSUPP

    assert not sent(bench.judge().packets, sender, SENDS)


@pytest.mark.requirement("SEND-07")
def test_a_socket_that_is_not_connected_cannot_send(bench: Bench) -> None:
    """WSPSend on a new or bound socket gives WSAENOTCONN, and on an unknown descriptor WSAENOTSOCK."""
    a, _ = bench.start()
    sockets = [a.socket(7000, events=0x10), a.must("WSPSocket").result, 0x1234]
    buffers, overlapped = [[8, a.ask("memory", size=8)["address"]]], a.ask("overlapped")

    arguments = {"buffers": buffers, "overlapped": overlapped, "deliberately": ["SWITCH-02"]}
    codes = [a.wsp("WSPSend", s=getattr(s, "s", s), **arguments).code for s in sockets]

    assert codes == [Code.WSAENOTCONN, Code.WSAENOTCONN, Code.WSAENOTSOCK]
    bench.judge()
