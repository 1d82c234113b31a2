"""WSPRecv (RECV): a receive waits for one message, and ends with it or with the connection."""

import pytest

from hil import Code
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Bench, End
from hil.testing.data import (
    BROKEN,
    RESET,
    SENDS,
    completions,
    pieces,
    recv_each,
    refusal,
    send_each,
    sent,
)

pytestmark = pytest.mark.used_pair

RECEIVE_QUEUE = 256


def polled(end: End, overlapped: int, fill: int = 0) -> tuple[bool, Code, int, int]:
    """(success, code, bytes, flags) of a waiting WSPGetOverlappedResult."""
    answer = end.wsp("WSPGetOverlappedResult", overlapped=overlapped, wait=True, fill=fill)
    return answer.result, answer.code, answer.more["transferred"], answer.more["flags"]


# --- one receive, one message ----------------------------------------------------------------------------------------


@pytest.mark.requirement("RECV-01")
def test_receives_are_filled_in_the_order_in_which_they_were_posted(bench: Bench) -> None:
    """The n-th posted receive gets the n-th message, independent of its buffer's address."""
    sender, receiver = bench.connect()
    places = [512, 0, 1536, 1024]
    receives = [receiver.recv(512, place) for place in places]
    messages = [b"first", b"second", b"third", b"fourth"]

    send_each(sender, messages)

    assert completions(receiver, receives) == [(Code.OK, len(m)) for m in messages]
    assert [receiver.at.data(receiver.socket, len(m), p) for m, p in zip(messages, places, strict=True)] == messages
    bench.judge()


@pytest.mark.requirement("RECV-02")
def test_a_receive_holds_exactly_one_message_and_tells_its_length(bench: Bench) -> None:
    """Each receive gets one whole message and its length, and the rest of its buffer stays untouched."""
    sender, receiver = bench.connect()
    messages = [b"x", b"a few bytes", b"y" * 3000, b"full" * 1024]
    blank = b"\xee" * 4096
    receiver.at.ask("write_memory", memory=receiver.socket.memory, offset=0, data=blank * len(messages))
    receives = recv_each(receiver, [4096] * (len(messages) + 1))

    send_each(sender, messages)

    assert completions(receiver, receives[:-1]) == [(Code.OK, len(m)) for m in messages]
    assert pieces(receiver, [4096] * len(messages)) == [m + blank[len(m) :] for m in messages]
    assert receiver.completion(receives[-1], 0) is None
    bench.judge()


@pytest.mark.requirement("RECV-04")
def test_several_buffers_are_filled_in_the_order_of_the_array(bench: Bench) -> None:
    """A message fills three small buffers in the order of the array, not of their addresses, without gaps."""
    sender, receiver = bench.connect()
    base, receive = receiver.socket.address, receiver.at.ask("overlapped")
    buffers = [[4, base + 100], [8, base], [16, base + 200]]
    receiver.at.must("WSPRecv", Code.WSA_IO_PENDING, s=receiver.socket.s, buffers=buffers, overlapped=receive)

    sender.send(b"0123456789abcdefghij")

    assert receiver.completion(receive) == (Code.OK, 20)
    places = [(100, b"0123"), (0, b"456789ab"), (200, b"cdefghij" + b"\0" * 8)]
    assert [(at, receiver.at.data(receiver.socket, len(data), at)) for at, data in places] == places
    bench.judge()


@pytest.mark.requirement("RECV-07")
@pytest.mark.parametrize("early_messages", [0, 4], ids=["adapter's receives", "private receives"])
def test_a_message_longer_than_its_receive_is_an_error(bench: Bench, early_messages: int) -> None:
    """A message of 200 bytes ends a receive of 100 with WSAEMSGSIZE, and writes nothing behind its buffer."""
    bench.start(settings_b={"early_messages": early_messages})
    sender, receiver = bench.connect()
    receiver.at.ask("write_memory", memory=receiver.socket.memory, offset=0, data=b"\xee" * 256)
    receive = receiver.recv(100)

    sender.send(b"!" * 200)

    assert receiver.completion(receive) == (Code.WSAEMSGSIZE, 0)
    assert receiver.at.data(receiver.socket, 156, 100) == b"\xee" * 156
    bench.judge()


@pytest.mark.requirement("RECV-08")
def test_the_flags_are_told_with_the_result(bench: Bench) -> None:
    """WSPGetOverlappedResult stores a finished receive's length, and 0 as its flags."""
    sender, receiver = bench.connect()
    receive = receiver.at.recv(receiver.socket, hEvent=1)
    sender.send(b"hello")

    assert polled(receiver, receive, fill=0xAAAA) == (True, Code.OK, 5, 0)
    bench.judge()


