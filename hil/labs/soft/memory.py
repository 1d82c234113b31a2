"""The folder for the memory of nodes on User-Mode Linux."""

import os
from pathlib import Path

NO_MEMORY_FOLDER = "neither /dev/shm nor $TMPDIR nor /tmp is a folder that can be written and is not mounted noexec"


def memory_folder() -> Path | None:
    """The folder where nodes keep their memory in files without a name, or None if no folder is suitable.

    User-Mode Linux runs code in these files, so noexec would prevent that. On a disk they would be written back.
    """
    for text in ("/dev/shm", os.environ.get("TMPDIR", ""), "/tmp"):
        if text and os.access(text, os.W_OK | os.X_OK) and not os.statvfs(text).f_flag & os.ST_NOEXEC:
            return Path(text)
    return None
