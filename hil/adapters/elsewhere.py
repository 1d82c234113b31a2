"""Finds netdevs in other network namespaces on top of a netdev of this one, such as a container's MACVLAN."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import netns as namespaces
from pyroute2.iproute.linux import IPRoute

from hil.adapters.changes import in_namespace
from hil.adapters.netdev import STACKED, Stacked, kind_of, stacked
from hil.errors import AdapterError

NAMED = Path("/var/run/netns")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A netdev on top of another. ``mtu``: in bytes. ``where``: its namespace, in words."""

    stacked: Stacked
    mtu: int
    where: str

    def __str__(self) -> str:
        return f"{self.stacked.name} in {self.where}, which is on top of it"


def stacked_elsewhere(index: int) -> list[Elsewhere]:
    """The netdevs on top of netdev ``index`` of this thread's namespace, in all other namespaces.

    A namespace is searched when it has a name or a process here, and when this process may enter it. Without root most
    namespaces cannot be entered.
    """
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        found = []
        for where, path in _others(os.fstat(ours)):
            with suppress(AdapterError, PermissionError):
                found += in_namespace(str(path), lambda where=where: list(_on_top(index, ours, where)))  # type: ignore[misc]
        return found
    finally:
        os.close(ours)


def _others(ours: os.stat_result) -> Iterator[tuple[str, Path]]:
    """The other namespaces, each once: the name in words, and the file. ``ours``: the status of this one's file."""
    seen = {(ours.st_dev, ours.st_ino)}
    named = [(f"namespace {name}", NAMED / name) for name in namespaces.listnetns()]
    processes = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
    for where, path in [*named, *((f"the namespace of process {p.name}", p / "ns" / "net") for p in processes)]:
        # A process may have ended, or belong to another user.
        with suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield where, path


def _on_top(index: int, namespace: int, where: str) -> Iterator[Elsewhere]:
    """The netdevs of this thread's namespace on top of netdev ``index`` of ``namespace``, an open file."""
    with IPRoute() as ip:
        number = ip.get_netnsid(fd=namespace)["nsid"]
        for link in ip.get_links():
            is_of = (link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID")) == (index, number)
            if is_of and number >= 0 and kind_of(link) in STACKED:
                yield Elsewhere(stacked(link), link.get_attr("IFLA_MTU"), where)
