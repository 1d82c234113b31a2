"""The fault matrix drawn from the verdicts of a run: a grid for the terminal, the same as a page, one cell in full."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hil.errors import HilError
from hil.evidence.bundle import folder_of, read_verdicts
from hil.verdict import Verdict, exit_code
from hil.wire.matrix import FAULTS, FRAMES, REPAIRED, Cell, cells

TESTS = "tests/faults/"
MATRIX, SCENARIOS = f"{TESTS}test_matrix.py", f"{TESTS}test_scenarios.py"
NOT_RUN = "not run"
SHOWN = {
    Verdict.PASS: ("ok", "green"),
    Verdict.FAIL: ("FAIL", "bold red"),
    Verdict.INVALID: ("inv", "bold yellow"),
}
UNSUPPORTED, MISSING = ("uns", "blue"), ("-", "dim")
# Kinds of timeline entries that tell the story of a cell; data packets and calls that only prepare it are left out.
_STORY = (" rule ", " cable ", " inject ", " arrived ", " cm ", " upcall ", " cm=", "WSPCloseSocket", "WSPConnect")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one cell or scenario ended in a run: ``name`` is DREQ/drop, or a scenario's, ``folder`` its evidence."""

    name: str
    verdict: Verdict
    reason: str
    seconds: float
    folder: Path


def outcomes(results: Path) -> dict[str, Outcome]:
    """Every cell and scenario that a run holds a verdict of, by name. Raises HilError when there is no such run."""
    records = [record for record in read_verdicts(results) if record.test.startswith((MATRIX, SCENARIOS))]
    found = [Outcome(_name(r.test), r.verdict, r.reason, r.seconds, folder_of(results, r.test)) for r in records]
    return {outcome.name: outcome for outcome in found}


def _name(test: str) -> str:
    inside = test.partition("[")[2].removesuffix("]")
    known = {f"{cell.frame.name}-{cell.fault}": str(cell) for cell in cells()}
    return known.get(inside, inside) if inside else test.rpartition("::")[2].removeprefix("test_")


def newest(results: Path) -> Path | None:
    """The newest run below ``results`` that holds a verdict of the matrix."""
    for folder in sorted(results.glob("*/verdicts.json"), reverse=True):
        if MATRIX in folder.read_text(errors="replace"):
            return folder.parent
    return None


def status(shown: Iterable[Outcome]) -> int:
    """The exit code that these outcomes stand for."""
    return exit_code(outcome.verdict for outcome in shown)


def find(name: str) -> Cell:
    """The cell of this name. Raises HilError, with what there is."""
    for cell in cells():
        if str(cell) == name:
            return cell
    frames, faults = (", ".join(names) for names in ([f.name for f in FRAMES], FAULTS))
    raise HilError(f"there is no cell {name!r}; one is FRAME/FAULT, of the frames {frames} and the faults {faults}")


def _mark(outcome: Outcome | None, cell: Cell) -> Text:
    shown, style = MISSING if outcome is None else SHOWN.get(outcome.verdict, UNSUPPORTED)
    other = shown == "ok" and cell.expectation().reason
    return Text(f"{shown}*" if other else shown, style)


def grid(found: dict[str, Outcome]) -> Table:
    """A row for each kind of frame, a column for each fault; narrow enough for eighty characters."""
    title = "a hard close, when the first ... is hit by ..."
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for fault in FAULTS:
        table.add_column(fault, justify="center", no_wrap=True)
    for frame in FRAMES:
        marks = [_mark(found.get(str(cell := Cell(frame, fault))), cell) for fault in FAULTS]
        table.add_row(frame.name, *marks)
    return table


def reasons() -> dict[str, list[str]]:
    """Why cells end in another way than everywhere else: a reason to the cells it holds for."""
    told: dict[str, list[str]] = {}
    for cell in cells():
        if reason := cell.expectation().reason:
            spoilt = f" ({cell.frame.spoilt})" if cell.fault == REPAIRED else ""
            told.setdefault(reason, []).append(f"{cell}{spoilt}")
    return told


def lines(found: dict[str, Outcome]) -> Iterator[Text]:
    """What the grid has no room for: other ends and their reasons, scenarios, what did not pass, and the sums."""
    for reason, those in reasons().items():
        yield Text(f"* {reason}: {', '.join(those)}")
    names = {str(cell) for cell in cells()}
    for outcome in found.values():
        if outcome.name not in names:
            shown, style = SHOWN.get(outcome.verdict, UNSUPPORTED)
            yield Text.assemble((f"{shown:<6}", style), outcome.name.replace("_", " "))
    for outcome in found.values():
        if outcome.verdict is not Verdict.PASS:
            told = outcome.reason.splitlines()[0] if outcome.reason else ""
            yield Text(f"{outcome.verdict} {outcome.name}: {told[:200]}")
    counted = {verdict: sum(o.verdict is verdict for o in found.values()) for verdict in Verdict}
    missing = sum(name not in found for name in names)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
    yield Text(f"{told}, {missing} {NOT_RUN}; {sum(o.seconds for o in found.values()):.0f} s of tests")


def show(found: dict[str, Outcome], console: Console) -> None:
    """Print the grid and what belongs to it."""
    console.print(grid(found))
    for line in lines(found):
        console.print(line, soft_wrap=True)


def save(found: dict[str, Outcome], path: Path) -> None:
    """Write the grid as a page, colours and all."""
    with path.with_suffix(".txt").open("w") as plain:
        console = Console(record=True, width=140, file=plain, color_system=None)
        show(found, console)
        console.save_html(str(path))


def story(outcome: Outcome) -> str:
    """One cell in full: verdict, reason, and the entries of its timeline that tell what happened."""
    try:
        timeline = (outcome.folder / "timeline.txt").read_text(errors="replace").splitlines()
    except OSError as error:
        timeline = [f"no timeline: {error}"]
    told = [line for line in timeline if any(word in line for word in _STORY)] or timeline
    head = [f"{outcome.name}: {outcome.verdict} in {outcome.seconds:.1f} s"]
    return "\n".join([*head, *([outcome.reason] if outcome.reason else []), *told, f"evidence: {outcome.folder}"])
