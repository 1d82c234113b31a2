"""Capture files of all writers are read to the last complete frame, and damage is reported."""

import gzip
import io
import os
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from capture_files import FRAME, block, enhanced, interface, obsolete, pcap, section, simple, statistics

from hil.capture.chunk import MAX_PROBLEMS
from hil.capture.clock import to_ns
from hil.capture.reader import Capture, Chunk, open_capture
from hil.errors import CaptureError

ORDERS = ("<", ">")
CAPTURES = Path(__file__).parent / "captures"


def read(data: bytes, chunk_bytes: int = 1 << 20) -> tuple[Capture, list[Chunk]]:
    capture = open_capture(io.BytesIO(data), chunk_bytes=chunk_bytes)
    return capture, list(capture)


def frames(chunks: list[Chunk]) -> list[bytes]:
    return [chunk.frame(index) for chunk in chunks for index in range(len(chunk))]


def column(chunks: list[Chunk], name: str) -> list[int]:
    return [int(value) for chunk in chunks for value in getattr(chunk, name)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap(order: str, nanoseconds: bool) -> None:
    """Time, lengths and bytes of each frame, with micro- and nanoseconds in either byte order."""
    wanted = [(1_700_000_000, 999_999, FRAME, 60), (4_294_967_295, 1, FRAME[:33], 1500), (0, 0, b"", 64)]
    capture, chunks = read(pcap(wanted, order, nanoseconds))
    tick = 1 if nanoseconds else 1000
    assert column(chunks, "time_ns") == [seconds * 10**9 + fraction * tick for seconds, fraction, _, _ in wanted]
    assert frames(chunks) == [data for _, _, data, _ in wanted]
    assert column(chunks, "original") == [60, 1500, 64]
    assert column(chunks, "number") == [1, 2, 3]
    assert not capture.problems and capture.frames == 3


def test_pcap_states_its_fcs() -> None:
    """The link type's word holds the length of the frame check sequence, which is no part of the link type."""
    capture, chunks = read(pcap([(1, 1, FRAME, 60)], link=2 << 28 | 1 << 26 | 1))
    assert capture.interfaces[0].fcs_length == 4
    assert column(chunks, "link_type") == [1]


@pytest.mark.parametrize("order", ORDERS)
def test_every_kind_of_packet_block(order: str) -> None:
    """Enhanced, simple and obsolete packet blocks give their frames; a simple one has no time."""
    file = section(order) + interface(order, "eth0", 9, snap=20)
    file += enhanced(FRAME, order, ticks=5, original=99) + simple(FRAME[:20], order, original=60)
    file += block(0x0BAD, b"unknown", order) + obsolete(FRAME[:7], order, ticks=2**40)
    capture, chunks = read(file)
    assert frames(chunks) == [FRAME, FRAME[:20], FRAME[:7]]
    assert column(chunks, "time_ns") == [5, -1, 2**40]
    assert column(chunks, "original") == [99, 60, 7]
    assert not capture.problems


def test_sections_begin_interfaces_anew() -> None:
    """Interfaces of each section, in its own byte order, are distinct; a name is the file's or its number."""
    first = section("<") + interface("<", "eth0") + interface("<") + enhanced(b"a", "<", 1)
    second = section(">") + interface(">", "mirror", link=276) + enhanced(b"bb", ">", 0) + enhanced(b"c", ">", 0)
    capture, chunks = read(first + second)
    assert [capture.interfaces[index].name for index in column(chunks, "interface")] == [
        "interface 1",
        "mirror",
        "mirror",
    ]
    assert column(chunks, "link_type") == [1, 276, 276]
    assert frames(chunks) == [b"a", b"bb", b"c"]


@pytest.mark.parametrize(
    "resolution", [0, 3, 6, 7, 9, 10, 12, 19, 29, 100, 0x80, 0x8A, 0xA0, 0xA2, 0xBF, 0xC0, 0xDF, 0xFF]
)
def test_clocks(resolution: int) -> None:
    """Ticks of any decimal or binary resolution become the nanoseconds of exact arithmetic, rounded down."""
    second = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    ticks = [
        0,
        1,
        2**20 + 7,
        2**32 - 1,
        2**53 + 1,
        2**63 - 1,
        2**64 - 1,
        min(1_700_000_000 * second + 12345, 2**64 - 1),
    ]
    wanted = [min(int(Fraction(tick, second) * 10**9), 2**63 - 1) for tick in ticks]
    found = to_ns(np.array(ticks, np.uint64), resolution).tolist()
    # Where the result does not fit, the whole seconds are what is held back.
    fits = [index for index, value in enumerate(wanted) if value < 9 * 10**18]
    assert [found[index] for index in fits] == [wanted[index] for index in fits]
    assert all(value >= 9 * 10**18 - 1 for index, value in enumerate(found) if index not in fits)


def test_clock_offsets() -> None:
    """An interface's offset in seconds moves the times of its frames and of no others."""
    file = section() + interface(resolution=9, offset_s=-10) + interface(resolution=6, offset_s=1_700_000_000)
    file += enhanced(b"a", index=0, ticks=10**10 + 1) + enhanced(b"b", index=1, ticks=1) + interface(offset_s=2**62)
    file += enhanced(b"c", index=2, ticks=10)
    _, chunks = read(file)
    times = column(chunks, "time_ns")
    assert times[:2] == [1, 1_700_000_000_000_001_000]
    assert times[2] > 4 * 10**18


def test_comments_fcs_and_drops() -> None:
    """A packet's comments, an interface's frame check sequence and the number of frames that it lost are kept."""
    file = (
        section() + interface(name="eth0", fcs=4) + enhanced(FRAME, comment="dropped by rule 3") + enhanced(FRAME[:5])
    )
    capture, (chunk,) = read(file + statistics(dropped=17))
    assert [chunk.comments(0), chunk.comments(1)] == [["dropped by rule 3"], []]
    assert capture.interfaces[0].fcs_length == 4
    assert capture.interfaces[0].dropped == 17


@pytest.mark.parametrize("order", ORDERS)
def test_drops_in_packet_options_are_added_up(order: str) -> None:
    """Drop counts of packets are added up by interface, also behind other options; statistics are a total."""
    file = section(order) + interface(order, "eth0") + interface(order, "eth1")
    file += enhanced(FRAME, order) + enhanced(FRAME[:9], order, dropped=1 << 33)
    file += enhanced(FRAME, order, comment="here") + enhanced(FRAME, order, index=1, dropped=0)
    file += enhanced(b"", order, comment="lost some", dropped=5)
    capture, _ = read(file + statistics(order, dropped=7) + statistics(order, index=1, dropped=2))
    assert [interface.dropped for interface in capture.interfaces] == [(1 << 33) + 5, 2]


def a_pcapng() -> bytes:
    packets = b"".join(enhanced(FRAME[: 7 * n], ticks=n, comment="x" * n) for n in range(9))
    return section() + interface(name="eth0") + packets


def a_pcap() -> bytes:
    return pcap([(n, n, FRAME[: 7 * n], 60) for n in range(9)])


@pytest.mark.parametrize("whole", [a_pcapng(), a_pcap()], ids=["pcapng", "pcap"])
def test_a_file_cut_anywhere(whole: bytes) -> None:
    """Wherever a file ends, every complete frame in front of it is read, and the cut is a problem with its place."""
    _, chunks = read(whole)
    all_frames = frames(chunks)
    for size in range(24, len(whole)):
        capture, chunks = read(whole[:size], chunk_bytes=64)
        found = frames(chunks)
        assert found == all_frames[: len(found)] and capture.frames == len(found)
        if capture.problems:
            assert "cut" in capture.problems[0].text and capture.problems[0].frames == len(found)
        else:
            assert frames(read(whole[:size])[1]) == found


@pytest.mark.parametrize("whole", [a_pcapng(), a_pcap()], ids=["pcapng", "pcap"])
def test_chunks_of_any_size(whole: bytes) -> None:
    """The size of chunks, even one smaller than a frame, changes nothing."""
    _, chunks = read(whole)
    for size in (1, 2, 3, 5, 16, 100):
        _, parts = read(whole, size)
        assert frames(parts) == frames(chunks)
        for name in ("number", "time_ns", "interface", "captured", "original"):
            assert column(parts, name) == column(chunks, name)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (block(6, struct_packet := bytes(20))[:4] + b"\x07\0\0\0" + bytes(8), "claims 7 bytes"),
        (block(6, struct_packet)[:4] + b"\xfc\xff\xff\xff" + bytes(8), "claims 4294967292 bytes"),
        (enhanced(FRAME)[:-4] + b"\x10\0\0\0", "two lengths differ"),
        (block(0x0A0D0D0A, b"\1\2\3\4" + bytes(12)), "byte order magic"),
        (block(1, b""), "too short"),
    ],
)
def test_damaged_blocks(damage: bytes, text: str) -> None:
    """The frames in front of a damaged block are read, and the problem names the damage and its byte."""
    before = section() + interface() + enhanced(FRAME)
    capture, chunks = read(before + damage + enhanced(FRAME))
    assert frames(chunks) == [FRAME]
    (problem,) = capture.problems
    assert text in problem.text and problem.offset == len(before) and problem.frames == 1


