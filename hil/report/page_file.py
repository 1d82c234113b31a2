"""Where a page is written: never over a capture."""

from collections.abc import Iterable
from pathlib import Path

from hil.wire.blocks import SECTION_MAGIC
from hil.wire.pcap import MAGICS


def overwritten(target: Path, captures: Iterable[Path]) -> str:
    """What capture a page in ``target`` would overwrite, in words; empty for none."""
    if not target.is_file():
        return ""
    if any(capture.exists() and target.samefile(capture) for capture in captures):
        return "one of the captures"
    try:
        with target.open("rb") as file:
            magic = file.read(4)
    except OSError:
        return ""
    return "a capture" if magic == SECTION_MAGIC or magic in MAGICS else ""
