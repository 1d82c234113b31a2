"""Write and read pcapng with nanosecond times (pcapng specification, draft-ietf-opsawg-pcapng)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hil.errors import CaptureError

_SHB, _IDB, _EPB = 0x0A0D0D0A, 1, 6
_LINKTYPE_ETHERNET = 1
_IF_NAME, _IF_TSRESOL, _COMMENT = 2, 9, 1
_MAGIC = 0x1A2B3C4D
MAX_BLOCK = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """One frame: its place in the file from 1, when (ns since the epoch), on which interface."""

    number: int
    time_ns: int
    interface: str
    data: bytes
    original_length: int


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


class PcapngWriter:
    """Append frames to ``out``, an open binary file."""

    def __init__(self, out: BinaryIO, interfaces: list[str]) -> None:
        self._out = out
        out.write(_block(_SHB, struct.pack("<IHHq", _MAGIC, 1, 0, -1)))
        for name in interfaces:
            options = _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, b"\x09") + bytes(4)
            out.write(_block(_IDB, struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0) + options))

    def write(self, interface: int, time_ns: int, data: bytes, comment: str = "") -> None:
        head = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), len(data))
        options = _option(_COMMENT, comment.encode()) + bytes(4) if comment else b""
        self._out.write(_block(_EPB, head + data + bytes(-len(data) % 4) + options))


def read_pcapng(path: Path) -> Iterator[CapturedFrame]:
    """Every frame of a little-endian pcapng file. Raises CaptureError where the file is not one or is cut."""
    with path.open("rb") as file:
        names: list[str] = []
        number = 0
        for kind, body in _blocks(file, path):
            if kind == _SHB:
                names = []
            elif kind == _IDB:
                names.append(_interface_name(body, len(names)))
            elif kind == _EPB:
                number += 1
                yield _frame(body, number, names, path)


def _blocks(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    first = True
    while head := file.read(8):
        if len(head) < 8:
            raise CaptureError(f"{path}: the file is cut inside a block header")
        kind, length = struct.unpack("<II", head)
        if first and kind != _SHB:
            raise CaptureError(f"{path}: not a pcapng file")
        first = False
        if length < 12 or length % 4 or length > MAX_BLOCK:
            raise CaptureError(f"{path}: a block claims {length} bytes")
        body = file.read(length - 8)
        if len(body) < length - 8:
            raise CaptureError(f"{path}: the file is cut inside a block")
        if kind == _SHB and body[:4] != struct.pack("<I", _MAGIC):
            raise CaptureError(f"{path}: big-endian pcapng is not supported yet")
        yield kind, body[:-4]


def _interface_name(body: bytes, index: int) -> str:
    offset = 8
    while offset + 4 <= len(body):
        code, size = struct.unpack_from("<HH", body, offset)
        if code == _IF_NAME:
            return body[offset + 4 : offset + 4 + size].decode(errors="replace")
        offset += 4 + size + (-size % 4)
        if code == 0:
            break
    return f"interface {index}"


def _frame(body: bytes, number: int, names: list[str], path: Path) -> CapturedFrame:
    if len(body) < 20:
        raise CaptureError(f"{path}: packet {number} is cut")
    interface, high, low, captured, original = struct.unpack_from("<IIIII", body)
    if interface >= len(names) or 20 + captured > len(body):
        raise CaptureError(f"{path}: packet {number} does not fit its block")
    return CapturedFrame(number, high << 32 | low, names[interface], body[20 : 20 + captured], original)
