"""What differs between two runs of the same tests: what they were made with, and what they found."""

from hil.evidence.bundle import Run, VerdictRecord

ABSENT = "not run"
# What differs between any two runs, and says nothing about the nodes.
IGNORED = ("lab file.", "host", "python", "project")


def by_test(run: Run) -> dict[str, VerdictRecord]:
    """The record of each test of a run."""
    return {record.test: record for record in run.records}


def differences(one: Run, other: Run) -> dict[str, tuple[str, str]]:
    """What the runs were made with, where it is not the same; an empty text where a run does not know it."""
    names = [name for name in {**one.made_with, **other.made_with} if not name.startswith(IGNORED)]
    pairs = {name: (one.made_with.get(name, ""), other.made_with.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def verdicts_that_differ(one: Run, other: Run) -> dict[str, tuple[str, str]]:
    """Each test whose verdict is not the same in both runs."""
    verdicts, others = ({test: str(record.verdict) for test, record in by_test(run).items()} for run in (one, other))
    pairs = {test: (verdicts.get(test, ABSENT), others.get(test, ABSENT)) for test in verdicts | others}
    return {test: pair for test, pair in pairs.items() if pair[0] != pair[1]}


def table(one: Run, other: Run) -> list[str]:
    """Both runs side by side, for people: what they were made with, then what they found differently and why."""
    names = (one.folder.name, other.folder.name)
    made, found = differences(one, other), verdicts_that_differ(one, other)
    lines = [*_rows("made with", names, made), "", *_rows("test", names, found)]
    for test in found:
        lines += [f"    {run.folder.name}: {test}: {_reason(run, test)}" for run in (one, other) if _reason(run, test)]
    same = len(by_test(one).keys() | by_test(other).keys()) - len(found)
    return [*lines, "", f"{same} tests ended alike, {len(found)} did not"]


def _reason(run: Run, test: str) -> str:
    record = by_test(run).get(test)
    reason = record.reason.strip() if record else ""
    return reason.splitlines()[0][:300] if reason else ""


def _rows(title: str, names: tuple[str, str], rows: dict[str, tuple[str, str]]) -> list[str]:
    widths = [
        max(map(len, column)) for column in zip((title, *names), *((n, *pair) for n, pair in rows.items()), strict=True)
    ]
    cells = [(title, *names), *((name, *pair) for name, pair in rows.items())]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
