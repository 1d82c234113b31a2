"""``hil lab up`` and ``down`` while a lab is being made, and the supervisor's answer, a line of JSON."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.errors import SetupError
from hil.labs.supervisor import _line, converse

ROOT = Path(__file__).parents[2]


class Making:
    """A lab whose node a never answers, and the command that waits for it."""

    def __init__(self, folder: Path) -> None:
        self.runtime = folder / "runtime"
        self.runtime.mkdir(mode=0o700)
        (folder / "python").write_text("#!/bin/sh\nexec sleep 99\n")
        (folder / "python").chmod(0o755)
        sections = ['[lab]\nname = "slow"\nkind = "hosts"\n[capture]\nkind = "none"\n']
        for number, name in enumerate("ab", 1):
            sections.append(
                f'[nodes.{name}]\nkind = "local"\npython = "{folder}/python"\n[nodes.{name}.adapter]\n'
                f'device = "rxe{name}"\nnetdev = "lo"\nipv4 = "10.99.0.{number}"\n'
            )
        (folder / "lab.toml").write_text("".join(sections))
        self.up = self.start("up", str(folder / "lab.toml"))
        wait(lambda: bool(self.processes("sleep")))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = os.environ | {"XDG_RUNTIME_DIR": str(self.runtime), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "hil", "lab", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)

    def processes(self, name: str = "") -> list[int]:
        """The processes of this lab: its supervisor, and the nodes below it."""
        try:
            supervisor = int((self.runtime / "hil" / "slow" / "pid").read_text())
            below = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        except (OSError, ValueError):
            return []
        return [int(pid) for pid in below if name in _command(int(pid))]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait(reached: Callable[[], bool]) -> None:
    end_ns = time.monotonic_ns() + 40 * 10**9
    while not reached():
        assert time.monotonic_ns() < end_ns
        time.sleep(0.02)


@pytest.fixture
def making(tmp_path: Path) -> Iterator[Making]:
    made = Making(tmp_path)
    nodes = made.processes()
    yield made
    made.up.communicate(timeout=60)
    wait(lambda: not any("sleep" in _command(pid) for pid in nodes))
    assert list((made.runtime / "hil").iterdir()) == []


def test_down_ends_a_lab_that_is_being_made(making: Making) -> None:
    """Its supervisor is asked to end, undoes its changes, and leaves no files."""
    down = making.start("down")
    output, _ = down.communicate(timeout=60)
    assert (down.returncode, output) == (0, "hil: lab slow is down\n")


SUPERVISOR = """
import json, socket, sys
from pathlib import Path
folder, last_words = Path(sys.argv[1]), sys.argv[2]
(folder / "pid").write_text(str(__import__("os").getpid()))
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(folder / "control"))
    listener.listen()
    while b"down" not in (request := (control := listener.accept()[0]).recv(100)):
        control.sendall(b"{}\\n")
        control.close()
(folder / "log").write_text(last_words)
sys.exit(2)
"""


def test_down_reports_changes_that_could_not_be_undone(tmp_path: Path) -> None:
    """The supervisor's last message is printed once, with exit code 2, and its folder is removed."""
    folder, last_words = tmp_path / "hil" / "odd", "hil: error: node a is not restored: gone"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder), last_words]) as supervisor:
        wait((folder / "control").exists)
        command = [sys.executable, "-m", "hil", "lab", "down"]
        environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        ended = threading.Thread(target=supervisor.wait)
        ended.start()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        ended.join()
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr == f"hil: error: lab odd is down, but not all changes were undone:\n{last_words}\n"
    assert list(folder.parent.iterdir()) == []


def test_an_interrupt_ends_a_lab_that_is_being_made(making: Making) -> None:
    """Ctrl-C in "up" also ends the supervisor, which has its own session."""
    making.up.send_signal(signal.SIGINT)
    assert making.up.wait(60) != 0


@pytest.mark.parametrize("by", ["up", "status"])
def test_a_lab_on_hosts_that_was_killed_is_reported_once(making: Making, tmp_path: Path, by: str) -> None:
    """The waiting "up", or the next command if "up" was killed too, prints the command that restores the hosts."""
    supervisor = int((making.runtime / "hil" / "slow" / "pid").read_text())
    if by == "status":
        making.up.kill()
        making.up.wait()
    os.kill(supervisor, signal.SIGKILL)
    teller = making.up if by == "up" else making.start("status")
    told, _ = teller.communicate(timeout=60)
    mending = f"hil lab restore {tmp_path}/lab.toml"
    assert told == f"hil: lab slow was killed; undo its changes on the hosts with: {mending}\n"
    assert making.start("status").communicate(timeout=60)[0] == ""


def test_an_answer_may_be_long_and_ends_with_its_line() -> None:
    """Megabytes of output are one line. The bytes after the line are left for the terminal."""
    answer = {"stdout": "x" * (5 << 20)}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(target=theirs.sendall, args=(json.dumps(answer).encode() + b"\n$ ",))
        sending.start()
        assert converse(ours, {"do": "run"}) == answer
        sending.join()
        assert ours.recv(100) == b"$ "


def test_a_line_without_an_end_is_not_kept() -> None:
    """A line above the limit is refused, and the end of the stream ends a line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * 100)
        with pytest.raises(OSError, match="longer than 10 bytes"):
            _line(ours, 10)
        theirs.close()
        assert _line(ours, 10) == b""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(SetupError, match="does not answer"):
        theirs.sendall(b"[1\n")
        converse(ours, {})
