"""``hil doctor``: whether a lab will work here, and the command that mends it."""

import sys
from pathlib import Path

import click

from hil.cli.options import LAB, lab_of


@click.command()
@LAB
def doctor(lab: Path) -> None:
    """Look at this machine and at the lab's nodes: what is missing, what would fail, and what mends it.

    Exit code 0: the lab will work. 2: something is bad. Nothing is changed.
    """
    from hil.labs.doctor import examine
    from hil.labs.findings import report

    if not report(examine(lab_of(lab), lab.absolute().parent), click.echo):
        sys.exit(2)
