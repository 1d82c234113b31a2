"""What is fuzzed: functions of bytes from anywhere. Each raises what its reader's docstring names, and nothing else."""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from hil.agent.protocol import BadFrame, FrameBuffer, decode
from hil.capture.bulk import scan
from hil.capture.pcapng import CapturedFrame
from hil.capture.reader import open_capture
from hil.errors import CaptureError, FaultError, LabFileError
from hil.evidence.packets import roce_packets
from hil.labs.file import read_lab_file
from hil.report import verify_json, verify_page, verify_text
from hil.report.verify import verify
from hil.roce.frames import dissect
from hil.wire.changes import change
from hil.wire.faults import Corrupt, Fault, MarkEcn, Match, Truncate, from_json
from hil.wire.picking import Faults

CAPTURES = Path(__file__).parents[1] / "unit" / "captures"
LABS = Path(__file__).parents[2] / "lab"


def capture_file(data: bytes) -> None:
    """A capture read, scanned, its connections rebuilt, judged and told in every form."""
    with tempfile.NamedTemporaryFile(suffix=".pcapng") as file:
        file.write(data)
        file.flush()
        try:
            report = verify(Path(file.name))
        except CaptureError:
            return
    json.loads(verify_json.document([verify_json.file_object(report)], 0))
    assert "<html" in verify_page.page([report], [])
    assert list(verify_text.lines(report))


def frame(data: bytes) -> None:
    """One frame by scapy's layers, and as a packet for the rules over evidence."""
    if (packet := dissect(data)) is not None:
        packet.show(dump=True)
    list(roce_packets([CapturedFrame(1, 0, "side-a", data, len(data))]))


def wire(data: bytes) -> None:
    """Frames of a node, two bytes of length before each, on a wire whose rules look at everything and change frames."""
    actions = (Corrupt(offset=12, mask=1, repaired=True), Truncate(keep=60, lengths_repaired=True), MarkEcn())
    rules = Faults()
    for number, action in enumerate(actions):
        rules.add(Fault(f"rule {number}", action, Match(probability=0.5, seed=number)))
    while len(data) > 2:
        length = int.from_bytes(data[:2], "big")
        one, data = data[2 : 2 + length], data[2 + length :]
        hit, outline = rules.decide("a", one)
        if hit is not None:
            change(one, hit.action, outline)


def rule(data: bytes) -> None:
    """A rule from JSON."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        again = from_json(told)
    except FaultError:
        return
    assert from_json(json.loads(json.dumps(again.to_json()))) == again


def lab_file(data: bytes) -> None:
    """A lab file: read, or refused with its mistakes."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            read_lab_file(Path(file.name))
        except LabFileError as error:
            assert str(error)


def channel(data: bytes) -> None:
    """What a node sends over its channel."""
    try:
        for body in FrameBuffer().feed(data):
            decode(body)
    except BadFrame:
        return


def planted(data: bytes) -> None:
    """A defect that only coverage leads to: the fuzzer must find it, or it finds nothing."""
    if data[:1] == b"S" and data[1:2] == b"A" and data[2:3] == b"N" and data[3:4] == b"!":
        raise AssertionError("found")


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (capture_file, frame, wire, rule, lab_file, channel)
}


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with: what the target reads when nothing is wrong."""
    files = [path.read_bytes() for path in sorted(CAPTURES.rglob("*.pcapng")) if path.stat().st_size < 20_000]
    if target == "capture_file":
        return files
    if target in ("frame", "wire"):
        frames = [one for data in files for one in _frames(data)]
        longest = {len(one): one for one in frames}
        kinds = list(longest.values())
        if target == "frame":
            return kinds
        return [
            b"".join(len(one).to_bytes(2, "big") + one for one in kinds[i : i + 4]) for i in range(0, len(kinds), 4)
        ]
    if target == "rule":
        return [json.dumps(Fault("one", Corrupt(offset=1, mask=3), Match(side="a")).to_json()).encode()]
    if target == "lab_file":
        return [path.read_bytes() for path in sorted(LABS.glob("*.toml"))]
    return [b"\0\0\0\x0e" + b'{"kind":"one"}']


def _frames(data: bytes) -> list[bytes]:
    with open_capture(io.BytesIO(data)) as capture:
        return [batch.frame(row) for chunk in capture for batch in [scan(chunk)] for row in range(len(batch))]
