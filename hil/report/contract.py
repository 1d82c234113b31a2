"""How the contract stands: each requirement with the tests that name it and their newest verdicts."""

import csv
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path

from hil.errors import ResultsError
from hil.evidence.bundle import VerdictRecord, read_verdicts
from hil.verdict import Verdict
from hil.winsock.requirements import AREAS, Requirement, requirements


class Standing(Enum):
    """What is known of a requirement."""

    KEPT = "kept"
    IN_PART = "kept in part"
    BROKEN = "broken"
    NOT_RUN = "not run"
    NOT_OBSERVABLE = "not observable"
    NOT_TESTED = "not yet tested"


@dataclass(slots=True)
class Shown:
    """A requirement, the verdict of each test that names it (None when it did not run), and findings that broke."""

    requirement: Requirement
    tests: dict[str, Verdict | None] = field(default_factory=dict)
    broken_findings: list[str] = field(default_factory=list)

    @property
    def standing(self) -> Standing:
        verdicts = set(self.tests.values())
        if self.broken_findings or Verdict.FAIL in verdicts:
            return Standing.BROKEN
        if self.tests:
            kept = Standing.IN_PART if self.requirement.id in partly_observable() else Standing.KEPT
            return kept if verdicts == {Verdict.PASS} else Standing.NOT_RUN
        return Standing.NOT_OBSERVABLE if self.requirement.id in not_observable() else Standing.NOT_TESTED


@cache
def not_observable() -> dict[str, str]:
    """Requirement ids that no test on this bench can see kept or broken, each with its reason."""
    return _reasons("not_observable.csv")


@cache
def partly_observable() -> dict[str, str]:
    """Requirement ids that tests show in part, each with what no test on this bench can see of it."""
    return _reasons("partly_observable.csv")


def _reasons(name: str) -> dict[str, str]:
    text = files("hil.winsock").joinpath(name).read_text(encoding="utf-8")
    return {row["id"]: row["reason"] for row in csv.DictReader(text.splitlines())}


def read_all(folders: Iterable[Path]) -> list[VerdictRecord]:
    """The records of several results folders; of a test that several ran, the last one's. Raises ResultsError."""
    by_test = {record.test: record for folder in folders for record in read_verdicts(folder)}
    return list(by_test.values())


def newest_results(parent: Path) -> Path | None:
    """The folder below ``parent`` whose verdicts are newest, or None."""
    found = list(parent.glob("*/verdicts.json"))
    return max(found, key=lambda p: p.stat().st_mtime).parent if found else None


def stand(named: Mapping[str, Iterable[str]], records: Iterable[VerdictRecord]) -> dict[str, Shown]:
    """Each requirement's standing. ``named``: test to requirement ids; ``records``: of verdicts.json."""
    shown = {requirement.id: Shown(requirement) for requirement in requirements().values()}
    verdicts: dict[str, Verdict] = {}
    for record in records:
        verdicts[record.test] = record.verdict
        for finding in record.findings:
            # A test of the bench itself breaks rules on purpose, and passes when they are named.
            if finding.held or record.verdict is not Verdict.FAIL:
                continue
            for requirement_id in finding.requirements:
                if requirement_id in shown:
                    shown[requirement_id].broken_findings.append(f"{record.test}: {finding.seen}")
    for test, ids in named.items():
        for requirement_id in ids:
            shown[requirement_id].tests[test] = verdicts.get(test)
    return shown


def table(shown: Mapping[str, Shown]) -> list[str]:
    """Lines: for each area how many are in each standing; tagged rows are counted apart."""
    standings = list(Standing)
    head = f"{'area':<9}" + "".join(f"{s.value:>15}" for s in standings) + f"{'tagged':>9}"
    lines = [head]
    for area in AREAS:
        plain = [s for s in shown.values() if s.requirement.area == area and not s.requirement.tags]
        tagged = [s for s in shown.values() if s.requirement.area == area and s.requirement.tags]
        counts = "".join(f"{sum(s.standing is standing for s in plain):>15}" for standing in standings)
        lines.append(f"{area:<9}{counts}{len(tagged):>9}")
    for title, rows in _groups(shown):
        counts = "".join(f"{sum(s.standing is standing for s in rows):>15}" for standing in standings)
        lines.append(f"{title:<9}{counts}")
    return lines


def _groups(shown: Mapping[str, Shown]) -> list[tuple[str, list[Shown]]]:
    rows = list(shown.values())
    groups = [("untagged", [s for s in rows if not s.requirement.tags])]
    for level in ("must", "should", "may"):
        groups.append((f"  {level}", [s for s in groups[0][1] if s.requirement.level == level]))
    return groups + [(f"[{tag}]", [s for s in rows if tag in s.requirement.tags]) for tag in ("drv", "SDK", "IBSP")]


def lists(shown: Mapping[str, Shown]) -> list[str]:
    """Lines: what is broken, not run and not yet tested by its ids, what is not observable with each reason."""
    lines = []
    for standing in (Standing.BROKEN, Standing.NOT_RUN, Standing.NOT_TESTED):
        ids = [f"{s.requirement.id}{'*' if is_binding(s) else ''}" for s in shown.values() if s.standing is standing]
        if ids:
            text = f"{standing.value} (* an untagged must): {', '.join(ids)}"
            lines += ["", *textwrap.wrap(text, 118, subsequent_indent="  ", break_on_hyphens=False)]
    lines.append("")
    for title, reasons in (("not observable", not_observable()), ("partly observable", partly_observable())):
        for requirement_id, reason in reasons.items():
            text = f"{title} {requirement_id}: {reason}"
            lines += textwrap.wrap(text, 118, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def is_binding(shown: Shown) -> bool:
    """Whether the requirement is a must that a SAN page states itself."""
    return shown.requirement.level == "must" and not shown.requirement.tags


def unsettled(shown: Mapping[str, Shown]) -> list[str]:
    """Ids of untagged musts that are neither kept, as far as that can be seen, nor not observable."""
    settled = (Standing.KEPT, Standing.IN_PART, Standing.NOT_OBSERVABLE)
    return [s.requirement.id for s in shown.values() if is_binding(s) and s.standing not in settled]


def details(shown: Shown) -> list[str]:
    """Everything about one requirement, as lines."""
    r = shown.requirement
    tags = f" [{', '.join(r.tags)}]" if r.tags else ""
    lines = [
        f"{r.id} ({AREAS[r.area]}): {shown.standing.value}",
        f"  {r.level}{tags}: {r.sentence}",
        f"  source: {r.source}",
        f"  verify: {r.verify}",
    ]
    if r.id in not_observable():
        lines.append(f"  not observable: {not_observable()[r.id]}")
    if r.id in partly_observable():
        lines.append(f"  partly observable: {partly_observable()[r.id]}")
    lines += [f"  {verdict or 'not run':<11} {test}" for test, verdict in shown.tests.items()]
    return lines + [f"  broken finding {finding}" for finding in shown.broken_findings]


def known_id(text: str) -> str:
    """The id or area that ``text`` means. Raises ResultsError."""
    name = text.upper()
    if name in requirements() or name in AREAS:
        return name
    if match := re.fullmatch(r"([A-Z]+)-(\d+)", name):
        padded = f"{match[1]}-{int(match[2]):02}"
        if padded in requirements():
            return padded
    raise ResultsError(f"{text!r} is no requirement and no area; areas are {', '.join(AREAS)}")
