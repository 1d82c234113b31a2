"""Tests may have a pair one after the other, as long as each leaves it as it found it."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.capture.pcapng import read_pcapng
from hil.capture.sides import came_in
from hil.errors import CaptureError
from hil.evidence.packets import roce_packets
from hil.labs.soft import lab as softlab
from hil.labs.soft.file import SoftPairFile
from hil.labs.soft.lab import SoftLab
from hil.labs.soft.pair import SoftPair
from hil.testing.bench import Bench

pytestmark = pytest.mark.needs("clones")


@pytest.fixture
def soft_lab(soft_snapshot: object) -> Iterator[SoftLab]:
    """A lab of clones that no other test has."""
    made = SoftLab(SoftPairFile())
    yield made
    made.close()


def run_a_test(
    lab: SoftLab, folder: Path, at_last: Callable[[SoftPair], object] = lambda pair: None, *, passes: bool = True
) -> list[int]:
    """What a contract test does on a pair of the lab, and then ``at_last``; the pair's machines' process ids."""
    with lab.pair(folder, used=True) as pair:
        bench = Bench(pair)
        connector, acceptor = bench.connect()
        connector.close()
        bench.judge(bench.hard_close(connector, acceptor))
        bench.finish()
        at_last(pair)
        pair.passed = passes
        return [clone.machine.pid for clone in pair.clones.values()]


def speak(pair: SoftPair) -> None:
    """Write on node a's console."""
    pair.nodes["a"].system("run", command=["sh", "-c", "echo these are my words > /dev/ttyS0"])
    time.sleep(0.2)


def connections(folder: Path) -> int:
    """How many connections a test's capture shows to have been asked for."""
    return sum(packet.cm == "REQ" for packet in roce_packets(came_in(read_pcapng(folder / "wire.pcapng"))))


def test_a_pair_that_was_left_as_it_was_found_is_used_again(soft_lab: SoftLab, tmp_path: Path) -> None:
    """Three tests have the same machines, and each has evidence of its own: packets and console."""
    folders = [tmp_path / str(number) for number in range(3)]

    had = [*(run_a_test(soft_lab, folder) for folder in folders[:2]), run_a_test(soft_lab, folders[2], speak)]

    assert had[0] == had[1] == had[2]
    assert [connections(folder) for folder in folders] == [1, 1, 1]
    spoken = ["my words" in (folder / "console-a").read_text(errors="replace") for folder in folders]
    assert spoken == [False, False, True]
    told = [(folder / "evidence.json").read_text() for folder in folders]
    assert ['"tests before on the same nodes": 2' in text for text in told] == [False, False, True]


def unseen(pair: SoftPair, script: str) -> None:
    """Run a shell's ``script`` on node b, not in the way that says it: only a look at the node can tell."""
    channel = pair.nodes["b"].channel
    worker, _ = channel.spawn("system")
    channel.call(worker, "run", 20.0, "a script", command=["sh", "-c", script])


def left_running(program: str) -> str:
    return f"setsid {program} </dev/null >/dev/null 2>&1 &"


def crash_a_provider(pair: SoftPair) -> None:
    channel = pair.nodes["b"].channel
    worker, _ = channel.spawn("provider")
    channel.kill(worker, signal.SIGSEGV)
    channel.wait_exit(worker, 10.0)


HOLDER = """python3 -c 'import pyverbs.device as d, time; opened = d.Context(name="rxe0"); time.sleep(60)'"""
SPOILS: dict[str, Callable[[SoftPair], object]] = {
    "address": lambda pair: unseen(pair, "ip address add 10.99.0.1/24 dev lo"),
    "object": lambda pair: unseen(pair, f"{left_running(HOLDER)} sleep 3"),
    "process": lambda pair: unseen(pair, left_running("sleep 60")),
    "neighbour": lambda pair: unseen(pair, f"ping -c 1 -W 1 {pair.unused_address()}; true"),
    "complaint": lambda pair: unseen(pair, "echo l > /proc/sysrq-trigger"),
    "token": lambda pair: unseen(pair, "mkdir -p /tmp/san-provider-0 && touch /tmp/san-provider-0/1"),
    "crash": crash_a_provider,
    "program": speak,
    "machine gone": lambda pair: pair.clones["a"].machine.stop(),
}


@pytest.mark.parametrize("spoils", SPOILS.values(), ids=SPOILS)
def test_a_pair_that_was_changed_is_not(
    soft_lab: SoftLab, tmp_path: Path, spoils: Callable[[SoftPair], object]
) -> None:
    """Whatever a test left or lost on the way: the next test has machines of its own."""
    first = run_a_test(soft_lab, tmp_path / "1", spoils)

    assert not set(run_a_test(soft_lab, tmp_path / "2")) & set(first)


def test_a_pair_whose_test_did_not_pass_is_not(soft_lab: SoftLab, tmp_path: Path) -> None:
    """After anything but a pass the next test has machines of its own."""
    first = run_a_test(soft_lab, tmp_path / "1", passes=False)

    assert not set(run_a_test(soft_lab, tmp_path / "2")) & set(first)


def test_a_test_that_wants_its_own_gets_it(soft_lab: SoftLab, tmp_path: Path) -> None:
    """While a used pair waits, a test that does not ask for it has a new one."""
    first = run_a_test(soft_lab, tmp_path / "1")

    with soft_lab.pair(tmp_path / "2") as pair:
        assert not {clone.machine.pid for clone in pair.clones.values()} & set(first)

    assert run_a_test(soft_lab, tmp_path / "3") == first


def test_a_waiting_pair_that_died_is_replaced(soft_lab: SoftLab, tmp_path: Path) -> None:
    """When a machine ends between two tests the second has new ones, and both pass."""
    kept: list[SoftPair] = []
    first = run_a_test(soft_lab, tmp_path / "1", kept.append)
    kept[0].clones["b"].machine.stop()

    assert not set(run_a_test(soft_lab, tmp_path / "2")) & set(first)


def test_no_pair_is_used_for_ever(soft_lab: SoftLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many tests it is replaced."""
    monkeypatch.setattr(softlab, "MOST_USES", 2)

    had = [run_a_test(soft_lab, tmp_path / str(number)) for number in range(3)]

    assert had[0] == had[1] != had[2]


def test_the_end_of_the_lab_is_the_end_of_a_waiting_pair(soft_lab: SoftLab, tmp_path: Path) -> None:
    """Nothing runs on when the lab is closed."""
    kept: list[SoftPair] = []
    run_a_test(soft_lab, tmp_path, kept.append)

    soft_lab.close()

    assert not any(clone.machine.alive() for clone in kept[0].clones.values())
    with pytest.raises(CaptureError):
        kept[0].inline.counts()
