"""This machine as a node: code runs from memory, death and hanging are noticed, frames recorded, no trace remains."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hil.capture.pcapng import read_pcapng
from hil.errors import CaptureError, NodeDied, RemoteError, SetupError, Unsupported
from hil.labs.hosts import host as hosts
from hil.labs.hosts.capture import NodeCapture
from hil.labs.hosts.file import LocalNode, SshNode
from hil.labs.hosts.host import Host

TRIES = 5
NOTICED_WITHIN_S = 20.0
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="recording a netdev needs CAP_NET_RAW")


def local(tmp_path: Path, python: str = PYTHON) -> Host:
    section = LocalNode(kind="local", python=python)
    return Host("here", section, tmp_path, tmp_path / "console", lambda node, worker, event: None)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Host]:
    made = local(tmp_path)
    try:
        made.wait_ready()
        yield made
    finally:
        made.stop()


def test_the_code_runs_from_memory(node: Host) -> None:
    """A call works, and an exception has a traceback into the code, which was never written to a disk."""
    with pytest.raises(RemoteError, match="no-such-netdev") as caught:
        node.system("counters", netdev="no-such-netdev")
    assert "/proc/self/fd/" in caught.value.remote_traceback
    assert "hil/adapters/provision.py" in caught.value.remote_traceback


def test_another_bench_at_work_is_seen(node: Host, tmp_path: Path) -> None:
    """A second bench's agent on the same machine sees the first's, one process each, until it has ended."""
    agent = node._process.pid
    node.system("versions")
    (tmp_path / "second").mkdir()
    second = local(tmp_path / "second")
    try:
        second.wait_ready()
        seen = second.system("other_agents")
        assert agent in seen and not set(seen) & set(children(agent))
        assert second._process.pid not in seen
        node.stop()
        assert agent not in second.system("other_agents")
    finally:
        second.stop()


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_stopped_node_leaves_nothing_behind(tmp_path: Path) -> None:
    """After the node is stopped, its agent, its workers and their processes are gone, and so is ssh's folder."""
    node = local(tmp_path)
    node.wait_ready()
    worker, pid = node.channel.spawn("system")
    agent = int(Path(f"/proc/{pid}/stat").read_text().split()[3])
    node.stop()
    end_ns = time.monotonic_ns() + 10 * 10**9
    while any(Path(f"/proc/{p}").exists() for p in (pid, agent)):
        assert time.monotonic_ns() < end_ns, f"worker {worker} or the agent lives on"
        time.sleep(0.02)
    assert not node._control.exists()


def test_no_token_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of a socket that a worker of the node never took is removed. Another process's token stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / f"san-provider-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    node = local(tmp_path)
    node.wait_ready()
    _, pid = node.channel.spawn("system")
    for name, owner in (("00000001", pid), ("00000002", os.getpid())):
        (folder / name).write_text(json.dumps({"pid": owner, "state": {}}))
    node.stop()
    end_ns = time.monotonic_ns() + 10 * 10**9
    while (left := [path.name for path in folder.iterdir()]) != ["00000002"]:
        assert time.monotonic_ns() < end_ns, left
        time.sleep(0.02)


def test_a_pulled_out_node_is_noticed_at_once(node: Host) -> None:
    """If the agent is killed during a call, the call raises NodeDied at once, not at its time-out."""
    started_ns = time.monotonic_ns()
    node._process.send_signal(signal.SIGKILL)
    with pytest.raises(NodeDied, match="ended with -9"):
        node.system("run", command=["sleep", "50"])
    assert time.monotonic_ns() - started_ns < NOTICED_WITHIN_S * 1e9
    assert not node.alive()


@contextmanager
def standing_still(node: Host) -> Iterator[None]:
    """Stop the node's agent inside the block, which must be short."""
    node.system("versions")
    node._process.send_signal(signal.SIGSTOP)
    started_ns = time.monotonic_ns()
    try:
        yield
        assert time.monotonic_ns() - started_ns < NOTICED_WITHIN_S * 1e9
    finally:
        node._process.send_signal(signal.SIGCONT)


def test_a_hanging_node_is_noticed_by_its_heartbeat(node: Host) -> None:
    """If the agent is stopped, a call that may take a minute raises NodeDied within seconds."""
    with standing_still(node), pytest.raises(NodeDied, match="hangs"):
        node.channel.call(0, "no such call", 60, "waiting")


