"""Mutants of the provider and of the wire that only a fault of the wire reveals. A cell of the matrix names each.

The matrix runs as a user runs it: in its own process, on the real cell.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.testing.options import lab_file_path

ROOT = Path(__file__).parents[2]
CELL = "tests/faults/test_matrix.py::test_a_hard_close_ends_as_the_contract_says[{}]"
BROKE = "tests/faults/test_scenarios.py::test_the_connection_had_broken_at_the_closer_alone"
LOST = "tests/faults/test_scenarios.py::test_all_dreqs_are_lost"
RUN_TIMEOUT_S = 250.0

pytestmark = [pytest.mark.usefixtures("prepared_lab"), pytest.mark.timeout(300)]


Found = Callable[..., tuple[str, str]]


@pytest.fixture
def verdict(tmp_path: Path, pytestconfig: pytest.Config) -> Found:
    """A function that runs one test of the matrix with options on this run's lab, and returns verdict and reason."""
    lab = lab_file_path(pytestconfig).absolute()

    def found(test: str, *options: str) -> tuple[str, str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--hil-results={tmp_path / 'evidence'}"]
        command += [f"--hil-lab={lab}", *options, test]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=RUN_TIMEOUT_S)
        records = json.loads((tmp_path / "evidence" / "verdicts.json").read_text())
        assert len(records) == 1 and done.returncode != 0, done.stdout + done.stderr
        return records[0]["verdict"], records[0]["reason"]

    return found


def test_a_provider_that_resets_only_once_is_found_by_a_lost_dreq(verdict: Found) -> None:
    """Without a fault its DREQ arrives. If the first is lost, the peer's receive never ends."""
    found = verdict(CELL.format("DREQ-drop"), "--hil-provider=ResetsOnce")
    assert found[0] == "fail", found


def test_a_provider_that_completes_sends_early_is_found_by_a_lost_send(verdict: Found) -> None:
    """It completes a send without any acknowledgement."""
    kind, reason = verdict(CELL.format("SEND-last-drop"), "--hil-provider=EarlySuccess")
    assert kind == "fail" and "every success at node a was an acknowledged message on the wire" in reason, reason


def test_a_provider_that_takes_a_lost_connection_for_a_reset_is_found_when_all_dreqs_are_lost(verdict: Found) -> None:
    """No reset reached the peer, so the provider must not report one."""
    found = verdict(LOST, "--hil-provider=AlwaysReset")
    assert found[0] == "fail" and "WSAECONNRESET" in found[1], found


def test_a_provider_that_leaves_a_broken_connection_is_found_by_a_lost_dreq(verdict: Found) -> None:
    """The peer, whose end has no error, waits for ever."""
    kind, reason = verdict(BROKE, "--hil-provider=LeavesBroken")
    assert kind == "fail" and "WSAECONNRESET" in reason, reason


def test_a_wire_that_hands_on_what_it_says_it_dropped_is_found(verdict: Found) -> None:
    """Every count agrees, and still the peer gets a reset without a DREQ."""
    kind, reason = verdict(CELL.format("DREQ-drop"), "--hil-wire=Denies")
    assert kind == "fail" and "what the peer's CM hears the wire has carried" in reason, reason
