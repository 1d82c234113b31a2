"""How each connection of a capture ended, and whether it ended as the contract demands: pure functions over facts.

A verdict is the project's: fail when a finding broke that the capture shows to be broken, invalid when the capture
cannot carry a judgement, else pass. What is absent from an incomplete capture proves nothing, so it never makes a fail.
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
# A capture that goes on for less behind a DREP says so: an adapter's retransmission may take longer.
SILENCE_SHOWN_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """A connection with its judgement.

    ``closer`` is the end (0 or 1) that ended it, -1 when none did. ``at_number`` and ``at_ns`` are where and when, -1
    when nowhere. ``doubts`` say why the capture cannot carry a pass; ``notes`` what is worth knowing all the same.
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
            # Where packets may be another connection's, nothing that they do proves anything about this one.
            return Verdict.INVALID if self._may_be_mixed() else Verdict.FAIL
        return Verdict.INVALID if self.doubts else Verdict.PASS

    def _may_be_mixed(self) -> bool:
        """Whether packets may be another connection's, or in another order than the capture has them in."""
        facts = self.facts
        strange = any(end.requests.strange for end in facts.ends)
        return facts.inferred or strange or facts.several_ways or any(doubts_about_the_order(facts))


@dataclass(frozen=True, slots=True)
class Reservations:
    """What is held against every connection of a capture, worked out once.

    What follows by at most ``uncertain_ns`` may not follow: by so much the times step back, or do not go on.
    ``coarse_ns`` is the step of a clock that cannot tell what was under way, 0 of any other. ``right_icrc``: some
    packets have one. ``last_ns`` is how far the capture goes on, where that is known.
    """

    doubts: tuple[str, ...] = ()
    uncertain_ns: int = 0
    coarse_ns: int = 0
    right_icrc: bool = False
    last_ns: int | None = None

    @classmethod
    def about(cls, capture: FileFacts) -> "Reservations":
        # Captures that were joined may hold connections with equal addresses at the same time, and clocks of their own.
        unknown = capture.clock.jumps or capture.joined
        coarse_ns = capture.grain_ns if capture.grain_ns > UNDER_WAY_NS else 0
        uncertain_ns = LONG_NS if unknown else max(capture.clock.disorder_ns, coarse_ns)
        return cls(tuple(file_doubts(capture)), uncertain_ns, coarse_ns, capture.right_icrc > 0, capture.last_ns)


NO_RESERVATIONS = Reservations()


def judge(facts: ConnectionFacts, capture: Reservations = NO_RESERVATIONS) -> Judged:
    """Judge one connection of a ``capture``."""
    ending, closer, at, how = ending_of(facts)
    findings = tuple(findings_of(facts, ending, capture.uncertain_ns))
    doubts = (*doubts_of(facts, ending), *_doubts_in(facts, capture), *capture.doubts)
    if facts.several_ways and not all(finding.held for finding in findings):
        doubts += ("its packets go between several pairs of MAC addresses: some may be another network's",)
    notes = (*notes_of(facts), *_under_way(facts, capture.coarse_ns), *_silence_shown(facts, capture.last_ns))
    number, time_ns = at or (-1, -1)
    return Judged(facts, ending, closer, number, time_ns, how, findings, doubts, notes)


def depends(facts: ConnectionFacts) -> bool:
    """Whether the judgement may be another one without reservations about the capture than with them."""
    followed = any(after.count or after.unsure for _, after in _followers(facts))
    return followed or facts.believed > 0 or mirrored(facts)


def _followers(facts: ConnectionFacts) -> Iterator[tuple[str, After]]:
    """Messages that end a connection, and what came after them."""
    yield from (("DREQ", after) for after in facts.after_dreq)
    yield "last DREP", facts.after_drep
    yield "REJ", facts.after_rej


def _doubts_in(facts: ConnectionFacts, capture: Reservations) -> Iterator[str]:
    """Doubts about one connection that the capture it is in gives rise to."""
    if facts.believed and capture.right_icrc:
        what = counted(facts.believed, "packet")
        yield f"it rests on {what} with a wrong ICRC, in a capture where others are right"
    for link, after in _followers(facts):
        if after.unsure:
            what = f"{counted(after.unsure, 'packet')} behind the {link} that may not belong there"
            yield f"{what}: second copies, seen by another clock, another connection's, or such as no adapter takes"
        in_doubt = UNDER_WAY_NS < after.latest_ns <= capture.uncertain_ns or after.latest_ns <= capture.coarse_ns
        if after.count and in_doubt:
            yield f"packets follow the {link}, in a capture whose times are out of order, absent or uncertain by more"
    if capture.coarse_ns > COPY_WITHIN_NS and mirrored(facts):
        yield "second copies and packets sent again cannot be told apart by times so coarse"


def _under_way(facts: ConnectionFacts, coarse_ns: int) -> Iterator[str]:
    for link, after in _followers(facts):
        if after.count and after.latest_ns <= UNDER_WAY_NS and not coarse_ns:
            what = f"{counted(after.count, 'packet')} under way"
            yield f"{what}, within {UNDER_WAY_NS // 1000} us behind the {link}"


def _silence_shown(facts: ConnectionFacts, last_ns: int | None) -> Iterator[str]:
    """How far the capture goes on behind the last DREP, when that is not far."""
    dreps = of_kind(facts, CmAttribute.DREP)
    if dreps and last_ns is not None:
        behind_ns = last_ns - max(drep.last_time_ns for drep in dreps)
        if behind_ns < SILENCE_SHOWN_NS:
            yield f"the capture ends {behind_ns / 1e6:.3f} ms behind the last DREP: it cannot show what came later"


def overall(verdicts: Iterable[Verdict], doubts: list[str]) -> Verdict:
    """The verdict of a file, as of a run: one connection that could not be judged, or none at all, makes it invalid."""
    return Verdict.INVALID if doubts else worst(verdicts)
