"""What differs between two runs of the same tests: what they were made with, and what they found."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hil.errors import HilError

ABSENT = "not run"
# What differs between any two runs, and says nothing about the nodes.
IGNORED = ("lab file.", "host", "python", "project")


@dataclass(frozen=True, slots=True)
class Run:
    """A results folder: each test's verdict and reason, and what it was made with (``nodes.a.machine.kernel``)."""

    name: str
    verdicts: dict[str, tuple[str, str]]
    made_with: dict[str, str]


def read_run(folder: Path) -> Run:
    """The run whose evidence is in ``folder``. Raises HilError when it holds none."""
    try:
        records = json.loads((folder / "verdicts.json").read_text())
        verdicts = {str(r["test"]): (str(r["verdict"]), str(r["reason"])) for r in records}
        path = folder / "versions.json"
        made_with = dict(_flat("", json.loads(path.read_text()))) if path.exists() else {}
    except OSError as error:
        raise HilError(f"{folder}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HilError(f"{folder}: verdicts.json or versions.json is damaged: {error!r}") from error
    return Run(folder.name, verdicts, made_with)


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{place}.{name}" if place else str(name), inner)
    else:
        yield place, str(value)


def differences(one: Run, other: Run) -> dict[str, tuple[str, str]]:
    """What the runs were made with, where it is not the same; an empty text where a run does not know it."""
    names = [name for name in one.made_with | other.made_with if not name.startswith(IGNORED)]
    pairs = {name: (one.made_with.get(name, ""), other.made_with.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def verdicts_that_differ(one: Run, other: Run) -> dict[str, tuple[str, str]]:
    """Each test whose verdict is not the same in both runs."""
    absent = (ABSENT, "")
    tests = one.verdicts | other.verdicts
    pairs = {test: (one.verdicts.get(test, absent)[0], other.verdicts.get(test, absent)[0]) for test in tests}
    return {test: pair for test, pair in pairs.items() if pair[0] != pair[1]}


def table(one: Run, other: Run) -> list[str]:
    """Both runs side by side, for people: what they were made with, then what they found differently and why."""
    names = (one.name, other.name)
    made, found = differences(one, other), verdicts_that_differ(one, other)
    lines = [*_rows("made with", names, made), "", *_rows("test", names, found)]
    for test in found:
        lines += [f"    {run.name}: {test}: {_reason(run, test)}" for run in (one, other) if _reason(run, test)]
    same = len(one.verdicts.keys() | other.verdicts.keys()) - len(found)
    return [*lines, "", f"{same} tests ended alike, {len(found)} did not"]


def _reason(run: Run, test: str) -> str:
    reason = run.verdicts.get(test, ("", ""))[1].strip()
    return reason.splitlines()[0][:300] if reason else ""


def _rows(title: str, names: tuple[str, str], rows: dict[str, tuple[str, str]]) -> list[str]:
    widths = [
        max(map(len, column)) for column in zip((title, *names), *((n, *pair) for n, pair in rows.items()), strict=True)
    ]
    cells = [(title, *names), *((name, *pair) for name, pair in rows.items())]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
