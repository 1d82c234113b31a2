"""Evidence judged again by today's rules: a test's folder or a whole run's, without any lab."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hil.errors import ResultsError
from hil.evidence.bundle import (
    EVIDENCE,
    Bundle,
    VerdictRecord,
    folder_of,
    is_run,
    read_bundle,
    read_verdicts,
)
from hil.evidence.disconnect import Finding, broken
from hil.evidence.judgement import Judgement, judge
from hil.evidence.plain import plain
from hil.verdict import Verdict

FORMAT = "hil-judge/1"
NOT_JUDGED = "the test ended before it judged its evidence: there is nothing to judge again"
NO_FOLDER = "it recorded no evidence"


@dataclass(frozen=True, slots=True)
class Change:
    """A finding that is not what it was: ``before`` is None for one that is new, ``after`` for one that is gone."""

    before: Finding | None
    after: Finding | None

    def __str__(self) -> str:
        statement = (self.after or self.before or _NOTHING).statement
        told = f"{_word(self.before)} -> {_word(self.after)}: {statement}"
        return f"{told}: {self.after.seen}" if self.after else told


_NOTHING = Finding("", (), True, "")


def _word(finding: Finding | None) -> str:
    if finding is None:
        return "absent"
    return "doubt" if finding.doubt else "held" if finding.held else "broke"


@dataclass(frozen=True, slots=True)
class Again:
    """A test judged again. ``before`` is None where no verdict was written. ``note`` says why the new verdict is not
    the rules' alone. ``findings`` counts those of today's rules."""

    test: str
    before: Verdict | None
    after: Verdict
    changes: tuple[Change, ...] = ()
    findings: int = 0
    note: str = ""


def judge_folder(folder: Path) -> Iterator[Again]:
    """Every test of a run, or one test by its folder.

    Raises ResultsError, which names the file and the place in it, where something cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: there is no such folder")
    if not is_run(folder):
        yield _again(read_bundle(folder), None)
        return
    for record in read_verdicts(folder):
        place = folder_of(folder, record.test)
        if (place / EVIDENCE).is_symlink() or (place / EVIDENCE).exists() or place.is_symlink():
            yield _again(read_bundle(place), record)
        else:
            yield Again(record.test, record.verdict, record.verdict, note=NO_FOLDER)


def _again(bundle: Bundle, record: VerdictRecord | None) -> Again:
    record = record or bundle.record
    test, before = (record.test, record.verdict) if record else (bundle.folder.name, None)
    problems = f"the evidence is incomplete: {'; '.join(bundle.evidence.problems)}" if bundle.evidence.problems else ""
    if bundle.judged is None:
        # A test of what ends a node expects problems, and judges by itself.
        return Again(test, before, before or Verdict.INVALID, note=problems or NOT_JUDGED)
    if problems:
        return Again(test, before, Verdict.INVALID, note=problems)
    judgement = judge(bundle.evidence, bundle.judged.closes)
    changes = tuple(changed(bundle.judged.findings, judgement.findings))
    after, note = _verdict(bundle, before, judgement, changes)
    return Again(test, before, after, changes, len(judgement.findings), note)


def _verdict(
    bundle: Bundle, before: Verdict | None, judgement: Judgement, changes: tuple[Change, ...]
) -> tuple[Verdict, str]:
    """The new verdict, and why it is not the rules' alone: a test asserts more than its findings."""
    assert bundle.judged is not None
    if judgement.problems:
        return judgement.verdict, "; ".join(judgement.problems)
    if not bundle.judged.asserted:
        # What the test expected of its findings is in its code only.
        if changes or before is None:
            return Verdict.INVALID, "the test looked at its findings itself: run it again to know what it says of them"
        return before, "the test looked at its findings itself, and they are the same"
    if broken(judgement.findings) or judgement.doubts:
        return judgement.verdict, "; ".join(judgement.doubts)
    if before in (Verdict.FAIL, Verdict.INVALID) and not broken(bundle.judged.findings):
        return before, "it was not the findings that ended the test so"
    if before is Verdict.FAIL:
        return Verdict.PASS, "what the test asserts behind its findings was not reached"
    return Verdict.PASS, ""


def changed(before: Iterable[Finding], after: Iterable[Finding]) -> Iterator[Change]:
    """The findings that differ in anything, matched by their statement; of equal statements, the n-th by the n-th."""
    old, new = _by_statement(before), _by_statement(after)
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield Change(old.get(key), new.get(key))


def _by_statement(findings: Iterable[Finding]) -> dict[tuple[str, int], Finding]:
    found: dict[tuple[str, int], Finding] = {}
    counts: dict[str, int] = {}
    for finding in findings:
        number = counts[finding.statement] = counts.get(finding.statement, 0) + 1
        found[finding.statement, number] = finding
    return found


def lines(again: Again) -> list[str]:
    """One test for people: old and new verdict, then what changed."""
    before = again.before or "unknown"
    told = str(again.after) if before == again.after else f"{before} -> {again.after}"
    note = [f"    {again.note}"] if again.note else []
    return [f"{told:<20} {again.test}", *note, *(f"    {change}" for change in again.changes)]


def summary(judged: list[Again]) -> str:
    """The last line for people."""
    different = sum(again.before is not again.after for again in judged)
    findings, changes = sum(again.findings for again in judged), sum(len(again.changes) for again in judged)
    counts = ", ".join(f"{sum(again.after is verdict for again in judged)} {verdict}" for verdict in Verdict)
    return f"{counts}; {different} verdicts of {len(judged)} and {changes} findings of {findings} changed"


def as_json(judged: list[Again], code: int) -> dict[str, Any]:
    """Everything as plain data: {"format", "exit_code", "tests": [{"test", "before", "after", "findings", "changes",
    "note"}]}; a change has "before" and "after", each a finding or absent."""
    return {"format": FORMAT, "exit_code": code, "tests": plain(judged)}
