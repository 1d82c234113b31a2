"""A lock that lets one bench at a time build in the cache."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hil.progress import say


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Let one bench at a time build in ``cache``. The kernel releases the lock when its holder dies."""
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another bench that builds in {cache}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
