"""What is there, what is missing, what would fail, and the command that mends it: of this machine and of a lab."""

import sys
from collections.abc import Iterator
from pathlib import Path

from hil.labs.findings import Finding, Level, program
from hil.labs.kinds import kind_of
from hil.labs.schema import LabFile


def examine(lab: LabFile, base: Path) -> Iterator[Finding]:
    """Everything the lab of a file that lies in ``base`` depends on; nothing is changed."""
    kind = kind_of(lab)
    # What is older than the project asks for does not get here.
    yield Finding(Level.OK, "Python", sys.version.split()[0])
    yield from kind.examine(lab, base)
    yield program("tshark", "tshark", "second opinions on captures are skipped", Level.WARNING)
    yield from (Finding(Level.WARNING, f"no {need}", reason) for need, reason in kind.lacks(lab).items())
