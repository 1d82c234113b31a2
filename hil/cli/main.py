"""The ``hil`` command. Each verb is in its own module."""

from typing import Any

import click

from hil import __version__
from hil.cli import (
    adapters,
    contract,
    doctor,
    faults,
    figures,
    judge,
    lab,
    mutants,
    prepare,
    run,
    times,
    verdicts,
    verify,
)
from hil.cli.options import give_up
from hil.interrupts import end_by_any


class _Commands(click.Group):
    """The verbs. A verb that a signal ends has exit code 2, unless it handles the signal itself."""

    def invoke(self, ctx: click.Context) -> Any:
        end_by_any()
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            # click's own exit code would be 1, which means a fail here.
            give_up("interrupted")


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """Test bench for SAN adapters: closes Winsock Direct sockets the hard way and proves the reset on the wire."""


for verb in (
    run.run,
    contract.contract,
    verdicts.verdicts,
    faults.faults,
    mutants.mutants,
    verify.verify,
    judge.judge,
    doctor.doctor,
    lab.lab,
    adapters.adapters,
    prepare.prepare,
    figures.figures,
    times.times,
):
    main.add_command(verb)
