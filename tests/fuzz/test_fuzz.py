"""Readers, parsers and rules meet any bytes: everything that was ever found, and new ones for a bounded time.

HIL_FUZZ_SECONDS is the time for each target (default 15). What is found goes to regressions/TARGET/ once it is mended.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from targets import TARGETS, seeds

HERE = Path(__file__).parent
SECONDS = int(os.environ.get("HIL_FUZZ_SECONDS", "15"))
REGRESSIONS = sorted(path for path in (HERE / "regressions").glob("*/*") if path.is_file())
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}


def fuzz(target: str, seconds: int, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "fuzz.py"), target, str(seconds), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=ENVIRONMENT)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_mended(path: Path) -> None:
    """An input that once crashed, hung or was told wrong is read, or refused as it should be."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_is_taken(target: str) -> None:
    """What a target reads when nothing is wrong is there to begin with, and goes through."""
    assert seeds(target)
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("target", TARGETS)
def test_no_bytes_crash_or_hang_it(target: str, tmp_path: Path) -> None:
    """Nothing that coverage leads to within the time crashes, hangs, or takes memory without bound."""
    done = fuzz(target, SECONDS, tmp_path)
    found = [f"{path.name}: {path.read_bytes()[:200]!r}" for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0 and not found, "\n".join([*found, done.stderr[-4000:]])
    assert "stat::number_of_executed_units" in done.stderr, done.stderr[-2000:]


@pytest.mark.timeout(300)
def test_a_planted_defect_is_found(tmp_path: Path) -> None:
    """The fuzzer follows coverage: four bytes that must be guessed one by one are found."""
    done = fuzz("planted", 120, tmp_path)
    assert done.returncode != 0
    assert any(path.read_bytes().startswith(b"SAN!") for path in tmp_path.iterdir() if path.is_file())
