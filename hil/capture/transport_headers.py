"""The base transport header and the extended transport headers of many packets at once, as columns."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hil.capture.chunk import Chunk, Integers
from hil.capture.ethernet import Flags
from hil.capture.network import Network
from hil.capture.windows import Records, packed, records
from hil.roce.icrc import ICRC_SIZE
from hil.roce.opcodes import LAYOUTS, Header

_BTH_SIZE, _EXTENSIONS_SIZE = 12, 40
_BTH = packed(
    ("opcode", "u1"),
    ("flags", "u1"),
    ("pkey", ">u2"),
    ("dest_qp", ">u4"),
    ("psn", ">u4"),
    ("extensions", f"V{_EXTENSIONS_SIZE}"),
)
_LAYOUTS = {
    Header.DETH: packed(("qkey", ">u4"), ("srcqp", ">u4")),
    Header.XRCETH: packed(("xrcsrq", ">u4")),
    Header.RETH: packed(("va", ">u8"), ("rkey", ">u4"), ("length", ">u4")),
    Header.ATOMIC_ETH: packed(("va", ">u8"), ("rkey", ">u4"), ("swap", ">u8"), ("compare", ">u8")),
    Header.AETH: packed(("aeth", ">u4")),
    Header.IMMDT: packed(("immdt", ">u4")),
    Header.IETH: packed(("ieth", ">u4")),
}


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its name, the header's field, and the bits of that field that it holds."""

    name: str
    field: str
    shift: int = 0
    bits: int = 32
    kind: type = np.int32

    def of(self, head: Records) -> NDArray[Any]:
        if self.bits >= 32:
            return head[self.field].astype(self.kind)
        values: NDArray[Any] = (head[self.field].astype(np.uint32) >> self.shift & (1 << self.bits) - 1).astype(
            self.kind
        )
        return values

    def absent(self, count: int) -> NDArray[Any]:
        return np.full(count, 2**64 - 1 if self.kind is np.uint64 else -1, self.kind)


def _wide(name: str, kind: type = np.int64) -> _Column:
    return _Column(name, name, kind=kind)


_BASE = (
    _Column("opcode", "opcode", 0, 8),
    _Column("solicited", "flags", 7, 1),
    _Column("migreq", "flags", 6, 1),
    _Column("padcount", "flags", 4, 2),
    _Column("transport_version", "flags", 0, 4),
    _Column("pkey", "pkey", 0, 16),
    _Column("fecn", "dest_qp", 31, 1),
    _Column("becn", "dest_qp", 30, 1),
    _Column("dest_qp", "dest_qp", 0, 24),
    _Column("ackreq", "psn", 31, 1),
    _Column("psn", "psn", 0, 24),
)
_COLUMNS: dict[Header, tuple[_Column, ...]] = {
    Header.RDETH: (),
    Header.DETH: (_wide("qkey"), _Column("srcqp", "srcqp", 0, 24)),
    Header.XRCETH: (_Column("xrcsrq", "xrcsrq", 0, 24),),
    Header.FETH: (),
    Header.RETH: (_wide("va", np.uint64), _wide("rkey"), _wide("length")),
    Header.ATOMIC_ETH: (_wide("va", np.uint64), _wide("rkey")),
    Header.AETH: (_Column("syndrome", "aeth", 24, 8), _Column("msn", "aeth", 0, 24)),
    Header.ATOMIC_ACK_ETH: (),
    Header.IMMDT: (_wide("immdt"),),
    Header.IETH: (_wide("ieth"),),
    Header.CNP: (),
}
_EXTENDED = {column.name: column for columns in _COLUMNS.values() for column in columns}.values()


class Malformed(IntEnum):
    """Reasons why not all headers of a packet can be read or trusted."""

    NO = 0
    SNAPPED = 1  # The capture's snap length ends inside a header.
    TRUNCATED = 2  # The packet itself ends inside a header, or holds fewer bytes than its pad count.
    UNKNOWN_OPCODE = 3
    LENGTH = 4  # The network header's length exceeds the frame's, or differs from UDP's.


class TransportHeaders:
    """The transport headers of ``packets``. ``whole``: the packet was captured to the last byte of its ICRC."""

    def __init__(self, chunk: Chunk, packets: Network) -> None:
        self._count = len(packets)
        captured_end = chunk.offset[packets.index] + chunk.captured[packets.index]
        self._packet_room = packets.end - ICRC_SIZE - packets.transport
        self._captured_room = captured_end - packets.transport
        snapped = chunk.captured[packets.index] < chunk.original[packets.index]
        self._short = np.where(snapped, Malformed.SNAPPED, Malformed.LENGTH).astype(np.int32)
        self._head = records(chunk.data, packets.transport, _BTH)
        self.whole = packets.fits & (packets.end <= captured_end) & (self._packet_room >= _BTH_SIZE)
        self._malformed = np.zeros(self._count, np.int32)
        self._extended = {column.name: column.absent(self._count) for column in _EXTENDED}
        self._payload = np.full(self._count, -1, np.int64)
        self._read()
        self._malformed[(self._malformed == Malformed.NO) & ~packets.fits] = Malformed.LENGTH
        self._payload[self._malformed != Malformed.NO] = -1

    def _read(self) -> None:
        present = self._fitting(None, _BTH_SIZE)
        opcode = np.where(present, self._head["opcode"], -1) if not present.all() else self._head["opcode"]
        self._present = present
        for code in np.flatnonzero(np.bincount(opcode[present], minlength=256)):
            rows = np.flatnonzero(opcode == code)
            layout = LAYOUTS.get(int(code))
            if layout is None:
                self._malformed[rows] = Malformed.UNKNOWN_OPCODE
            else:
                self._read_layout(rows, layout)

    def _fitting(self, rows: Integers | None, size: int) -> Flags:
        """Whether each of ``rows`` (None: all) holds ``size`` bytes from the base header on.

        The other rows are marked malformed.
        """
        chosen: Any = slice(None) if rows is None else rows
        in_packet = self._packet_room[chosen] >= size
        fitting: Flags = in_packet & (self._captured_room[chosen] >= size)
        if not fitting.all():
            codes = np.where(in_packet, self._short[chosen], Malformed.TRUNCATED)
            places = np.arange(self._count)[chosen]
            self._malformed[places[~fitting]] = codes[~fitting]
        return fitting

    def _read_layout(self, rows: Integers, layout: tuple[Header, ...]) -> None:
        at = _BTH_SIZE
        for header in layout:
            rows = rows[self._fitting(rows, at + header.size)]
            if _COLUMNS[header]:
                self._read_header(rows, header, at)
            at += header.size
        payload = self._packet_room[rows] - at - (self._head["flags"][rows] >> 4 & 3)
        self._malformed[rows[payload < 0]] = Malformed.TRUNCATED
        self._payload[rows] = payload

    def _read_header(self, rows: Integers, header: Header, at: int) -> None:
        size = _BTH.itemsize
        opaque = np.ndarray((self._count,), f"V{header.size}", self._head.view(np.uint8).data, at, (size,))
        found = opaque[rows].view(_LAYOUTS[header])
        for column in _COLUMNS[header]:
            self._extended[column.name][rows] = column.of(found)

    def columns(self) -> dict[str, Any]:
        """Each column by its name; absent values are -1, for ``va`` 2**64 - 1."""
        found = {column.name: self._of_base(column) for column in _BASE}
        return found | self._extended | {"payload": self._payload, "malformed": self._malformed}

    def _of_base(self, column: _Column) -> NDArray[Any]:
        values = column.of(self._head)
        if not self._present.all():
            values[~self._present] = -1
        return values
