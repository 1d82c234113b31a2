"""Which code it was: the package's version, and the commit where it runs from a checkout."""

import functools
import shutil
import subprocess
from pathlib import Path

from hil import __version__

ROOT = Path(__file__).parents[1]


@functools.cache
def code_version() -> str:
    """``0.1.0`` or, in a checkout, ``0.1.0 (a1b2c3d)``, with ``-dirty`` when files differ from the commit."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return __version__
    command = [git, "-C", str(ROOT), "describe", "--always", "--dirty", "--tags"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    # Without a commit, or owned by somebody else, git says nothing that helps.
    return f"{__version__} ({done.stdout.strip()})" if done.returncode == 0 else __version__
