"""What holds of every run: no provider's thread raised, up-calls are right, codes are right."""

from collections.abc import Iterable

from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Call, Completed, Raised, UpCall
from hil.evidence.rules.operations import code_name
from hil.winsock.codes import Code, failed


def sound_findings(evidence: Evidence) -> Iterable[Finding]:
    """No provider broke what holds at any time."""
    yield _nothing_raised(evidence)
    yield _upcalls_are_known(evidence)
    calls = [e for e in evidence.events if isinstance(e, Call)]
    yield _no_blocking_codes(calls)
    yield _sentinels(calls)


def _nothing_raised(evidence: Evidence) -> Finding:
    # Nobody but the bench would see it.
    raised = [_last_line(e.traceback) for e in evidence.events if isinstance(e, Raised)]
    return Finding("no provider's thread raised", ("CLOSE-28",), not raised, "; ".join(raised) or "nothing raised")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["an error without a text"])[-1]


def _upcalls_are_known(evidence: Evidence) -> Finding:
    upcalls = [e for e in evidence.events if isinstance(e, UpCall)]
    stray = [
        e for e in upcalls if e.known is False or (isinstance(e, Completed) and not (e.was_pending and e.overlapped))
    ]
    seen = [f"{e.function} handle {e.handle} at node {e.node}" for e in stray]
    statement = "every up-call names a live handle and a pending operation"
    told = "; ".join(seen) or f"{len(upcalls)} up-calls"
    return Finding(statement, ("CLOSE-14", "CLOSE-25", "OVL-02"), not stray, told)


def _no_blocking_codes(calls: list[Call]) -> Finding:
    never = [e for e in calls if e.code in (Code.WSAEINPROGRESS, Code.WSAEINTR)]
    waits = [e for e in calls if e.code == Code.WSAEWOULDBLOCK and e.function not in ("WSPConnect", "WSPAccept")]
    seen = [f"{e.function}: {code_name(e.code)}" for e in (*never, *waits)]
    requirements = ("ERR-01", "ERR-02", "ERR-03", "CLOSE-04", "CLOSE-05")
    return Finding("no call ends with a code of blocking calls", requirements, not seen, "; ".join(seen) or "none did")


def _sentinels(calls: list[Call]) -> Finding:
    # WSPStartupEx returns the code itself.
    odd = [e for e in calls if e.function != "WSPStartupEx" and failed(e.function, e.result) != bool(e.code)]
    seen = [f"{e.function} returned {e.result} with {code_name(e.code)}" for e in odd]
    statement = "a call that fails returns its sentinel and stores a code"
    return Finding(statement, ("CLOSE-02", "SOCK-10", "OVL-01"), not seen, "; ".join(seen) or f"{len(calls)} calls")
