"""Child processes that do not outlive the bench."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """In a child before exec: be killed when the parent dies, also if it already has."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
