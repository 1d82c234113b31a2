"""Examine this machine and a lab: missing and faulty parts, each with the command that repairs it."""

import sys
from collections.abc import Iterator
from pathlib import Path

from hil.labs.findings import Finding, Level, program
from hil.labs.kinds import kind_of
from hil.labs.schema import LabFile


def examine(lab: LabFile, base: Path) -> Iterator[Finding]:
    """Examine all dependencies of a lab, and change nothing. ``base`` is the folder of its lab file."""
    kind = kind_of(lab)
    # Python versions that are too old cannot run this code.
    yield Finding(Level.OK, "Python", sys.version.split()[0])
    yield from kind.examine(lab, base)
    yield program("tshark", "tshark", "second opinions on captures are skipped", Level.WARNING)
    yield from (Finding(Level.WARNING, f"no {need}", reason) for need, reason in kind.lacks(lab).items())
