"""How the verbs run pytest over the contract: which tests, how many at once, and their exit code."""

import subprocess
import sys
from pathlib import Path

import click

from hil.cli.options import ROOT, lab_of, or_give_up
from hil.labs.kinds import MAX_JOBS, kind_of
from hil.labs.schema import LabFile

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


def check_tests(arguments: list[str]) -> None:
    """End the program with 2 unless pytest can collect these tests: of several processes none would say why."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", f"--rootdir={ROOT}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        click.echo(f"{reason}\nhil: error: these tests cannot be run: {' '.join(arguments)}", err=True)
        sys.exit(2)


def parallel(jobs: int) -> list[str]:
    """pytest's arguments for so many tests at once."""
    return [f"--numprocesses={jobs}", "--dist=worksteal"] if jobs > 1 else []


def default_tests(tests: tuple[str, ...], *, whole: bool) -> list[str]:
    """What ``hil run`` adds to pytest's arguments: nothing when they name tests."""
    if any(not test.startswith("-") and (Path(test.split("::")[0]).exists() or ".py" in test) for test in tests):
        return []
    contract = ROOT / "tests" / "contract"
    whole = whole or any(test.startswith("--requirement") for test in tests)
    return [str(contract if whole else contract / "test_hard_close.py")]


def exit_code(status: int) -> int:
    """pytest's exit status as the bench's: whatever is neither all right nor a fail is a set-up that broke."""
    return status if status in (0, 1) else 2
