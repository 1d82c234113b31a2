"""The session's messages (HELLO, DATA, SOURCE and others), and its flow control: credits and the receive window."""

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC, VERSION = b"SANS", 1
LONGEST_HELLO = 256
FEWEST_RECEIVES = 4


class BadMessage(Exception):
    """The peer sent an invalid message."""


class Kind(IntEnum):
    """The kind of a message. ``hil.switch.session`` describes each."""

    HELLO = 1
    DATA = 2
    URGENT = 3
    CREDIT = 4
    SOURCE = 5
    PULLED = 6
    REQUEST = 7
    TARGET = 8
    PUSHED = 9
    END = 10
    FAREWELL = 11
    SUSPEND = 12
    SUSPENDED = 13
    RESUME = 14


HEADER = struct.Struct("!BxHII")  # kind, receives posted again, bytes read, length of what follows
_HELLO = struct.Struct("!4sHHIIIB")  # magic, version, then Hello's fields
_TRANSFER = struct.Struct("!II")  # number, then length or code


@dataclass(frozen=True, slots=True)
class Message:
    """A message. ``credits`` and ``read`` are the receives and stream bytes that its sender gives back."""

    kind: Kind
    payload: bytes = b""
    credits: int = 0
    read: int = 0

    def encode(self) -> bytes:
        return HEADER.pack(self.kind, self.credits, self.read, len(self.payload)) + self.payload


def decode(data: bytes) -> Message:
    """The message in a filled receive. Raises BadMessage."""
    if len(data) < HEADER.size:
        raise BadMessage(f"{len(data)} bytes are no message")
    kind, credits_, read, length = HEADER.unpack_from(data)
    if kind not in set(Kind) or length != len(data) - HEADER.size:
        raise BadMessage(f"kind {kind} with {length} bytes announced and {len(data) - HEADER.size} there")
    return Message(Kind(kind), data[HEADER.size :], credits_, read)


def transfer(number: int, value: int, descriptor: bytes = b"") -> bytes:
    """The payload of SOURCE, REQUEST (a length), PULLED, TARGET and PUSHED (a code)."""
    return _TRANSFER.pack(number, value) + descriptor


def parse_transfer(payload: bytes) -> tuple[int, int, bytes]:
    """(number, length or code, descriptor) of a transfer's payload. Raises BadMessage."""
    if len(payload) < _TRANSFER.size:
        raise BadMessage(f"{len(payload)} bytes are too short for a transfer")
    number, value = _TRANSFER.unpack_from(payload)
    return number, value, payload[_TRANSFER.size :]


@dataclass(frozen=True, slots=True)
class Hello:
    """The negotiation message.

    It tells the number of posted receives of ``message_size`` bytes, the ``window`` of stream bytes that are taken by
    message before the application reads, the largest RDMA transfer, and whether the provider has WSPRdmaRead.
    """

    receives: int
    message_size: int
    window: int
    max_rdma: int
    can_pull: bool

    def encode(self) -> bytes:
        fields = (self.receives, self.message_size, self.window, self.max_rdma, self.can_pull)
        return _HELLO.pack(MAGIC, VERSION, *fields)

    @classmethod
    def parse(cls, payload: bytes) -> "Hello":
        """The Hello in a payload. Raises BadMessage for another protocol or version, and for unusable limits."""
        if len(payload) < _HELLO.size or len(payload) + HEADER.size > LONGEST_HELLO:
            raise BadMessage(f"a negotiation message of {len(payload) + HEADER.size} bytes")
        magic, version, receives, size, window, most, can_pull = _HELLO.unpack_from(payload)
        if (magic, version) != (MAGIC, VERSION):
            raise BadMessage(f"{magic!r} version {version} is not supported")
        if receives < FEWEST_RECEIVES or size < LONGEST_HELLO or not window or not most:
            raise BadMessage(f"{receives} receives of {size} bytes, window {window}, RDMA up to {most}")
        return cls(receives, size, window, most, bool(can_pull))


@dataclass(slots=True)
class Flow:
    """Flow control of one side: the messages it may still send, and the credits it owes the peer.

    ``credits``: the peer's unused posted receives. ``window``: stream bytes that the peer still takes by message.
    ``owed_*``: receives posted again and bytes read that the peer has not been told.
    ``unread``: used bytes of the own window.
    """

    receives: int
    own_window: int
    # The first message needs no credit: the acceptor's provider keeps it until a receive is posted (NEG-01).
    credits: int = 1
    window: int = 0
    owed_credits: int = 0
    owed_bytes: int = 0
    unread: int = 0
    peer: Hello | None = None

    def open(self, peer: Hello) -> None:
        self.peer, self.credits, self.window = peer, peer.receives, peer.window

    def spend(self) -> bool:
        """Use a credit. Returns whether there was one."""
        self.credits -= 1
        return self.credits >= 0

    def repay(self, *, all_told: bool = False) -> tuple[int, int]:
        """(receives, bytes) that a message gives back. ``all_told``: it reports every receive and gives none back."""
        owed = 0 if all_told else self.owed_credits, self.owed_bytes
        self.owed_credits = self.owed_bytes = 0
        self.unread -= owed[1]
        return owed

    def due(self) -> bool:
        """Whether the peer may soon have to wait for credits that are owed to it."""
        return self.owed_credits * 2 >= self.receives or self.owed_bytes * 2 >= self.own_window

    def granted(self, message: Message) -> None:
        """Take the credits of a message. Raises BadMessage when they are more than this side had used."""
        if self.peer is None:
            raise BadMessage(f"{message.kind.name} before the negotiation")
        self.credits += message.credits
        self.window += message.read
        if self.credits > self.peer.receives or self.window > self.peer.window:
            raise BadMessage(f"{message.credits} receives and {message.read} bytes were never used")

    def arrived(self, length: int) -> None:
        """Note stream data that came by message. Raises BadMessage when it exceeds the own window."""
        self.unread += length
        if self.unread > self.own_window:
            raise BadMessage(f"{self.unread} bytes for a window of {self.own_window}")
