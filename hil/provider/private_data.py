"""What providers tell each other in the private data of the connection manager's REQ and REP. Pure; untrusted bytes."""

import struct
from dataclasses import dataclass

# Version, length of the switch's data, the port where hand-overs of this connection are taken, its secret.
_HELLO = struct.Struct("!4sBBH16s")
_MAGIC, _VERSION = b"SANP", 1
# A REQ that takes a connection over: the secret of the peer's end, before the hello.
_TAKE = struct.Struct("!4s16s")
_TAKE_MAGIC = b"SANH"
SECRET_SIZE = 16
# The RDMA IP CM service leaves 56 of a REQ's 92 bytes (InfiniBand annex A11).
MAX_USER_DATA = 56 - _HELLO.size


@dataclass(frozen=True, slots=True)
class Peer:
    """Where the peer's provider takes hand-overs, port 0 for nowhere, and the secret it knows this connection by."""

    handover_port: int = 0
    secret: bytes = b""


def hello(secret: bytes, port: int, user_data: bytes) -> bytes:
    """The private data of a REQ or REP; ``user_data`` up to MAX_USER_DATA bytes."""
    return _HELLO.pack(_MAGIC, _VERSION, len(user_data), port, secret) + user_data


def parse_hello(data: bytes) -> tuple[Peer, bytes]:
    """The peer and the switch's data; an empty peer and no data when another kind of provider made it."""
    if len(data) < _HELLO.size:
        return Peer(), b""
    magic, version, length, port, secret = _HELLO.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        return Peer(), b""
    return Peer(port, secret), data[_HELLO.size : _HELLO.size + length]


def take(peer_secret: bytes, secret: bytes, port: int) -> bytes:
    """The private data of a REQ that takes over the connection which the peer knows by ``peer_secret``."""
    return _TAKE.pack(_TAKE_MAGIC, peer_secret) + hello(secret, port, b"")


def parse_take(data: bytes) -> tuple[bytes, Peer] | None:
    """The secret of the connection to be taken over and the new peer, or None when it is no such request."""
    if len(data) < _TAKE.size:
        return None
    magic, secret = _TAKE.unpack_from(data)
    return (secret, parse_hello(data[_TAKE.size :])[0]) if magic == _TAKE_MAGIC else None
