"""Random naps: off by default, the same again with the same seed, and different at each place."""

import time
from collections.abc import Iterator

import pytest

from hil import jitter
from hil.jitter import Place


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The session's own seed goes on."""
    kept = jitter.seed()
    yield
    jitter.start(kept)


def naps(monkeypatch: pytest.MonkeyPatch, seed: str, place: Place, calls: int = 400) -> list[float]:
    """The seconds that so many calls nap."""
    slept: list[float] = []
    jitter.start(seed)
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", slept.append)
        for _ in range(calls):
            jitter.nap(place)
    return slept


def test_without_a_seed_nothing_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run naps only when it is asked to."""
    assert naps(monkeypatch, "", jitter.TEST_CALL) == []


def test_each_process_of_a_test_has_a_seed_of_its_own() -> None:
    """By its name and number in the test, whatever ran before: the same again for the same test."""
    jitter.start("")
    assert jitter.derived("node a provider") == ""
    jitter.start("1")
    first = [jitter.derived(name) for name in ("node a provider", "node a provider", "node b provider")]
    assert len(set(first)) == 3
    jitter.start("1")
    assert [jitter.derived(name) for name in ("node a provider", "node a provider", "node b provider")] == first


def test_the_same_seed_naps_at_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed, or another place, naps otherwise; how often and how long is the place's."""
    first = naps(monkeypatch, "1", jitter.TEST_CALL)
    assert naps(monkeypatch, "1", jitter.TEST_CALL) == first
    assert naps(monkeypatch, "2", jitter.TEST_CALL) != first
    assert naps(monkeypatch, "1", Place("another", jitter.TEST_CALL.one_in, jitter.TEST_CALL.most_s)) != first
    assert 400 / jitter.TEST_CALL.one_in / 2 < len(first) < 400 / jitter.TEST_CALL.one_in * 2
    assert 0 < max(first) <= jitter.TEST_CALL.most_s
