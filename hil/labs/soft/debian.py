"""Fetch Debian's packages without root. This is the only module that runs mmdebstrap."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hil.children import die_with_parent
from hil.errors import SetupError


def mmdebstrap(suite: str, tar: Path, options: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run mmdebstrap, which writes ``tar``. The caller checks its exit status. Raises SetupError if it is missing."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise SetupError("mmdebstrap is missing; install it with: apt-get install mmdebstrap")
    return subprocess.run(
        [program, "--quiet", *options, suite, str(tar)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        # If this bench is killed, a later bench removes the temporary files from this folder.
        env=os.environ | {"TMPDIR": str(tar.parent)},
        preexec_fn=die_with_parent,
    )
