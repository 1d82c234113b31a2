"""Arguments and exit codes of pytest, for the verbs that run the contract's tests."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from hil.cli.options import lab_of, or_give_up
from hil.labs.kinds import MAX_JOBS, kind_of
from hil.labs.schema import LabFile
from hil.suite import CONTRACT, SUITE, in_suite

# Options of pytest whose value may follow as the next argument. Such a value names no tests.
TAKE_A_VALUE = ("-k", "-m", "-p", "-o", "-c", "-W", "-n", "--maxfail", "--deselect", "--ignore", "--timeout", "--tb")
NO_CACHE = "no:cacheprovider"
JOBS = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    show_default=f"as many as the lab can run on this machine, at most {MAX_JOBS}",
    help="How many tests run at once, each on its own pair.",
)


def prepared(path: Path) -> LabFile:
    """Read the lab file at ``path`` and prepare its nodes' images. An error ends the program with 2."""
    file = lab_of(path)
    or_give_up(lambda: kind_of(file).prepare(file))
    return file


def suite_arguments(*, cache: bool = False) -> list[str]:
    """pytest's arguments for tests of the suite: its own settings, and ids that do not depend on its folder.

    ``cache``: pytest keeps a list of failed tests in the current folder.
    """
    kept = ["-o", f"cache_dir={Path('.pytest_cache').absolute()}"] if cache else ["-p", NO_CACHE]
    return ["-c", str(SUITE / "pytest.ini"), f"--rootdir={SUITE}", *kept]


def arguments(tests: Sequence[str], *, whole: bool) -> list[str]:
    """pytest's arguments for a command line. The suite's settings apply unless it names the user's own tests.

    ``tests`` are paths with or without the name of a test after ``::``, and options of pytest. A path is looked up in
    the current folder, then in the suite. If no tests are named, the tests of the teardown are chosen, or with
    ``whole`` all tests.
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
    """(file or folder, argument for pytest) for a path to tests; (None, argument) for any other argument."""
    name, colons, rest = test.partition("::")
    if test.startswith("-") or not name:
        return None, test
    for path in (Path(name), SUITE / name, SUITE / "tests" / name):
        if path.exists():
            place = in_suite(path) or path
            return place, f"{place}{colons}{rest}"
    return (Path(name), test) if ".py" in name else (None, test)


def check_tests(chosen: Sequence[str]) -> None:
    """End the program with 2 and pytest's message unless pytest can collect these tests.

    pytest with several processes prints no message for this.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        click.echo(f"{reason}\nhil: error: these tests cannot be run: {' '.join(chosen)}", err=True)
        sys.exit(2)


def parallel(jobs: int) -> list[str]:
    """pytest's arguments to run ``jobs`` tests at once."""
    return [f"--numprocesses={jobs}", "--dist=worksteal"] if jobs > 1 else []


def exit_code(status: int) -> int:
    """The bench's exit code for pytest's exit status: 0 and 1 are kept, any other status means a broken set-up."""
    return status if status in (0, 1) else 2
