"""The results folder: the one writer and the one reader of what a run and each of its tests recorded.

A run's folder holds ``verdicts.json`` (a record for each test), ``versions.json`` (what the run was made with) and a
folder for each test. A test's folder holds ``verdict.json`` (its record), ``evidence.json`` (everything that rules look
at but journal and packets, the closes that were judged, the findings), ``timeline.jsonl`` (journal and packets, a line
each), ``wire.pcapng`` (the packets) and, for people, ``timeline.txt`` and ``findings.txt``.

What is read may have been written by anyone: every value is checked, no link is followed, and nothing but a plain file
is opened.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from hil.capture.pcapng import read_pcapng
from hil.capture.sides import came_in, reached
from hil.errors import CaptureError, EvidenceError, ResultsError
from hil.evidence import plain
from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence, show
from hil.evidence.journal import Entry
from hil.evidence.packets import roce_packets
from hil.evidence.resources import KernelMessage, PortCounters, Process, Resource
from hil.evidence.rules.closes import HardClose
from hil.files import write_whole
from hil.verdict import Verdict

FORMAT = 2
VERDICTS, VERSIONS, VERDICT = "verdicts.json", "versions.json", "verdict.json"
EVIDENCE, TIMELINE, CAPTURE, FINDINGS = "evidence.json", "timeline.jsonl", "wire.pcapng", "findings.txt"
# A larger file than a run writes is not read: it would take all memory.
LARGEST_BYTES = {VERDICTS: 256 << 20, TIMELINE: 512 << 20, CAPTURE: 4 << 30}
LARGEST_OTHER_BYTES = 64 << 20
LONGEST_LINE_BYTES = 16 << 20
# Of the timeline, lines that the capture tells as well.
_PACKETS = ("packet", "arrived")


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """How a test ended: its node id, the requirements that it names, why, after how long, and all its findings."""

    test: str
    verdict: Verdict
    requirements: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """What a test judged: the closes that it named, and what the rules said of its evidence.

    ``asserted``: the test demanded that every finding holds; otherwise it looked at them itself. ``problems``: rules
    that could not be asked.
    """

    closes: tuple[HardClose, ...]
    asserted: bool
    findings: tuple[Finding, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A test's folder, read back. ``judged`` is None where the test ended before it judged anything; ``record`` is None
    where it ended before its verdict was written."""

    folder: Path
    evidence: Evidence
    judged: Judged | None
    record: VerdictRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """``evidence.json``. ``made_with`` is for people: no rule reads it."""

    format: int
    problems: tuple[str, ...]
    judged: Judged | None = None
    addresses: Mapping[str, tuple[str, ...]]
    uncertainty_ns: int
    late_ns: int
    epoch_ns: int
    frames: int
    late_frames: Mapping[int, int]
    clocks: Mapping[str, tuple[tuple[int, int], ...]]
    during: Mapping[str, tuple[Resource, ...]]
    after_close: Mapping[str, tuple[Resource, ...]]
    resources: Mapping[str, tuple[Resource, ...]]
    processes: Mapping[str, tuple[tuple[Process, ...], tuple[Process, ...]]]
    kernel_log: Mapping[str, tuple[KernelMessage, ...]]
    port_counters: Mapping[str, tuple[PortCounters, PortCounters]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder: a record for each test, and what the run was made with, as text by place."""

    folder: Path
    records: tuple[VerdictRecord, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)


def folder_of(results: Path, test: str) -> Path:
    """The folder of a test, which its node id names, below a run's."""
    return results / re.sub(r"[^A-Za-z0-9_-]+", "_", test.removeprefix("tests/"))


class _Older(ResultsError):
    pass


# --- writing ---------------------------------------------------------------------------------------------------------


def write_verdicts(results: Path, records: Iterable[VerdictRecord]) -> None:
    """Write the verdicts of a run so far, in one step. Raises OSError."""
    _write(results / VERDICTS, plain.plain([*records]))


def write_versions(results: Path, made_with: Mapping[str, Any]) -> None:
    """Write what a run is made with. Raises OSError."""
    _write(results / VERSIONS, {**made_with, "format": FORMAT})


def write_record(folder: Path, record: VerdictRecord) -> None:
    """Write a test's record into its folder. Raises OSError."""
    _write(folder / VERDICT, plain.plain(record))


def write_evidence(folder: Path, evidence: Evidence, judged: Judged | None, made_with: Mapping[str, Any]) -> None:
    """Write a test's evidence, but for its capture, which is there. Raises OSError."""
    timeline = evidence.timeline()
    with (folder / TIMELINE).open("w") as out:
        out.writelines(json.dumps(line, default=repr) + "\n" for line in timeline)
    (folder / TIMELINE).with_suffix(".txt").write_text(show(timeline) + "\n")
    if judged is not None:
        (folder / FINDINGS).write_text("".join(f"{finding}\n" for finding in judged.findings))
    facts = {name: getattr(evidence, name) for name in plain.names(_Facts) if name not in ("format", "judged")}
    told = plain.plain({"format": FORMAT, **facts, "judged": judged})
    _write(folder / EVIDENCE, {**told, "made_with": made_with})


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1))


# --- reading ---------------------------------------------------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, rather than a test's."""
    return (folder / VERDICTS).exists()


def read_verdicts(results: Path) -> list[VerdictRecord]:
    """The records of a run. Raises ResultsError when there are none, they are damaged, or an older bench wrote them."""
    try:
        told = plain.load(_text(results / VERDICTS), str(results / VERDICTS))
        if isinstance(told, list) and any(isinstance(one, dict) and "links" in one for one in told):
            raise _Older(f"{results / VERDICTS}: an older version of the bench wrote it; run the tests again")
        return [*plain.read(tuple[VerdictRecord, ...], told, VERDICTS)]
    except _Older:
        raise
    except EvidenceError as error:
        raise ResultsError(f"{results} holds no verdicts: {error}; name a folder that hil run wrote") from error


