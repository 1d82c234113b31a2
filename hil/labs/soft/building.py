"""Building in the cache: one bench at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hil.progress import say


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Let one bench at a time build in ``cache``; the kernel gives the lock back when its holder dies."""
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another bench that builds in {cache}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
