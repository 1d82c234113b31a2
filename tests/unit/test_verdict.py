"""The four verdicts, the worst of several, and their exit codes."""

import itertools

import pytest

from hil.verdict import Verdict, exit_code, worst

PASS, FAIL, INVALID, UNSUPPORTED = Verdict.PASS, Verdict.FAIL, Verdict.INVALID, Verdict.UNSUPPORTED


@pytest.mark.parametrize(
    ("verdicts", "whole", "code"),
    [
        ((), INVALID, 2),
        ((PASS,), PASS, 0),
        ((PASS, UNSUPPORTED), UNSUPPORTED, 0),
        ((PASS, UNSUPPORTED, FAIL), FAIL, 1),
        ((PASS, UNSUPPORTED, FAIL, INVALID), INVALID, 2),
    ],
)
def test_the_worst_verdict_is_the_verdict_of_the_whole(
    verdicts: tuple[Verdict, ...], whole: Verdict, code: int
) -> None:
    """In whatever order they come; without any, nothing was judged."""
    for some_order in itertools.permutations(verdicts):
        assert (worst(some_order), exit_code(some_order)) == (whole, code)
