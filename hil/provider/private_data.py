"""The data that providers exchange in the private data of REQ and REP: pure functions over untrusted bytes."""

import struct
from dataclasses import dataclass

# Magic, version, length of the switch's data, the port that takes hand-overs of this connection, its secret.
_HELLO = struct.Struct("!4sBBH16s")
_MAGIC, _VERSION = b"SANP", 1
# The head of a REQ that takes a connection over: magic, and the secret of the peer's end. A hello follows.
_TAKE = struct.Struct("!4s16s")
_TAKE_MAGIC = b"SANH"
SECRET_SIZE = 16
# The RDMA IP CM service leaves 56 of a REQ's 92 bytes (InfiniBand annex A11).
MAX_USER_DATA = 56 - _HELLO.size


@dataclass(frozen=True, slots=True)
class Peer:
    """The port where the peer's provider takes hand-overs (0: nowhere), and its secret for this connection."""

    handover_port: int = 0
    secret: bytes = b""


def hello(secret: bytes, port: int, user_data: bytes) -> bytes:
    """The private data of a REQ or REP. ``user_data``: at most MAX_USER_DATA bytes."""
    return _HELLO.pack(_MAGIC, _VERSION, len(user_data), port, secret) + user_data


def parse_hello(data: bytes) -> tuple[Peer, bytes]:
    """The peer and the switch's data; an empty peer and no data when another kind of provider sent ``data``."""
    if len(data) < _HELLO.size:
        return Peer(), b""
    magic, version, length, port, secret = _HELLO.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        return Peer(), b""
    return Peer(port, secret), data[_HELLO.size : _HELLO.size + length]


def take(peer_secret: bytes, secret: bytes, port: int) -> bytes:
    """The private data of a REQ that takes over the connection with the peer's secret ``peer_secret``."""
    return _TAKE.pack(_TAKE_MAGIC, peer_secret) + hello(secret, port, b"")


def parse_take(data: bytes) -> tuple[bytes, Peer] | None:
    """The secret of the connection to be taken over, and the new peer; None for another kind of request."""
    if len(data) < _TAKE.size:
        return None
    magic, secret = _TAKE.unpack_from(data)
    return (secret, parse_hello(data[_TAKE.size :])[0]) if magic == _TAKE_MAGIC else None
