"""Signals that end a program, also where the interpreter loses the exception that they raise."""

import os
import signal
import sys
import threading
from typing import Any

AGAIN_S = 0.1


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
