"""Which tests may have a pair that others used, and after which a pair may be used again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hil.evidence.bundle import VerdictRecord
from hil.testing.running import _good_enough, _has_passed, _record
from hil.verdict import Verdict

TESTS = Path(__file__).parents[1]


def item(*options: str, marked: bool = True, needs: tuple[str, ...] = (), area: str = "contract") -> pytest.Item:
    """A test that takes ``bench``, in a run with ``options``."""
    marks = [pytest.mark.needs(*needs).mark]
    made = SimpleNamespace(
        config=SimpleNamespace(getoption=lambda name: name in options),
        get_closest_marker=lambda name: pytest.mark.used_pair if marked and name == "used_pair" else None,
        iter_markers=lambda name: marks if name == "needs" else [],
        fixturenames=("bench", "pair"),
        path=TESTS / area / "test_it.py",
    )
    return cast(pytest.Item, made)


def test_a_test_says_that_a_used_pair_is_good_enough() -> None:
    """Only then it gets one."""
    assert _good_enough(item())
    assert not _good_enough(item(marked=False))


@pytest.mark.parametrize("option", ["--hil-fresh-pairs", "--hil-provider", "--hil-wire"])
def test_a_run_may_want_fresh_pairs(option: str) -> None:
    """When it is told to, and when what is broken on purpose might leave what nobody looks for."""
    assert not _good_enough(item(option))


@pytest.mark.parametrize("need", ["own nodes", "power control"])
def test_who_needs_nodes_of_its_own_gets_them(need: str) -> None:
    """A test that changes its nodes never has a used pair."""
    assert not _good_enough(item(needs=(need,)))
    assert _good_enough(item(needs=("inline wire",)))


def outcome(verdict: str | None, **bench: Any) -> bool:
    stash = pytest.Stash()
    if verdict is not None:
        stash[_record] = VerdictRecord("test", Verdict(verdict))
    funcargs = {"bench": SimpleNamespace(**bench)} if bench else {}
    return _has_passed(cast(pytest.Item, SimpleNamespace(stash=stash, funcargs=funcargs)))


def test_only_after_a_pass_a_pair_is_used_again() -> None:
    """Not after another verdict or none, nor when the evidence has problems or could not be written."""
    assert outcome("pass") and outcome("pass", finished=True, problems=[])
    assert not any(outcome(verdict, finished=True, problems=[]) for verdict in ("fail", "invalid", "unsupported", None))
    assert not outcome("pass", finished=True, problems=["a frame is missing"])
    assert not outcome("pass", finished=False, problems=[])
