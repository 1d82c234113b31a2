"""How the verbs run pytest over the contract: which tests, how many at once, and their exit code."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from hil.cli.options import lab_of, or_give_up
from hil.labs.kinds import MAX_JOBS, kind_of
from hil.labs.schema import LabFile
from hil.suite import CONTRACT, SUITE, in_suite

# pytest's options whose value may stand behind a blank: it names no tests.
TAKE_A_VALUE = ("-k", "-m", "-p", "-o", "-c", "-W", "-n", "--maxfail", "--deselect", "--ignore", "--timeout", "--tb")
NO_CACHE = "no:cacheprovider"
JOBS = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    show_default=f"as many as the lab carries on this machine, at most {MAX_JOBS}",
    help="How many tests run at once, each on a pair of its own.",
)


def prepared(path: Path) -> LabFile:
    """The lab file at ``path``, and what its nodes are made from built when needed; ends the program with 2."""
    file = lab_of(path)
    or_give_up(lambda: kind_of(file).prepare(file))
    return file


def suite_arguments(*, cache: bool = False) -> list[str]:
    """pytest's arguments for tests of the suite: its own settings, and ids that are the same wherever it lies.

    With ``cache``, pytest remembers in the current folder which tests failed; else it remembers nothing.
    """
    kept = ["-o", f"cache_dir={Path('.pytest_cache').absolute()}"] if cache else ["-p", NO_CACHE]
    return ["-c", str(SUITE / "pytest.ini"), f"--rootdir={SUITE}", *kept]


def arguments(tests: Sequence[str], *, whole: bool) -> list[str]:
    """pytest's arguments for what a command line names: the suite's settings unless there are tests of one's own.

    ``tests`` are paths with or without the name of a test behind ``::``, and options of pytest. A path is taken from
    the current folder, else from the suite. Where no tests are named: those of the teardown, or with ``whole`` all.
    """
    before = ["", *tests]
    found = [(None, test) if last in TAKE_A_VALUE else _placed(test) for last, test in zip(before, tests, strict=False)]
    named = [path for path, _ in found if path is not None]
    given = [text for _, text in found]
    of_suite = suite_arguments(cache=NO_CACHE not in tests)
    if not named:
        return [*of_suite, *given, str(CONTRACT if whole else CONTRACT / "test_hard_close.py")]
    return [*(of_suite if all(map(in_suite, named)) else ()), *given]


def _placed(test: str) -> tuple[Path | None, str]:
    """A path to tests as (file or folder, argument for pytest); (None, argument) of anything else."""
    name, colons, rest = test.partition("::")
    if test.startswith("-") or not name:
        return None, test
    for path in (Path(name), SUITE / name, SUITE / "tests" / name):
        if path.exists():
            place = in_suite(path) or path
            return place, f"{place}{colons}{rest}"
    return (Path(name), test) if ".py" in name else (None, test)


def check_tests(chosen: Sequence[str]) -> None:
    """End the program with 2 unless pytest can collect these tests: of several processes none would say why."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        click.echo(f"{reason}\nhil: error: these tests cannot be run: {' '.join(chosen)}", err=True)
        sys.exit(2)


def parallel(jobs: int) -> list[str]:
    """pytest's arguments for so many tests at once."""
    return [f"--numprocesses={jobs}", "--dist=worksteal"] if jobs > 1 else []


def exit_code(status: int) -> int:
    """pytest's exit status as the bench's: whatever is neither all right nor a fail is a set-up that broke."""
    return status if status in (0, 1) else 2
