"""What ``hil doctor`` finds: how much it matters, what was seen, and the command that mends it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from hil.adapters.inspect import inspect
from hil.progress import printable

INSTALL = "apt-get install -y --no-install-recommends {}"


class Level(Enum):
    """How much a finding matters: nothing is missing, something works less well, the lab will not work."""

    OK = "ok"
    WARNING = "warning"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at, what was seen, and where that is not good the command that mends it."""

    level: Level
    what: str
    seen: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level.value:>8}  {self.what}: {self.seen}" + f"\n          mend: {self.mend}" * bool(self.mend)


def program(name: str, package: str, otherwise: str, level: Level = Level.BAD) -> Finding:
    """Whether a program is on this machine; ``otherwise``: what is lost without it."""
    if path := shutil.which(name):
        return Finding(Level.OK, name, path)
    return Finding(level, name, f"missing: {otherwise}", INSTALL.format(package))


def rdma_here(*, needed: bool) -> Finding:
    """The RDMA devices of this machine's kernel; ``needed``: a node is this machine."""
    devices = inspect()["rdma netlink"]
    if not isinstance(devices, str):
        return Finding(Level.OK, "RDMA in this kernel", ", ".join(devices) or "no device")
    seen = f"none: {devices.removeprefix('error: ')}"
    if not needed:
        return Finding(Level.OK, "RDMA in this kernel", f"{seen} (not needed: the nodes are elsewhere)")
    mend = "modprobe -a rdma_rxe rdma_ucm, or your NIC's module instead of the first"
    return Finding(Level.BAD, "RDMA in this kernel", seen, mend)


def report(findings: Iterator[Finding], say: Callable[[str], None]) -> bool:
    """Say each finding as it is found; whether none was bad."""
    counts = dict.fromkeys(Level, 0)
    for finding in findings:
        counts[finding.level] += 1
        say(printable(str(finding)))
    say(f"{counts[Level.BAD]} bad, {counts[Level.WARNING]} warnings, {counts[Level.OK]} ok")
    return not counts[Level.BAD]
