"""The wire of a hard close: DREQ and DREP of this very connection, in the right place, and nothing after."""

from collections.abc import Iterable

from hil.evidence.disconnect import (
    Disconnect,
    Finding,
    Release,
    address_finding,
    answer_findings,
    release_findings,
)
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Begin, Call, Completed, QueuePairMade
from hil.evidence.packets import Connection, RocePacket
from hil.evidence.rules.closes import HardClose
from hil.roce.opcodes import MESSAGE_ENDS
from hil.roce.psn import Psn, any_not_before
from hil.winsock.codes import Code

# What frames may wait on the way to the wire's clock, and how long a hard close may take to say so on the wire.
WIRE_DELAY_NS = 100_000_000
RESET_WITHIN_NS = 1_000_000_000


def wire_findings(evidence: Evidence, close: HardClose) -> Iterable[Finding]:
    """What the capture shows of a close."""
    connection = connection_of(evidence, close)
    if connection is None:
        seen = "no REQ and REP of these nodes found"
        yield Finding("the connection is in the capture", ("CLOSE-35",), False, seen)
        return
    closer, peer = evidence.addresses[close.closer], evidence.addresses[close.peer]
    yield from disconnect_findings(evidence, connection, closer, peer, both=close.both)
    if not close.killed:
        yield _reset_by_close(evidence, close, connection)
        yield _successes_were_carried(evidence, connection, close.closer, close.closer_handle)
    yield _successes_were_carried(evidence, connection, close.peer, close.peer_handle)


def connection_of(evidence: Evidence, close: HardClose) -> Connection | None:
    """The connection that was closed, or None where the capture does not have it."""
    ends = set(evidence.addresses[close.closer]), set(evidence.addresses[close.peer])
    made = evidence.of(close.closer, QueuePairMade, handle=close.closer_handle)
    # A hand-over gives a socket another queue pair: the last is the one that was closed.
    qpn = made[-1].qp_num if made else None

    def closed(c: Connection) -> bool:
        active = c.active in ends[0] and c.passive in ends[1] and c.active_qpn == qpn
        return active or (c.active in ends[1] and c.passive in ends[0] and c.passive_qpn == qpn)

    return next(filter(closed, evidence.connections()), None)


def disconnect_findings(
    evidence: Evidence, connection: Connection, closer: list[str], peer: list[str], *, both: bool = False
) -> Iterable[Finding]:
    """A connection's end on the wire, whoever made it; ``closer`` and ``peer`` are the ends' addresses.

    ``both``: either end may have sent the DREQ.
    """
    packets = connection.packets(evidence.packets)
    dreqs = [p for p in packets if p.cm == "DREQ" and (p.source in closer or both)]
    dreps = [p for p in packets if p.cm == "DREP" and (p.source in peer or both)]
    qpns = {True: connection.passive_qpn, False: connection.active_qpn}
    own = [dreqs[0].source] if dreqs else []
    facts = Disconnect(
        described=str(connection),
        ends=(connection.active, connection.passive),
        gids=connection.gids,
        dreqs=tuple(Release(p.frame, p.qpn == qpns[p.source == connection.active]) for p in dreqs),
        dreps=tuple(p.frame for p in dreps),
        answered=bool(dreps) and bool(dreqs) and dreps[0].frame > dreqs[0].frame,
        after_dreq=_after(packets, dreqs[0], own) if dreqs else (),
        after_drep=_after(packets, dreps[-1], [*closer, *peer]) if dreps else (),
        closers_last_data=_last_data(packets, own),
        last_data=_last_data(packets, [*closer, *peer]),
    )
    yield address_finding(facts)
    yield from release_findings(facts)
    yield from answer_findings(facts)


def _after(packets: list[RocePacket], last: RocePacket, sources: list[str]) -> tuple[int, ...]:
    after = [p for p in packets if p.frame > last.frame and p.source in sources and p.cm not in ("DREQ", "DREP")]
    return tuple(p.frame for p in after)


