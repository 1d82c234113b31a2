"""Signals that end a program, also where the interpreter loses the exception that they raise."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from hil.progress import say

AGAIN_S = 0.1
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite kill, and a terminal that is gone."""


def lose_none(kind: type[BaseException], number: signal.Signals) -> None:
    """From now on a signal ``number`` whose exception, of ``kind``, was lost comes once more.

    One that arrives in a callback of the interpreter's own (at a fork, in a finaliser) is reported and ends nothing.
    """
    known, own = sys.unraisablehook, os.getpid()

    def hook(lost: Any) -> None:
        # A child that was only forked yet must not start a thread; it is about to run another program.
        if lost.exc_type is kind and os.getpid() == own:
            again = threading.Timer(AGAIN_S, os.kill, (own, number))
            again.daemon = True
            again.start()
        else:
            known(lost)

    sys.unraisablehook = hook


def end_by_any() -> None:
    """From now on whatever politely ends a program ends this one as Ctrl-C does; what is ignored stays so (nohup)."""

    def end(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def go_on(doing: str) -> None:
    """From now on nothing that politely ends a program ends this one: it is told what is being ``doing`` instead."""

    def answer(*_: object) -> None:
        # The terminal may be gone, or the signal has come in the middle of another line.
        with suppress(OSError, RuntimeError):
            say(doing)

    for number in ENDS:
        signal.signal(number, answer)


@contextmanager
def undisturbed(doing: str) -> Iterator[None]:
    """``go_on`` meanwhile. Other threads than the main one are never interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDS}
    go_on(doing)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
