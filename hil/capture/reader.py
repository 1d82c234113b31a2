"""Reads pcap and pcapng files of any size in chunks of frames; a chunk, not the file, bounds the memory."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import numpy as np

from hil.capture.blocks import SECTION_MAGIC, BlockReader
from hil.capture.chunk import PADDING, Bytes, Chunk, Findings, Interface, Problem
from hil.capture.pcap import HEADER_SIZE, MAGICS, PcapReader
from hil.errors import CaptureError

__all__ = ["Capture", "Chunk", "Interface", "Problem", "open_capture"]

CHUNK_BYTES = 8 * 1024 * 1024
# Files that are easily mistaken for a capture, by their first bytes.
OTHER_MAGICS = {
    b"\x1f\x8b": "it is compressed, unpack it with gunzip first",
    b"\x28\xb5\x2f\xfd": "it is compressed, unpack it with unzstd first",
    b"\x04\x22\x4d\x18": "it is compressed, unpack it with unlz4 first",
    b"\x34\xcd\xb2\xa1": "it is of a kind of pcap with longer records, convert it with editcap first",
    b"snoop": "it is a snoop file, convert it with editcap first",
}
MAGIC_SIZE = max(map(len, OTHER_MAGICS))


class _Reader(Protocol):
    """A reader of one file format. ``ended``: the rest of the file cannot be read, because of damage."""

    ended: bool

    def take(self, data: Bytes, filled: int, at: int) -> tuple[Chunk, int]: ...

    def cut(self, data: Bytes, filled: int) -> str: ...


class Capture:
    """An open capture, which is a context manager. Iterate over it once for its chunks.

    ``interfaces``, ``problems``, ``frames`` and ``bytes_read`` grow while the file is read, and are complete when the
    iteration has ended. Damage that makes the rest unreadable ends the iteration and adds a problem. An open capture
    raises nothing.
    """

    def __init__(self, file: BinaryIO, name: str, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.name = name
        self.bytes_read = 0
        self._file, self._chunk_bytes = file, chunk_bytes
        self._found = Findings()
        self._rest = self._read(HEADER_SIZE)
        self._reader, self._at = self._choose()

    @property
    def interfaces(self) -> list[Interface]:
        return self._found.interfaces

    @property
    def problems(self) -> list[Problem]:
        return self._found.problems

    @property
    def frames(self) -> int:
        """Frames read so far."""
        return self._found.frames

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            data, filled, more = self._fill()
            chunk, used = self._reader.take(data, filled, self._at)
            if len(chunk):
                yield chunk
            if self._reader.ended:
                return
            if not more:
                if used < filled:
                    what = self._reader.cut(data[used:], filled - used)
                    self._found.report(f"the file is cut inside {what}", self._at + used, self.frames)
                return
            self._rest, self._at = data[used:filled].tobytes(), self._at + used

    def _choose(self) -> tuple[_Reader, int]:
        # Returns the reader, and the position of its first record in bytes of the file.
        magic = self._rest[:4]
        if magic == SECTION_MAGIC:
            return BlockReader(self._found), 0
        if magic not in MAGICS:
            raise CaptureError(f"{self.name}: not a pcapng file, nor a pcap file: {_kind_of(self._rest)}")
        try:
            reader = PcapReader(self._rest, self._found)
        except CaptureError as error:
            raise CaptureError(f"{self.name}: {error}") from None
        self._rest = b""
        return reader, HEADER_SIZE

    def _fill(self) -> tuple[Bytes, int, bool]:
        """The rest of the last bytes and the next ones: the padded bytes, their number, whether more may follow."""
        part, before = self._read(self._chunk_bytes), len(self._rest)
        filled = before + len(part)
        data = np.empty(filled + PADDING, np.uint8)
        data[:before] = np.frombuffer(self._rest, np.uint8)
        data[before:filled] = np.frombuffer(part, np.uint8)
        data[filled:] = 0
        return data, filled, len(part) == self._chunk_bytes

    def _read(self, size: int) -> bytes:
        # A pipe may return fewer bytes than asked for; only an empty answer is its end.
        parts, missing = [], size
        try:
            while missing and (part := self._file.read(missing)):
                parts.append(part)
                missing -= len(part)
        except (OSError, EOFError) as error:
            self._found.report(f"the file cannot be read: {error}", self.bytes_read, self.frames)
        self.bytes_read += size - missing
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Capture":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _kind_of(beginning: bytes) -> str:
    """The kind of a file that is no capture, in words, by its first bytes."""
    known = next((text for magic, text in OTHER_MAGICS.items() if beginning.startswith(magic)), "")
    return known or (f"it begins with {beginning[:4].hex()}" if beginning else "it is empty")


def open_capture(source: Path | str | BinaryIO, *, chunk_bytes: int = CHUNK_BYTES) -> Capture:
    """Open a pcap or pcapng file, given by its path or as an open binary file, to be read ``chunk_bytes`` at a time.

    Raises CaptureError when the file cannot be opened or has neither format.
    """
    if not isinstance(source, str | Path):
        return Capture(source, str(getattr(source, "name", "the capture")), chunk_bytes)
    try:
        file = Path(source).open("rb")  # noqa: SIM115
    except OSError as error:
        raise CaptureError(f"{source}: the capture cannot be opened: {error.strerror}") from error
    try:
        return Capture(file, str(source), chunk_bytes)
    except CaptureError:
        file.close()
        raise
