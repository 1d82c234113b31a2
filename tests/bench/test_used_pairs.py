"""Several tests may use a pair one after the other, if each leaves it unchanged."""

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
    """A lab of clones that no other test uses."""
    made = SoftLab(SoftPairFile())
    yield made
    made.close()


def run_a_test(
    lab: SoftLab, folder: Path, at_last: Callable[[SoftPair], object] = lambda pair: None, *, passes: bool = True
) -> list[int]:
    """Run the steps of a contract test on a pair of the lab, then ``at_last``. Returns the machines' process ids."""
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
    """The number of connection requests in a test's capture."""
    return sum(packet.cm == "REQ" for packet in roce_packets(came_in(read_pcapng(folder / "wire.pcapng"))))


def test_an_unchanged_pair_is_used_again(soft_lab: SoftLab, tmp_path: Path) -> None:
    """Three tests use the same machines, and each has its own evidence: packets and console."""
    folders = [tmp_path / str(number) for number in range(3)]

    had = [*(run_a_test(soft_lab, folder) for folder in folders[:2]), run_a_test(soft_lab, folders[2], speak)]

    assert had[0] == had[1] == had[2]
    assert [connections(folder) for folder in folders] == [1, 1, 1]
    spoken = ["my words" in (folder / "console-a").read_text(errors="replace") for folder in folders]
    assert spoken == [False, False, True]
    told = [(folder / "evidence.json").read_text() for folder in folders]
    assert ['"tests before on the same nodes": 2' in text for text in told] == [False, False, True]


def unseen(pair: SoftPair, script: str) -> None:
    """Run a shell's ``script`` on node b without noting the change. Only the check of the node can find it."""
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
def test_a_changed_pair_is_not_used_again(
    soft_lab: SoftLab, tmp_path: Path, spoils: Callable[[SoftPair], object]
) -> None:
    """After any change by a test, the next test gets new machines."""
    first = run_a_test(soft_lab, tmp_path / "1", spoils)

    assert not set(run_a_test(soft_lab, tmp_path / "2")) & set(first)


def test_a_pair_whose_test_did_not_pass_is_not_used_again(soft_lab: SoftLab, tmp_path: Path) -> None:
    """After any verdict but a pass, the next test gets new machines."""
    first = run_a_test(soft_lab, tmp_path / "1", passes=False)

    assert not set(run_a_test(soft_lab, tmp_path / "2")) & set(first)


def test_a_test_without_the_mark_gets_a_new_pair(soft_lab: SoftLab, tmp_path: Path) -> None:
    """While a used pair is idle, a test that does not ask for it gets a new one."""
    first = run_a_test(soft_lab, tmp_path / "1")

    with soft_lab.pair(tmp_path / "2") as pair:
        assert not {clone.machine.pid for clone in pair.clones.values()} & set(first)

    assert run_a_test(soft_lab, tmp_path / "3") == first


def test_a_waiting_pair_that_died_is_replaced(soft_lab: SoftLab, tmp_path: Path) -> None:
    """If a machine ends between two tests, the second gets new machines, and both pass."""
    kept: list[SoftPair] = []
    first = run_a_test(soft_lab, tmp_path / "1", kept.append)
    kept[0].clones["b"].machine.stop()

    assert not set(run_a_test(soft_lab, tmp_path / "2")) & set(first)


def test_no_pair_is_used_for_ever(soft_lab: SoftLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``MOST_USES`` tests a pair is replaced."""
    monkeypatch.setattr(softlab, "MOST_USES", 2)

    had = [run_a_test(soft_lab, tmp_path / str(number)) for number in range(3)]

    assert had[0] == had[1] != had[2]


def test_the_end_of_the_lab_is_the_end_of_a_waiting_pair(soft_lab: SoftLab, tmp_path: Path) -> None:
    """No machine runs after the lab is closed."""
    kept: list[SoftPair] = []
    run_a_test(soft_lab, tmp_path, kept.append)

    soft_lab.close()

    assert not any(clone.machine.alive() for clone in kept[0].clones.values())
    with pytest.raises(CaptureError):
        kept[0].inline.counts()
