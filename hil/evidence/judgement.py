"""The judgement of a test's evidence: the same when the test has run, and when its evidence is read back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hil.evidence.disconnect import Finding, broken
from hil.evidence.evidence import Evidence
from hil.evidence.rules.closes import HardClose
from hil.evidence.rules.registry import Registered, foreign_rules, own_rules
from hil.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say. ``problems``: rules that could not be asked, each with its name and package."""

    findings: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def doubts(self) -> list[str]:
        """Why nothing can be concluded, unless a finding is broken."""
        return [*self.problems, *(f"{f.statement}: {f.doubt}" for f in self.findings if f.doubt)]

    @property
    def verdict(self) -> Verdict:
        """A finding that is proved to be broken stays a fail, whatever is in doubt beside it."""
        if broken(self.findings):
            return Verdict.FAIL
        return Verdict.INVALID if self.doubts else Verdict.PASS


def judge(evidence: Evidence, closes: Sequence[HardClose], rules: Iterable[Registered] | None = None) -> Judgement:
    """Judge evidence without problems: each close, then the run as a whole. ``rules``: all that are installed.

    Raises nothing that a rule raises: that is a problem.
    """
    findings: list[Finding] = []
    problems: list[str] = []
    for rule in [*own_rules(), *foreign_rules()] if rules is None else rules:
        try:
            found = list(_asked(rule, evidence, closes))
        except Exception as error:
            problems.append(f"the rule {rule.name} of {rule.package} broke: {type(error).__name__}: {error}")
        else:
            findings += found
    return Judgement(tuple(findings), tuple(problems))


def _asked(registered: Registered, evidence: Evidence, closes: Sequence[HardClose]) -> Iterable[Finding]:
    rule = registered.load()
    for close in (*closes, None):
        for finding in rule(evidence, close):
            if not isinstance(finding, Finding):
                raise TypeError(f"it yielded a {type(finding).__name__}, not a Finding")
            yield finding
