"""Whether the contract's tests find the mutants of the provider, and name nothing but what is wrong in them."""

from collections.abc import Iterable
from dataclasses import dataclass

from hil.evidence.bundle import VerdictRecord
from hil.mutants.catalogue import Mutant
from hil.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Sight:
    """Verdicts of the contract's tests on one mutant.

    ``named`` failed and name a requirement that it breaks, ``others`` failed and do not. ``missed`` are the
    requirements no failed test names, ``invalid`` the tests that could not judge.
    """

    mutant: Mutant
    named: tuple[str, ...]
    others: tuple[str, ...]
    missed: tuple[str, ...]
    invalid: tuple[str, ...]
    count: int

    @property
    def found(self) -> bool:
        return not self.missed


def sight(mutant: Mutant, records: Iterable[VerdictRecord]) -> Sight:
    """Judge the records of a run with ``mutant``."""
    records = list(records)
    failed = {r.test: set(r.requirements) for r in records if r.verdict is Verdict.FAIL}
    named = tuple(test for test, rules in failed.items() if rules & set(mutant.breaks))
    seen = set().union(*failed.values())
    return Sight(
        mutant,
        named,
        tuple(test for test in failed if test not in named),
        tuple(rule for rule in mutant.breaks if rule not in seen),
        tuple(r.test for r in records if r.verdict is Verdict.INVALID),
        len(records),
    )


def told(seen: Sight) -> list[str]:
    """Lines about one mutant."""
    verdict = "found" if seen.found else f"NOT FOUND: no failed test names {', '.join(seen.missed)}"
    lines = [f"{seen.mutant.name}: {seen.mutant.sentence}", f"  {verdict}; {seen.count} tests ran"]
    for title, tests in (("failed", seen.named), ("failed too", seen.others), ("invalid", seen.invalid)):
        lines += [f"  {title:<10} {test}" for test in tests]
    return lines


def listing(known: Iterable[Mutant]) -> list[str]:
    """A line for each mutant: its name, its layer, its sentence and the requirements it breaks."""
    rows = list(known)
    width = max((len(mutant.name) for mutant in rows), default=0)
    return [
        f"{mutant.name:<{width}}  {mutant.layer:<8}  {mutant.sentence} [{', '.join(mutant.breaks) or 'no requirement'}]"
        for mutant in rows
    ]
