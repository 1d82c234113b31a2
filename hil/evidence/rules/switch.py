"""What the switch owes its providers, and what every worker does in pairs."""

from collections.abc import Iterable

from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Call, Exit, Misbehaves
from hil.winsock.codes import Code


def switch_findings(evidence: Evidence) -> Iterable[Finding]:
    """The switch kept its obligations, but for those a test broke deliberately."""
    broken = [e for e in evidence.events if isinstance(e, Misbehaves) and not e.deliberate]
    requirements = tuple(sorted({e.requirement for e in broken})) or ("SWITCH-14",)
    seen = "; ".join(f"{e.requirement} at node {e.node}: {e.seen}" for e in broken)
    yield Finding("the switch keeps its obligations", requirements, not broken, seen or "it does")
    for (node, worker), (starts, ends) in _starts_and_ends(evidence).items():
        statement = f"worker {worker} of node {node} pairs every WSPStartupEx with a WSPCleanup"
        yield Finding(statement, ("SWITCH-13",), starts == ends, f"{starts} of the one, {ends} of the other")


def _starts_and_ends(evidence: Evidence) -> dict[tuple[str, int | None], tuple[int, int]]:
    found: dict[tuple[str, int | None], tuple[int, int]] = {}
    killed = {(e.node, e.worker) for e in evidence.events if isinstance(e, Exit)}
    for e in evidence.events:
        place = e.node, e.worker
        if not isinstance(e, Call) or place in killed:
            continue
        begun, ended = e.function == "WSPStartupEx", e.function == "WSPCleanup"
        # A clean-up that reports the network down counts all the same.
        counts = e.code == Code.OK or (ended and e.code == Code.WSAENETDOWN)
        if (begun or ended) and counts:
            starts, ends = found.get(place, (0, 0))
            found[place] = (starts + begun, ends + ended)
    return found