def test_a_hanging_node_is_noticed_by_a_long_message(node: Host) -> None:
    """The agent is stopped and reads no bytes. Neither the sender of a long message nor the next caller hangs."""
    with standing_still(node):
        with pytest.raises(NodeDied, match="hangs"):
            node.channel.call(0, "no such call", 5, "waiting", much="x" * (4 << 20))
        with pytest.raises(NodeDied, match="hangs"):
            node.channel.clock()
        assert not node.alive()


def test_a_worker_that_takes_all_memory_dies_first(node: Host) -> None:
    """The kernel kills workers before the agent, so that the agent can report it."""
    done = node.system("run", command=["cat", "/proc/self/oom_score_adj"])
    assert int(done["stdout"]) == 500


def test_an_agent_without_calls_ends_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node gets no message when the network breaks. After a time without calls it ends, with its workers."""
    monkeypatch.setattr(hosts, "SILENCE_LIMIT_S", 1.5)
    monkeypatch.setattr(hosts, "HEARTBEAT_S", 1000.0)
    node = local(tmp_path)
    try:
        node.wait_ready()
        node._process.wait(NOTICED_WITHIN_S)
    finally:
        node.stop()


def test_a_missing_python_is_reported(tmp_path: Path) -> None:
    """The error names the missing program and gives advice."""
    with pytest.raises(SetupError, match="no-such-python"):
        local(tmp_path, "/no-such-python")


def test_a_host_without_ssh_server_is_reported(tmp_path: Path) -> None:
    """The error has ssh's own message and advice."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        section = SshNode(kind="ssh", host="127.0.0.1", port=probe.getsockname()[1], config="/dev/null")
        node = Host("far", section, tmp_path, tmp_path / "console", lambda node, worker, event: None)
        with pytest.raises(SetupError, match=r"Connection refused.*systemctl start ssh"):
            node.wait_ready()


def ping(mark: bytes, count: int = 20) -> None:
    """Datagrams over the loopback, of different lengths, each with the mark and its number."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        for number in range(count):
            one.sendto(mark + b"%03d " % number + b"x" * number, other.getsockname())


@needs_root
@pytest.mark.parametrize("method", ["packet-socket", "dumpcap", "tcpdump"])
def test_frames_of_a_netdev_are_fetched(node: Host, tmp_path: Path, method: str) -> None:
    """All frames between start and stop are in the file, complete and in order, and no loss is reported."""
    if method != "packet-socket" and shutil.which(method) is None:
        pytest.skip(f"{method} is not installed")
    macs = {"a": "00:00:00:00:00:00", "b": "02:00:00:00:00:0b"}
    sides = ("a",) if method == "packet-socket" else ()
    capture = NodeCapture(node, method, "lo", tmp_path / "wire.pcapng", macs, sides)
    for number in range(TRIES):
        # Tests beside this one use the same loopback: the capture may take their frames for its own questions.
        if capture.sides == sides:
            break
        capture.stop()
        capture = NodeCapture(node, method, "lo", tmp_path / f"wire-{number}.pcapng", macs, sides)
    assert capture.sides == sides, "the bench's own questions do not pass there"
    mark = os.urandom(8).hex().encode()
    ping(mark)
    counts = capture.stop()
    assert counts is not None and not counts.capture_error
    frames = [f for f in read_pcapng(capture.path) if mark in f.data]
    numbers = [int(f.data.split(mark)[1][:3]) for f in frames]
    # The loopback shows a frame when it is sent and when it arrives. libpcap ignores the first.
    assert list(dict.fromkeys(numbers)) == list(range(20))
    now_ns = time.time_ns()
    assert all(abs(f.time_ns - now_ns) < 60 * 10**9 for f in frames)


@needs_root
def test_a_frame_that_was_dropped_makes_the_capture_incomplete(node: Host, tmp_path: Path) -> None:
    """A capture whose worker is stopped until its buffer overflows reports the number of missing frames."""
    capture = NodeCapture(node, "packet-socket", "lo", tmp_path / "wire.pcapng", {}, buffer=1 << 17)
    worker = next(w for w in node.channel.workers())
    node.channel.kill(worker, signal.SIGSTOP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(50):
            out.sendto(b"x" * 60000, ("127.0.0.1", 9))
    node.channel.kill(worker, signal.SIGCONT)
    counts = capture.stop()
    assert counts is not None and "dropped" in counts.capture_error


@needs_root
def test_a_program_that_is_killed_makes_the_capture_incomplete(node: Host, tmp_path: Path) -> None:
    """A capture program that ends early reports no losses, so the capture is not complete."""
    if shutil.which("dumpcap") is None:
        pytest.skip("dumpcap is not installed")
    capture = NodeCapture(node, "dumpcap", "lo", tmp_path / "wire.pcapng", {"a": "00:00:00:00:00:00"})
    subprocess.run(["pkill", "-KILL", "-s", str(os.getsid(node._process.pid)), "dumpcap"], check=True)
    counts = capture.stop()
    assert counts is not None and "ended too early" in counts.capture_error


@needs_root
def test_a_netdev_that_is_not_there_cannot_be_recorded(node: Host, tmp_path: Path) -> None:
    """A wrong name in the lab file is a broken set-up. It is reported before the test begins."""
    with pytest.raises(CaptureError, match="no-such-dev"):
        NodeCapture(node, "packet-socket", "no-such-dev", tmp_path / "wire.pcapng", {})


def started_by(tmp_path: Path, text: str) -> Iterator[Host]:
    """A node whose Python is started by a script."""
    script = tmp_path / "python"
    script.write_text(text)
    script.chmod(0o755)
    made = local(tmp_path, str(script))
    try:
        made.wait_ready()
        yield made
    finally:
        made.stop()


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Host]:
    """A node in its own network namespace."""
    yield from started_by(tmp_path, f'#!/bin/sh\nexec unshare --net {PYTHON} "$@"\n')


@needs_root
def test_a_netdev_that_goes_down_makes_the_capture_incomplete(apart: Host, tmp_path: Path) -> None:
    """The kernel then ends a packet socket's recording, so later frames are not in the file."""
    assert apart.system("run", command=["ip", "link", "set", "lo", "up"])["status"] == 0
    capture = NodeCapture(apart, "packet-socket", "lo", tmp_path / "wire.pcapng", {})
    assert capture.counts().capture_error == ""
    apart.system("run", command=["ip", "link", "set", "lo", "down"])
    counts = capture.stop()
    assert counts is not None and "the capture broke" in counts.capture_error


