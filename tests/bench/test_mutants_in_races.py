"""The races name mutants of the provider that fail only in a race. A few rounds are enough for each."""

import pytest

from hil.labs.soft.pair import SoftPair
from hil.testing.races import Outcome, connected_racers, race

PORT, SEED = 5001, 20
# The largest growth of a good provider in each round (tests/contract/test_races.py).
MAX_BLOCKS = 5


def outcome_of(pair: SoftPair, provider: str, at: str, kind: str) -> Outcome:
    """A race with the mutant at one end, and a good provider at the other."""
    names = {at: provider}
    racers = connected_racers(pair, names.get("closer", ""), names.get("peer", ""), connect_timeout_s=4.0)
    return race(kind, 150, SEED, *racers, PORT, workers=4 if kind == "storm" else 2, limit_s=5.0)


@pytest.mark.parametrize(
    ("provider", "at", "kind", "seen"),
    [
        ("CompletesTwice", "closer", "completion", "completed 2 times"),
        ("ForgetsOutcomes", "closer", "completion", "before these completed"),
        ("TouchesOld", "closer", "completion", "was written after it was reported complete"),
        ("StrayUpcall", "closer", "completion", "for a handle that is closed or was never made"),
        ("ReleasesInUse", "peer", "deregister", "recv ended with WSAEFAULT"),
        ("KeepsExposed", "peer", "withdraw", "wrote into memory that was deregistered"),
        ("TellsOnce", "peer", "storm", "the connect ended with WSAETIMEDOUT"),
        ("ClosesTwice", "closer", "threads", "several closes of one descriptor ended with"),
        ("WaitsInUpcalls", "closer", "upcalls", "HANG"),
    ],
)
def test_a_race_names_a_broken_provider(pair: SoftPair, provider: str, at: str, kind: str, seen: str) -> None:
    """An intermittent failure occurs in the rounds, and is reported as it was observed."""
    told = outcome_of(pair, provider, at, kind).problems_text()

    assert seen in told
    assert seen != "HANG" or "most recent call first" in told, "a hang is told without the stacks of the threads"


def test_memory_that_grows_with_the_rounds_is_seen(pair: SoftPair) -> None:
    """A provider that does not free memory grows with each round; its peer does not."""
    outcome = outcome_of(pair, "KeepsOperations", "closer", "completion")

    assert not outcome.problems, outcome.problems_text()
    assert outcome.growth["a"][1] > 10 * MAX_BLOCKS, outcome
    assert outcome.growth["b"][1] < MAX_BLOCKS, outcome
