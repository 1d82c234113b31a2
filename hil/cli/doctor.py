"""``hil doctor``: check whether a lab will work here, and name the commands that repair it."""

import sys
from pathlib import Path

import click

from hil.cli.options import LAB, lab_of


@click.command()
@LAB
def doctor(lab: Path) -> None:
    """Examine this machine and the lab's nodes. For each problem, print the command that repairs it.

    Exit code 0: the lab will work. 2: there is a problem. The command changes nothing.
    """
    from hil.labs.doctor import examine
    from hil.labs.findings import report

    if not report(examine(lab_of(lab), lab.absolute().parent), click.echo):
        sys.exit(2)
