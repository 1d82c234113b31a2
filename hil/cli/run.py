"""``hil run``: the contract on a lab."""

import sys
import time
from pathlib import Path

import click

from hil.cli.options import LAB, ROOT
from hil.cli.tests import JOBS, check_tests, default_tests, exit_code, parallel, prepared
from hil.labs.kinds import jobs as jobs_on


@click.command(context_settings={"ignore_unknown_options": True})
@LAB
@click.option("--results", default="", help="Folder for evidence (default: results/<time>).")
@click.option("--all", "whole", is_flag=True, help="The whole contract, not only the teardown.")
@JOBS
@click.argument("tests", nargs=-1, type=click.UNPROCESSED)
def run(lab: Path, results: str, whole: bool, jobs: int | None, tests: tuple[str, ...]) -> None:
    """Run the teardown contract on a lab, or with --all the whole contract; TESTS are pytest arguments.

    With --requirement CLOSE-17 (or an area) among them: the tests of the whole contract that name it.

    Exit code 0: nothing failed and nothing was invalid. 1: a fail. 2: invalid, or the set-up could not be made.
    """
    import pytest

    chosen = [*tests, *default_tests(tests, whole=whole)]
    jobs = jobs_on(prepared(lab), jobs)
    folder = Path(results or f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        click.echo(f"hil: error: the evidence cannot be written to {folder}: {error.strerror}", err=True)
        sys.exit(2)
    options = [f"--rootdir={ROOT}", f"--results={folder}", f"--lab={lab.absolute()}"]
    options += [f"--junit-xml={folder / 'junit.xml'}", *parallel(jobs)]
    status = exit_code(pytest.main([*options, *chosen]))
    if status == 2 and not (folder / "verdicts.json").exists():
        check_tests(chosen)
    sys.exit(status)
