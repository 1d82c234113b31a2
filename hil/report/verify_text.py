"""The report of ``hil verify`` as text, with colours where the terminal has them."""

from collections.abc import Iterator

import click

from hil.evidence.rebuild.judgement import Judged
from hil.report.verify import FileReport, Numbered
from hil.report.words import counted, direction_words, ending_words, ends_words, harmless
from hil.verdict import Verdict

COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INVALID: "yellow"}
# Passing connections of a file with more than this many are counted, not listed.
LISTED = 50


def lines(report: FileReport) -> Iterator[str]:
    """The lines of one file's report."""
    counts = ", ".join(f"{count} {name}" for name, count in report.counts().items())
    shown = "" if len(report.connections) == report.found else f" of {report.found}"
    yield f"{_word(report.verdict)}  {harmless(report.facts.name)}"
    yield f"    {report.facts.frames} frames, {report.facts.tally.packets} RoCE packets"
    found = counted(len(report.connections), "connection")
    yield f"    {found}{shown}: {counts}"
    yield from (f"    not judged: {harmless(doubt)}" for doubt in report.doubts)
    yield from (f"    note: {harmless(note)}" for note in report.notes)
    passing = 0
    for connection in report.connections:
        passing += connection.judged.verdict is Verdict.PASS
        if connection.judged.verdict is not Verdict.PASS or passing <= LISTED:
            yield ""
            yield from connection_lines(connection, set(report.doubts))
    if passing > LISTED:
        yield f"\nand {passing - LISTED} more that pass"


def connection_lines(connection: Numbered, known: set[str]) -> Iterator[str]:
    """The lines of one connection; doubts that are ``known`` as the file's are not repeated."""
    judged = connection.judged
    yield f"{_word(judged.verdict)}  #{connection.number} {ends_words(judged.facts)}: {ending_words(judged)}"
    yield f"    {judged.how}"
    for end in judged.facts.ends:
        yield f"    {end.address} sent {direction_words(end)}"
    yield from _reasons(judged, known)


def _reasons(judged: Judged, known: set[str]) -> Iterator[str]:
    for finding in judged.findings:
        if not finding.held:
            yield click.style(f"    {finding}", fg="red")
    yield from (f"    not judged: {doubt}" for doubt in judged.doubts if doubt not in known)
    yield from (f"    note: {note}" for note in judged.notes)


def _word(verdict: Verdict) -> str:
    return click.style(f"{verdict.value:<7}", fg=COLOURS[verdict], bold=True)
