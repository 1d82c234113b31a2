"""The four verdicts of the bench, the worst of several, and the exit code they stand for."""

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """How a test, a connection of a capture, or a whole run ended.

    pass: it was shown to be right. fail: it was shown to be wrong. invalid: the evidence cannot carry a judgement.
    unsupported: the lab lacks what the test needs.
    """

    PASS = "pass"
    FAIL = "fail"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"


# From the best to the worst: doubt about the evidence outweighs a fail, because it may hide others.
_ORDER = (Verdict.PASS, Verdict.UNSUPPORTED, Verdict.FAIL, Verdict.INVALID)
_EXIT_CODES = {Verdict.PASS: 0, Verdict.UNSUPPORTED: 0, Verdict.FAIL: 1, Verdict.INVALID: 2}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a whole: INVALID before FAIL before UNSUPPORTED before PASS; INVALID when there is none."""
    return max(verdicts, key=_ORDER.index, default=Verdict.INVALID)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0: nothing failed. 1: a fail, and nothing worse. 2: something could not be judged, or there is no verdict."""
    return _EXIT_CODES[worst(verdicts)]
