"""``hil run``: run the contract's tests on a lab."""

import sys
import time
from pathlib import Path

import click

from hil.cli.options import LAB, give_up
from hil.cli.tests import JOBS, arguments, check_tests, exit_code, parallel, prepared
from hil.labs.kinds import jobs as jobs_on


@click.command(context_settings={"ignore_unknown_options": True})
@LAB
@click.option("--results", default="", help="Folder for evidence (default: results/<time>).")
@click.option("--all", "whole", is_flag=True, help="Run the whole contract, not only the teardown.")
@click.option(
    "--requirement",
    "requirement",
    multiple=True,
    metavar="ID",
    help="Run only the tests of this requirement or area. Repeatable.",
)
@click.option("--provider", default="", help="The provider under test: PACKAGE.MODULE:FACTORY, or its installed name.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the provider. Repeatable.")
@click.option("--thorough", is_flag=True, help="Also run repetitions: every round of the races, long waits.")
@click.option(
    "--jitter",
    default="",
    metavar="SEED",
    help="Insert random naps in calls, up-calls, events and frames. SEED or new.",
)
@click.option(
    "--needing", multiple=True, metavar="NEED", help="Run only tests that have this need of the lab. Repeatable."
)
@click.option("--fresh-pairs", is_flag=True, help="Give every test a pair that no other test has used.")
@JOBS
@click.argument("tests", nargs=-1, type=click.UNPROCESSED)
def run(
    lab: Path,
    results: str,
    whole: bool,
    requirement: tuple[str, ...],
    provider: str,
    settings: tuple[str, ...],
    thorough: bool,
    jitter: str,
    needing: tuple[str, ...],
    fresh_pairs: bool,
    jobs: int | None,
    tests: tuple[str, ...],
) -> None:
    """Run the teardown contract on a lab, or with --all the whole contract.

    TESTS are your own tests, tests of the suite (contract/test_closing.py), and further options of pytest.

    Exit code 0: no test failed or was invalid. 1: a fail. 2: invalid, or the set-up could not be made.
    """
    import pytest

    chosen = arguments(tests, whole=whole or bool(requirement))
    jobs = jobs_on(prepared(lab), jobs)
    folder = Path(results or f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        give_up(f"the evidence cannot be written to {folder}: {error.strerror}")
    options = [f"--hil-results={folder}", f"--hil-lab={lab.absolute()}", f"--junit-xml={folder / 'junit.xml'}"]
    selected = [f"--hil-requirement={name}" for name in requirement] + [f"--hil-needing={need}" for need in needing]
    selected += [f"--hil-{name}={text}" for name, text in (("provider", provider), ("jitter", jitter)) if text]
    selected += [f"--hil-set={text}" for text in settings]
    selected += ["--hil-thorough"] * thorough + ["--hil-fresh-pairs"] * fresh_pairs
    status = exit_code(pytest.main([*options, *selected, *parallel(jobs), *chosen]))
    if status == 2 and not (folder / "verdicts.json").exists():
        check_tests([f"--hil-lab={lab.absolute()}", *selected, *chosen])
    sys.exit(status)
