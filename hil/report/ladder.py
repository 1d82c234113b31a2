"""A connection's ladder: where each arrow of the diagram stands. The page's template draws it as SVG."""

from dataclasses import dataclass

from hil.evidence.rebuild.facts import STEPS_KEPT_FIRST, ConnectionFacts, Step
from hil.report.words import step_words

WIDTH, ROW, TOP, BOTTOM = 860, 28, 40, 16
LEFT, RIGHT = 210, 650
_REFUSALS = ("NAK", "RNR", "CM REJ")


@dataclass(frozen=True, slots=True)
class Rung:
    """One arrow, or (``elided`` > 0) the place of steps that are not shown. Coordinates are in pixels."""

    y: int
    start: int
    end: int
    kind: str
    label: str
    frame: str
    time: str
    elided: int = 0


@dataclass(frozen=True, slots=True)
class Diagram:
    """A ladder ready to draw."""

    width: int
    height: int
    left: int
    right: int
    rungs: tuple[Rung, ...]


def diagram(facts: ConnectionFacts) -> Diagram:
    """The ladder of a connection: time runs downwards, end 0 is on the left."""
    rungs: list[Rung] = []
    late = {n for after in (*facts.after_dreq, facts.after_drep, facts.after_rej) for n in after.numbers}
    for place, step in enumerate(facts.steps):
        if facts.steps_elided and place == min(STEPS_KEPT_FIRST, len(facts.steps) - 1):
            rungs.append(_elision(len(rungs), facts.steps_elided))
        rungs.append(_rung(len(rungs), step, facts.first_ns, late))
    return Diagram(WIDTH, TOP + ROW * len(rungs) + BOTTOM, LEFT, RIGHT, tuple(rungs))


def _elision(place: int, count: int) -> Rung:
    return Rung(TOP + ROW * place + ROW // 2, LEFT, RIGHT, "elided", f"{count:,} steps are not shown", "", "", count)


def _rung(place: int, step: Step, first_ns: int, late: set[int]) -> Rung:
    start, end = (LEFT, RIGHT) if step.sender == 0 else (RIGHT, LEFT)
    frame = f"{step.number}" if step.number == step.last_number else f"{step.number} to {step.last_number}"
    time = f"{(step.time_ns - first_ns) / 1e6:,.3f} ms"
    label, after = step_words(step), step.last_number in late
    kind = "refusal" if after else _kind(step, label)
    return Rung(TOP + ROW * place + ROW // 2, start, end, kind, label + ", too late" * after, frame, time)


def _kind(step: Step, label: str) -> str:
    if label.startswith(_REFUSALS):
        return "refusal"
    if step.what.startswith("CM"):
        return "cm"
    if step.what.endswith("again"):
        return "again"
    return "answer" if step.what == "ACK" else "data"
