"""The peer's side of a hard close: the news arrives, and what was pending ends with WSAECONNRESET."""

from collections.abc import Iterable

from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Begin, CmEvent, CmHeard, Completed
from hil.evidence.packets import Connection
from hil.evidence.rules.closes import HardClose
from hil.evidence.rules.operations import code_name, completions, posted
from hil.evidence.rules.wire import connection_of
from hil.winsock.codes import Code


def peer_findings(evidence: Evidence, close: HardClose) -> Iterable[Finding]:
    """What holds at the end that did not close."""
    events = evidence.of(close.peer, CmHeard, event=CmEvent.DISCONNECTED, handle=close.peer_handle)
    yield Finding("the peer's CM hears of it", ("CLOSE-31",), bool(events), f"{len(events)} DISCONNECTED events")
    if events and (connection := connection_of(evidence, close)) is not None:
        yield _news_was_carried(evidence, close, connection, events[0])
    done = evidence.of(close.peer, Completed, handle=close.peer_handle)
    yield _completed_once(evidence, close, done)
    yield _reset(evidence, close, done, events[0].at_ns if events else 0)


def _completed_once(evidence: Evidence, close: HardClose, done: list[Completed]) -> Finding:
    operations = posted(evidence, close.peer, close.peer_socket)
    counts = completions(operations, done)
    return Finding(
        "each operation at the peer completes exactly once",
        ("RECV-13", "CLOSE-31", "CLOSE-34"),
        all(n == 1 for n in counts.values()) and len(done) == len(operations),
        f"completions by operation: {counts}",
    )


def _reset(evidence: Evidence, close: HardClose, done: list[Completed], heard_ns: int) -> Finding:
    begun = evidence.of(close.peer, Begin, function="WSPCloseSocket", socket=close.peer_socket)
    # What the peer cancels itself is excused only when its own close came first.
    own_ns = begun[0].at_ns if begun and begun[0].at_ns < heard_ns else None
    failed = [e for e in done if e.code and (own_ns is None or e.at_ns < own_ns)]
    return Finding(
        "operations pending at the peer end with WSAECONNRESET and zero bytes",
        ("RECV-13", "CLOSE-31"),
        all(e.code == Code.WSAECONNRESET and e.transferred == 0 for e in failed),
        f"{len(failed)} failed with {sorted({code_name(e.code) for e in failed})}",
    )


def _news_was_carried(evidence: Evidence, close: HardClose, connection: Connection, heard: CmHeard) -> Finding:
    # Wire and node agree: the peer hears of a reset once a DREQ of this connection came, or the answer to its own.
    own, kinds = evidence.addresses[close.peer], ("DREQ", "DREP")
    arrived = [p for p in connection.packets(evidence.delivered) if p.cm in kinds and p.source not in own]
    first = min(
        (evidence.packet_times_ns[p.frame] - evidence.late_frames.get(p.frame, 0) for p in arrived), default=None
    )
    statement, requirements = "what the peer's CM hears the wire has carried", ("CLOSE-31", "CLOSE-35")
    if first is None:
        return Finding(statement, requirements, False, "no DREQ and no DREP reached the peer")
    since_ns = heard.at_ns - first
    seen = f"heard {since_ns / 1e6:.1f} ms after it was carried"
    return Finding(statement, requirements, since_ns >= -(evidence.uncertainty_ns + evidence.late_ns), seen)
