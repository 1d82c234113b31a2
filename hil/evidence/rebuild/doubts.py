"""Doubts, which say why a capture cannot carry a pass, and notes, which do not affect the verdict."""

from collections.abc import Iterator
from itertools import islice, pairwise

from hil.capture.links import NAMES
from hil.evidence.rebuild.closing import answered, closers, deaf, gave_up, patience
from hil.evidence.rebuild.endings import Ending, answers_to, counted, mirrored, of_kind, tries_of
from hil.evidence.rebuild.facts import CmFacts, ConnectionFacts, DirectionFacts, Where
from hil.evidence.rebuild.file import FileFacts
from hil.evidence.rebuild.management import CM_TIME_UNIT_NS, REP_ANSWERED, UNRELIABLE_CONNECTED
from hil.roce.layers.cm import CmAttribute

# Each batch is sorted by itself, so packets at the border of two batches may stay out of order by less than this.
SORTED_ANYWAY_NS = 10_000_000
# Adapters answer in microseconds. Their retry timers are far slower, so a lost packet may not be sent again yet.
# A longer time counts as a doubt only when the capture shows no answer at all.
ANSWERED_WITHIN_NS = 10_000_000
# The usual length of a retry timer, for captures without the REQ.
SENT_AGAIN_WITHIN_NS = 4_000_000_000
# The most damages, and interfaces that dropped frames, that are listed one by one.
MAX_LISTED = 10


def doubts_of(facts: ConnectionFacts, ending: Ending) -> Iterator[str]:
    """The reasons why the capture cannot carry a pass for this connection."""
    yield from doubts_about_the_start(facts, ending)
    twice = mirrored(facts)
    for end in facts.ends:
        yield from doubts_about_direction(end.requests, end.address, twice=twice)
    if facts.elsewhere:
        yield "packets to its queue pairs are in another VLAN or network as well: they may belong to it"
    if facts.evicted:
        yield "too many connections are live at once: this one was dropped before its end"
    if ending in (Ending.OPEN, Ending.SILENCE):
        yield "no tear-down of it is in the capture"
    dreqs = closers(facts)
    if ending in (Ending.QP_ERROR, Ending.RETRY_EXHAUSTED) and not dreqs:
        yield "no tear-down of it is in the capture, only its reason"
    yield from doubts_about_answers(facts)
    yield from doubts_about_the_order(facts)
    for side in (0, 1):
        yield from _doubts_about_silence(facts, side)
    if ending is Ending.NOT_ESTABLISHED:
        yield from _doubts_about_no_answer(facts)


def _doubts_about_no_answer(facts: ConnectionFacts) -> Iterator[str]:
    """Doubts about a connection of which the capture shows only a REQ."""
    wait_ns, retries = patience(facts)
    times = of_kind(facts, CmAttribute.REQ)[0].times_sent
    if facts.until_ns - facts.last_ns <= 2 * wait_ns:
        yield "the capture ends before an answer to the REQ could come"
    elif times <= retries:
        yield f"no answer is in the capture, yet the REQ was sent {times} of {retries + 1} times and no more"


def doubts_about_the_order(facts: ConnectionFacts) -> Iterator[str]:
    """Doubts about the order of CM messages: a REP answers a REQ, an RTU a REP, a DREP a DREQ."""
    kinds = (CmAttribute.REQ, CmAttribute.REP, CmAttribute.RTU)
    found = [(kind.name, of_kind(facts, kind)) for kind in kinds]
    for (earlier, one), (later, other) in pairwise([(name, sent) for name, sent in found if sent]):
        if other[0].place < one[0].place:
            yield f"the {later} is in front of the {earlier}: the order of the capture is wrong"
    if drep_too_early(facts):
        yield "the DREP is in front of the DREQ: the capture misses a DREQ or its order is wrong"


def drep_too_early(facts: ConnectionFacts) -> bool:
    return not answered(facts) and any(answers_to(facts, dreq.sender) for dreq in closers(facts))


