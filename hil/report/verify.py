"""``hil verify``: a capture file read, rebuilt and judged, as one report that text, JSON and a page are made of."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hil.capture.reader import open_capture
from hil.errors import CaptureError
from hil.evidence.rebuild.doubts import file_notes
from hil.evidence.rebuild.facts import ConnectionFacts
from hil.evidence.rebuild.file import FileFacts, FileRebuild
from hil.evidence.rebuild.judgement import Judged, Reservations, depends, judge, overall
from hil.verdict import Verdict

# Ladders of so many connections are kept; of further ones only what failed or could not be judged, up to as many again.
LADDERS_KEPT = 2000
# Of connections beyond these only what fails, and what hangs on the capture as a whole, is kept: the rest is counted.
CONNECTIONS_KEPT = 20_000
STANDARD_INPUT = Path("-")


# What a capture can be found to be.
GIVEN = (Verdict.PASS, Verdict.FAIL, Verdict.INVALID)


@dataclass(frozen=True, slots=True)
class Numbered:
    """A judged connection with its number in the report, from 1 in the order in which connections begin."""

    number: int
    judged: Judged


@dataclass(frozen=True, slots=True)
class FileReport:
    """A file judged. ``connections`` are those that were asked for, of ``found`` in the file. ``further`` connections
    were judged and are only counted, by verdict."""

    facts: FileFacts
    connections: tuple[Numbered, ...]
    found: int
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    further: dict[Verdict, int] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        return overall((*(c.judged.verdict for c in self.connections), *self.further), list(self.doubts))

    def counts(self) -> dict[str, int]:
        """How many connections have each verdict."""
        found = Counter(c.judged.verdict for c in self.connections) + Counter(self.further)
        return {verdict.value: found[verdict] for verdict in GIVEN}


def verify(
    path: Path,
    *,
    wanted: tuple[str, ...] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> FileReport:
    """Judge the file at ``path`` (``-``: standard input); of its connections those that ``wanted`` names, or all.

    A connection is named by its number, or by an address or a queue pair (``0x11``) of one of its ends; two joined by
    ``+`` must both be its. Raises CaptureError when the file cannot be opened or is no capture.
    """
    if path == STANDARD_INPUT and sys.stdin is None:
        raise CaptureError("-: standard input is closed")
    with open_capture(sys.stdin.buffer if path == STANDARD_INPUT else path) as capture:
        rebuild = FileRebuild(capture, progress=progress)
        found, further = _kept(rebuild, wanted)
    found.sort(key=lambda facts: (facts.first_ns, facts.first_number))
    about, notes = Reservations.about(rebuild.facts), file_notes(rebuild.facts)
    numbered = [Numbered(n, judge(facts, about)) for n, facts in enumerate(found, 1)]
    chosen = tuple(c for c in numbered if not wanted or _asked_for(c.judged.facts, wanted, c.number))
    count, doubts = len(found) + further.total(), list(about.doubts)
    if not found:
        doubts.append("it holds no connection: no CM message and no packet of a reliable or unreliable connection")
    elif not chosen:
        doubts.append(f"none of its {count} connections is {' or '.join(wanted)}")
    if further:
        notes.append(f"of {further.total():,} of its connections only the verdicts are told, they are so many")
    if about.doubts:
        further = Counter({Verdict.INVALID: further.total()}) if further else further
    return FileReport(rebuild.facts, chosen, count, tuple(doubts), tuple(notes), {} if wanted else dict(further))


def _kept(rebuild: FileRebuild, wanted: tuple[str, ...]) -> tuple[list[ConnectionFacts], Counter[Verdict]]:
    """The connections, with the ladders of the first and of those that need to be looked at; the verdicts of others."""
    found: list[ConnectionFacts] = []
    ladders, further = 0, Counter[Verdict]()
    for facts in rebuild:
        spare = len(found) >= CONNECTIONS_KEPT and not depends(facts) and not _asked_for(facts, wanted)
        if spare and (verdict := judge(facts).verdict) is not Verdict.FAIL:
            further[verdict] += 1
            continue
        passes = ladders >= LADDERS_KEPT and judge(facts).verdict is Verdict.PASS
        if passes or ladders >= 2 * LADDERS_KEPT:
            facts = replace(facts, steps=(), steps_elided=facts.steps_elided + len(facts.steps))
        else:
            ladders += 1
        found.append(facts)
    return found, further


def _asked_for(facts: ConnectionFacts, wanted: tuple[str, ...], number: int = 0) -> bool:
    names = {str(number)} | {end.address for end in facts.ends} | {hex(end.qpn) for end in facts.ends}
    return any(all(part.strip().lower() in names for part in name.split("+")) for name in wanted)