# --- how many, how long ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("RECV-05")
def test_receives_are_posted_at_once_and_again_and_again(bench: Bench) -> None:
    """Either end posts receives right after its connect or accept, and more of them in turn than the queue holds."""
    a, b = bench.start()
    listener, socket = b.listen(PORT), a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    acceptor = End(b, b.accept(listener))
    receives = recv_each(acceptor, [8] * 32)
    connector = End(a, a.connected(socket))
    first = connector.recv()

    for n in range(RECEIVE_QUEUE // 32 + 2):
        messages = [b"%03d %04d" % (n, i) for i in range(32)]
        sends = send_each(connector, messages)
        assert completions(acceptor, receives) == [(Code.OK, 8)] * 32
        assert pieces(acceptor, [8] * 32) == messages
        assert completions(connector, sends) == [(Code.OK, 8)] * 32
        receives = recv_each(acceptor, [8] * 32)
    acceptor.send(b"enough")

    assert connector.completion(first) == (Code.OK, 6)
    bench.judge()


@pytest.mark.requirement("RECV-06")
def test_sixteen_receives_are_outstanding_at_once(bench: Bench) -> None:
    """Sixteen receives, the most that a known switch keeps posted, all pend, and each gets its message."""
    sender, receiver = bench.connect()
    receives = recv_each(receiver, [256] * 16)
    messages = [b"message %d" % i for i in range(16)]
    assert completions(receiver, receives, 0) == [None] * 16

    send_each(sender, messages)

    assert completions(receiver, receives) == [(Code.OK, len(m)) for m in messages]
    assert [p[: len(m)] for p, m in zip(pieces(receiver, [256] * 16), messages, strict=True)] == messages
    bench.judge()


@pytest.mark.timeout(240)
@pytest.mark.requirement("RECV-03", "RECV-16", "CLOSE-25", "CLOSE-28", "CLOSE-29", "CLOSE-33")
def test_nothing_happens_by_itself_in_a_minute(bench: Bench) -> None:
    """A receive pends for a minute, and then gets its message.

    Meanwhile a socket that its peer reset stays open, and no up-call comes for a closed socket. The process works on
    another connection.
    """
    idle, sender = bench.connect()
    left, closed = bench.connect(port=6001)
    busy, other = bench.connect(port=6002)
    receive, reset = idle.recv(), left.recv()
    closed.close()
    assert left.completion(reset) == RESET

    for _ in range(12):
        assert idle.completion(receive, 5) is None
        message = other.recv()
        busy.send(b"at work")
        assert other.completion(message) == (Code.OK, 7)

    assert refusal(left, "WSPRecv") is Code.WSAECONNRESET
    assert not bench.pair.evidence(audit=False).of("a", "upcall", function="WPUCloseSocketHandle")
    sender.send(b"at last")
    assert idle.completion(receive) == (Code.OK, 7)
    assert [end.close() for end in (sender, other)] == [(0, Code.OK)] * 2
    bench.judge(bench.hard_close(closed, left))


# --- how a connection ends -------------------------------------------------------------------------------------------


@pytest.mark.requirement("RECV-15", "RECV-16", "RECV-17", "CLOSE-28")
@pytest.mark.needs("inline wire")
def test_a_lost_connection_and_a_reset_have_different_codes(bench: Bench) -> None:
    """A receive ends with WSAECONNABORTED after a send's last retry on a cut wire, and with WSAECONNRESET by a close.

    Each new call gives the same code.
    """
    reset, closer = bench.connect()
    lost, out_of_reach = bench.connect(port=6001)
    receives = {"reset": reset.recv(), "lost": lost.recv()}

    closer.close()
    assert reset.completion(receives["reset"]) == RESET
    bench.pair.wire.cut()
    send = lost.send(b"into the void")

    assert lost.completion(receives["lost"], 10) == BROKEN
    assert lost.completion(send) == BROKEN
    assert [refusal(lost, f) for f in ("WSPRecv", "WSPSend")] == [Code.WSAECONNABORTED] * 2
    assert [refusal(reset, f) for f in ("WSPRecv", "WSPSend")] == [Code.WSAECONNRESET] * 2
    tries = sent(bench.pair.packets(), lost, SENDS)
    assert len(tries) > 2 and len({p.psn for p in tries}) == 1
    bench.pair.wire.mend()
    assert out_of_reach.close() == (0, Code.OK)
    bench.judge(bench.hard_close(closer, reset))


# --- refused calls ---------------------------------------------------------------------------------------------------


@pytest.mark.requirement("RECV-09")
def test_a_socket_that_is_not_connected_cannot_receive(bench: Bench) -> None:
    """WSPRecv on a new or bound socket gives WSAENOTCONN."""
    a, _ = bench.start()
    sockets = [a.must("WSPSocket").result, a.socket(7000, FD_CONNECT).s]
    buffers, overlapped = [[8, a.ask("memory", size=8)["address"]]], a.ask("overlapped")

    arguments = {"buffers": buffers, "overlapped": overlapped, "deliberately": ["SWITCH-02"]}
    codes = [a.wsp("WSPRecv", s=s, **arguments).code for s in sockets]

    assert codes == [Code.WSAENOTCONN] * 2
    bench.judge()


@pytest.mark.requirement("RECV-10")
@pytest.mark.parametrize("address", [0, 4096, (1 << 64) - 4096], ids=["null", "unmapped", "kernel's"])
def test_a_buffer_outside_the_address_space_is_refused(bench: Bench, address: int) -> None:
    """A buffer outside the address space gives WSAEFAULT at once, and the connection goes on."""
    sender, receiver = bench.connect()

    bad = {"buffers": [[8, address]], "deliberately": ["SWITCH-02"]}
    assert refusal(receiver, "WSPRecv", **bad) is Code.WSAEFAULT

    receive = receiver.recv()
    sender.send(b"still here")
    assert receiver.completion(receive) == (Code.OK, 10)
    bench.judge()
