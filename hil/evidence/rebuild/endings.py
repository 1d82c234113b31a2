"""How a connection ended: the kind of ending, the end that caused it, the place, and a description."""

from collections.abc import Iterator
from enum import Enum

from hil.evidence.rebuild.facts import CmFacts, ConnectionFacts, DirectionFacts
from hil.evidence.rebuild.management import reason_name
from hil.roce.layers.cm import CmAttribute

# Without a CM message that gives the number of retries, fewer tries than this are a retransmission, not an end.
FEWEST_TRIES = 2
# The RNR retry count that means for ever (9.7.5.2.8).
FOR_EVER = 7
# After this time without a packet a connection counts as silent, not as open.
SILENT_NS = 10_000_000_000


class Ending(Enum):
    """How a connection ended."""

    CM_DISCONNECT = "CM disconnect"
    QP_ERROR = "QP error"
    RETRY_EXHAUSTED = "retry exhaustion"
    REFUSED = "refused"
    NOT_ESTABLISHED = "never established"
    SILENCE = "silence"
    OPEN = "still open"


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def of_kind(facts: ConnectionFacts, attribute: CmAttribute) -> list[CmFacts]:
    return [message for message in facts.messages if message.message.attribute is attribute]


def answers_to(facts: ConnectionFacts, closer: int) -> list[CmFacts]:
    """The DREPs of the other end, which may answer a DREQ of end ``closer``."""
    return [drep for drep in of_kind(facts, CmAttribute.DREP) if drep.sender != closer]


# The ending, the end that caused it (-1: none), its frame and time in ns, and its description.
_Conclusion = tuple[Ending, int, tuple[int, int] | None, str]


def ending_of(facts: ConnectionFacts) -> _Conclusion:
    dreqs = sorted(of_kind(facts, CmAttribute.DREQ), key=lambda sent: sent.place)
    first = dreqs[0] if dreqs else None
    refusal = _refusal(facts) if first is None else None
    if broken := refusal or _failure(facts, first):
        return broken
    if first is not None:
        place = first.message.number, first.message.time_ns
        return Ending.CM_DISCONNECT, first.sender, place, _dreq_words(facts, first) + _crossed(facts, dreqs)
    if dreps := of_kind(facts, CmAttribute.DREP):
        place = dreps[0].message.number, dreps[0].message.time_ns
        return Ending.CM_DISCONNECT, 1 - dreps[0].sender, place, "DREP without its DREQ"
    return _no_ending(facts)


def _refusal(facts: ConnectionFacts) -> _Conclusion | None:
    refusals = of_kind(facts, CmAttribute.REJ)
    if not refusals or any(end.requests.packets for end in facts.ends):
        return None
    rej = refusals[0].message
    return Ending.REFUSED, refusals[0].sender, (rej.number, rej.time_ns), f"REJ: {reason_name(rej.reason)}"


def _failure(facts: ConnectionFacts, dreq: CmFacts | None) -> _Conclusion | None:
    """The first failure before any DREQ: a fatal NAK, or retries that were used up."""
    return min(_failures(facts, dreq), key=lambda found: (found[2] or (0, 0))[::-1], default=None)


def _failures(facts: ConnectionFacts, dreq: CmFacts | None) -> Iterator[_Conclusion]:
    for side, end in enumerate(facts.ends):
        requests, then = end.requests, _dreq_words(facts, dreq)
        nak, last = requests.fatal_nak, requests.last_request
        if nak is not None and (dreq is None or nak.place < dreq.place):
            words = f"{_nak_words(requests)} from {facts.ends[1 - side].address} in frame {nak.number}"
            yield Ending.QP_ERROR, 1 - side, (nak.number, nak.time_ns), f"{words}, then {then}"
        elif last is not None and exhausted(facts, side, dreq):
            words = f"sent PSN {requests.oldest_unacknowledged_psn} {tries_of(facts, side) + 1} times"
            words += _receiver_words(requests)
            yield Ending.RETRY_EXHAUSTED, side, (last.number, last.time_ns), f"{words}, then {then}"


def _crossed(facts: ConnectionFacts, dreqs: list[CmFacts]) -> str:
    other = next((dreq for dreq in dreqs if dreq.sender != dreqs[0].sender), None)
    if other is None:
        return ""
    return f"; the other end's own DREQ in frame {other.message.number}, {_answer_words(facts, other)}, crosses it"


