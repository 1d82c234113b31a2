"""Write and read pcapng files with nanosecond times (draft-ietf-opsawg-pcapng)."""

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
_PACKET, _LENGTH = struct.Struct("<IIIIIII"), struct.Struct("<I")
_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """One frame. ``number``: in the file, from 1. ``time_ns``: since the epoch. ``original_length``: in bytes."""

    number: int
    time_ns: int
    interface: str
    data: bytes
    original_length: int
    comment: str = ""


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


class PcapngWriter:
    """Writes frames to ``out``, an open binary file; ``interfaces`` are the names of its interfaces."""

    def __init__(self, out: BinaryIO, interfaces: list[str]) -> None:
        self._out = out
        out.write(_block(_SHB, struct.pack("<IHHq", _MAGIC, 1, 0, -1)))
        for name in interfaces:
            options = _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, b"\x09") + bytes(4)
            out.write(_block(_IDB, struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0) + options))

    def write(self, interface: int, time_ns: int, data: bytes, comment: str = "") -> None:
        """Append one frame, in a single write: a wire records every frame that it carries."""
        size = len(data)
        options = _option(_COMMENT, comment.encode()) + bytes(4) if comment else b""
        length = _PACKET.size + size + (-size & 3) + len(options) + 4
        head = _PACKET.pack(_EPB, length, interface, time_ns >> 32, time_ns & 0xFFFFFFFF, size, size)
        self._out.write(b"".join((head, data, _PADDING[-size & 3], options, _LENGTH.pack(length))))


def read_pcapng(source: Path | BinaryIO) -> Iterator[CapturedFrame]:
    """Every frame of a pcapng or pcap file, given by its path or as an open binary file.

    Raises CaptureError when the file is neither, and, after the readable frames, when it is cut or damaged.
    """
    # Imported here, because the wire's process only writes and must not import numpy.
    from hil.capture.reader import open_capture

    if isinstance(source, Path) and source.exists() and not source.stat().st_size:
        # A wire's file is empty until its first flush.
        return
    with open_capture(source) as capture:
        for chunk in capture:
            names = [interface.name for interface in capture.interfaces]
            columns = (chunk.number, chunk.time_ns, chunk.interface, chunk.original)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            for index, (number, time_ns, interface, original) in enumerate(rows):
                comment = "\n".join(chunk.comments(index))
                yield CapturedFrame(number, time_ns, names[interface], chunk.frame(index), original, comment)
    if capture.problems:
        raise CaptureError(f"{capture.name}: {capture.problems[0]}")
