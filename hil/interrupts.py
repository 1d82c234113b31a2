"""Signals that end a program, also where the interpreter loses the exception that their handler raises."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from hil.progress import say

RESEND_AFTER_S = 0.1
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals of Ctrl-C, of a plain kill, and of a terminal that is closed."""


def lose_none(kind: type[BaseException], number: signal.Signals) -> None:
    """Send signal ``number`` to this process again whenever the interpreter has lost its exception, of ``kind``.

    The interpreter loses an exception raised in one of its own callbacks (at a fork, in a finaliser): it reports the
    exception, and the program goes on.
    """
    known, own = sys.unraisablehook, os.getpid()

    def hook(lost: Any) -> None:
        # A forked child must not start a thread: it is about to run another program.
        if lost.exc_type is kind and os.getpid() == own:
            again = threading.Timer(RESEND_AFTER_S, os.kill, (own, number))
            again.daemon = True
            again.start()
        else:
            known(lost)

    sys.unraisablehook = hook


def end_by_any() -> None:
    """Make each of ``ENDING_SIGNALS`` raise KeyboardInterrupt; an ignored signal stays ignored (nohup)."""

    def end(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def go_on(doing: str) -> None:
    """Ignore ``ENDING_SIGNALS`` from now on. Each prints the line ``doing``, which says what the program does."""

    def answer(*_: object) -> None:
        # The terminal may be gone, or the signal may interrupt another line.
        with suppress(OSError, RuntimeError):
            say(doing)

    for number in ENDING_SIGNALS:
        signal.signal(number, answer)


@contextmanager
def undisturbed(doing: str) -> Iterator[None]:
    """Ignore ``ENDING_SIGNALS``, as ``go_on`` does, until the context ends. Signals interrupt the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    go_on(doing)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
