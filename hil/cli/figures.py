"""``hil figures``: a pristine pair measured."""

from pathlib import Path

import click

from hil.cli.options import LAB, give_up
from hil.cli.tests import prepared
from hil.errors import HilError
from hil.labs.file import SoftPairFile
from hil.labs.soft.kinds import soft_guest


@click.command()
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="How many pristine pairs to time.")
@LAB
def figures(lab: Path, pairs: int) -> None:
    """Measure on this machine: time of a pristine provisioned pair, and memory of each node."""
    from hil.labs.soft.figures import measure

    file = prepared(lab)
    if not isinstance(file, SoftPairFile):
        give_up(f"{lab}: only a soft pair can be measured")
    try:
        for line in measure(soft_guest(file.guest), pairs, file.link.mtu):
            click.echo(line)
    except (HilError, OSError) as error:
        give_up(error)
