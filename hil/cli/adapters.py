"""``hil adapters``: list RDMA adapters."""

import json
import sys
from pathlib import Path

import click

from hil.cli.options import LabType, lab_of
from hil.errors import HilError
from hil.labs.kinds import Told, kind_of
from hil.progress import harmless


@click.command()
@click.option(
    "--lab",
    type=LabType(),
    help="List the provisioned adapters of each node of this lab (default: the adapters of this machine).",
)
@click.option("--gids", is_flag=True, help="Also show each port's GID table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the adapters by node.")
@click.argument("which", required=False)
def adapters(lab: Path | None, gids: bool, as_json: bool, which: str | None) -> None:
    """List all RDMA adapters, or only WHICH: a device, netdev, PCI address, GUID or IP address.

    Exit code 2 when there is no RDMA or no such adapter, or when a node of the lab does not answer. The adapters of the
    other nodes are shown.
    """
    from hil.adapters.find import adapters as of_this_machine
    from hil.adapters.find import plain
    from hil.report.adapters import chosen, table

    try:
        told = of_lab(lab) if lab else Told({"this machine": of_this_machine()})
        found, failed = told.adapters, told.failed
        if which and (found or not failed):
            found = chosen(found, which)
    except (HilError, OSError) as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps({node: plain(known) for node, known in found.items()}, indent=1))
    else:
        for node, known in found.items():
            click.echo(f"{node}:" if known else f"{node}: no RDMA adapters")
            click.echo("\n".join(f"  {harmless(line)}" for line in table(known, gids=gids)) if known else "")
    for node, why in failed.items():
        click.echo(f"hil: error: node {node}: {why}", err=True)
    if failed:
        sys.exit(2)


def of_lab(file: Path) -> Told:
    """The adapters of each node of the lab of ``file``. Raises HilError."""
    lab = lab_of(file)
    told: Told = kind_of(lab).adapters_of(lab, file.absolute().parent)
    return told
