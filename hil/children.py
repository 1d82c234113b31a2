"""Child processes that end with the bench."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Have this child process killed when its parent dies; to be called before exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
