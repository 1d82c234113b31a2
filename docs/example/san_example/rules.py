"""A rule over evidence: pure, so ``hil judge`` asks it about old evidence too."""

from collections.abc import Iterable

from hil import Evidence, Finding
from hil.evidence.rules.closes import HardClose

LIMIT_NS = 1_000_000_000


def answered_soon(evidence: Evidence, close: HardClose | None) -> Iterable[Finding]:
    """A DREP follows its DREQ within one second: one finding for the run, none where no DREQ was sent."""
    if close is not None:
        return
    sent: dict[tuple[int, int], int] = {}
    late: list[int] = []
    for packet in evidence.packets:
        at_ns = evidence.packet_times_ns[packet.frame]
        if packet.cm == "DREQ":
            sent.setdefault((packet.local_comm_id, packet.remote_comm_id), at_ns)
        elif packet.cm == "DREP":
            asked_ns = sent.get((packet.remote_comm_id, packet.local_comm_id))
            if asked_ns is not None and at_ns - asked_ns > LIMIT_NS + evidence.uncertainty_ns:
                late.append(packet.frame)
    if sent:
        yield Finding("every DREP follows its DREQ within one second", (), not late, f"late DREPs in frames {late}")
