"""``hil times``: where the time of a run went."""

import json
import sys
from pathlib import Path

import click

from hil.cli.options import give_up
from hil.errors import HilError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, seconds.")
@click.option("--most", default=15, show_default=True, type=click.IntRange(1), help="Rows of each table.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def times(folder: Path | None, as_json: bool, most: int) -> None:
    """Where the time of a run went: by folder, file and phase, the slowest tests, long waits, how busy the cores were.

    FOLDER is a results folder (default: the newest below results/). A phase's seconds are the wall's; processor is the
    time that all processes worked for the test, as far as they live on this machine; waiting is what is left.
    """
    from rich.console import Console

    from hil.report import times as report

    if folder is None:
        folder = report.newest(Path("results"))
        if folder is None:
            give_up("no run that kept its times below results/")
    try:
        found = report.read(folder)
    except HilError as error:
        give_up(error)
    if as_json:
        click.echo(json.dumps(report.as_json(found), indent=1))
    else:
        # A file or a pipe has no width: there the tables are as wide as they must be.
        report.show(found, Console() if sys.stdout.isatty() else Console(width=report.WIDTH), most)
