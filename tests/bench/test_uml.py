"""Nodes that are User-Mode Linux: the process must behave as a machine does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.capture.pcapng import read_pcapng
from hil.errors import NodeDied
from hil.labs.file import read_lab_file
from hil.labs.soft.kinds import SoftGuest, soft_guest, start
from hil.labs.soft.node import SoftNode
from hil.labs.soft.pair import SoftPair
from hil.labs.soft.uml import UmlGuest
from hil.testing.bench import Bench

ROOT = Path(__file__).parents[2]
LAB = ROOT / "lab" / "soft-pair-uml.toml"
NOTICED_WITHIN_S = 10.0


@pytest.fixture(scope="session")
def guest() -> SoftGuest:
    """The prepared guest of nodes on User-Mode Linux."""
    return soft_guest(read_lab_file(LAB).guest)  # type: ignore[union-attr]


@pytest.fixture
def node(guest: SoftGuest, tmp_path: Path) -> Iterator[SoftNode]:
    """One node without a link."""
    with start("a", guest, tmp_path / "console", lambda *_: None) as made:
        made.wait_ready()
        yield made


@pytest.fixture
def uml_pair(guest: SoftGuest, tmp_path: Path) -> Iterator[SoftPair]:
    """A provisioned pair."""
    with SoftPair((guest, guest), tmp_path) as made:
        yield made


def wait(condition: Callable[[], object]) -> None:
    end_ns = time.monotonic_ns() + int(NOTICED_WITHIN_S * 1e9)
    while not condition():
        assert time.monotonic_ns() < end_ns
        time.sleep(0.02)


def processes(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_hard_close_is_judged_whole(uml_pair: SoftPair) -> None:
    """Every finding of a close holds on the kernel that was built."""
    bench = Bench(uml_pair)
    closer, peer = bench.connect()
    closer.recv(), peer.recv()
    closer.close()
    evidence = bench.judge(bench.hard_close(closer, peer))
    bench.finish()
    assert [p.cm for p in evidence.packets if p.cm] == ["REQ", "REP", "RTU", "DREQ", "DREP"]
    guest = soft_guest(read_lab_file(LAB).guest)  # type: ignore[union-attr]
    assert isinstance(guest, UmlGuest)
    assert uml_pair.nodes["a"].system("versions")["kernel"] == guest.kernel.release


def test_long_messages_to_a_node_arrive_whole(node: SoftNode) -> None:
    """A serial line holds 4096 bytes: a call of a megabyte, and many calls at once, lose none."""
    worker, _ = node.channel.spawn("provider")
    made = node.channel.call(worker, "memory", 30, "memory", size=1 << 20)
    data = os.urandom(1 << 20)
    node.channel.call(worker, "write_memory", 60, "writing", memory=made["memory"], offset=0, data=data)
    answers: list[bytes] = []

    def read(offset: int) -> None:
        arguments = {"memory": made["memory"], "offset": offset, "length": 1 << 16}
        answers.append(node.channel.call(worker, "read_memory", 60, "reading", **arguments))
        node.channel.call(worker, "write_memory", 60, "writing", memory=made["memory"], offset=offset, data=answers[-1])

    threads = [threading.Thread(target=read, args=(part << 16,)) for part in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(data[part << 16 : (part + 1) << 16] for part in range(16))
    whole = node.channel.call(worker, "read_memory", 60, "reading", memory=made["memory"], offset=0, length=1 << 20)
    assert whole == data


def test_a_netdev_goes_down_and_comes_up_again(uml_pair: SoftPair) -> None:
    """It does so any number of times, and carries frames again each time."""
    node, other = uml_pair.nodes["a"], uml_pair.place("b").ipv4
    for _ in range(3):
        for state in ("down", "up"):
            assert node.system("run", command=["ip", "link", "set", "eth0", state])["status"] == 0
        assert node.system("run", command=["ping", "-c", "1", "-W", "5", other])["status"] == 0


def test_a_dead_node_is_noticed_at_once(node: SoftNode) -> None:
    """A running call fails as soon as the machine's process is killed, and none of its processes remains."""
    threading.Timer(0.3, os.kill, (node.machine.pid, signal.SIGKILL)).start()
    with pytest.raises(NodeDied):
        node.system("run", command=["sleep", "50"])
    wait(lambda: not processes(node.machine.pid))


