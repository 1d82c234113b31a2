"""Readers and bulk scan on random bytes: only opening raises, only CaptureError, and every reading ends."""

import io
import struct
from pathlib import Path

from capture_files import enhanced, interface, obsolete, pcap, section, simple
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.capture.bulk import scan
from hil.capture.chunk import MAX_PROBLEMS, PADDING
from hil.capture.reader import Capture, Chunk, open_capture
from hil.errors import CaptureError

RECORDED = [path.read_bytes() for path in sorted((Path(__file__).parent / "captures").glob("*.pcapng"))]


def of_recorded(order: str, nanoseconds: bool) -> bytes:
    with open_capture(io.BytesIO(RECORDED[0])) as capture:
        frames = [chunk.frame(index) for chunk in capture for index in range(len(chunk))]
    return pcap([(n, n, frame, len(frame)) for n, frame in enumerate(frames)], order, nanoseconds)


def mixed() -> bytes:
    """A capture with both byte orders, every kind of packet block, and several interfaces."""
    file = b""
    for order in "<>":
        file += section(order) + interface(order, "a", 9) + interface(order, "b", 0x94, offset_s=3, fcs=4)
        file += enhanced(bytes(70), order, 1, 77, comment="here") + simple(bytes(9), order) + obsolete(bytes(33), order)
    return file


FILES = [*RECORDED, of_recorded("<", False), of_recorded(">", True), mixed()]
MAGICS = [file[:24] for file in FILES] + [section("<"), section(">"), section("<") + interface("<"), b""]


def read(data: bytes, chunk_bytes: int) -> tuple[Capture, list[Chunk]] | None:
    """Read and scan to the end; None when it cannot be opened."""
    try:
        capture = open_capture(io.BytesIO(data), chunk_bytes=chunk_bytes)
    except CaptureError:
        return None
    chunks = list(capture)
    for chunk in chunks:
        sound(chunk, capture)
    assert len(capture.problems) <= MAX_PROBLEMS and capture.bytes_read <= len(data)
    return capture, chunks


def sound(chunk: Chunk, capture: Capture) -> None:
    assert (chunk.offset >= 0).all() and (chunk.captured >= 0).all()
    assert (chunk.offset + chunk.captured <= len(chunk.data) - PADDING).all()
    assert (chunk.interface < len(capture.interfaces)).all()
    batch = scan(chunk, check_icrc=True)
    passed = batch.passed
    assert len(batch) + passed.not_roce + passed.other_links + passed.fragments + passed.cut == len(chunk)
    assert all(isinstance(text, str) for index in range(len(chunk)) for text in chunk.comments(index))


def facts(chunks: list[Chunk]) -> list[tuple[int, int, bytes]]:
    return [(int(c.number[i]), int(c.time_ns[i]), c.frame(i)) for c in chunks for i in range(len(c))]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MAGICS), st.binary(max_size=400), st.sampled_from([1, 7, 64, 1 << 20]))
def test_any_bytes(magic: bytes, data: bytes, chunk_bytes: int) -> None:
    """Any bytes behind any beginning are read to an end."""
    read(magic + data, chunk_bytes)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 3, 5, 6, 0x0A0D0D0A, 99]), st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_any_blocks(kind: int, bodies: list[bytes], big: bool) -> None:
    """Blocks of every kind with right lengths and random bodies are read to the end of the file."""
    order = ">" if big else "<"
    file = section(order) + interface(order)
    for body in bodies:
        body += bytes(-len(body) % 4)
        length = struct.pack(order + "I", len(body) + 12)
        file += struct.pack(order + "I", kind) + length + body + length
    read(file, 1 << 20)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from([333, 1 << 20]),
)
def test_changed_captures(file: bytes, changes: list[tuple[float, int]], chunk_bytes: int) -> None:
    """Captures with changed bytes are read to an end, and the frames in front of the first change are equal."""
    changed = bytearray(file)
    for place, value in changes:
        changed[int(place * len(file))] = value
    first = min(int(place * len(file)) for place, _ in changes)
    found = read(bytes(changed), chunk_bytes)
    whole = read(file[:first], chunk_bytes)
    if found is not None and whole is not None:
        before = facts(whole[1])
        assert facts(found[1])[: len(before)] == before


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FILES), st.floats(0, 1), st.sampled_from([50, 1 << 20]))
def test_cut_captures(file: bytes, place: float, chunk_bytes: int) -> None:
    """A capture cut anywhere gives the frames that it still holds."""
    cut = read(file[: int(place * len(file))], chunk_bytes)
    if cut is not None:
        found = facts(cut[1])
        assert facts(read(file, 1 << 20)[1])[: len(found)] == found
