"""Files that are written whole or not at all, and folders that are removed with the process that made them."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(target: Path, text: str) -> None:
    """Replace ``target`` by ``text`` in one step: a reader finds the old text or the new one, never a part.

    This holds also when another process writes the same file, or this one is killed. Raises OSError; ``target`` is then
    unchanged.
    """
    target = target.resolve()
    if target.exists() and not target.is_file():
        # A terminal or a pipe cannot be replaced.
        target.write_text(text, encoding="utf-8", errors="replace")
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def passing_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A private folder below ``parent`` (default: the system's folder for temporary files).

    It is removed at the end, also when this process is killed. Raises OSError.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name, _janitor(Path(name)):
        yield Path(name)


@contextmanager
def _janitor(folder: Path) -> Iterator[None]:
    # The shell's standard input ends when this process ends, however it ends.
    # Children of this process may write into the folder for a moment longer, so the removal is tried again.
    script = 'cat > /dev/null; for again in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" && exit; sleep 1; done'
    command = ["/bin/sh", "-c", script, "sh", str(folder)]
    null, env = subprocess.DEVNULL, {"PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, env=env, start_new_session=True):
        yield
