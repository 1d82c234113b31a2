"""Read pcap files (draft-ietf-opsawg-pcap): micro- and nanoseconds, both byte orders."""

import struct
from dataclasses import dataclass

import numpy as np

from hil.capture.chunk import Bytes, Chunk, Findings, Integers, Interface
from hil.errors import CaptureError

HEADER_SIZE = 24
# libpcap never captures more bytes of a frame than this; a record that claims more is damaged.
MAX_FRAME = 262144
_RECORD_SIZE = 16
_FCS_KNOWN = 1 << 26
# By the file's first four bytes: its byte order, and its ticks per second.
MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1_000_000),
    b"\xa1\xb2\xc3\xd4": (">", 1_000_000),
    b"\x4d\x3c\xb2\xa1": ("<", 1_000_000_000),
    b"\xa1\xb2\x3c\x4d": (">", 1_000_000_000),
}


@dataclass(frozen=True, slots=True)
class _Shape:
    order: str
    ticks: int
    link_type: int
    limit: int


class PcapReader:
    """Decodes the frames of a pcap file from its bytes. ``header``: the file's first ``HEADER_SIZE`` bytes.

    Raises CaptureError when the file ends inside its header.
    """

    def __init__(self, header: bytes, findings: Findings) -> None:
        if len(header) < HEADER_SIZE:
            raise CaptureError(f"the file is cut inside its header: it has {len(header)} of {HEADER_SIZE} bytes")
        order, ticks = MAGICS[header[:4]]
        _, _, _, _, snap, link = struct.unpack(order + "HHiIII", header[4:])
        fcs = (link >> 28) * 2 if link & _FCS_KNOWN else -1
        self._shape = _Shape(order, ticks, link & 0xFFFF, MAX_FRAME)
        self._findings = findings
        findings.interfaces.append(Interface("interface 0", link & 0xFFFF, snap, fcs, tick_ns=10**9 // ticks))
        self.ended = False

    def take(self, data: Bytes, filled: int, at: int) -> tuple[Chunk, int]:
        """Decode the complete records in ``data[:filled]``, which begins at byte ``at`` of the file.

        Returns the frames, and the number of bytes that these records take.
        """
        starts, end = self._walk(data.data, filled)
        if not self.ended and filled - end >= _RECORD_SIZE and self._claims(data, end) > self._shape.limit:
            self.ended = True
            text = f"a record claims a frame of {self._claims(data, end)} bytes"
            self._findings.report(text, at + end, self._findings.frames + len(starts))
        chunk = self._chunk(data, np.array(starts, np.int64), at)
        self._findings.frames += len(chunk)
        return chunk, end

    def cut(self, data: Bytes, filled: int) -> str:
        """The part of the file, in words, that is cut when only ``data[:filled]`` is left."""
        return "a record's header" if filled < _RECORD_SIZE else "a frame"

    def _claims(self, data: Bytes, start: int) -> int:
        return int.from_bytes(data[start + 8 : start + 12].tobytes(), "little" if self._shape.order == "<" else "big")

    def _walk(self, data: memoryview, filled: int) -> tuple[list[int], int]:
        read = struct.Struct(self._shape.order + "I").unpack_from
        starts: list[int] = []
        add, limit, at = starts.append, self._shape.limit, 0
        while at + _RECORD_SIZE <= filled:
            (captured,) = read(data, at + 8)
            following = at + _RECORD_SIZE + captured
            if following > filled or captured > limit:
                break
            add(at)
            at = following
        return starts, at

    def _chunk(self, data: Bytes, starts: Integers, at: int) -> Chunk:
        records = np.ndarray((max(len(data) - _RECORD_SIZE, 0),), "V16", data, 0, (1,))[starts].view(
            [(name, self._shape.order + "u4") for name in ("seconds", "fraction", "captured", "original")]
        )
        columns = [records[name].astype(np.int64) for name in ("seconds", "fraction", "captured", "original")]
        seconds, fraction, captured, original = columns
        wild = np.flatnonzero(fraction >= self._shape.ticks)
        first = self._findings.frames + 1
        if len(wild):
            text = f"{len(wild)} frames have a fraction of more than a second"
            self._findings.report(text, at + int(starts[wild[0]]), first + int(wild[0]) - 1)
        return Chunk(
            data,
            np.arange(first, first + len(starts)),
            seconds * 1_000_000_000 + fraction * (1_000_000_000 // self._shape.ticks),
            np.zeros(len(starts), np.int64),
            np.full(len(starts), self._shape.link_type),
            starts + _RECORD_SIZE,
            captured,
            original,
        )
