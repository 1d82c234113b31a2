"""``hil mutants``: check that the contract's tests find the mutants of the provider."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hil.cli.options import LAB, give_up, or_give_up
from hil.cli.tests import JOBS, parallel, prepared, suite_arguments
from hil.errors import HilError
from hil.labs.kinds import jobs as jobs_on
from hil.mutants import catalogue
from hil.mutants.catalogue import Layer
from hil.progress import step
from hil.suite import CONTRACT

if TYPE_CHECKING:
    from hil.evidence.bundle import VerdictRecord


@click.command()
@LAB
@JOBS
@click.option(
    "--all",
    "whole",
    is_flag=True,
    help="Run every test of the contract, not only the tests of the areas that a mutant breaks.",
)
@click.option("--list", "listed", is_flag=True, help="List every mutant with its layer and the requirements it breaks.")
@click.argument("names", nargs=-1)
def mutants(lab: Path, jobs: int | None, whole: bool, listed: bool, names: tuple[str, ...]) -> None:
    """Run the contract against mutants of the provider (default: all of them), and print which tests fail.

    Exit code 1 when a mutant breaks a requirement that no failed test names. Evidence is in results/mutants/NAME.
    """
    from hil.report import mutants as report

    every = or_give_up(catalogue.mutants)
    if listed:
        click.echo("\n".join(report.listing(every.values())))
        return
    known = {name: m for name, m in every.items() if m.layer is Layer.PROVIDER and m.breaks}
    if unknown := set(names) - known.keys():
        give_up(f"there is no mutant {', '.join(sorted(unknown))} of the provider; there are {', '.join(known)}")
    jobs = jobs_on(prepared(lab), jobs)
    chosen = [known[name] for name in names or known]
    missed = 0
    for mutant in chosen:
        folder = Path("results") / "mutants" / mutant.name
        seen = report.sight(mutant, _run(mutant.name, () if whole else mutant.areas, folder, lab, jobs))
        click.echo("\n".join(report.told(seen)))
        missed += not seen.found
    click.echo(f"hil: {len(chosen) - missed} of {len(chosen)} mutants were found")
    sys.exit(int(missed > 0))


def _run(name: str, areas: tuple[str, ...], folder: Path, lab: Path, jobs: int) -> "list[VerdictRecord]":
    from hil.evidence.bundle import read_verdicts

    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", *suite_arguments(), f"--hil-lab={lab.absolute()}", *parallel(jobs)]
    command += [f"--hil-provider={name}", f"--hil-results={folder.absolute()}"]
    command += [f"--hil-requirement={area}" for area in areas]
    with step(f"the contract's tests against {name}"):
        subprocess.run([*command, str(CONTRACT)], capture_output=True)
    try:
        return read_verdicts(folder)
    except HilError as error:
        give_up(error)
