"""Adapters for people: what was found on a node, as a table."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cattrs

from hil.adapters.find import Adapter, choose
from hil.errors import AdapterError, NodeError
from hil.files import passing_folder
from hil.nodes.hostlab import on_each
from hil.nodes.labfile import HostsFile, LabFile, SoftPairFile
from hil.nodes.node import Node
from hil.nodes.softlab import SoftLab
from hil.nodes.softnodes import soft_guest
from hil.nodes.softswitch import SwitchedNodes

COLUMNS = ("adapter", "driver", "PCI", "GUID", "port", "state", "speed", "netdev", "MTU", "addresses")


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


def chosen(found: Mapping[str, list[Adapter]], which: str) -> dict[str, list[Adapter]]:
    """The nodes that have an adapter called ``which``, each with that one. Raises AdapterError when none has."""
    kept: dict[str, list[Adapter]] = {}
    refusals: list[AdapterError] = []
    for node, known in found.items():
        try:
            kept[node] = [choose(known, which)[0]]
        except AdapterError as error:
            refusals.append(error)
    if not kept and len(refusals) == 1:
        raise refusals[0]
    if not kept:
        raise AdapterError("\n".join(f"node {n}: {error}" for n, error in zip(found, refusals, strict=True)))
    return kept


def table(found: Iterable[Adapter], *, gids: bool = False) -> list[str]:
    """A line for each port, under a heading; with ``gids``, each port's GID table below it."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    below: dict[int, list[str]] = {}
    for adapter in found:
        for port in adapter.ports:
            told = (adapter.name, adapter.driver, adapter.pci_address, adapter.node_guid, str(port.number), port.state)
            own = (port.speed, port.netdev, str(port.mtu or ""), " ".join(port.addresses))
            rows.append(tuple(text or "-" for text in told + own))
            below[len(rows)] = [f"    GID {g.index}: {g.gid}, {g.type}, {g.netdev or '-'}" for g in port.gids]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines: list[str] = []
    for number, row in enumerate(rows, 1):
        lines.append("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        lines += below.get(number, []) if gids else []
    return lines
