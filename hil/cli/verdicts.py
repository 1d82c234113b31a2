"""``hil verdicts``: the verdicts of a run, a line each."""

import sys
from pathlib import Path

import click

from hil.errors import HilError
from hil.verdict import Verdict


@click.command()
@click.option("--only", type=click.Choice([*Verdict]), help="Only these.")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def verdicts(only: str | None, folder: Path | None) -> None:
    """The verdicts of a run, FOLDER or the newest below results/: a line each, verdict and test with a tab between."""
    from hil.evidence.bundle import read_verdicts
    from hil.report import contract as report

    found = folder or report.newest_results(Path("results"))
    if found is None:
        click.echo("hil: error: there are no results yet; run hil run first", err=True)
        sys.exit(2)
    try:
        records = read_verdicts(found)
    except HilError as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    for record in records:
        if only in (None, record.verdict):
            click.echo(f"{record.verdict}\t{record.test}")