def test_packets_that_do_not_fit_their_block() -> None:
    """A packet that exceeds its block, or names an unknown interface, is passed over and reported."""
    too_long = bytearray(enhanced(FRAME))
    too_long[20:24] = b"\xff\0\0\0"
    file = section() + interface() + enhanced(b"a") + bytes(too_long) + enhanced(b"b", index=3) + enhanced(b"c")
    capture, chunks = read(file)
    assert frames(chunks) == [b"a", b"c"]
    assert column(chunks, "number") == [1, 4]
    assert "2 packets" in capture.problems[0].text and capture.problems[0].frames == 1


def test_packets_behind_an_unsound_one_come_once() -> None:
    """A packet with an unknown interface is left out, and each packet behind it comes once with any size of chunks."""
    file = section() + interface() + enhanced(FRAME, index=7) + b"".join(enhanced(FRAME) for _ in range(100))
    capture, chunks = read(file, chunk_bytes=1024)
    assert column(chunks, "number") == list(range(2, 102))
    (problem,) = capture.problems
    assert (problem.offset, problem.frames) == (len(section() + interface()), 0)


def test_a_record_of_impossible_size() -> None:
    """A pcap record that exceeds the limit of libpcap ends the reading."""
    file = pcap([(1, 1, FRAME, 60)])
    capture, chunks = read(file + b"\1\0\0\0\1\0\0\0\xff\xff\xff\x7f\x40\0\0\0" + FRAME)
    assert frames(chunks) == [FRAME]
    assert "claims a frame of 2147483647 bytes" in capture.problems[0].text and capture.problems[0].offset == len(file)


