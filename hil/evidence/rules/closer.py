"""The closer's side of a hard close: cancelled operations, their code, the order of up-calls."""

from collections.abc import Iterable

from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Begin, Call, CmEvent, CmHeard, Completed, HandleMade, Released, UpCall
from hil.evidence.rules.closes import HardClose
from hil.evidence.rules.operations import code_name, completions, posted, succeeded
from hil.winsock.codes import Code


def closer_findings(evidence: Evidence, close: HardClose) -> Iterable[Finding]:
    """What holds at the end that closed."""
    yield _returned_zero(evidence, close)
    yield _completed_once(evidence, close)
    cancelled, ended = _cancelled(evidence, close)
    yield _aborted(cancelled, ended)
    yield _memory_first(evidence, close, cancelled)
    yield _handle_last(evidence, close)


def _returned_zero(evidence: Evidence, close: HardClose) -> Finding:
    calls = evidence.of(close.closer, Call, function="WSPCloseSocket", socket=close.closer_socket, result=0)
    return Finding("WSPCloseSocket returns 0", ("CLOSE-01",), bool(calls), f"{len(calls)} calls returned 0")


def _completed_once(evidence: Evidence, close: HardClose) -> Finding:
    operations = posted(evidence, close.closer, close.closer_socket)
    done = evidence.of(close.closer, Completed, handle=close.closer_handle)
    counts = completions(operations, done)
    return Finding(
        "each operation completes exactly once",
        ("CLOSE-11", "CLOSE-12", "CLOSE-14", "OVL-02"),
        all(n == 1 for n in counts.values()) and len(done) == len(operations),
        f"completions by operation: {counts}",
    )


def _cancelled(evidence: Evidence, close: HardClose) -> tuple[list[Completed], list[Completed]]:
    """(operations that the close cancelled, those that the peer's reset ended before)."""
    node, handle = close.closer, close.closer_handle
    begun = evidence.of(node, Begin, function="WSPCloseSocket", socket=close.closer_socket)
    started_ns = begun[0].at_ns if begun else 0
    late = [e for e in evidence.of(node, Completed, handle=handle) if e.at_ns >= started_ns]
    # When both close, the peer's reset may be here before this close has stopped anything: then it ends operations.
    resets = evidence.of(node, CmHeard, handle=handle, event=CmEvent.DISCONNECTED) if close.both else []
    reset_ns = min((e.at_ns for e in resets), default=None)
    by_reset = [reset_ns is not None and e.code == Code.WSAECONNRESET and reset_ns <= e.at_ns for e in late]
    ended = [e for e, reset in zip(late, by_reset, strict=True) if reset]
    return [e for e, reset in zip(late, by_reset, strict=True) if e.code and not reset], ended


def _aborted(cancelled: list[Completed], ended: list[Completed]) -> Finding:
    codes = {code_name(e.code) for e in cancelled}
    right = all(e.code == Code.WSA_OPERATION_ABORTED for e in cancelled)
    return Finding(
        "cancelled operations end with WSA_OPERATION_ABORTED and zero bytes",
        ("CLOSE-13", "CLOSE-16"),
        right and all(e.transferred == 0 for e in (*cancelled, *ended)),
        f"{len(cancelled)} cancelled with {sorted(codes)}",
    )


def _memory_first(evidence: Evidence, close: HardClose, cancelled: list[Completed]) -> Finding:
    node, socket = close.closer, close.closer_socket
    released = evidence.of(node, Released, handle=close.closer_handle)
    released_ns, count = max((e.at_ns for e in released), default=None), sum(e.count for e in released)
    early = [e.overlapped for e in cancelled if released_ns is not None and e.at_ns < released_ns]
    registered = succeeded(evidence, node, "WSPRegisterMemory", socket)
    registered -= succeeded(evidence, node, "WSPDeregisterMemory", socket)
    return Finding(
        "memory is released before operations are cancelled",
        ("CLOSE-17",),
        not early and count == registered,
        f"{count} of {registered} registrations released; completed before: {early}",
    )


def _handle_last(evidence: Evidence, close: HardClose) -> Finding:
    upcalls = [
        e for e in evidence.of(close.closer, UpCall, handle=close.closer_handle) if not isinstance(e, HandleMade)
    ]
    closes = [i for i, e in enumerate(upcalls) if e.function == "WPUCloseSocketHandle"]
    return Finding(
        "WPUCloseSocketHandle is the last up-call, made once",
        ("CLOSE-23", "CLOSE-24", "CLOSE-25", "CLOSE-26"),
        closes == [len(upcalls) - 1],
        f"up-calls: {[e.function for e in upcalls]}",
    )
