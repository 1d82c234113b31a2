"""``hil mutants``: does the contract find the providers that are wrong on purpose?"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from hil.cli.options import LAB
from hil.cli.tests import JOBS, parallel, prepared, suite_arguments
from hil.errors import HilError
from hil.labs.kinds import jobs as jobs_on
from hil.progress import step
from hil.suite import CONTRACT


@click.command()
@LAB
@JOBS
@click.option("--all", "whole", is_flag=True, help="Every test of the contract, not only those of the areas broken.")
@click.argument("names", nargs=-1)
def broken(lab: Path, jobs: int | None, whole: bool, names: tuple[str, ...]) -> None:
    """Run the contract against providers broken on purpose (default: all of them), and say which tests fail.

    Exit code 1 when some requirement is broken and no failed test names it. Evidence lies in results/broken/NAME.
    """
    from hil.report import mutants as report

    known = report.broken_providers()
    if unknown := set(names) - known.keys():
        click.echo(
            f"hil: error: no broken provider {', '.join(sorted(unknown))}; there are {', '.join(known)}", err=True
        )
        sys.exit(2)
    jobs = jobs_on(prepared(lab), jobs)
    chosen = [known[name] for name in names or known if known[name].breaks]
    missed = 0
    for provider in chosen:
        folder = Path("results") / "broken" / provider.name
        seen = report.sight(provider, _broken_run(provider.name, () if whole else provider.areas, folder, lab, jobs))
        click.echo("\n".join(report.told(seen)))
        missed += not seen.found
    click.echo(f"hil: {len(chosen) - missed} of {len(chosen)} broken providers were found")
    sys.exit(int(missed > 0))


def _broken_run(name: str, areas: tuple[str, ...], folder: Path, lab: Path, jobs: int) -> list[dict[str, Any]]:
    from hil.report.contract import read_verdicts

    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", *suite_arguments(), f"--hil-lab={lab.absolute()}", *parallel(jobs)]
    command += [f"--hil-provider={name}", f"--hil-results={folder.absolute()}"]
    command += [f"--hil-requirement={area}" for area in areas]
    with step(f"the contract's tests against {name}"):
        subprocess.run([*command, str(CONTRACT)], capture_output=True)
    try:
        return read_verdicts(folder)
    except HilError as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
