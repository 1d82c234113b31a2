"""Times of a test: counted by phase, kept in the results, and shown."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from hil import stopwatch
from hil.cli.main import main
from hil.errors import HilError
from hil.report import times
from hil.stopwatch import Phase, ProcessorTime

LINES = (
    {"cores": [100, 1000], "at": 10.0},
    {
        "test": "tests/contract/test_a.py::test_quick",
        "worker": "gw0",
        "at": 12.0,
        "cores": [300, 1400],
        "begun": 10.0,
        "phases": {"pair": [1.0, 0.5], "call": [0.5, 0.5]},
        "waits": [],
    },
    {
        "test": "tests/contract/test_a.py::test_slow",
        "worker": "gw1",
        "at": 20.0,
        "cores": [500, 2000],
        "begun": 12.0,
        "phases": {"call": [8.0, 1.0], "audit": [0.5, 0.2]},
        "waits": [["wait_event", 6.5]],
    },
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with the times of two tests."""
    (tmp_path / times.TIMES).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


@pytest.fixture
def watch() -> Iterator[None]:
    """No stopwatch runs before and after the test; the session's own goes on afterwards."""
    kept, stopwatch._running = stopwatch._running, None
    yield
    stopwatch._running = kept


@pytest.mark.usefixtures("watch")
def test_time_belongs_to_the_innermost_phase() -> None:
    """Time in nested phases counts once, for the innermost phase, and time outside all phases is set-up."""
    stopwatch.start()
    with stopwatch.phase(Phase.CALL):
        time.sleep(0.02)
        with stopwatch.phase(Phase.AUDIT):
            time.sleep(0.04)
    told = stopwatch.stop()

    assert told is not None
    walls = {name: wall for name, (wall, _) in told["phases"].items()}
    assert walls.keys() == {"set-up", "call", "audit"}
    assert walls["audit"] >= 0.04 and walls["call"] >= 0.02
    assert sum(walls.values()) < time.time() - told["begun"] + 0.01


@pytest.mark.usefixtures("watch")
def test_a_phase_distinguishes_work_from_waiting() -> None:
    """The processor time of a busy process counts for its phase, and a nap takes next to none."""
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    stopwatch.start()
    stopwatch.enter(Phase.CALL)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        stopwatch.watch(ProcessorTime(busy.pid), new=True)
        assert busy.stdout is not None
        busy.stdout.readline()
        stopwatch.enter(Phase.AUDIT)
        time.sleep(0.1)
        told = stopwatch.stop()
        busy.communicate(b"\n")

    assert told is not None
    assert told["phases"]["call"][1] >= 0.25
    assert told["phases"]["audit"][1] < 0.05 <= told["phases"]["audit"][0]


def test_an_ended_process_keeps_its_last_known_time() -> None:
    """The time of an ended process stays as it was read last, and never falls."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        worked = ProcessorTime(process.pid)
        before = worked()
        process.communicate(b"\n")
    assert worked() == before
    assert ProcessorTime(os.getpid())() > 0


@pytest.mark.usefixtures("watch")
def test_long_calls_are_kept_by_name() -> None:
    """A remote call of a second or more is recorded, a shorter one is not, and without a test nothing is recorded."""
    stopwatch.waited("nothing", 5 * 10**9)
    stopwatch.start()
    stopwatch.waited("wait_event", 1_500_000_000)
    stopwatch.waited("WSPSend", 900_000_000)
    told = stopwatch.stop()
    assert told is not None and told["waits"] == [("wait_event", 1.5)]


def test_a_runs_times_are_read_back(folder: Path) -> None:
    """Wall, processor and waiting times are read back by test, with the load of the cores over time."""
    found = times.read(folder)
    quick, slow = found.tests
    assert (quick.wall_s, quick.processor_s, quick.waiting_s) == (1.5, 1.0, 0.5)
    assert slow.waiting_s == pytest.approx(7.3)
    assert times.busy_share(found.busy) == pytest.approx(0.4)
    line = times.busy_line(found.busy)
    # Half of the time of the first two seconds, a third of the rest.
    assert len(line) == times.SLICES and set(line[:10]) == {times.BARS[4]} and line[-1] == times.BARS[3]


def test_the_tables_name_the_slowest_and_the_long_waits(folder: Path) -> None:
    """The tables show the slowest folder, file, test and wait in one screen, and --json shows everything."""
    out = StringIO()
    times.show(times.read(folder), Console(file=out, width=200), 5)
    shown = out.getvalue()
    assert "2 tests in 10 s, 2 at a time; cores busy 40%" in shown
    assert "tests/contract/test_a.py::test_slow" in shown and "6.5" in shown and "wait_event" in shown

    done = CliRunner().invoke(main, ["times", "--json", str(folder)])
    assert done.exit_code == 0
    assert [test["wall"] for test in json.loads(done.stdout)["tests"]] == [1.5, 8.5]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"at": 1, "cores": [1]}',
        '{"at": NaN, "cores": [1, 2]}',
        '{"at": 1, "cores": [1e999, 2]}',
        '{"at": 1, "cores": [1, 2], "test": 1, "phases": {"nap": [1, 2]}}',
        '{"at": 1, "cores": [1, 2], "test": 1, "phases": [], "waits": []}',
    ],
)
def test_a_damaged_line_is_reported_with_its_number(tmp_path: Path, line: str) -> None:
    """A damaged line is reported with its number, and the command ends with 2."""
    (tmp_path / times.TIMES).write_text(f"{json.dumps(LINES[0])}\n{line}\n")
    with pytest.raises(HilError, match="line 2"):
        times.read(tmp_path)
    done = CliRunner().invoke(main, ["times", str(tmp_path)])
    assert done.exit_code == 2 and "line 2 is not a test's times" in done.stderr


def test_a_cut_line_and_a_clock_that_was_set_back_are_accepted(folder: Path) -> None:
    """A killed run, whose last line is cut, and a run whose clock was set back are shown."""
    with (folder / times.TIMES).open("a") as file:
        file.write(json.dumps(LINES[1] | {"at": 1.0, "cores": [100, 900]}) + "\n" + json.dumps(LINES[2])[:40])
    found = times.read(folder)
    assert len(found.tests) == 3
    assert 0 <= times.busy_share(found.busy) <= 1
    times.show(found, Console(file=StringIO()), 5)


def test_a_folder_without_times_is_reported(tmp_path: Path) -> None:
    """The results of an older bench have no times, and the command says so."""
    done = CliRunner().invoke(main, ["times", str(tmp_path)])
    assert done.exit_code == 2 and "a run of the bench keeps it" in done.stderr


def test_a_run_keeps_the_times_of_its_tests(tmp_path: Path) -> None:
    """Each test has a line of times, also with several processes and whatever the tests need."""
    (tmp_path / "test_it.py").write_text("import time\ndef test_nap(): time.sleep(0.1)\ndef test_none(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", f"--hil-results={tmp_path}"]
    subprocess.run([*command, str(tmp_path / "test_it.py")], check=True, capture_output=True, cwd=Path(__file__).parent)

    found = {test.test.partition("::")[2]: test for test in times.read(tmp_path).tests}
    assert found.keys() == {"test_nap", "test_none"}
    assert found["test_nap"].phases[Phase.CALL][0] >= 0.1