def read_run(results: Path) -> Run:
    """A run's records and what it was made with. Raises ResultsError."""
    records, path = read_verdicts(results), results / VERSIONS
    if not path.exists():
        return Run(results, tuple(records))
    try:
        return Run(results, tuple(records), dict(_flat("", plain.load(_text(path), str(path)))))
    except RecursionError as error:
        raise ResultsError(f"{path}: nested too deep") from error


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{place}.{name}" if place else str(name), inner)
    elif place != "format":
        yield place, str(value)


def read_bundle(folder: Path) -> Bundle:
    """A test's folder. Raises ResultsError where it cannot be read: it is damaged, or of another version's format."""
    try:
        evidence, judged = _facts(folder)
        evidence.events = list(_journal(folder / TIMELINE))
        _read_capture(folder / CAPTURE, evidence)
        _check(evidence, judged, folder / EVIDENCE)
        record = _record(folder / VERDICT) if _there(folder / VERDICT) else None
        return Bundle(folder, evidence, judged, record)
    except ResultsError:
        raise
    except (EvidenceError, CaptureError) as error:
        raise ResultsError(str(error)) from error


def _facts(folder: Path) -> tuple[Evidence, Judged | None]:
    path = folder / EVIDENCE
    told = plain.load(_text(path), str(path))
    if not isinstance(told, dict):
        raise ResultsError(f"{path}: an object was expected, not a {type(told).__name__}")
    if told.get("format") != FORMAT:
        written = told.get("format")
        version = f"format {written}" if isinstance(written, int) else "a format without a number"
        raise ResultsError(
            f"{path}: another version of the bench wrote it, in {version}; this one reads format {FORMAT}"
        )
    facts = plain.read(_Facts, {name: value for name, value in told.items() if name != "made_with"}, str(path))
    evidence = Evidence(
        addresses={node: list(known) for node, known in facts.addresses.items()},
        resources=_lists(facts.resources),
        during=_lists(facts.during),
        after_close=_lists(facts.after_close),
        processes={node: (list(one), list(other)) for node, (one, other) in facts.processes.items()},
        kernel_log={node: list(log) for node, log in facts.kernel_log.items()},
        port_counters=dict(facts.port_counters),
        clocks=facts.clocks,
        uncertainty_ns=facts.uncertainty_ns,
        late_ns=facts.late_ns,
        late_frames=dict(facts.late_frames),
        epoch_ns=facts.epoch_ns,
        frames=facts.frames,
        problems=list(facts.problems),
    )
    return evidence, facts.judged


def _lists(known: Mapping[str, tuple[Resource, ...]]) -> dict[str, list[Resource]]:
    return {node: list(found) for node, found in known.items()}


def _journal(path: Path) -> Iterator[Entry]:
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE_BYTES + 1), b""), 1):
            place = f"{path}, line {number}"
            if len(line) > LONGEST_LINE_BYTES:
                raise ResultsError(f"{place}: longer than the {LONGEST_LINE_BYTES} bytes that are read")
            told = plain.load(line.decode(errors="replace"), place)
            if not isinstance(told, dict) or told.get("kind") not in _PACKETS:
                yield plain.read(Entry, told, place)


def _read_capture(path: Path, evidence: Evidence) -> None:
    if evidence.frames <= 0:
        return
    # What came after the judgement was not judged.
    with _opened(path) as file:
        frames = list(islice(read_pcapng(file), min(evidence.frames, sys.maxsize)))
    if len(frames) < evidence.frames:
        raise ResultsError(f"{path}: {len(frames)} frames are there, {evidence.frames} were judged")
    evidence.take_packets([*roce_packets(came_in(frames))], [*roce_packets(reached(frames))])


def _check(evidence: Evidence, judged: Judged | None, path: Path) -> None:
    """What one file says of another, or of itself elsewhere, must be there."""
    for close in judged.closes if judged else ():
        for node in (close.closer, close.peer):
            if node not in evidence.addresses:
                raise ResultsError(f"{path}: a close was judged at node {node!r}, whose addresses are not told")


def _record(path: Path) -> VerdictRecord:
    return plain.read(VerdictRecord, plain.load(_text(path), str(path)), str(path))


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _text(path: Path) -> str:
    with _opened(path) as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise ResultsError(f"{path}: no UTF-8 text: {error.reason} at byte {error.start}") from error


def _opened(path: Path) -> BinaryIO:
    """A plain file in a folder that is no link, open for reading. Raises ResultsError."""
    if path.parent.is_symlink():
        raise ResultsError(f"{path.parent} is a symbolic link: name the folder that it leads to")
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except (OSError, ValueError) as error:
        why = "it is a symbolic link" if path.is_symlink() else getattr(error, "strerror", None) or str(error)
        raise ResultsError(f"{path}: {why}") from error
    known, most = os.fstat(file.fileno()), LARGEST_BYTES.get(path.name, LARGEST_OTHER_BYTES)
    if stat.S_ISREG(known.st_mode) and known.st_size <= most:
        return file
    file.close()
    if not stat.S_ISREG(known.st_mode):
        raise ResultsError(f"{path}: no plain file")
    raise ResultsError(f"{path}: {known.st_size} bytes, more than the {most} that are read")


def _without_waiting(path: str, flags: int) -> int:
    # A pipe would keep the reader waiting, a link may lead anywhere.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
