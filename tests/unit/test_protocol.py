"""The frames between controller and node."""

import socket

import pytest

from hil.errors import NodeDied
from hil.nodes.channel import Channel
from hil.nodes.protocol import MAX_FRAME, BadFrame, FrameBuffer, decode, encode


def test_a_message_survives_the_way_in_any_pieces() -> None:
    """However the stream is cut, whole messages come out, bytes included."""
    messages = [{"id": n, "value": [1, "x", None, {"data": bytes(range(n))}]} for n in (0, 3, 200)]
    stream = b"".join(encode(m) for m in messages)
    for size in (1, 7, len(stream)):
        buffer = FrameBuffer()
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert [decode(body) for piece in pieces for body in buffer.feed(piece)] == messages


def test_an_absurd_length_is_refused_at_once() -> None:
    """A length beyond the limit raises instead of waiting for the bytes."""
    with pytest.raises(BadFrame, match="announced"):
        FrameBuffer().feed((MAX_FRAME + 1).to_bytes(4, "big"))


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"{", b"[" * 100000])
def test_foreign_bytes_are_a_bad_frame(body: bytes) -> None:
    """Bytes that are not a message raise BadFrame, whatever they are."""
    with pytest.raises(BadFrame):
        decode(body)


def test_whoever_tells_a_machine_that_was_stopped_hears_of_it() -> None:
    """The stream was closed on this side, by whoever ended the machine, before anything was read of its end."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, "node a", lambda worker, event: None, lambda: "no last words")
    ours.close()
    with pytest.raises(NodeDied, match=r"node a: the node's stream broke: .*; no last words"):
        channel.clock()
    theirs.close()
