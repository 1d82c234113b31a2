"""Findings of ``hil doctor``: how much each matters, the observed state, and the command that repairs it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from hil.adapters.inspect import inspect
from hil.progress import printable

INSTALL = "apt-get install -y --no-install-recommends {}"


class Level(Enum):
    """How much a finding matters: OK, WARNING (the lab works less well), BAD (the lab will not work)."""

    OK = "ok"
    WARNING = "warning"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked property (``what``), its observed state (``seen``), and for a problem the command that repairs it."""

    level: Level
    what: str
    seen: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level.value:>8}  {self.what}: {self.seen}" + f"\n          mend: {self.mend}" * bool(self.mend)


def program(name: str, package: str, otherwise: str, level: Level = Level.BAD) -> Finding:
    """Check that a program is installed here. ``otherwise``: the consequence of its absence, for the message."""
    if path := shutil.which(name):
        return Finding(Level.OK, name, path)
    return Finding(level, name, f"missing: {otherwise}", INSTALL.format(package))


def rdma_here(*, needed: bool) -> Finding:
    """Check the RDMA devices of this machine's kernel. ``needed``: this machine is a node."""
    devices = inspect()["rdma netlink"]
    if not isinstance(devices, str):
        return Finding(Level.OK, "RDMA in this kernel", ", ".join(devices) or "no device")
    seen = f"none: {devices.removeprefix('error: ')}"
    if not needed:
        return Finding(Level.OK, "RDMA in this kernel", f"{seen} (not needed: the nodes are elsewhere)")
    mend = "modprobe -a rdma_rxe rdma_ucm, or your NIC's module instead of the first"
    return Finding(Level.BAD, "RDMA in this kernel", seen, mend)


def report(findings: Iterator[Finding], say: Callable[[str], None]) -> bool:
    """Print each finding as soon as it is known. Returns whether no finding is BAD."""
    counts = dict.fromkeys(Level, 0)
    for finding in findings:
        counts[finding.level] += 1
        say(printable(str(finding)))
    say(f"{counts[Level.BAD]} bad, {counts[Level.WARNING]} warnings, {counts[Level.OK]} ok")
    return not counts[Level.BAD]
