"""Waiting ends when something has come about, when it raises, or when its time is over."""

import time

import pytest

from hil.errors import PhaseTimeout
from hil.waiting import wait_until


def test_the_first_value_that_is_enough_is_returned() -> None:
    """It is asked again and again, and no more once it is enough."""
    values = iter([1, 2, 3, 4])
    assert wait_until(lambda: next(values), 10, "counting", enough=lambda n: n > 2, poll_s=0) == 3
    assert next(values) == 4


def test_what_does_not_come_about_names_its_phase() -> None:
    """The error says what was waited for, and for how long."""
    with pytest.raises(PhaseTimeout, match=r"boot of node a: nothing came of it within 0\.05 s"):
        wait_until(lambda: False, 0.05, "boot of node a", poll_s=0.01)


def test_the_last_value_may_be_good_enough() -> None:
    """Without ``strict`` the time's end is no error: the caller judges what there is."""
    began_ns = time.monotonic_ns()
    assert wait_until(lambda: [3], 0.05, "leaks", enough=lambda left: not left, strict=False) == [3]
    assert time.monotonic_ns() - began_ns >= 50_000_000


def test_a_slow_look_is_followed_by_another() -> None:
    """What has come about while a look took all the time is seen."""
    looks = []

    def look() -> bool:
        looks.append(time.sleep(0.05))
        return len(looks) > 1

    assert wait_until(look, 0.01, "slow")


def test_an_error_ends_the_wait() -> None:
    """A node that is gone is not waited for."""

    def gone() -> bool:
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        wait_until(gone, 60, "never")
