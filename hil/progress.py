"""Progress of long steps: a plain line when a step starts and when it ends, with its time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Print one plain line to standard error, at once."""
    print(f"hil: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step that takes seconds, then say how long it took or that it failed."""
    started_ns = time.monotonic_ns()
    say(f"{text} ...")
    try:
        yield
    except BaseException as error:
        say(f"{text}: failed after {_seconds(started_ns)} ({type(error).__name__})")
        raise
    say(f"{text}: done in {_seconds(started_ns)}")


def _seconds(started_ns: int) -> str:
    return f"{(time.monotonic_ns() - started_ns) / 1e9:.1f} s"