# TCP over the loopback carries standard input and output, as ssh carries them over a host's only netdev.
FAR = """#!{python}
import socket, subprocess, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
child = subprocess.Popen(["{python}", *sys.argv[1:]], stdin=far.fileno(), stdout=far.fileno())
far.close()
def carry(read, write, end):
    while data := read():
        write(data)
    end()
def typed():
    carry(lambda: sys.stdin.buffer.raw.read(1 << 16), near.sendall, lambda: near.shutdown(socket.SHUT_WR))
threading.Thread(target=typed, daemon=True).start()
carry(lambda: near.recv(1 << 16), lambda data: (sys.stdout.buffer.write(data), sys.stdout.flush()), child.wait)
"""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Host]:
    """A node whose connection uses the recorded netdev."""
    yield from started_by(tmp_path, FAR.format(python=PYTHON))


@needs_root
@pytest.mark.parametrize("method", ["packet-socket", "dumpcap"])
def test_the_connection_to_the_node_may_use_the_recorded_netdev(far: Host, tmp_path: Path, method: str) -> None:
    """On a host with one network card, the bench's connection is not recorded, other frames are, and counting ends."""
    if method == "dumpcap" and shutil.which(method) is None:
        pytest.skip(f"{method} is not installed")
    sides = ("a",) if method == "packet-socket" else ()
    capture = NodeCapture(far, method, "lo", tmp_path / "wire.pcapng", {}, sides)
    assert capture.sides == (), "the adapter's counters move with every question"
    mark = os.urandom(8).hex().encode()
    started_ns = time.monotonic_ns()
    ping(mark)
    assert sum(capture.counts().received.values()) >= 20
    counts = capture.stop()
    assert time.monotonic_ns() - started_ns < 10 * 10**9
    assert counts is not None and not counts.capture_error
    frames = list(read_pcapng(tmp_path / "wire.pcapng"))
    assert {int(f.data.split(mark)[1][:3]) for f in frames if mark in f.data} == set(range(20))
    assert not [f for f in frames if f.data[12:14] == b"\x08\x00" and f.data[23] == socket.IPPROTO_TCP]


@needs_root
def test_a_capture_beside_the_link_cannot_cut_it(node: Host, tmp_path: Path) -> None:
    """Frames that do not pass an inline wire cannot be held back."""
    capture = NodeCapture(node, "packet-socket", "lo", tmp_path / "wire.pcapng", {})
    with pytest.raises(Unsupported, match="no inline wire"):
        capture.cut()
    capture.stop()
