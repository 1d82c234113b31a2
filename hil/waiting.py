"""Waiting for something to come about: the one loop with a deadline on the controller."""

import time
from collections.abc import Callable
from typing import TypeVar

from hil.errors import PhaseTimeout

T = TypeVar("T")
POLL_S = 0.02


def wait_until(
    look: Callable[[], T],
    timeout_s: float,
    phase: str,
    *,
    enough: Callable[[T], object] = bool,
    strict: bool = True,
    poll_s: float = POLL_S,
) -> T:
    """Call ``look`` until what it returns is ``enough``, and return that.

    ``timeout_s``: seconds, after which it is looked at once more. Then PhaseTimeout is raised, with ``phase`` in its
    message; where ``strict`` is false, the last value is returned instead. ``poll_s``: seconds between two looks; 0
    where ``look`` itself waits. What ``look`` raises ends the wait.
    """
    end_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    while True:
        over = time.monotonic_ns() >= end_ns
        if enough(value := look()) or (over and not strict):
            return value
        if over:
            raise PhaseTimeout(f"{phase}: nothing came of it within {timeout_s:g} s")
        time.sleep(min(poll_s, max(0, end_ns - time.monotonic_ns()) / 1e9))
