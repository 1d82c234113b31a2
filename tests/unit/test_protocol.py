"""The frames between controller and node."""

import socket
import threading
from collections.abc import Iterator

import pytest

from hil.agent.protocol import MAX_FRAME, BadFrame, FrameBuffer, decode, encode
from hil.errors import NodeDied, RemoteError
from hil.labs.channel import Channel, ClockRelation, joined


def test_messages_survive_a_stream_cut_at_any_place() -> None:
    """A stream of frames cut into any pieces gives whole messages, with their bytes values."""
    messages = [{"id": n, "value": [1, "x", None, {"data": bytes(range(n))}]} for n in (0, 3, 200)]
    stream = b"".join(encode(m) for m in messages)
    for size in (1, 7, len(stream)):
        buffer = FrameBuffer()
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert [decode(body) for piece in pieces for body in buffer.feed(piece)] == messages


def test_an_absurd_length_is_refused_at_once() -> None:
    """A frame length beyond the limit raises BadFrame without waiting for the bytes."""
    with pytest.raises(BadFrame, match="announced"):
        FrameBuffer().feed((MAX_FRAME + 1).to_bytes(4, "big"))


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"{", b"[" * 100000])
def test_foreign_bytes_are_a_bad_frame(body: bytes) -> None:
    """Bytes that are no message raise BadFrame."""
    with pytest.raises(BadFrame):
        decode(body)


def test_a_call_to_a_stopped_machine_raises_node_died() -> None:
    """A call on a stream that this side has closed raises NodeDied, before the stream's end was read."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, "node a", lambda worker, event: None, lambda: "no last words")
    ours.close()
    with pytest.raises(NodeDied, match=r"node a: the node's stream broke: .*; no last words"):
        channel.clock()
    theirs.close()


Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A channel, and the node's end of it."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, "node a", lambda worker, event: None, lambda: "no last words")
    yield channel, theirs
    channel.close()
    ours.close()
    theirs.close()


@pytest.mark.parametrize("message", [{"from": 0, "event": []}, {"from": 0, "exit": 1}, {"from": [], "id": {}}, {}])
def test_a_message_of_another_shape_ends_the_stream(ends: Ends, message: dict[str, object]) -> None:
    """A message of an unknown shape ends a call at once with NodeDied and a reason."""
    channel, theirs = ends
    theirs.sendall(encode(message))
    with pytest.raises(NodeDied, match="node a: the node's stream broke"):
        channel.wait_exit(1, 10.0)


@pytest.mark.parametrize("error", ["oops", {"kind": "\x1b]0;owned\x07"}, ["x"], {"text": {"a": 1}}])
def test_an_error_of_another_shape_is_an_error_all_the_same(ends: Ends, error: object) -> None:
    """An error of any shape is shown, without control characters for a terminal."""
    channel, theirs = ends
    theirs.sendall(encode({"from": 0, "id": 1, "error": error}))
    reply = threading.Timer(0.2, theirs.sendall, [encode({"from": 0, "id": 1, "error": error})])
    reply.start()
    with pytest.raises(RemoteError) as caught:
        channel.call(0, "clock", 10.0, "a question")
    assert str(caught.value).replace("\n", "").isprintable()
    reply.join()


def test_a_clock_that_runs_faster_is_uncertain_by_as_much() -> None:
    """The best of several relations that agree is used; two that disagree give the clocks' drift as uncertainty."""
    assert joined([ClockRelation(100, 30), ClockRelation(120, 10)]) == ClockRelation(120, 10)
    assert joined([ClockRelation(0, 10), ClockRelation(500, 30)]) == ClockRelation(0, 10 + 460)


def test_what_came_first_is_shown_where_no_agent_speaks(ends: Ends) -> None:
    """The first bytes of a host that greets before the agent speaks are shown, unlike a silent host."""
    channel, theirs = ends
    theirs.sendall(b"Welcome, stranger!\n")
    with pytest.raises(NodeDied):
        channel.wait_exit(1, 10.0)
    assert not channel.alive() and channel.strange() == "what came was not the agent's: 'Welcome, stranger!'"


def test_no_more_is_under_way_than_the_line_holds() -> None:
    """With a window the controller sends that many bytes, and more only when the agent has reported their arrival."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, "node a", lambda worker, event: None, lambda: "no last words", window=3000)
    calling = threading.Thread(target=channel.call, args=(0, "kill", 20.0, "test"), kwargs={"filler": "x" * 9000})
    calling.start()
    came = b""
    while len(came) < 9000:
        before = len(came)
        while len(came) < before + 3000 and len(came) < 9000:
            came += theirs.recv(1 << 16)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        theirs.setblocking(True)
        theirs.sendall(encode({"from": 0, "came": len(came)}))
    frames = FrameBuffer()
    bodies = frames.feed(came)
    while not bodies:
        bodies = frames.feed(theirs.recv(1 << 16))
    theirs.sendall(encode({"from": 0, "id": decode(bodies[0])["id"], "value": None}))
    calling.join(20)
    assert not calling.is_alive()
    theirs.close()
    channel.close()
    ours.close()


def test_a_node_that_takes_nothing_more_hangs_and_one_that_goes_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full window without a report ends the call as a hang, and the end of the stream ends the wait at once."""
    monkeypatch.setattr("hil.labs.channel.HANG_TIMEOUT_S", 0.2)
    ours, theirs = socket.socketpair()
    channel = Channel(ours, "node a", lambda worker, event: None, lambda: "no last words", window=100)
    with pytest.raises(NodeDied, match="the node hangs: it takes nothing"):
        channel.call(0, "kill", 20.0, "test", filler="x" * 500)
    theirs.close()
    channel.close()
    ours.close()

    monkeypatch.setattr("hil.labs.channel.HANG_TIMEOUT_S", 60.0)
    ours, theirs = socket.socketpair()
    channel = Channel(ours, "node a", lambda worker, event: None, lambda: "no last words", window=100)
    threading.Timer(0.2, theirs.close).start()
    with pytest.raises(NodeDied):
        channel.call(0, "kill", 20.0, "test", filler="x" * 500)
    channel.close()
    ours.close()
