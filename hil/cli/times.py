"""``hil times``: show how the time of a run was spent."""

import json
import sys
from pathlib import Path

import click

from hil.cli.options import give_up
from hil.errors import HilError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all times as JSON, in seconds.")
@click.option(
    "--most", default=15, show_default=True, type=click.IntRange(1), help="The largest number of rows in each table."
)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def times(folder: Path | None, as_json: bool, most: int) -> None:
    """Show the time of a run by folder, file and phase, the slowest tests, long waits, and the load of the cores.

    FOLDER is a results folder (default: the newest below results/). A phase's seconds are wall time. Processor is the
    processor time of all the test's processes on this machine. Waiting is the rest.
    """
    from rich.console import Console

    from hil.report import times as report

    if folder is None:
        folder = report.newest(Path("results"))
        if folder is None:
            give_up("no run below results/ has kept its times")
    try:
        found = report.read(folder)
    except HilError as error:
        give_up(error)
    if as_json:
        click.echo(json.dumps(report.as_json(found), indent=1))
    else:
        # A file or a pipe has no width, so the tables get their full width.
        report.show(found, Console() if sys.stdout.isatty() else Console(width=report.WIDTH), most)
