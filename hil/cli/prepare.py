"""``hil prepare``: build the guest images and snapshots of a soft lab."""

from pathlib import Path

import click

from hil.cli.options import LAB, lab_of, or_give_up
from hil.labs.kinds import kind_of


@click.command()
@LAB
def prepare(lab: Path) -> None:
    """Build the guest images and snapshots of a soft lab, unless they are cached."""
    file = lab_of(lab)
    told = or_give_up(lambda: kind_of(file).prepare(file))
    click.echo(f"hil: {lab.name} {told}")
