"""Connections to hosts: ssh's arguments, the advice for its errors, and no files left by a host that fails."""

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hil.agent.agent import Agent
from hil.agent.protocol import encode
from hil.agent.roles.system import run
from hil.errors import SetupError
from hil.files import passing_folder
from hil.labs.hosts import host as hosts
from hil.labs.hosts.file import LocalNode, NodeSection, SshNode
from hil.labs.hosts.host import Host, _control_folder, explain
from hil.labs.hosts.ssh import ssh_command


def test_an_unknown_refusal_is_shown_unchanged() -> None:
    """There is no advice for it. Escapes of a terminal are removed."""
    told = explain(SshNode(kind="ssh", host="far"), "kex_exchange: \x1b[31mbad banner")
    assert told == "far could not be made a node: kex_exchange: \N{REPLACEMENT CHARACTER}[31mbad banner"
    assert explain(SshNode(kind="ssh", host="far"), "Connection refused").endswith("on that host)")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for ssh's sockets."""
    with passing_folder("hil-", Path("/tmp")) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


def tried(section: NodeSection, folder: Path) -> str:
    """The reason why a host could not be a node."""
    with pytest.raises(SetupError) as caught:
        Host("a", section, folder, folder / "console", lambda node, worker, event: None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (SshNode(kind="ssh", host="far", identity="~no-such-user/key"), "home directory"),
        (LocalNode(kind="local", python="py\0thon"), "null byte"),
        (LocalNode(kind="local", python="/no/such/python"), "is [nodes.NAME] python right?"),
    ],
)
def test_a_host_that_cannot_be_tried_leaves_no_folder(
    section: NodeSection, said: str, tmp_path: Path, runtime: Path
) -> None:
    """Any mistake leads to an error that names the node, and no folder is left."""
    told = tried(section, tmp_path)
    assert told.startswith("node a: ") and said in told
    assert list(runtime.iterdir()) == []


def test_without_ssh_no_folder_is_left(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the missing package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "node a: ssh is missing; install it with: apt-get" in tried(SshNode(kind="ssh", host="far"), tmp_path)
    assert list(runtime.iterdir()) == []


def test_a_runtime_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong XDG_RUNTIME_DIR is reported without a traceback."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/no/such/folder")
    assert "is XDG_RUNTIME_DIR right?" in tried(LocalNode(kind="local"), tmp_path)


def test_where_the_runtime_folder_has_a_long_name_sockets_are_elsewhere(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path may have 107 bytes, including ssh's own part."""
    with ExitStack() as until_stop:
        assert _control_folder("a", until_stop).parent == runtime
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 60)))
        assert _control_folder("a", until_stop).parent == Path("/tmp")


def test_paths_reach_ssh_as_they_are(tmp_path: Path) -> None:
    """A blank, a percent sign and a quote in a path are part of it."""
    if not Path("/usr/bin/ssh").exists():
        pytest.skip("ssh is not installed")
    section = SshNode(kind="ssh", host="far", config="/dev/null", identity="my key%h", known_hosts='known "%h" hosts')
    folder = tmp_path / "a lab"
    command = ssh_command(section, folder, folder / "so ckets")
    told = subprocess.run([command[0], "-G", *command[1:]], capture_output=True, text=True, check=True).stdout
    said = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    assert said["userknownhostsfile"].replace("%%", "%") == f'{folder}/known "%h" hosts'
    assert said["identityfile"].replace("%%", "%") == f"{folder}/my key%h"
    assert said["controlpath"].startswith(f"{folder}/so ckets/")


def test_the_heartbeat_begins_when_a_node_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ready node stays alive while the bench still waits for other nodes."""
    monkeypatch.setattr(hosts, "SILENCE_LIMIT_S", 2.0)
    monkeypatch.setattr(hosts, "HEARTBEAT_S", 0.3)
    node = Host("a", LocalNode(kind="local", python=sys.executable), tmp_path, tmp_path / "console", lambda *_: None)
    try:
        assert node.channel.ready.wait(60)
        with pytest.raises(subprocess.TimeoutExpired):
            node._process.wait(5)
        node.wait_ready()
        node.check_alive()
    finally:
        node.stop()


def test_an_agent_whose_output_is_not_read_ends() -> None:
    """If the connection to the controller is blocked, the agent does not wait in a write for ever."""
    commands, given = os.pipe()
    taken, out = os.pipe()
    ended = threading.Event()

    def serve() -> None:
        with pytest.raises(SystemExit):
            Agent(commands, out, silence_limit_s=1.0).serve()
        ended.set()

    threading.Thread(target=serve, daemon=True).start()
    clock = encode({"to": 0, "id": 1, "call": "clock"})
    end_ns = time.monotonic_ns() + 20 * 10**9
    while not ended.wait(0.01) and time.monotonic_ns() < end_ns:
        if select.select([], [given], [], 0)[1]:
            os.write(given, clock * 50)
    for fd in (commands, given, taken, out):
        os.close(fd)
    assert ended.is_set()


def in_group(group: int) -> list[str]:
    """The live processes of a process group."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                state, _, of = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if of == str(group) and state != "Z":
                found.append(place.name)
    return found


def wait_for_none(group: int) -> None:
    end_ns = time.monotonic_ns() + 10 * 10**9
    while in_group(group):
        assert time.monotonic_ns() < end_ns, in_group(group)
        time.sleep(0.02)


def test_children_of_a_program_end_at_its_time_limit(tmp_path: Path) -> None:
    """A program that takes too long is killed with its children, even if they hold its output open."""
    with pytest.raises(subprocess.TimeoutExpired):
        run(["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 77; true"], timeout_s=1)
    wait_for_none(int((tmp_path / "pid").read_text()))


def test_children_of_a_program_end_with_the_agent(tmp_path: Path) -> None:
    """kill -9 of the process that runs a program on a node ends the program and its children."""
    pid = tmp_path / "pid"
    code = f"from hil.agent.roles.system import run; run(['/bin/sh', '-c', 'echo $$ > {pid}; sleep 77; true'])"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as runner:
        end_ns = time.monotonic_ns() + 30 * 10**9
        while not (pid.exists() and pid.read_text().strip()):
            assert time.monotonic_ns() < end_ns
            time.sleep(0.02)
        # The program may not be guarded yet.
        time.sleep(0.5)
        runner.kill()
    wait_for_none(int(pid.read_text()))


def test_the_output_of_a_program_may_be_anything() -> None:
    """Bytes that are not text are escaped, and the exit status is the program's."""
    done = run(["/bin/sh", "-c", "printf 'a\\377b'; exit 3"])
    assert (done["status"], done["stdout"]) == (3, "a\N{REPLACEMENT CHARACTER}b")
