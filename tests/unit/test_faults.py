"""The fault matrix as data, and how it is drawn from verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hil.capture.pcapng import read_pcapng
from hil.errors import HilError
from hil.report import grid
from hil.roce.outline import outline
from hil.winsock.codes import Code
from hil.wire.matrix import FAULTS, FRAMES, REPAIRED, cells
from hil.wire.picking import Faults

ROOT = Path(__file__).parents[2]
TEST = "tests/faults/test_matrix.py::test_a_hard_close_ends_as_the_contract_says[{}]"
SCENARIO = "tests/faults/test_scenarios.py::test_crossed_dreqs"


def results(folder: Path, **others: tuple[str, str]) -> Path:
    """A run in which every cell passed but those named, with their verdict and reason."""
    names = [f"{cell.frame.name}-{cell.fault}" for cell in cells()]
    told = {name: others.get(name.replace("-", "_"), ("pass", "")) for name in names}
    records = [{"test": TEST.format(n), "verdict": v, "reason": r, "seconds": 1.0} for n, (v, r) in told.items()]
    records.append({"test": SCENARIO, "verdict": "pass", "reason": "", "seconds": 2.0})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verdicts.json").write_text(json.dumps(records))
    return folder


def drawn(folder: Path) -> str:
    console = Console(width=80, color_system=None, record=True, quiet=False)
    with console.capture() as captured:
        grid.show(grid.outcomes(folder), console)
    return captured.get()


def test_every_kind_of_frame_meets_every_fault() -> None:
    """Thirteen rows, nine columns, no name twice; each cell has a rule of its own."""
    names = [str(cell) for cell in cells()]
    assert (len(FRAMES), len(FAULTS), len(names), len(set(names))) == (13, 9, 117, 117)
    assert len({cell.wire_fault() for cell in cells()}) == 117


def test_every_other_end_has_a_reason() -> None:
    """What a cell must end with differs from everywhere else only where it is said why."""
    for cell in cells():
        expected = cell.expectation()
        usual = expected.connect is Code.OK and expected.receive is Code.WSAECONNRESET and expected.true
        assert usual or expected.reason, cell


@pytest.mark.parametrize(("name", "row"), [("hard_close_ipv4.pcapng", "DREQ"), ("rping.pcapng", "READ-request")])
def test_a_row_picks_its_frames(name: str, row: str) -> None:
    """Of a recorded connection exactly the first frame of the row's kind is picked."""
    captured = list(read_pcapng(ROOT / "tests" / "unit" / "captures" / name))
    cell = next(cell for cell in cells() if cell.frame.name == row)
    rules = Faults()
    rules.add(cell.wire_fault())
    sides = {"a": "b", "b": "a"} if row == "READ-request" else {"a": "a", "b": "b"}
    hits = [f for f in captured if rules.decide(sides[f.interface.removeprefix("side-")], f.data)[0]]
    assert len(hits) == 1
    found = outline(hits[0].data)
    assert found is not None and (found.opcode in cell.frame.opcodes or found.cm in cell.frame.cm)


def test_the_grid_fits_eighty_characters_and_shows_every_verdict(tmp_path: Path) -> None:
    """A failed and an invalid cell stand out and are listed with their reasons; the sums are at the end."""
    folder = results(tmp_path, DREQ_drop=("fail", "AssertionError: the peer heard\nnothing"), ACK_cut=("invalid", "x"))
    text = drawn(folder)
    assert max(map(len, text.splitlines()[: len(FRAMES) + 2])) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2 : len(FRAMES) + 2]}
    assert rows["DREQ"][0] == "FAIL" and rows["ACK"][-1] == "inv"
    assert rows["REQ"][list(FAULTS).index(REPAIRED)] == "ok*"
    assert "fail DREQ/drop: AssertionError: the peer heard" in text
    assert "ok    crossed dreqs" in text
    assert "116 pass, 1 fail, 1 invalid, 0 unsupported, 0 not run" in text


def test_the_page_holds_the_grid(tmp_path: Path) -> None:
    """The same as on the terminal, as HTML."""
    grid.save(grid.outcomes(results(tmp_path)), tmp_path / "grid.html")
    assert "READ-response" in (tmp_path / "grid.html").read_text()


def faults(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hil", "faults", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, env=environment)


def test_one_cells_evidence_is_one_command_away(tmp_path: Path) -> None:
    """Of the newest run: verdict, reason, what happened, and the folder; a cell that is none is named with those there
    are."""
    folder = results(tmp_path / "results" / "20260101-000000", DREQ_drop=("fail", "AssertionError: nothing heard"))
    evidence = folder / "faults_test_matrix_py_test_a_hard_close_ends_as_the_contract_says_DREQ-drop_"
    evidence.mkdir()
    (evidence / "timeline.txt").write_text("1 ms  wire  rule  rule=DREQ/drop\n2 ms  a  begin  function=WSPSocket\n")

    done = faults("--cell", "DREQ/drop", cwd=tmp_path)

    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "DREQ/drop: fail in 1.0 s",
        "AssertionError: nothing heard",
        "1 ms  wire  rule  rule=DREQ/drop",
        f"evidence: {evidence}",
    ]
    wrong = faults("--cell", "DREQ/explode", cwd=tmp_path)
    assert wrong.returncode == 2 and "there is no cell 'DREQ/explode'" in wrong.stderr
    assert faults("--cell", "DREQ/drop", cwd=tmp_path / "results").returncode == 2


def test_a_folder_without_verdicts_is_named(tmp_path: Path) -> None:
    """Nothing there, or something else: a HilError that says which folder."""
    with pytest.raises(HilError, match="holds no verdicts"):
        grid.outcomes(tmp_path)
    (tmp_path / "verdicts.json").write_text('{"test": 1}')
    with pytest.raises(HilError, match="holds no verdicts"):
        grid.outcomes(tmp_path)