def _no_ending(facts: ConnectionFacts) -> _Conclusion:
    requests, replies = of_kind(facts, CmAttribute.REQ), of_kind(facts, CmAttribute.REP)
    silent = not any(end.packets_sent for end in facts.ends) and not of_kind(facts, CmAttribute.RTU)
    if requests and not replies and silent:
        times = counted(requests[0].times_sent, "time")
        return Ending.NOT_ESTABLISHED, -1, None, f"the REQ was sent {times} and never answered"
    quiet_ns = facts.until_ns - facts.last_ns
    if facts.reused:
        return Ending.SILENCE, -1, None, "no DREQ; a later connection has its queue pair's number"
    if quiet_ns >= SILENT_NS:
        return Ending.SILENCE, -1, None, f"no DREQ; silent for the capture's last {quiet_ns / 1e9:.1f} s"
    return Ending.OPEN, -1, None, "no DREQ; packets until the capture ends"


def tries_of(facts: ConnectionFacts, side: int, *, perhaps: bool = False) -> int:
    """How often end ``side`` sent its oldest packet again since the last progress.

    Packets that may be second copies count in a capture without certain second copies, and with ``perhaps``.
    """
    requests = facts.ends[side].requests
    return requests.unanswered_tries + (requests.unsure_tries if perhaps or not mirrored(facts) else 0)


def mirrored(facts: ConnectionFacts) -> bool:
    """Whether the capture certainly holds second copies of the connection's packets."""
    return any(end.requests.copies for end in facts.ends)


def exhausted(facts: ConnectionFacts, side: int, dreq: CmFacts | None, *, perhaps: bool = False) -> bool:
    """Whether end ``side`` gave up: it sent its oldest packet again as often as it may, without progress.

    ``perhaps``: whether it may have given up.
    """
    requests = facts.ends[side].requests
    last, heard, tries = requests.last_request, requests.last_response, tries_of(facts, side, perhaps=perhaps)
    if last is None or (dreq is not None and dreq.place <= last.place):
        return False
    count, rnr_count = retry_counts(facts, side)
    refused = min(requests.rnr_since_progress, tries)
    if refused == tries:
        return rnr_count != FOR_EVER and tries >= _fewest(rnr_count)
    # An RNR NAK is an answer. An answer behind the last request may be a second copy of one in front of it.
    silent = heard is None or heard.place < last.place or (perhaps and mirrored(facts))
    return silent and tries - refused >= _fewest(count)


def retry_counts(facts: ConnectionFacts, side: int) -> tuple[int, int]:
    """The retry count and the RNR retry count of end ``side``; -1 when the capture lacks the message.

    The REQ's RNR retry count is for its receiver, the REP's for the active end (12.7.38, 12.7.41).
    """
    requests, replies = of_kind(facts, CmAttribute.REQ), of_kind(facts, CmAttribute.REP)
    sources = replies if side == 0 else requests
    return (
        requests[0].message.retry_count if requests else -1,
        sources[0].message.rnr_retry_count if sources else -1,
    )


def _fewest(retries: int) -> int:
    return FEWEST_TRIES if retries < 0 else max(1, retries)


def _receiver_words(requests: DirectionFacts) -> str:
    if requests.rnr_since_progress:
        return f", {requests.rnr_since_progress} times answered that the receiver is not ready"
    return " without an answer"


def _nak_words(requests: DirectionFacts) -> str:
    return "NAK " + ", ".join(name for name in requests.naks if name != "PSN sequence error")


def _dreq_words(facts: ConnectionFacts, dreq: CmFacts | None) -> str:
    if dreq is None:
        return "no DREQ"
    times = f" ({dreq.times_sent} times)" if dreq.times_sent > 1 else ""
    address, frame = facts.ends[dreq.sender].address, dreq.message.number
    return f"DREQ from {address} in frame {frame}{times}, {_answer_words(facts, dreq)}"


def _answer_words(facts: ConnectionFacts, dreq: CmFacts) -> str:
    dreps = answers_to(facts, dreq.sender)
    return f"DREP in frame {dreps[0].message.number}" if dreps else "no DREP"