def _last_data(packets: list[RocePacket], sources: list[str]) -> int | None:
    return max((p.frame for p in packets if not p.cm and p.source in sources), default=None)


def _reset_by_close(evidence: Evidence, close: HardClose, connection: Connection) -> Finding:
    # Ending the process or the library sends a DREQ too, and a lingering close a late one.
    packets = connection.packets(evidence.packets)
    times = [(evidence.packet_times_ns[p.frame], p.frame) for p in packets if p.cm == "DREQ"]
    node, socket = close.closer, close.closer_socket
    begun = [e.at_ns for e in evidence.of(node, Begin, function="WSPCloseSocket", socket=socket)]
    ended = [e.at_ns for e in evidence.of(node, Call, function="WSPCloseSocket", socket=socket, result=0)]
    statement = "the DREQ comes while WSPCloseSocket runs, at once"
    if not times or not begun or not ended:
        return Finding(statement, ("CLOSE-06", "CLOSE-35"), False, f"{len(times)} DREQ, {len(begun)} calls begun")
    slack_ns = evidence.uncertainty_ns + WIRE_DELAY_NS
    first, frame = min(times)
    late_ns = evidence.late_frames.get(frame, 0)
    latest = min(ended[0] + slack_ns, begun[0] + RESET_WITHIN_NS) + evidence.late_ns
    held = begun[0] - slack_ns <= first <= latest
    seen = (
        f"DREQ {(first - begun[0]) / 1e6:.1f} ms after the call began, which took {(ended[0] - begun[0]) / 1e6:.1f} ms"
    )
    if not held and begun[0] - slack_ns <= first - late_ns <= latest:
        # A stamp that is late by so much proves nothing: the adapter may have sent it in time.
        doubt = f"the recorder stamped it {late_ns / 1e6:.1f} ms late"
        return Finding(statement, ("CLOSE-06", "CLOSE-07", "CLOSE-35"), True, seen, doubt)
    return Finding(statement, ("CLOSE-06", "CLOSE-07", "CLOSE-35"), held, seen)


def _successes_were_carried(evidence: Evidence, connection: Connection, node: str, handle: int) -> Finding:
    # What an end calls a success must have been a message on the wire: the provider's word alone is not evidence.
    carried = _acknowledged_messages(connection.packets(evidence.packets), evidence.addresses[node])
    since_ns = max((e.at_ns for e in evidence.of(node, QueuePairMade, handle=handle)), default=0)
    done = [e for e in evidence.of(node, Completed, handle=handle, code=0) if e.at_ns >= since_ns]
    kinds = {
        e.overlapped: e.function
        for e in evidence.of(node, Call, code=Code.WSA_IO_PENDING)
        if e.function in ("WSPSend", "WSPRecv")
    }
    told = {f: sum(kinds.get(e.overlapped) == f for e in done) for f in ("WSPSend", "WSPRecv")}
    held = all(told[f] <= carried[f] for f in told)
    statement = f"every success at node {node} was an acknowledged message on the wire"
    return Finding(statement, ("CLOSE-11", "CLOSE-15"), held, f"successes {told}, acknowledged messages {carried}")


def _acknowledged_messages(packets: list[RocePacket], own: list[str]) -> dict[str, int]:
    """How many messages of WSPSend each way were acknowledged, by the function that ``own`` end calls for them."""
    ends = {(p.source in own, p.psn) for p in packets if p.opcode in MESSAGE_ENDS}
    # Syndrome 000xxxxx is an ACK; RNR and other NAKs acknowledge nothing (9.7.5.2.1).
    acks: dict[bool, list[Psn]] = {True: [], False: []}
    for p in sorted(packets, key=lambda p: p.psn):
        if p.syndrome >= 0 and p.syndrome >> 5 == 0:
            acks[p.source in own].append(p.psn)
    carried = [mine for mine, psn in ends if any_not_before(acks[not mine], psn)]
    return {"WSPSend": sum(carried), "WSPRecv": len(carried) - sum(carried)}
