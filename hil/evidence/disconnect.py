"""A connection's end on the wire, whoever made it: the facts of it, and the rules over them.

The facts come from a test's own packets (``hil.evidence.rules``) or from any capture (``hil.evidence.rebuild``).
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One judged statement: the requirements it stands for, whether it held, and what was seen.

    ``doubt``: why it is not known whether it held, though nothing shows that it broke.
    """

    statement: str
    requirements: tuple[str, ...]
    held: bool
    seen: str
    doubt: str = ""

    def __str__(self) -> str:
        held = "doubt" if self.doubt else "held " if self.held else "BROKE"
        return f"{held} {self.statement} [{', '.join(self.requirements)}]: {self.seen}"


def broken(findings: Iterable[Finding]) -> list[Finding]:
    """Those that did not hold."""
    return [finding for finding in findings if not finding.held]


@dataclass(frozen=True, slots=True)
class Release:
    """A DREQ: the frame it is in, and whether it names the other end's queue pair."""

    frame: int
    right: bool


@dataclass(frozen=True, slots=True)
class Disconnect:
    """What the wire showed. Frames are numbers in the capture; ``last_data`` is None where there was none.

    ``gids`` and ``ends`` are (active, passive). ``answered``: a DREP came after the first DREQ. ``after_dreq`` are
    frames other than DREQ and DREP that the first DREQ's sender sent after it, ``after_drep`` those that either end
    sent after the last DREP.
    """

    described: str
    ends: tuple[str, str]
    gids: tuple[str, str]
    dreqs: tuple[Release, ...]
    dreps: tuple[int, ...]
    answered: bool
    after_dreq: tuple[int, ...] = ()
    after_drep: tuple[int, ...] = ()
    closers_last_data: int | None = None
    last_data: int | None = None


def address_finding(facts: Disconnect) -> Finding:
    return Finding("the REQ's GIDs are the ends'", ("CLOSE-35",), facts.gids == facts.ends, f"{facts.gids}")


def release_findings(facts: Disconnect) -> Iterable[Finding]:
    """The DREQ is there and right, and its sender is silent after it."""
    right = bool(facts.dreqs) and all(dreq.right for dreq in facts.dreqs)
    seen = f"DREQ in frames {[dreq.frame for dreq in facts.dreqs]} of connection {facts.described}"
    yield Finding("the closer's DREQ is on the wire, for this connection", ("CLOSE-35",), right, seen)
    if facts.dreqs:
        statement = "no data leaves the closer after its DREQ"
        yield _silence(statement, facts.dreqs[0].frame, facts.after_dreq, facts.closers_last_data)


def answer_findings(facts: Disconnect) -> Iterable[Finding]:
    """The DREP is there, and both ends are silent after it."""
    yield Finding("the peer's DREP follows", ("CLOSE-35",), facts.answered, f"DREP in frames {list(facts.dreps)}")
    if facts.dreps:
        statement = "nothing of the connection follows the DREP"
        yield _silence(statement, facts.dreps[-1], facts.after_drep, facts.last_data)


def _silence(statement: str, frame: int, after: tuple[int, ...], last_data: int | None) -> Finding:
    told = "no data" if last_data is None else f"last data in frame {last_data}"
    seen = f"{told}; after frame {frame}: {list(after) or 'nothing'}"
    return Finding(statement, ("CLOSE-36",), not after, seen)
