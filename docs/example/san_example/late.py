"""The code of the mutant, loaded on the nodes."""

import time

from hil.winsock.structures import LpErrno
from san_example.provider import ExampleProvider


class ExampleIsLate(ExampleProvider):
    """Resets a connection one second after the switch asked for it."""

    def WSPCloseSocket(self, s: int, lpErrno: LpErrno) -> int:
        """Wait, and close then."""
        time.sleep(1.0)
        return super().WSPCloseSocket(s, lpErrno)
