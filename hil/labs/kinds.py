"""A lab file made into the running thing: pairs of nodes for tests, whatever they are made of."""

import os
from pathlib import Path
from typing import Any, Protocol

from hil.errors import Unsupported
from hil.labs.file import HostsFile, LabFile, SoftPairFile
from hil.labs.hosts.lab import HostLab
from hil.labs.needs import Need, lacks
from hil.labs.pair import Pair
from hil.labs.soft.lab import SoftLab

MAX_JOBS = 8


class Lab(Protocol):
    """Makes pairs, one at a time in each process."""

    def pair(self, folder: Path, mutant: str = "", *, used: bool = False) -> Pair:
        """A pair whose evidence goes to ``folder``. Raises HilError.

        ``mutant``: the name of a wire that is wrong on purpose (hil.mutants.wires), or empty.

        ``used``: nodes that other tests left as they found them are good enough; where nodes can be made, they are
        fresh otherwise.
        """

    def provenance(self) -> dict[str, Any]:
        """What each node is made of, by node. Raises HilError."""

    def close(self) -> None:
        """Give everything back; safe to call twice."""


def open_lab(lab: LabFile, file: Path, folder: Path) -> Lab:
    """The lab that ``file`` describes; what lasts longer than a test is kept in ``folder``.

    Raises SetupError when its nodes cannot be made, Unsupported when it has no pairs.
    """
    if isinstance(lab, SoftPairFile):
        return SoftLab(lab)
    if isinstance(lab, HostsFile):
        return HostLab(lab, file, folder)
    raise Unsupported(f"a lab of kind {lab.lab.kind} runs while a test has it, and no longer: {lacks(lab)[Need.PAIR]}")


def parallel(lab: LabFile) -> bool:
    """Whether several tests can have a pair each at the same time."""
    return not isinstance(lab, HostsFile)


def jobs(lab: LabFile, asked: int | None = None) -> int:
    """How many tests run at once on a lab: as many as were ``asked`` for, where it can carry them.

    Clones compute for most of a test, User-Mode Linux waits for half of it, and hosts carry one pair.
    """
    if not parallel(lab):
        return 1
    if asked:
        return asked
    cores = len(os.sched_getaffinity(0))
    waits = not isinstance(lab, HostsFile) and lab.guest.kind == "uml"
    return min(2 * cores + 1 if waits else cores, MAX_JOBS)
