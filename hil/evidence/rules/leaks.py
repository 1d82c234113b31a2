"""What is left behind: in the kernels, in the processes, and what the kernels say of it."""

from collections.abc import Iterable

from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Call
from hil.evidence.origins import named
from hil.evidence.rules.kernel_log import complaints
from hil.evidence.rules.processes import ended_processes, grown_processes
from hil.evidence.rules.resources import held


def leak_findings(evidence: Evidence) -> Iterable[Finding]:
    """Nothing of a closed socket is left before WSPCleanup, and nothing at all after it."""
    yield from _after_close(evidence)
    yield from _after_cleanup(evidence)
    yield from _grown(evidence)
    for node, log in evidence.kernel_log.items():
        bad = complaints(log)
        statement = f"node {node}'s kernel does not complain"
        told = "; ".join(bad) or f"{len(log)} messages, none of them a complaint"
        yield Finding(statement, ("CLOSE-28",), not bad, told)


def _after_close(evidence: Evidence) -> Iterable[Finding]:
    for node, left in evidence.after_close.items():
        statement = f"node {node}'s kernel holds nothing of the closed socket"
        yield Finding(statement, ("CLOSE-18", "CLOSE-27"), not left, named(left, evidence, node))


def _after_cleanup(evidence: Evidence) -> Iterable[Finding]:
    for node, found in evidence.resources.items():
        left = held(found, evidence.during.get(node, []))
        statement = f"node {node}'s kernel holds nothing after WSPCleanup"
        yield Finding(statement, ("CLOSE-18", "CLOSE-27", "CLEAN-04"), not left, named(left, evidence, node))


def _grown(evidence: Evidence) -> Iterable[Finding]:
    ours = {e.pid for e in evidence.events}
    for node, (before, after) in evidence.processes.items():
        ended = ended_processes(evidence.of(node, Call))
        grown = grown_processes(before, [process for process in after if process.pid in ours], ended)
        statement = f"node {node}'s processes hold no more than before the first connection"
        told = "; ".join(grown) or f"{len(after)} processes looked at"
        yield Finding(statement, ("CLOSE-27", "CLEAN-04"), not grown, told)