def _doubts_about_silence(facts: ConnectionFacts, side: int) -> Iterator[str]:
    """Doubts about an end whose packets get no answer for long, and that does not send them again."""
    end, requests = facts.ends[side], facts.ends[side].requests
    last, sent = requests.last_request, of_kind(facts, CmAttribute.REQ)
    if last is None or not requests.unacknowledged or tries_of(facts, side, perhaps=True):
        return
    # A fatal NAK is an answer, and the last one.
    if requests.fatal_nak or (sent and sent[0].message.transport == UNRELIABLE_CONNECTED):
        return
    # A response without progress, such as a part of a READ's response, is an answer too.
    answered_ns = requests.last_response.time_ns if requests.last_response else 0
    begun_ns = max(requests.unacknowledged[0].time_ns, answered_ns)
    # An end that closed does not answer any more.
    closed = [dreq.message.time_ns for dreq in closers(facts) if dreq.sender != side]
    heard = [dreq.message.time_ns for dreq in closers(facts)[:1]]
    quiet_ns = min([max([last.time_ns, *heard]), *closed]) - begun_ns
    # An end may send several packets at once to an end that is about to close.
    # It does not send them one after the other without any answer.
    went_on_ns = 0 if requests.acknowledgements else min([last.time_ns, *closed]) - begun_ns
    if quiet_ns > _sent_again_ns(sent) or went_on_ns > ANSWERED_WITHIN_NS:
        what = f"packets of {end.address} get no answer for {quiet_ns / 1e6:.0f} ms, and it sends none of them again"
        yield f"{what}: packets were lost, or are missing in the capture"


def _sent_again_ns(requests: list[CmFacts]) -> int:
    """The longest time until an end repeats an unanswered packet (9.7.6.1.3: up to four times the REQ's time-out)."""
    exponent = requests[0].message.ack_timeout if requests else -1
    return max(ANSWERED_WITHIN_NS, 4 * CM_TIME_UNIT_NS << exponent) if exponent > 0 else SENT_AGAIN_WITHIN_NS


def doubts_about_answers(facts: ConnectionFacts) -> Iterator[str]:
    """Doubts about a DREP without its DREQ, and about a DREQ without its DREP."""
    dreqs = closers(facts)
    if {drep.sender for drep in of_kind(facts, CmAttribute.DREP)} - {1 - dreq.sender for dreq in dreqs}:
        yield "the DREQ that the DREP answers is missing in the capture"
    if not dreqs or answered(facts):
        return
    if not drep_too_early(facts) and not gave_up(facts, dreqs[0]) and not deaf(facts, dreqs[0]):
        yield _unanswered(facts, dreqs[0])


def _unanswered(facts: ConnectionFacts, dreq: CmFacts) -> str:
    wait_ns, retries = patience(facts)
    if facts.until_ns - dreq.last_time_ns > 2 * wait_ns:
        return f"no DREP is in the capture, yet the closer asked {dreq.times_sent} of {retries + 1} times and stopped"
    return "the capture ends before the DREP"


def doubts_about_the_start(facts: ConnectionFacts, ending: Ending) -> Iterator[str]:
    requests, replies = of_kind(facts, CmAttribute.REQ), of_kind(facts, CmAttribute.REP)
    established = ending not in (Ending.REFUSED, Ending.NOT_ESTABLISHED)
    # An established connection had a REP, and so had one whose REJ rejects a REP.
    replied = established or any(sent.message.answered == REP_ANSWERED for sent in of_kind(facts, CmAttribute.REJ))
    if not requests and not replies:
        yield "it began before the capture: neither REQ nor REP is there"
    elif not requests:
        yield "the REQ is missing in the capture"
    elif not replies and replied:
        yield "the REP is missing in the capture"
    dreqs = of_kind(facts, CmAttribute.DREQ)
    if any(sent.message.qpn < 0 for sent in (*requests, *replies, *dreqs)):
        yield "a snap length cuts CM messages in front of their queue pair's number"
    elif any(sent.message.psn < 0 for sent in (*requests, *replies)) or any(s.message.cut for s in requests):
        yield "a snap length cuts CM messages in front of their first PSN or their retry counts"
    if facts.inferred and min(end.qpn for end in facts.ends) < 0 and established:
        yield "only one of its directions is in the capture, or the other one cannot be identified"
    elif facts.inferred:
        yield "its directions were paired by addresses and acknowledgements only"


def doubts_about_direction(requests: DirectionFacts, address: str, *, twice: bool) -> Iterator[str]:
    missed, unknown = requests.gaps_by.get(Where.MISSED, 0), requests.gaps_by.get(Where.UNKNOWN, 0)
    first = {gap.where: f"first in front of frame {gap.number}" for gap in reversed(requests.gaps)}
    if missed:
        yield f"{counted(missed, 'packet')} of {address}'s PSNs missing in the capture, {first.get(Where.MISSED, '')}"
    if unknown:
        place = first.get(Where.UNKNOWN, "")
        yield f"{counted(unknown, 'packet')} of {address} missing, lost on the wire or in the capture, {place}"
    if requests.strange:
        yield f"{counted(requests.strange, 'packet')} of {address} with PSNs of another stream"
    # In a capture without certain second copies, a packet that may be one counts as a retransmission.
    if twice and requests.unsure_copies:
        yield f"{counted(requests.unsure_copies, 'packet')} of {address}: retransmissions or a mirror's second copies"


