"""Finds packets missing in a capture of the bench by its other packets, for a capture point without a counter."""

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

# The most lines about missing packets.
MAX_LISTED = 5


def missing_in(path: Path, unused_addresses: Collection[str] = ()) -> list[str]:
    """The packets that were on the link and are missing in the capture at ``path``, in lines. Raises CaptureError.

    ``unused_addresses``: addresses that no machine has; a test made the packets from there, so they are ignored.

    Missing packets show by the PSNs of requests and their acknowledgements, and by CM messages that answer others. A
    frame that no other frame refers to, such as the very last one, is not found.
    """
    with open_capture(path) as capture:
        found = [
            line for facts in FileRebuild(capture) if not _is_of(facts, unused_addresses) for line in _missing_of(facts)
        ]
    further = [f"and {len(found) - MAX_LISTED} more"] * (len(found) > MAX_LISTED)
    return found[:MAX_LISTED] + further


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
