"""Every rule: the bench's own, then those that other packages bring by the entry point group ``hil.rules``."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.rules.closer import closer_findings
from hil.evidence.rules.closes import HardClose
from hil.evidence.rules.leaks import leak_findings
from hil.evidence.rules.peer import peer_findings
from hil.evidence.rules.sound import sound_findings
from hil.evidence.rules.switch import switch_findings
from hil.evidence.rules.wire import wire_findings

GROUP = "hil.rules"


class Rule(Protocol):
    """A pure function over evidence that yields findings.

    The controller calls it after a test, in the thread of the test, when both providers have ended and the evidence is
    complete; ``hil judge`` calls it with evidence that was read back, without any lab. It is called once for each close
    that the test judges, in the order of the test, and then once with ``close`` None for the run as a whole. It yields
    a finding for each statement that it can judge, and none for what is not its subject.

    Times in evidence are integer nanoseconds of the controller's monotonic clock, right within
    ``evidence.uncertainty_ns``; a packet's may be later by ``evidence.late_ns``. Sizes are bytes. A rule reads
    evidence and changes nothing: it opens no file, asks no node, reads no clock.

    An exception ends the rule. It is a problem of the judgement that names the rule and its package, and makes the
    verdict invalid unless a finding is broken.

    A package brings rules as entry points of the group ``hil.rules``::

        [project.entry-points."hil.rules"]
        no_retransmissions = "mypackage.rules:no_retransmissions"
    """

    def __call__(self, evidence: Evidence, close: HardClose | None, /) -> Iterable[Finding]: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A rule by its name, and the package that brings it. ``load`` gives the rule; it may raise anything."""

    name: str
    package: str
    load: Callable[[], Rule]


def own_rules() -> list[Registered]:
    """The bench's rules, in the order in which their findings are told."""
    rules = {"close": close_findings, "leaks": _of_the_run(leak_findings), "sound": _of_the_run(sound_findings)}
    rules["switch"] = _of_the_run(switch_findings)
    return [Registered(name, "hil", lambda rule=rule: rule) for name, rule in rules.items()]  # type: ignore[misc]


def foreign_rules() -> list[Registered]:
    """The rules that installed packages bring, by package and name."""
    found = [_registered(point) for point in entry_points(group=GROUP)]
    return sorted(found, key=lambda rule: (rule.package, rule.name))


def _registered(point: EntryPoint) -> Registered:
    package = point.dist.name if point.dist is not None else point.module.partition(".")[0]
    return Registered(point.name, package, point.load)


def close_findings(evidence: Evidence, close: HardClose | None) -> Iterable[Finding]:
    """Every finding of one hard close."""
    if close is None:
        return
    yield from wire_findings(evidence, close)
    if not close.killed:
        yield from closer_findings(evidence, close)
    if close.both:
        yield from closer_findings(evidence, close.other_way())
    else:
        yield from peer_findings(evidence, close)


def _of_the_run(rule: Callable[[Evidence], Iterable[Finding]]) -> Rule:
    def of_the_run(evidence: Evidence, close: HardClose | None, /) -> Iterable[Finding]:
        return rule(evidence) if close is None else ()

    return of_the_run
