"""Read pcapng files (draft-ietf-opsawg-pcapng): either byte order, any number of sections and interfaces."""

import struct
from dataclasses import dataclass, replace

import numpy as np

from hil.capture.chunk import Bytes, Chunk, Findings, Integers, Interface
from hil.capture.clock import shifted, tick_ns, to_ns
from hil.capture.packet_blocks import PACKETS, Blocks, Comments, Run, Words, options

SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
MAX_BLOCK = 16 * 1024 * 1024
MAX_INTERFACES = 65536
_SECTION, _INTERFACE, _STATISTICS = 0x0A0D0D0A, 1, 5
_OTHERS = frozenset({_INTERFACE, _STATISTICS})
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_MICROSECONDS = 6
_NAME, _DESCRIPTION, _RESOLUTION, _FCS, _OFFSET = 2, 3, 9, 13, 14
_IF_DROPPED, _OS_DROPPED = 5, 7


@dataclass(frozen=True, slots=True)
class _Clock:
    resolution: int
    offset_s: int


class _Walk:
    """A walk through one stretch of the file, in 32-bit words: the places of packet blocks, and the runs they form."""

    def __init__(self, data: Bytes, filled: int, at: int) -> None:
        self.words = Words(data, filled)
        self.starts: list[int] = []
        self.runs: list[Run] = []
        self.here = 0
        self._file_at = at

    @property
    def offset(self) -> int:
        """The walk's position, in bytes of the file."""
        return self.offset_of(self.here)

    def offset_of(self, word: int) -> int:
        """The position of a word of this stretch, in bytes of the file."""
        return self._file_at + word * 4