def test_a_panic_ends_the_node_with_its_message(node: SoftNode) -> None:
    """The kernel's last messages are in the error."""
    with pytest.raises(NodeDied, match=r"sysrq|panic|crash"):
        node.system("panic")
    wait(lambda: not node.machine.alive())


def test_a_frozen_node_hangs_and_continues(node: SoftNode) -> None:
    """None of its processes runs while it is frozen. Thawed, it answers."""
    assert node.system("versions")
    node.machine.freeze()

    def states() -> set[str]:
        paths = [Path(f"/proc/{pid}/stat") for pid in processes(node.machine.pid)]
        return {path.read_text().rpartition(")")[2].split()[0] for path in paths}

    wait(lambda: states() == {"T"})
    node.machine.thaw()
    assert node.system("versions")


def test_the_console_moves(node: SoftNode, tmp_path: Path) -> None:
    """The kernel's messages are written to the file that the console was moved to."""
    node.move_console(tmp_path / "other")
    node.system(
        "run",
        command=[
            "sh",
            "-c",
            "echo these are my words > /dev/kmsg; echo 8 > /proc/sys/kernel/printk; echo h > /proc/sysrq-trigger",
        ],
    )
    wait(lambda: (tmp_path / "other").exists() and "sysrq" in (tmp_path / "other").read_text())
    assert "sysrq: HELP" not in (tmp_path / "console").read_text()


def test_a_node_sees_nothing_of_this_machine(node: SoftNode) -> None:
    """Its kernel could mount folders of the host, but none is accessible."""
    done = node.system("run", command=["sh", "-c", "mkdir /host; mount -t hostfs none /host -o /; ls /host"])
    assert not {"home", "root", "usr"} & set(done["stdout"].split()), done


KILLED = """
import os, sys, time
from pathlib import Path
from hil.labs.file import read_lab_file
from hil.labs.soft.kinds import soft_guest, start
guest = soft_guest(read_lab_file(Path(sys.argv[1])).guest)
made = start("a", guest, Path(sys.argv[2]), lambda *_: None)
if sys.argv[3] == "ready":
    made.wait_ready()
    made.system("versions")
print(made.machine.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("when", ["booting", "ready"])
def test_nothing_outlives_a_killed_bench(tmp_path: Path, guest: SoftGuest, when: str) -> None:
    """After kill -9 of the bench all processes of its nodes are gone, at once."""
    command = [sys.executable, "-c", KILLED, str(LAB), str(tmp_path / "console"), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as bench:
        assert bench.stdout is not None
        group = int(bench.stdout.readline())
        assert processes(group)
        bench.kill()
    wait(lambda: not processes(group))


def test_each_machine_stays_on_one_core(node: SoftNode) -> None:
    """All its processes run on one core, so that none wakes another across cores."""
    node.system("versions")
    assert {len(os.sched_getaffinity(pid)) for pid in processes(node.machine.pid)} == {1}


def test_frames_are_on_the_capture_as_the_adapters_counted_them(uml_pair: SoftPair, tmp_path: Path) -> None:
    """Hundreds of pings with large payloads: no frame is lost, and both counters equal the capture's."""
    node, other = uml_pair.nodes["a"], uml_pair.place("b").ipv4
    command = ["ping", "-c", "200", "-i", "0.002", "-s", "1400", other]
    assert node.system("run", command=command)["status"] == 0
    evidence = uml_pair.evidence(last=True)
    assert evidence.problems == []
    assert sum(len(frame.data) > 1400 for frame in read_pcapng(uml_pair.wire.path)) >= 400
