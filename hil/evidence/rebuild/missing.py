"""What a capture of the bench's own lacks, as its other packets tell: for a capture point that nothing else counts."""

from collections.abc import Collection, Iterator
from pathlib import Path

from hil.capture.reader import open_capture
from hil.evidence.rebuild.doubts import (
    doubts_about_answers,
    doubts_about_direction,
    doubts_about_the_order,
    doubts_about_the_start,
)
from hil.evidence.rebuild.endings import Ending, ending_of
from hil.evidence.rebuild.facts import ConnectionFacts
from hil.evidence.rebuild.file import FileRebuild

# Connections that lack something are told one by one up to so many.
TOLD = 5


def missing_in(path: Path, nobody: Collection[str] = ()) -> list[str]:
    """What was on the link and is not in the capture at ``path``, a line each. Raises CaptureError.

    ``nobody``: addresses that no machine has. What comes from there a test put on the link; it is no connection's.

    Told by the PSNs of requests and what acknowledged them, and by CM messages that answer others. A frame of which
    nothing else speaks, such as the last of all, is not found missing.
    """
    with open_capture(path) as capture:
        found = [line for facts in FileRebuild(capture) if not _is_of(facts, nobody) for line in _missing_of(facts)]
    further = [f"and {len(found) - TOLD} more"] * (len(found) > TOLD)
    return found[:TOLD] + further


def _is_of(facts: ConnectionFacts, addresses: Collection[str]) -> bool:
    """Whether an end of a connection has one of these addresses."""
    return any(end.address in addresses for end in facts.ends)


def _missing_of(facts: ConnectionFacts) -> Iterator[str]:
    ending = ending_of(facts)[0]
    ends = " and ".join(f"{end.address} QP {end.qpn:#x}" if end.qpn >= 0 else end.address for end in facts.ends)
    doubts = [*doubts_about_the_start(facts, ending)]
    for end in facts.ends:
        doubts += doubts_about_direction(end.requests, end.address, twice=False)
    if ending not in (Ending.REFUSED, Ending.NOT_ESTABLISHED):
        doubts += [*doubts_about_answers(facts), *doubts_about_the_order(facts)]
    yield from (f"between {ends}: {doubt}" for doubt in doubts)
