"""Missing packets of a capture that has no counter are found by its other packets."""

from dataclasses import replace
from pathlib import Path

import pytest
from captured import kind, opcode, pcapng, place, recorded, without

from hil.capture.pcapng import CapturedFrame
from hil.errors import CaptureError
from hil.evidence.rebuild.missing import missing_in
from hil.roce.icrc import icrc
from hil.roce.opcodes import Operation

# The first RC opcode of a response (9.2).
READ_RESPONSE = Operation.RDMA_READ_RESPONSE_FIRST
WHOLE = ("acceptor_closes", "crossed", "cut_wire", "killed", "qp_error", "refused", "reset", "rping")


def missing(folder: Path, frames: list[CapturedFrame]) -> list[str]:
    path = folder / "x.pcapng"
    path.write_bytes(pcapng(frames).getvalue())
    return missing_in(path)


@pytest.mark.parametrize("name", WHOLE)
def test_a_complete_capture_misses_nothing(tmp_path: Path, name: str) -> None:
    """A complete capture misses nothing, however its connections ended, with losses on the link or without."""
    assert missing(tmp_path, recorded(name)) == []


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("reset", "REQ", "the REQ is missing in the capture"),
        ("reset", "REP", "the REP is missing in the capture"),
        ("reset", "DREQ", "the DREQ that the DREP answers is missing in the capture"),
        ("reset", "DREP", "the capture ends before the DREP"),
    ],
)
def test_a_message_that_others_refer_to_is_missed(tmp_path: Path, name: str, lost: str, said: str) -> None:
    """The line about a missing message names both ends of its connection."""
    frames = recorded(name)
    lines = missing(tmp_path, without(frames, place(frames, lost)))
    (line,) = (line for line in lines if said in line)
    assert line.startswith("between 10.77.0.") and " and 10.77.0." in line


def test_each_request_but_the_last_of_a_direction_is_missed(tmp_path: Path) -> None:
    """A skipped PSN was on the link; the last one may never have been sent."""
    frames = recorded("rping")
    requests: dict[bytes, list[int]] = {}
    for n, frame in enumerate(frames):
        if kind(frame) == "RC" and opcode(frame) < READ_RESPONSE:
            requests.setdefault(frame.data[6:12], []).append(n)
    assert len(requests) == 2
    for places in requests.values():
        assert len(places) >= 4
        assert all(missing(tmp_path, without(frames, n)) for n in places[1:-1])


def test_packets_made_by_a_test_are_ignored(tmp_path: Path) -> None:
    """A packet from an address that no machine has belongs to no connection."""
    frames = recorded("rping")
    at = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and opcode(frame) < READ_RESPONSE)
    data = bytearray(frames[at].data)
    # The last byte of IPv4's source.
    data[29] = 99
    data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
    frames.insert(at + 1, replace(frames[at], data=bytes(data)))
    path = tmp_path / "x.pcapng"
    path.write_bytes(pcapng(frames).getvalue())
    assert any(line.startswith("between 10.77.0.99 and") for line in missing_in(path))
    assert missing_in(path, ["10.77.0.99"]) == []


def test_only_the_first_missing_packets_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The further lines are counted, and a file that does not exist is an error."""
    monkeypatch.setattr("hil.evidence.rebuild.missing.MAX_LISTED", 1)
    frames = recorded("reset")
    first, further = missing(tmp_path, without(frames, place(frames, "REQ"), place(frames, "DREQ")))
    assert first.startswith("between ") and further in ("and 1 more", "and 2 more")
    with pytest.raises(CaptureError):
        missing_in(tmp_path / "none")
