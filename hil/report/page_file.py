"""Where a page is written: never over a capture, nor over the report."""

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from hil.capture.blocks import SECTION_MAGIC
from hil.capture.pcap import MAGICS
from hil.capture.reader import MAGIC_SIZE, OTHER_MAGICS


def overwritten(target: Path, captures: Iterable[Path]) -> str:
    """What a page in ``target`` would overwrite that is to be kept, in words; empty for nothing."""
    if _is_standard_output(target):
        return "standard output, where the report goes"
    if not target.is_file():
        return ""
    if any(capture.exists() and target.samefile(capture) for capture in captures):
        return "one of the captures"
    try:
        with target.open("rb") as file:
            beginning = file.read(MAGIC_SIZE)
    except OSError:
        return ""
    if beginning[:4] == SECTION_MAGIC or beginning[:4] in MAGICS:
        return "a capture"
    return "compressed, or a capture" if beginning.startswith(tuple(OTHER_MAGICS)) else ""


def _is_standard_output(target: Path) -> bool:
    """Whether it is the file or the pipe that standard output goes to; of a terminal both may have a part."""
    try:
        output, page = os.fstat(sys.stdout.fileno()), target.stat()
    except (OSError, ValueError, AttributeError):
        return False
    return os.path.samestat(output, page) and (stat.S_ISREG(page.st_mode) or stat.S_ISFIFO(page.st_mode))
