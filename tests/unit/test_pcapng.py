"""Captures are written and read back exactly, and damage is reported."""

from pathlib import Path

import pytest

from hil.capture.pcapng import PcapngWriter, read_pcapng
from hil.errors import CaptureError


def write(path: Path) -> list[tuple[int, int, bytes]]:
    frames = [(0, 1_700_000_000_123_456_789, b"x" * 61), (1, 1_700_000_000_123_456_790, b"y" * 1500)]
    with path.open("wb") as out:
        writer = PcapngWriter(out, ["side-a", "side-b"])
        for interface, time_ns, data in frames:
            writer.write(interface, time_ns, data, "a comment")
    return frames


def test_frames_come_back_with_their_nanoseconds(tmp_path: Path) -> None:
    """Time, interface and bytes of each frame are read back exactly."""
    written = write(tmp_path / "c.pcapng")
    read = list(read_pcapng(tmp_path / "c.pcapng"))
    assert [(f.interface, f.time_ns, f.data) for f in read] == [(f"side-{'ab'[i]}", t, d) for i, t, d in written]
    assert [f.number for f in read] == [1, 2]


def test_a_cut_file_raises(tmp_path: Path) -> None:
    """Wherever the file ends too early, reading raises CaptureError and nothing else."""
    path = tmp_path / "c.pcapng"
    write(path)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) - 700, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(CaptureError, match="cut"):
            list(read_pcapng(path))


def test_another_file_is_not_a_capture(tmp_path: Path) -> None:
    """A file of another kind is refused with its name."""
    path = tmp_path / "c.pcapng"
    path.write_bytes(b"GIF89a, not a capture")
    with pytest.raises(CaptureError, match="not a pcapng"):
        list(read_pcapng(path))