def notes_of(facts: ConnectionFacts) -> Iterator[str]:
    if of_kind(facts, CmAttribute.REP) and not any(end.packets_sent for end in facts.ends):
        yield "no data of it is in the capture, only the CM's messages"
    if facts.vlans[0] != facts.vlans[1]:
        yield "its two directions are in different VLANs: the CM's messages show that they are one connection"
    for end in facts.ends:
        requests = end.requests
        if lost := requests.gaps_by.get(Where.LOST, 0):
            yield f"{counted(lost, 'packet')} of {end.address} lost before the capture point"
        if reordered := requests.gaps_by.get(Where.REORDERED, 0):
            yield f"{counted(reordered, 'packet')} of {end.address} out of order"
        if requests.copies:
            yield f"second copies in {end.address}'s direction that were passed over: {requests.copies}"
        if end.wrong_icrc:
            yield f"{counted(end.wrong_icrc, 'packet')} of {end.address} with a wrong ICRC passed over"


def file_doubts(facts: FileFacts) -> list[str]:
    """The reasons why the file cannot carry a pass for any of its connections."""
    doubts = [f"the file is damaged: {problem}" for problem in facts.problems[:MAX_LISTED]]
    if len(facts.problems) > MAX_LISTED:
        doubts.append(f"the file is damaged in {len(facts.problems) - MAX_LISTED} more places or more")
    doubts += [f"interface {name} dropped {count} frames" for name, count in islice(facts.dropped.items(), MAX_LISTED)]
    if len(facts.dropped) > MAX_LISTED:
        doubts.append(f"and {len(facts.dropped) - MAX_LISTED:,} more interfaces dropped frames")
    for link, count in sorted(facts.other_links.items()):
        name = f" ({NAMES[link]})" if link in NAMES else ""
        doubts.append(f"{counted(count, 'frame')} of link type {link}{name}, which is not read")
    if cut := facts.passed.cut + facts.malformed.get("snapped", 0) + facts.tally.management_cut:
        doubts.append(f"the snap length ends inside the headers of {cut} packets")
    if begun := facts.passed.roce_fragments:
        doubts.append(f"{counted(begun, 'RoCE packet')} in IP fragments, which are not put together")
    if facts.wrong_icrc and not facts.right_icrc:
        doubts.append("no packet has a right ICRC: it was captured before the adapter set it, or changed on the way")
    if 0 < facts.clock.untimed < facts.clock.packets:
        doubts.append(f"{counted(facts.clock.untimed, 'packet')} without a time among others: the order is uncertain")
    if facts.clock.jumps > 1:
        doubts.append(f"the times step back {facts.clock.jumps} times by more than a minute: the order is uncertain")
    if facts.clock.unsorted_ns > SORTED_ANYWAY_NS:
        doubts.append(f"packets are out of order by {facts.clock.unsorted_ns / 1e9:.3f} s, too far to be sorted")
    return doubts


def file_notes(facts: FileFacts) -> list[str]:
    """Notes about the file, which do not affect a verdict."""
    notes = []
    if facts.clock.jumps == 1:
        notes.append("the clock steps back once by more than a minute: times are continued from there")
    if facts.joined:
        notes.append("the file joins several captures: their order is not judged; verify them one by one")
    if emitted := facts.tally.emitted:
        notes.append(f"{counted(emitted, 'packet')} that the wire emitted passed over: only the nodes' are judged")
    if facts.clock.disordered:
        notes.append(
            f"{facts.clock.disordered} packets are out of order, by up to {facts.clock.disorder_ns / 1e6:.3f} ms"
        )
    if facts.snapped:
        notes.append(f"{facts.snapped} packets were not captured whole: their ICRC cannot be checked")
    if facts.wrong_icrc and facts.right_icrc:
        where = facts.first_wrong_icrc
        notes.append(
            f"{facts.wrong_icrc} packets have a wrong ICRC (the first is frame {where}): no adapter takes them"
        )
    notes += [f"{count} packets are malformed: {name}" for name, count in facts.malformed.items() if name != "snapped"]
    if others := facts.passed.fragments - facts.passed.roce_fragments:
        notes.append(f"{counted(others, 'IP fragment')} passed over")
    return notes
