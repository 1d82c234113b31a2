"""``hil verdicts``: print the verdicts of a run, a line for each test."""

import sys
from pathlib import Path

import click

from hil.errors import HilError
from hil.verdict import Verdict


@click.command()
@click.option("--only", type=click.Choice([*Verdict]), help="Print only tests with this verdict.")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def verdicts(only: str | None, folder: Path | None) -> None:
    """Print the verdicts of the run in FOLDER, or of the newest below results/.

    Each line has the verdict, a tab and the test.
    """
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
