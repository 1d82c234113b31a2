"""Adapters for people: what was found on a node, as a table."""

from collections.abc import Iterable, Mapping

from hil.adapters.find import Adapter, choose
from hil.errors import AdapterError

COLUMNS = ("adapter", "driver", "PCI", "GUID", "port", "state", "speed", "netdev", "MTU", "addresses")


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
