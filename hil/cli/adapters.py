"""``hil adapters``: the RDMA adapters there are."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cattrs
import click

from hil.adapters.find import Adapter
from hil.cli.options import LabType, lab_of
from hil.errors import HilError, NodeError
from hil.files import passing_folder
from hil.labs.file import HostsFile, LabFile, SoftPairFile
from hil.labs.hosts.lab import on_each
from hil.labs.node import Node
from hil.labs.soft.bridged import SwitchedNodes
from hil.labs.soft.kinds import soft_guest
from hil.labs.soft.lab import SoftLab
from hil.progress import harmless


@click.command()
@click.option(
    "--lab",
    type=LabType(),
    help="A lab: the adapters of each of its nodes, provisioned (default: those of this machine).",
)
@click.option("--gids", is_flag=True, help="With each port's GID table.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: node to its adapters.")
@click.argument("which", required=False)
def adapters(lab: Path | None, gids: bool, as_json: bool, which: str | None) -> None:
    """The RDMA adapters there are, or only WHICH: a device, netdev, PCI address, GUID or IP address.

    Exit code 2 when there is no RDMA, no such adapter, or a node of the lab that does not tell; the others are shown.
    """
    from hil.adapters.find import adapters as of_this_machine
    from hil.adapters.find import plain
    from hil.report.adapters import chosen, table

    try:
        found, failed = of_lab(lab_of(lab), lab.absolute().parent) if lab else ({"this machine": of_this_machine()}, {})
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


def of_node(told: Any) -> list[Adapter]:
    """Adapters as a node told them. Raises NodeError for anything else."""
    try:
        return cattrs.structure(told, list[Adapter])
    except Exception as error:
        raise NodeError(f"the node told something that is no list of adapters: {error}") from error


def of_lab(lab: LabFile, base: Path) -> tuple[dict[str, list[Adapter]], dict[str, str]]:
    """The adapters of each node of a lab whose file lies in ``base``, and what is wrong with nodes that did not tell.

    Guests are provisioned. Raises HilError.
    """
    if isinstance(lab, HostsFile):
        return on_each(lab, base, lambda host: of_node(host.system("adapters")))
    with passing_folder("hil-") as folder, ExitStack() as stack:
        if isinstance(lab, SoftPairFile):
            nodes: Mapping[str, Node] = stack.enter_context(SoftLab(lab).pair(folder)).nodes
        else:
            snapshot, count = soft_guest(lab.guest), lab.switch.nodes
            nodes = stack.enter_context(SwitchedNodes(snapshot, folder, count, lab.link.mtu)).nodes
        return {name: of_node(node.system("adapters")) for name, node in nodes.items()}, {}
