"""The report of ``hil verify`` as one page that needs nothing else: no script, no picture, no network."""

import jinja2

from hil import __version__
from hil.report import words
from hil.report.ladder import diagram
from hil.report.verify import FileReport, Numbered
from hil.verdict import Verdict

# Ladders on one page; what failed or could not be judged comes first.
LADDERS, ROWS = 100, 2000
_ORDER = {Verdict.FAIL: 0, Verdict.INVALID: 1, Verdict.PASS: 2}


def page(reports: list[FileReport], errors: list[tuple[str, str]]) -> str:
    """The page of these files; ``errors`` are files that could not be opened, with the reason.

    Every text is escaped: names and numbers come from files that nobody vouches for.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hil.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"harmless": words.harmless, "direction": words.direction_words}
    template = environment.get_template("verify.html")
    files = [_file(report) for report in reports]
    return template.render(files=files, errors=errors, version=__version__, words=words, diagram=diagram)


def _file(report: FileReport) -> dict[str, object]:
    worst_first = sorted(report.connections, key=lambda c: (_ORDER[c.judged.verdict], c.number))
    rows = sorted(worst_first[:ROWS], key=lambda c: c.number)
    shown = [c for c in worst_first if c.judged.facts.steps][:LADDERS]
    return {"report": report, "rows": rows, "shown": _by_number(shown), "drawn": {c.number for c in shown}}


def _by_number(connections: list[Numbered]) -> list[Numbered]:
    return sorted(connections, key=lambda connection: connection.number)
