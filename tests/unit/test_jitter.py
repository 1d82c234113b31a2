"""Random naps: off by default, repeatable with the same seed, and different at each place."""

import time
from collections.abc import Iterator

import pytest

from hil import jitter
from hil.jitter import Place


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Restore the session's own seed after the test."""
    kept = jitter.seed()
    yield
    jitter.start(kept)


def naps(monkeypatch: pytest.MonkeyPatch, seed: str, place: Place, calls: int = 400) -> list[float]:
    """The seconds that each of ``calls`` calls naps."""
    slept: list[float] = []
    jitter.start(seed)
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", slept.append)
        for _ in range(calls):
            jitter.nap(place)
    return slept


def test_without_a_seed_nothing_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a seed no call naps."""
    assert naps(monkeypatch, "", jitter.TEST_CALL) == []


def test_each_process_of_a_test_has_a_seed_of_its_own() -> None:
    """A process's seed depends only on the test, its name and its number, so that the same test repeats it."""
    jitter.start("")
    assert jitter.derived("node a provider") == ""
    jitter.start("1")
    first = [jitter.derived(name) for name in ("node a provider", "node a provider", "node b provider")]
    assert len(set(first)) == 3
    jitter.start("1")
    assert [jitter.derived(name) for name in ("node a provider", "node a provider", "node b provider")] == first


def test_the_same_seed_naps_at_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed naps at the same calls, another seed or place at others; the place decides rate and length."""
    first = naps(monkeypatch, "1", jitter.TEST_CALL)
    assert naps(monkeypatch, "1", jitter.TEST_CALL) == first
    assert naps(monkeypatch, "2", jitter.TEST_CALL) != first
    assert naps(monkeypatch, "1", Place("another", jitter.TEST_CALL.one_in, jitter.TEST_CALL.most_s)) != first
    assert 400 / jitter.TEST_CALL.one_in / 2 < len(first) < 400 / jitter.TEST_CALL.one_in * 2
    assert 0 < max(first) <= jitter.TEST_CALL.most_s
