"""Judges how each connection of a capture ended: pure functions over facts.

The verdict is fail when the capture shows that a finding broke, invalid when the capture cannot carry a judgement, else
pass. A packet that is absent from an incomplete capture proves nothing, so it never makes a fail.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hil.evidence.disconnect import Finding
from hil.evidence.rebuild.aftermath import UNDER_WAY_NS
from hil.evidence.rebuild.closing import findings_of
from hil.evidence.rebuild.doubts import doubts_about_the_order, doubts_of, file_doubts, notes_of
from hil.evidence.rebuild.endings import Ending, counted, ending_of, mirrored, of_kind
from hil.evidence.rebuild.facts import After, ConnectionFacts
from hil.evidence.rebuild.file import FileFacts
from hil.evidence.rebuild.window import COPY_WITHIN_NS
from hil.roce.layers.cm import CmAttribute
from hil.verdict import Verdict, worst

LONG_NS = 1 << 62
# A capture that ends sooner behind the last DREP gets a note, because a retransmission may take longer.
SILENCE_SHOWN_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A connection with its judgement.

    ``closer``: the end (0 or 1) that ended it, or -1. ``at_number``, ``at_ns``: the frame and time of the ending, or
    -1. ``how``: the ending in words. ``doubts``: why the capture cannot carry a pass. ``notes``: further remarks.
    """

    facts: ConnectionFacts
    ending: Ending
    closer: int
    at_number: int
    at_ns: int
    how: str
    findings: tuple[Finding, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        if any(not finding.held for finding in self.findings):
            # Packets that may belong to another connection prove nothing about this one.
            return Verdict.INVALID if self._may_be_mixed() else Verdict.FAIL
        return Verdict.INVALID if self.doubts else Verdict.PASS

    def _may_be_mixed(self) -> bool:
        """Whether packets may belong to another connection, or the order of the capture may be wrong."""
        facts = self.facts
        strange = any(end.requests.strange for end in facts.ends)
        return facts.inferred or strange or facts.several_ways or any(doubts_about_the_order(facts))


@dataclass(frozen=True, slots=True)
class Reservations:
    """Reservations about a capture, which hold for all its connections.

    ``uncertain_ns``: packets that are closer together may have another order. ``coarse_ns``: the step of a clock too
    coarse to identify packets under way, else 0. ``right_icrc``: some packets have a right ICRC. ``last_ns``: the time
    of the capture's last frame, if known.
    """

    doubts: tuple[str, ...] = ()
    uncertain_ns: int = 0
    coarse_ns: int = 0
    right_icrc: bool = False
    last_ns: int | None = None

    @classmethod
    def about(cls, capture: FileFacts) -> "Reservations":
        # Joined captures may have different clocks, and hold connections with equal addresses at the same time.
        unknown = capture.clock.jumps or capture.joined
        coarse_ns = capture.grain_ns if capture.grain_ns > UNDER_WAY_NS else 0
        uncertain_ns = LONG_NS if unknown else max(capture.clock.disorder_ns, coarse_ns)
        return cls(tuple(file_doubts(capture)), uncertain_ns, coarse_ns, capture.right_icrc > 0, capture.last_ns)


NO_RESERVATIONS = Reservations()


def judge(facts: ConnectionFacts, capture: Reservations = NO_RESERVATIONS) -> Judged:
    """Judge one connection. ``capture``: the reservations about its capture."""
    ending, closer, at, how = ending_of(facts)
    findings = tuple(findings_of(facts, ending, capture.uncertain_ns))
    doubts = (*doubts_of(facts, ending), *_doubts_in(facts, capture), *capture.doubts)
    if facts.several_ways and not all(finding.held for finding in findings):
        doubts += ("its packets go between several pairs of MAC addresses: some may be another network's",)
    notes = (*notes_of(facts), *_under_way(facts, capture.coarse_ns), *_silence_shown(facts, capture.last_ns))
    number, time_ns = at or (-1, -1)
    return Judged(facts, ending, closer, number, time_ns, how, findings, doubts, notes)


def depends(facts: ConnectionFacts) -> bool:
    """Whether reservations about the capture can change the judgement."""
    followed = any(after.count or after.unsure for _, after in _followers(facts))
    return followed or facts.believed > 0 or mirrored(facts)


def _followers(facts: ConnectionFacts) -> Iterator[tuple[str, After]]:
    """The messages that end a connection, each with the packets after it."""
    yield from (("DREQ", after) for after in facts.after_dreq)
    yield "last DREP", facts.after_drep
    yield "REJ", facts.after_rej


def _doubts_in(facts: ConnectionFacts, capture: Reservations) -> Iterator[str]:
    """Doubts about one connection because of the reservations about its capture."""
    if facts.believed and capture.right_icrc:
        what = counted(facts.believed, "packet")
        yield f"it rests on {what} with a wrong ICRC, in a capture where others are right"
    for link, after in _followers(facts):
        if after.unsure:
            what = f"{counted(after.unsure, 'packet')} behind the {link} that may not belong there"
            yield f"{what}: second copies, times of another clock, another connection's, or refused by every adapter"
        in_doubt = UNDER_WAY_NS < after.latest_ns <= capture.uncertain_ns or after.latest_ns <= capture.coarse_ns
        if after.count and in_doubt:
            yield f"packets follow the {link}, in a capture whose times are out of order, absent or uncertain by more"
    if capture.coarse_ns > COPY_WITHIN_NS and mirrored(facts):
        yield "the times are too coarse to distinguish second copies from packets sent again"


def _under_way(facts: ConnectionFacts, coarse_ns: int) -> Iterator[str]:
    for link, after in _followers(facts):
        if after.count and after.latest_ns <= UNDER_WAY_NS and not coarse_ns:
            what = f"{counted(after.count, 'packet')} under way"
            yield f"{what}, within {UNDER_WAY_NS // 1000} us behind the {link}"


def _silence_shown(facts: ConnectionFacts, last_ns: int | None) -> Iterator[str]:
    """A note when the capture ends soon behind the last DREP."""
    dreps = of_kind(facts, CmAttribute.DREP)
    if dreps and last_ns is not None:
        behind_ns = last_ns - max(drep.last_time_ns for drep in dreps)
        if behind_ns < SILENCE_SHOWN_NS:
            yield f"the capture ends {behind_ns / 1e6:.3f} ms behind the last DREP: it cannot show what came later"


def overall(verdicts: Iterable[Verdict], doubts: list[str]) -> Verdict:
    """The verdict of a file: invalid with ``doubts`` about the file, else the worst verdict of its connections."""
    return Verdict.INVALID if doubts else worst(verdicts)
