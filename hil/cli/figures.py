"""``hil figures``: measure a pristine pair."""

from pathlib import Path

import click

from hil.cli.options import LAB, give_up, lab_of
from hil.errors import HilError, Unsupported
from hil.labs.kinds import kind_of


@click.command()
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="How many pristine pairs to time.")
@LAB
def figures(lab: Path, pairs: int) -> None:
    """Measure the time to make a pristine provisioned pair on this machine, and the memory of each node."""
    file = lab_of(lab)
    try:
        for line in kind_of(file).measure(file, pairs):
            click.echo(line)
    except Unsupported as error:
        give_up(f"{lab}: {error}")
    except (HilError, OSError) as error:
        give_up(error)