def test_a_fraction_of_more_than_a_second() -> None:
    """A clock that cannot be right is reported, once for many frames, and the frames are kept."""
    capture, chunks = read(pcap([(1, 5_000_000, FRAME, 60), (1, 6_000_000, FRAME, 60)]))
    assert len(frames(chunks)) == 2
    assert "2 frames have a fraction of more than a second" in capture.problems[0].text


def test_a_hostile_file_cannot_fill_the_memory_with_problems() -> None:
    """The list of problems is bounded, however many problems a file has."""
    capture, _ = read(section() + interface() + enhanced(b"x", index=9) * 3000, chunk_bytes=64)
    assert len(capture.problems) == MAX_PROBLEMS


@pytest.mark.parametrize("data", [b"", b"\xd4\xc3", b"GIF89a, not a capture at all", a_pcap()[:20]])
def test_no_capture(data: bytes) -> None:
    """A file that is no capture is refused when it is opened, with its name."""
    with pytest.raises(CaptureError, match="the capture: "):
        open_capture(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (gzip.compress(a_pcap()), "gunzip"),
        (b"snoop\0\0\0" + bytes(30), "editcap"),
        (b"", "it is empty"),
        (b"GIF89a", "47494638"),
    ],
)
def test_a_refusal_names_the_program_that_converts_the_file(data: bytes, advice: str) -> None:
    """A file that only needs unpacking or converting is refused with the name of the program for that."""
    with pytest.raises(CaptureError, match=advice):
        open_capture(io.BytesIO(data))


def test_a_missing_file(tmp_path: Path) -> None:
    """A path that cannot be opened is a CaptureError that says why."""
    with pytest.raises(CaptureError, match="No such file"):
        open_capture(tmp_path / "nothing.pcap")


def test_a_pipe_with_short_reads(tmp_path: Path) -> None:
    """A capture can be read from a pipe while it is written."""
    inward, outward = os.pipe()
    whole = a_pcapng()

    def write() -> None:
        with os.fdopen(outward, "wb", buffering=0) as out:
            for at in range(0, len(whole), 11):
                out.write(whole[at : at + 11])

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(inward, "rb", buffering=0) as file, open_capture(file) as capture:
        assert frames(list(capture)) == frames(read(whole)[1])
    writer.join()


def test_tshark_reads_the_same_times_and_interfaces(tmp_path: Path) -> None:
    """Times, interfaces and lengths of a file with both byte orders and many clocks are those that tshark finds."""
    file = b""
    for order, resolutions in (("<", (6, 9, 3, 0x94)), (">", (0, 7, 0x9E, 9))):
        file += section(order)
        for index, resolution in enumerate(resolutions):
            second = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
            file += interface(order, f"if{index}", resolution, offset_s=index * 7 or None)
            file += enhanced(FRAME, order, index, 1_700_000_000 * second + second // 3, original=60 + index)
    path = tmp_path / "c.pcapng"
    path.write_bytes(file)
    command = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    command += [part for name in ("time_epoch", "len", "cap_len", "interface_name") for part in ("-e", f"frame.{name}")]
    answers = [
        line.split("\t")
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    capture, chunks = read(file)
    seconds = [answer[0].partition(".") for answer in answers]
    assert column(chunks, "time_ns") == [int(whole) * 10**9 + int(part.ljust(9, "0")) for whole, _, part in seconds]
    assert column(chunks, "original") == [int(answer[1]) for answer in answers]
    assert column(chunks, "captured") == [int(answer[2]) for answer in answers]
    assert [capture.interfaces[index].name for index in column(chunks, "interface")] == [
        answer[3] for answer in answers
    ]
