"""The fault matrix as data: the kinds of frame in a connection's life, the faults, and each cell's expected end.

A cell is a kind of frame and a fault. The fault is applied to the first such frame, and the connection is closed hard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from hil.winsock.codes import Code
from hil.wire.faults import (
    Action,
    Corrupt,
    CutCable,
    Delay,
    Drop,
    Duplicate,
    Fault,
    MarkEcn,
    Match,
    Reorder,
    Truncate,
    only,
)

MS = 1_000_000
# Longer than an adapter's wait for an acknowledgement, shorter than CM's wait for an answer.
PAUSE_NS = 300 * MS
# Bytes of a truncated frame: Ethernet, IPv4, UDP, base transport header and four more.
STUMP = 58
REPAIRED = "repaired"


class Life(Enum):
    """The phase of the connection in which the frame comes. The test of a cell takes the steps of its phase."""

    CONNECT = "it is being set up"
    REFUSE = "the peer refuses it"
    SEND = "a message is on its way"
    READ = "an RDMA read is on its way"
    WRITE = "an RDMA write is on its way"
    CLOSE = "it is being closed"


@dataclass(frozen=True, slots=True)
class Frame:
    """A kind of frame, sent by node ``side``. ``lie`` changes the field ``spoilt`` and repairs the ICRC."""

    name: str
    life: Life
    side: str
    lie: Corrupt
    spoilt: str
    opcodes: tuple[int, ...] = ()
    cm: tuple[int, ...] = ()

    def match(self) -> Match:
        """A match of the first frame of this kind on the wire."""
        return Match(side=self.side, opcodes=self.opcodes, cm=self.cm, occurrences=only(1))


def _cm(name: str, life: Life, side: str, attribute: int, offset: int, spoilt: str) -> Frame:
    return Frame(name, life, side, Corrupt(offset, 0x01, repaired=True), spoilt, cm=(attribute,))


# Offsets from the BTH: 12 bytes BTH, 8 DETH, 24 MAD, then the CM message (InfiniBand volume 1, 12.6).
# The connector is node a, which also closes. Opcodes of RC: 9.2.
FRAMES: tuple[Frame, ...] = (
    _cm("REQ", Life.CONNECT, "a", 0x10, 59, "the port in its service id"),
    _cm("REP", Life.CONNECT, "b", 0x13, 51, "the remote comm id"),
    _cm("RTU", Life.CONNECT, "a", 0x14, 51, "the remote comm id"),
    _cm("REJ", Life.REFUSE, "b", 0x12, 51, "the remote comm id"),
    Frame("SEND-first", Life.SEND, "a", Corrupt(12, 0x20, True), "the message's first byte", (0x00,)),
    Frame("SEND-middle", Life.SEND, "a", Corrupt(12, 0x20, True), "a byte of the message", (0x01,)),
    Frame("SEND-last", Life.SEND, "a", Corrupt(12, 0x20, True), "a byte of the message", (0x02,)),
    Frame("ACK", Life.SEND, "b", Corrupt(12, 0x7F, True), "its syndrome: an ACK becomes a NAK", (0x11,)),
    Frame("READ-request", Life.READ, "a", Corrupt(23, 0xFF, True), "the remote key", (0x0C,)),
    Frame("READ-response", Life.READ, "b", Corrupt(16, 0x20, True), "a byte of the data", (0x0D,)),
    Frame("WRITE", Life.WRITE, "a", Corrupt(28, 0x20, True), "a byte of the data", (0x06,)),
    _cm("DREQ", Life.CLOSE, "a", 0x15, 54, "the remote QPN"),
    _cm("DREP", Life.CLOSE, "b", 0x16, 51, "the remote comm id"),
)
FAULTS: dict[str, Action] = {
    "drop": Drop(),
    "delay": Delay(PAUSE_NS),
    "duplicate": Duplicate(),
    "reorder": Reorder(1, PAUSE_NS),
    "corrupt": Corrupt(),
    REPAIRED: Corrupt(repaired=True),
    "truncate": Truncate(STUMP, lengths_repaired=True),
    "ecn": MarkEcn(),
    "cut": CutCable(PAUSE_NS),
}
DONE_OR_ABORTED = frozenset({Code.OK, Code.WSA_OPERATION_ABORTED})
ABORTED = frozenset({Code.WSA_OPERATION_ABORTED})
BROKEN_OR_ABORTED = ABORTED | {Code.WSAECONNABORTED}


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected end of a cell.

    ``connect``: the code of the connect under the fault. ``operation``: the allowed codes of the closer's transfer.
    ``own``: those of its pending receive. ``receive``: the code of the peer's pending receives. ``true``: whether
    arrived data must equal the sent data. ``reason``: why this cell differs from the others.
    """

    connect: Code = Code.OK
    operation: frozenset[Code] = DONE_OR_ABORTED
    own: frozenset[Code] = ABORTED
    receive: Code = Code.WSAECONNRESET
    true: bool = True
    reason: str = ""


REFUSED = Expectation(connect=Code.WSAECONNREFUSED, reason="the peer refuses the connect")
LIED_TO = "the ICRC is right, so no adapter can notice the change"
EXPECTATIONS: dict[tuple[str, str], Expectation] = {
    ("REQ", REPAIRED): Expectation(
        connect=Code.WSAECONNRESET, reason="no listener has the port that arrives, so the connect is reset"
    ),
    ("SEND-first", REPAIRED): Expectation(true=False, reason=LIED_TO),
    ("SEND-middle", REPAIRED): Expectation(true=False, reason=LIED_TO),
    ("SEND-last", REPAIRED): Expectation(true=False, reason=LIED_TO),
    ("READ-request", REPAIRED): Expectation(
        operation=BROKEN_OR_ABORTED,
        own=BROKEN_OR_ABORTED,
        receive=Code.WSAECONNABORTED,
        reason="the peer's adapter refuses a wrong key with a NAK, and both ends are in error before the close",
    ),
    ("READ-response", REPAIRED): Expectation(true=False, reason=LIED_TO),
    ("WRITE", REPAIRED): Expectation(true=False, reason=LIED_TO),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the matrix. Its text is its name, such as DREQ/drop."""

    frame: Frame
    fault: str

    def __str__(self) -> str:
        return f"{self.frame.name}/{self.fault}"

    def wire_fault(self) -> Fault:
        """The wire's fault for this cell."""
        action = self.frame.lie if self.fault == REPAIRED else FAULTS[self.fault]
        return Fault(str(self), action, self.frame.match())

    def expectation(self) -> Expectation:
        """The expected end of this cell."""
        usual = REFUSED if self.frame.life is Life.REFUSE else Expectation()
        return EXPECTATIONS.get((self.frame.name, self.fault), usual)


def cells() -> Iterator[Cell]:
    """Every cell, row by row."""
    return (Cell(frame, fault) for frame in FRAMES for fault in FAULTS)
