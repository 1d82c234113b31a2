"""The frames between controller, agent and workers: a 4-byte big-endian length, then JSON.

With JSON, bytes from a node can only become plain data. ``bytes`` travel as ``{"$b": base64}``.
A message is a dict. From the controller: ``{"to": worker, "id": n, "call": name, "args": {...}}``. Back:
``{"from": worker, "id": n, "value": ...}`` or ``{..., "error": {"kind", "text", "traceback"}}``. Without a call:
``{"from": worker, "event": {...}}`` and ``{"from": worker, "exit": status, "t_ns": ...}``. Worker 0 is the agent.
"""

import base64
import json
import struct
from typing import Any

HEADER = struct.Struct(">I")
MAX_FRAME = 64 * 1024 * 1024

Message = dict[str, Any]


class BadFrame(Exception):
    """The byte stream does not hold frames of the bench."""


def encode(message: Message) -> bytes:
    """One frame, header included."""
    body = json.dumps(message, separators=(",", ":"), default=_encode_value).encode()
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """The message of one frame's body. Raises BadFrame."""
    try:
        message = json.loads(body, object_hook=_decode_object)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"frame of {len(body)} bytes is not the bench's JSON: {error}") from error
    if not isinstance(message, dict):
        raise BadFrame(f"frame holds {type(message).__name__}, not an object")
    return message


class FrameBuffer:
    """Collects bytes and returns whole frame bodies."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes. Returns the bodies of all complete frames. Raises BadFrame for a length above MAX_FRAME."""
        self._bytes += data
        bodies = []
        while len(self._bytes) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._bytes)
            if length > MAX_FRAME:
                raise BadFrame(f"frame of {length} bytes announced, {MAX_FRAME} is the most")
            end = HEADER.size + length
            if len(self._bytes) < end:
                break
            bodies.append(bytes(self._bytes[HEADER.size : end]))
            del self._bytes[:end]
        return bodies


def _encode_value(value: object) -> object:
    if isinstance(value, bytes | bytearray):
        return {"$b": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot travel between controller and node")


def _decode_object(value: dict[str, Any]) -> Any:
    if value.keys() == {"$b"} and isinstance(value["$b"], str):
        return base64.b64decode(value["$b"])
    return value
