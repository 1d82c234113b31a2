"""``hil prepare``: build what the nodes of a soft lab are made from."""

from pathlib import Path

import click

from hil.cli.options import LAB
from hil.cli.tests import prepared
from hil.labs.file import HostsFile


@click.command()
@LAB
def prepare(lab: Path) -> None:
    """Build or reuse the guest images and snapshots of a soft lab."""
    file = prepared(lab)
    told = "needs no preparation" if isinstance(file, HostsFile) else f"({file.guest.suite}) is ready"
    click.echo(f"hil: {lab.name} {told}")
