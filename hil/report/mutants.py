"""Whether the contract's tests find providers that are broken on purpose, and nothing but what is broken."""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hil.winsock.requirements import requirements

_RULE = re.compile(r"\b[A-Z]+-\d{2}\b")


@dataclass(frozen=True, slots=True)
class BrokenProvider:
    """A class of hil/mutants/providers.py: what it does wrong, and the requirements that breaks."""

    name: str
    sentence: str
    breaks: tuple[str, ...]

    @property
    def areas(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(requirements()[rule].area for rule in self.breaks))


@cache
def broken_providers() -> dict[str, BrokenProvider]:
    """By name, as their docstrings tell: only nodes can import the module, which needs pyverbs."""
    text = files("hil.mutants").joinpath("providers.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    found = [(node.name, ast.get_docstring(node) or "") for node in classes]
    return {name: BrokenProvider(name, doc, tuple(_RULE.findall(doc))) for name, doc in found}


@dataclass(frozen=True, slots=True)
class Sight:
    """What the tests saw of a broken provider.

    ``named`` failed and name a requirement that it breaks, ``others`` failed and do not. ``missed`` are the
    requirements no failed test names, ``invalid`` the tests that could not judge.
    """

    provider: BrokenProvider
    named: tuple[str, ...]
    others: tuple[str, ...]
    missed: tuple[str, ...]
    invalid: tuple[str, ...]
    count: int

    @property
    def found(self) -> bool:
        return not self.missed


def sight(provider: BrokenProvider, records: Iterable[Mapping[str, Any]]) -> Sight:
    """Judge the records (of verdicts.json) of a run with ``provider``."""
    records = list(records)
    failed = {r["test"]: set(r["requirements"]) for r in records if r["verdict"] == "fail"}
    named = tuple(test for test, rules in failed.items() if rules & set(provider.breaks))
    seen = set().union(*failed.values())
    return Sight(
        provider,
        named,
        tuple(test for test in failed if test not in named),
        tuple(rule for rule in provider.breaks if rule not in seen),
        tuple(r["test"] for r in records if r["verdict"] == "invalid"),
        len(records),
    )


def told(seen: Sight) -> list[str]:
    """Lines about one broken provider."""
    verdict = "found" if seen.found else f"NOT FOUND: no failed test names {', '.join(seen.missed)}"
    lines = [f"{seen.provider.name}: {seen.provider.sentence}", f"  {verdict}; {seen.count} tests ran"]
    for title, tests in (("failed", seen.named), ("failed too", seen.others), ("invalid", seen.invalid)):
        lines += [f"  {title:<10} {test}" for test in tests]
    return lines