class BlockReader:
    """Decodes the frames of a pcapng file from its bytes."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._clocks: list[_Clock] = []
        self._between: dict[int, int] = {}
        self._order = "<"
        self._base = 0
        self.ended = False

    def take(self, data: Bytes, filled: int, at: int) -> tuple[Chunk, int]:
        """Decode the complete blocks in ``data[:filled]``, which begins at byte ``at`` of the file.

        Returns the frames, and the number of bytes that these blocks take.
        """
        walk = _Walk(data, filled, at)
        self._begin_run(walk)
        while self._over_packets(walk) and self._over_other(walk):
            self._begin_run(walk)
        return self._chunk(walk), walk.here * 4

    def cut(self, data: Bytes, filled: int) -> str:
        """The part of the file, in words, that is cut when only ``data[:filled]`` is left."""
        return "a block header" if filled < 8 else "a block"

    def _begin_run(self, walk: _Walk) -> None:
        walk.runs.append(Run(len(walk.starts), self._order == ">", self._base, len(self._clocks) - self._base))

    def _over_packets(self, walk: _Walk) -> bool:
        """Walk over packet blocks to the next other block or damage; False at the end of the bytes.

        Blocks of unknown types are skipped.
        """
        words, end, add, here = walk.words.view(self._order), walk.words.count, walk.starts.append, walk.here
        while here + 3 <= end:
            kind, length = words[here], words[here + 1]
            following = here + (length >> 2)
            if following > end or length & 3 or length < 12 or length > MAX_BLOCK or kind == _SECTION:
                break
            if kind in PACKETS:
                add(here)
            elif kind in _OTHERS:
                break
            here = following
        walk.here = here
        return here + 3 <= end

    def _over_other(self, walk: _Walk) -> bool:
        """Read the block at the walk's position; False when it is incomplete, or no block behind it can be read."""
        head = walk.words.data[walk.here * 4 : walk.here * 4 + 12].tobytes()
        section = head[:4] == SECTION_MAGIC
        order = _ORDERS.get(head[8:]) if section else self._order
        if order is None:
            return self._end(walk, "a section header without its byte order magic")
        kind, length = struct.unpack(order + "II", head[:8])
        if length & 3 or length < 12 or length > MAX_BLOCK:
            return self._end(walk, f"a block claims {length} bytes")
        if walk.here + length // 4 > walk.words.count:
            return False
        body = walk.words.data[walk.here * 4 + 8 : walk.here * 4 + length - 4].tobytes()
        if section:
            self._order, self._base = order, len(self._clocks)
        elif kind == _INTERFACE and not self._add_interface(body, walk):
            return False
        elif kind == _STATISTICS:
            self._note_drops(body)
        walk.here += length // 4
        return True

    def _end(self, walk: _Walk, text: str) -> bool:
        self.ended = True
        self._findings.report(text, walk.offset, self._findings.frames + len(walk.starts))
        return False

    def _add_interface(self, body: bytes, walk: _Walk) -> bool:
        if len(self._clocks) >= MAX_INTERFACES:
            return self._end(walk, f"more than {MAX_INTERFACES} interfaces")
        if len(body) < 8:
            return self._end(walk, "an interface description that is too short")
        link, _, snap = struct.unpack_from(self._order + "HHI", body)
        found = options(body[8:], self._order)
        name = (found.get(_NAME) or found.get(_DESCRIPTION) or b"").rstrip(b"\0").decode(errors="replace")
        name = name or f"interface {len(self._clocks) - self._base}"
        resolution = _byte(found, _RESOLUTION, _MICROSECONDS)
        known = Interface(name, link, snap, _byte(found, _FCS, -1), tick_ns=tick_ns(resolution))
        self._findings.interfaces.append(known)
        offset = found.get(_OFFSET, b"")
        offset_s = struct.unpack_from(self._order + "q", offset)[0] if len(offset) >= 8 else 0
        self._clocks.append(_Clock(resolution, offset_s))
        return True

    def _note_drops(self, body: bytes) -> None:
        if len(body) < 12:
            return
        index = self._base + struct.unpack_from(self._order + "I", body)[0]
        found = options(body[12:], self._order)
        counts = [value for code in (_IF_DROPPED, _OS_DROPPED) if len(value := found.get(code, b"")) >= 8]
        if counts and index < len(self._clocks):
            self._note_dropped(index, sum(struct.unpack_from(self._order + "Q", count)[0] for count in counts))

    def _note_dropped(self, index: int, dropped: int) -> None:
        # Statistics hold the total. Packet options hold the frames lost in front of each, and their sum is a total too.
        known = self._findings.interfaces[index]
        self._findings.interfaces[index] = replace(known, dropped=max(known.dropped, dropped))

    def _add_dropped(self, blocks: Blocks) -> None:
        for row in np.flatnonzero(blocks.dropped).tolist():
            index = int(blocks.interface[row])
            self._between[index] = self._between.get(index, 0) + int(blocks.dropped[row])
            self._note_dropped(index, self._between[index])

    def _chunk(self, walk: _Walk) -> Chunk:
        interfaces = self._findings.interfaces
        snap = np.array([interface.snap_length for interface in interfaces] or [0], np.int64)
        link_types = np.array([interface.link_type for interface in interfaces] or [0], np.int64)
        blocks = Blocks.decode(walk.words, walk.starts, walk.runs, snap)
        blocks = self._until_damage(walk, blocks)
        number = self._findings.frames + 1 + np.arange(len(blocks))
        self._findings.frames += len(blocks)
        if not blocks.sound.all():
            self._report_unsound(walk, blocks, number)
            number, blocks = number[blocks.sound], blocks.only(blocks.sound)
        self._add_dropped(blocks)
        return Chunk(
            walk.words.data,
            number,
            self._times(blocks),
            blocks.interface,
            link_types[blocks.interface],
            blocks.offset,
            blocks.captured,
            blocks.original,
            Comments(walk.words.data, blocks),
        )

    def _until_damage(self, walk: _Walk, blocks: Blocks) -> Blocks:
        wrong = np.flatnonzero(~blocks.closed)
        if not len(wrong):
            return blocks
        walk.here = walk.starts[wrong[0]]
        del walk.starts[wrong[0] :]
        self._end(walk, "a block's two lengths differ")
        return blocks.only(np.arange(len(blocks)) < wrong[0])

    def _report_unsound(self, walk: _Walk, blocks: Blocks, number: Integers) -> None:
        first = int(np.flatnonzero(~blocks.sound)[0])
        text = f"{int((~blocks.sound).sum())} packets do not fit their block or name no interface; the first"
        self._findings.report(text, walk.offset_of(walk.starts[first]), int(number[first]) - 1)

    def _times(self, blocks: Blocks) -> Integers:
        resolutions = np.array([clock.resolution for clock in self._clocks] or [0])[blocks.interface]
        offsets = np.array([clock.offset_s for clock in self._clocks] or [0], np.int64)[blocks.interface]
        time_ns = np.full(len(blocks), -1, np.int64)
        for resolution in np.unique(resolutions):
            rows = resolutions == resolution
            time_ns[rows] = to_ns(blocks.ticks[rows], int(resolution))
        if offsets.any():
            time_ns = shifted(time_ns, offsets)
        return np.where(blocks.timed, time_ns, -1)


def _byte(found: dict[int, bytes], code: int, absent: int) -> int:
    return found[code][0] if found.get(code) else absent
