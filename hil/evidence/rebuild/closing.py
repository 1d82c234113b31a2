"""Applies the shared rules over a disconnect to a rebuilt connection."""

from collections.abc import Iterator

from hil.evidence.disconnect import (
    Disconnect,
    Finding,
    Release,
    address_finding,
    answer_findings,
    release_findings,
)
from hil.evidence.rebuild.aftermath import UNDER_WAY_NS
from hil.evidence.rebuild.endings import Ending, answers_to, exhausted, of_kind
from hil.evidence.rebuild.facts import After, CmFacts, ConnectionFacts, Step
from hil.evidence.rebuild.management import address_of, patience_ns
from hil.roce.layers.cm import CmAttribute

# The retries of Linux's RDMA CM, for captures without the REQ.
USUAL_CM_RETRIES = 15


def disconnect_facts(facts: ConnectionFacts, closer: int, uncertain_ns: int = 0) -> Disconnect:
    """The facts that the shared rules need about a disconnect by end ``closer``.

    A packet that follows by at most ``uncertain_ns`` is not counted, because it may not follow.
    """
    dreqs = sorted((d for d in of_kind(facts, CmAttribute.DREQ) if d.sender == closer), key=lambda sent: sent.place)
    dreps = sorted(of_kind(facts, CmAttribute.DREP), key=lambda sent: sent.last_place)
    one, two = facts.ends
    gids = [sent.message.gids for sent in of_kind(facts, CmAttribute.REQ)] or [(-1, -1)]
    last = [_last_of(facts, side) for side in (0, 1)]
    return Disconnect(
        described=f"{one.address} QP {one.qpn} and {two.address} QP {two.qpn}",
        ends=(one.address, two.address),
        gids=(_address(gids[0][0]), _address(gids[0][1])),
        dreqs=tuple(Release(d.message.number, d.message.qpn in (-1, facts.ends[1 - d.sender].qpn)) for d in dreqs),
        dreps=tuple(d.message.number for d in dreps),
        answered=answered(facts),
        after_dreq=_too_late(facts.after_dreq[closer], uncertain_ns),
        after_drep=_too_late(facts.after_drep, uncertain_ns),
        closers_last_data=_number(last[closer]),
        last_data=_number(max(filter(None, last), key=lambda step: step.place, default=None)),
    )


def closers(facts: ConnectionFacts) -> list[CmFacts]:
    """The first DREQ of each end that sent one, in the order of time. Two DREQs mean that the closes crossed."""
    dreqs = sorted(of_kind(facts, CmAttribute.DREQ), key=lambda sent: sent.place)
    return [next(d for d in dreqs if d.sender == sender) for sender in dict.fromkeys(d.sender for d in dreqs)]


def _address(gid: int) -> str:
    return address_of(gid) if gid >= 0 else ""


def _too_late(after: After, uncertain_ns: int) -> tuple[int, ...]:
    return after.numbers if after.latest_ns > max(UNDER_WAY_NS, uncertain_ns) else ()


def _last_of(facts: ConnectionFacts, side: int) -> Step | None:
    """The last packet that end ``side`` sent."""
    sent = (facts.ends[side].requests.last_request, facts.ends[1 - side].requests.last_response)
    return max(filter(None, sent), key=lambda step: step.place, default=None)


def _number(step: Step | None) -> int | None:
    return None if step is None else step.number


def findings_of(facts: ConnectionFacts, ending: Ending, uncertain_ns: int = 0) -> Iterator[Finding]:
    dreqs = closers(facts)
    closes = [disconnect_facts(facts, dreq.sender, uncertain_ns) for dreq in dreqs]
    wire = closes[0] if closes else disconnect_facts(facts, 0, uncertain_ns)
    if of_kind(facts, CmAttribute.REQ) and "" not in wire.gids:
        yield address_finding(wire)
    if ending is Ending.REFUSED:
        late = _too_late(facts.after_rej, uncertain_ns)
        yield Finding("nothing of the connection follows the REJ", ("CLOSE-36",), not late, f"after it: {list(late)}")
    for close in closes:
        yield from release_findings(close)
    if wire.answered or (dreqs and gave_up(facts, dreqs[0])):
        yield from answer_findings(wire)


def answered(facts: ConnectionFacts) -> bool:
    """Whether a DREP of the other end came after an end's DREQ. For two DREQs that cross, one answer is enough."""
    return any(
        drep.last_time_ns >= dreq.message.time_ns for dreq in closers(facts) for drep in answers_to(facts, dreq.sender)
    )


def gave_up(facts: ConnectionFacts, dreq: CmFacts) -> bool:
    """Whether the capture shows that no DREP came: the closer sent its DREQ as often as allowed, and waited."""
    wait_ns, retries = patience(facts)
    waited = facts.until_ns - dreq.last_time_ns > 2 * wait_ns
    unanswered = not answers_to(facts, dreq.sender)
    perhaps_deaf = exhausted(facts, dreq.sender, dreq, perhaps=True)
    return unanswered and dreq.times_sent > retries and waited and not perhaps_deaf


def deaf(facts: ConnectionFacts, dreq: CmFacts) -> bool:
    """Whether the peer had stopped answering before the DREQ."""
    return exhausted(facts, dreq.sender, dreq)


def patience(facts: ConnectionFacts) -> tuple[int, int]:
    """How long the CM waits for an answer, in ns, and how often it tries again."""
    requests = of_kind(facts, CmAttribute.REQ)
    request = requests[0].message if requests else None
    exponent = max(request.local_timeout, request.remote_timeout) if request else -1
    retries = request.max_cm_retries if request else -1
    return patience_ns(exponent), retries if retries >= 0 else USUAL_CM_RETRIES
