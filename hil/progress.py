"""Progress of long steps: a plain line when a step starts and when it ends, with its time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

LARGE_FILE = 32 * 1024 * 1024
EVERY_NS = 5_000_000_000


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


@contextmanager
def reading(path: Path) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far a file is read: a bar on a terminal, elsewhere a line every few seconds.

    Yields a function to be called with the number of bytes read so far. A small file shows nothing.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < LARGE_FILE:
        yield lambda done: None
    elif sys.stderr.isatty():
        with click.progressbar(length=size, label=f"hil: {harmless(path.name)}", file=sys.stderr) as bar:
            yield lambda done: bar.update(done - bar.pos)
    else:
        yield _Lines(path.name, size).show


class _Lines:
    """Progress in plain lines, at most one every ``EVERY_NS``."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size, self._next_ns = harmless(name), size, time.monotonic_ns() + EVERY_NS

    def show(self, done: int) -> None:
        if time.monotonic_ns() >= self._next_ns:
            self._next_ns = time.monotonic_ns() + EVERY_NS
            say(f"{self._name}: {100 * done // self._size}% of {self._size >> 20} MiB")


def harmless(text: str) -> str:
    """Text from a file's name or a capture, without the characters that control a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def printable(text: str) -> str:
    """Text of several lines from another machine, without the characters that control a terminal."""
    return "\n".join(harmless(line.expandtabs()) for line in text.splitlines())


def _seconds(started_ns: int) -> str:
    return f"{(time.monotonic_ns() - started_ns) / 1e9:.1f} s"
