"""A lab for work by hand: it is made, shown, typed into and ended by commands, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP_TIMEOUT_S = 300.0

pytestmark = [pytest.mark.needs("clones"), pytest.mark.usefixtures("soft_snapshot"), pytest.mark.timeout(600)]


class Hand:
    """``hil lab ...`` with its own runtime folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lab(self, *arguments: str, given: str = "") -> tuple[int, str]:
        """Exit status and output."""
        command = [sys.executable, "-m", "hil", "lab", *arguments]
        environment = os.environ | {"XDG_RUNTIME_DIR": str(self.folder)}
        done = subprocess.run(
            command,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=STEP_TIMEOUT_S,
        )
        return done.returncode, done.stdout

    def processes(self) -> list[int]:
        """Processes that name the runtime folder: the supervisor, its QEMUs and its wire."""
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    command = (place / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.folder).encode() in command:
                    found.append(int(place.name))
        return found

    def wait_for_none(self) -> None:
        end_ns = time.monotonic_ns() + 20 * 10**9
        while self.processes():
            assert time.monotonic_ns() < end_ns, self.processes()
            time.sleep(0.05)


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Hand]:
    tmp_path.chmod(0o700)
    made = Hand(tmp_path)
    yield made
    made.lab("down")


def test_a_lab_by_hand(hand: Hand, tmp_path: Path) -> None:
    """up, status, a command and a terminal on a node, its console, a second up that is refused, down."""
    status, output = hand.lab("up")
    assert status == 0 and "10.77.0.1" in output and output.count("alive") == 2, output
    assert len(hand.processes()) >= 4
    assert hand.lab("up")[0] == 2
    assert "runs already" in hand.lab("up")[1]
    assert hand.lab("shell", "a", "ping", "-c", "1", "-W", "5", "10.77.0.2")[0] == 0
    assert hand.lab("shell", "b", "sh", "-c", "exit 7")[0] == 7
    typed = hand.lab("shell", "a", given="echo $((6 * 7)) from $(tty)\nexit\n")[1]
    assert "42 from /dev/pts/" in typed, typed
    assert hand.lab("shell", "c", "true") == (2, "hil: error: SetupError: there is no node 'c'; known are a, b\n")
    assert "frames in" in hand.lab("status")[1]
    hand.lab("shell", "b", "sh", "-c", "echo spoken > /dev/console")
    end_ns = time.monotonic_ns() + 15 * 10**9
    while "spoken" not in (told := hand.lab("console", "b")[1]):
        assert time.monotonic_ns() < end_ns, told
    status, output = hand.lab("down")
    assert status == 0 and "is down" in output
    hand.wait_for_none()
    assert list((tmp_path / "hil").iterdir()) == []


def test_a_supervisor_that_is_killed_leaves_nothing(hand: Hand, tmp_path: Path) -> None:
    """After kill -9 the nodes and the wire end too, and the next command removes the folder."""
    assert hand.lab("up")[0] == 0
    (folder,) = (tmp_path / "hil").iterdir()
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    hand.wait_for_none()
    assert hand.lab("status") == (0, "")
    assert list((tmp_path / "hil").iterdir()) == []


def test_a_lab_that_cannot_be_made_is_reported(hand: Hand) -> None:
    """A lab that cannot be made ends ``up`` with 2 and the reason, and leaves nothing."""
    lab = hand.folder / "lab.toml"
    lab.write_text(
        '[lab]\nname = "here"\nkind = "hosts"\n[capture]\nkind = "host"\n'
        + "".join(
            f'[nodes.{name}]\nkind = "local"\n[nodes.{name}.adapter]\ndevice = "none{name}"\nnetdev = "lo"\n'
            f'ipv4 = "10.99.0.{number}"\n'
            for number, name in enumerate("ab", 1)
        )
    )
    status, output = hand.lab("up", str(lab))
    assert status == 2 and "node a" in output, output
    assert list((hand.folder / "hil").iterdir()) == []
    hand.wait_for_none()
