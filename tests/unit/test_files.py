"""Folders that are removed when the process that made them ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hil.files import passing_folder

MAKER = """
import sys, time
from pathlib import Path
from hil.files import passing_folder
with passing_folder("hil-", Path(sys.argv[1])) as folder:
    (folder / "inside").mkdir()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_passing_folder_is_removed_after_any_end_of_its_process(tmp_path: Path, name: str) -> None:
    """It exists with its files while the process runs, and is removed soon afterwards."""
    with subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        folder = Path(maker.stdout.readline().strip())
        assert (folder / "inside").is_dir() and folder.parent == tmp_path
        maker.send_signal(getattr(signal, name))
    end_ns = time.monotonic_ns() + 10 * 10**9
    while folder.exists():
        assert time.monotonic_ns() < end_ns
        time.sleep(0.02)


def test_a_passing_folder_is_removed_when_its_block_ends(tmp_path: Path) -> None:
    """It is removed at once, with its files."""
    with passing_folder("hil-", tmp_path) as folder:
        (folder / "inside").write_text("something")
    assert list(tmp_path.iterdir()) == []
