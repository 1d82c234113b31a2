"""The wire's process between two sockets, with recorded frames: it carries, changes, records, counts and logs them."""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hil.capture.pcapng import CapturedFrame, read_pcapng
from hil.capture.sides import came_in, reached
from hil.errors import CaptureError, FaultError
from hil.roce.frames import CmAttribute
from hil.roce.outline import outline
from hil.wire.counts import WireCounts
from hil.wire.faults import (
    Action,
    Corrupt,
    CutCable,
    Delay,
    Drop,
    Duplicate,
    Fault,
    MarkEcn,
    Match,
    Reorder,
    Span,
    Truncate,
    only,
)
from hil.wire.wire import Wire

CAPTURE = Path(__file__).parent / "captures" / "hard_close_ipv4.pcapng"
FRAMES = [f.data for f in read_pcapng(CAPTURE)]
SENDS = [f for f in FRAMES if (o := outline(f)) and o.opcode == 0x04]
LONG_NS = 60 * 10**9


@dataclass
class Joined:
    """A wire and the nodes' ends of its sockets."""

    wire: Wire
    a: socket.socket
    b: socket.socket

    def get(self, side: str, count: int) -> list[bytes]:
        """The next frames that ``side``'s node gets."""
        return [{"a": self.a, "b": self.b}[side].recv(65536) for _ in range(count)]

    def nothing(self, side: str) -> None:
        """Assert that no frame to ``side`` is left in its socket."""
        self.wire.counts()
        end = {"a": self.a, "b": self.b}[side]
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(65536)
        end.settimeout(20)

    def fault(self, action: Action, **match: object) -> None:
        self.wire.add_fault(Fault("it", action, Match(**match)))  # type: ignore[arg-type]

    def settled(self) -> WireCounts:
        """The counts after all sent frames came in. Asserts that they add up."""
        counts = self.wire.counts()
        assert counts.mismatch() == ""
        return counts

    def recorded(self) -> list[CapturedFrame]:
        self.wire.counts()
        return list(read_pcapng(self.wire.path))


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for pair in pairs:
        for end in pair:
            end.settimeout(20)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with Wire(pairs[0][1], pairs[1][1], tmp_path / "wire.pcapng") as wire:
        for pair in pairs:
            pair[1].close()
        yield Joined(wire, pairs[0][0], pairs[1][0])
    for pair in pairs:
        pair[0].close()


def interfaces(joined: Joined) -> list[str]:
    return [f.interface for f in joined.recorded()]


def test_without_faults_frames_are_forwarded_unchanged(joined: Joined) -> None:
    """Frames of both directions arrive in order. Each is recorded once, on the side where it came in."""
    for frame in FRAMES:
        joined.a.send(frame)
        joined.b.send(frame)
    assert joined.get("a", len(FRAMES)) == joined.get("b", len(FRAMES)) == FRAMES
    counts = joined.settled()
    assert counts.received == counts.unchanged == counts.sent == {"a": len(FRAMES), "b": len(FRAMES)}
    assert sorted(interfaces(joined)) == ["side-a"] * len(FRAMES) + ["side-b"] * len(FRAMES)
    assert joined.wire.log() == []


def test_a_dropped_frame_is_not_forwarded(joined: Joined) -> None:
    """It is recorded where it came in, with a comment. The other frames are forwarded."""
    joined.fault(Drop(), opcodes=(0x04,), occurrences=only(2))
    for frame in SENDS:
        joined.a.send(frame)
    assert joined.get("b", 2) == [SENDS[0], SENDS[2]]
    joined.nothing("b")
    assert joined.settled().dropped == {"a": 1, "b": 0}
    recorded = joined.recorded()
    assert [f.comment for f in recorded] == ["", "fault 'it', hit 1: Drop()", ""]
    assert [f.data for f in came_in(recorded)] == SENDS
    assert [f.data for f in reached(recorded)] == [SENDS[0], SENDS[2]]


@pytest.mark.parametrize("action", [Corrupt(), Corrupt(repaired=True), Truncate(50), MarkEcn()], ids=str)
def test_a_changed_frame_is_recorded_as_it_left(joined: Joined, action: Action) -> None:
    """The received frame is on one interface of the capture, the sent frame on another."""
    joined.fault(action, opcodes=(0x04,))
    joined.a.send(SENDS[0])
    (got,) = joined.get("b", 1)
    assert got != SENDS[0]
    assert joined.settled().changed == {"a": 1, "b": 0}
    assert [(f.interface, f.data) for f in joined.recorded()] == [("side-a", SENDS[0]), ("to-b", got)]
    assert [f.data for f in reached(joined.recorded())] == [got]


def test_an_action_without_effect_counts_as_unchanged(joined: Joined) -> None:
    """A frame shorter than the limit of a truncation is forwarded unchanged, but the hit is logged."""
    joined.fault(Truncate(1000))
    joined.a.send(SENDS[0])
    assert joined.get("b", 1) == SENDS[:1]
    counts = joined.settled()
    assert (counts.unchanged["a"], counts.changed["a"]) == (1, 0)
    assert [entry["kind"] for entry in joined.wire.log()] == ["fault"]


def test_a_delayed_frame_is_overtaken(joined: Joined) -> None:
    """It is forwarded after its time, not before. Until then it counts as held."""
    joined.fault(Delay(300_000_000), opcodes=(0x04,), occurrences=only(1))
    begun_ns = time.monotonic_ns()
    joined.a.send(SENDS[0])
    joined.a.send(SENDS[1])
    assert joined.get("b", 1) == [SENDS[1]]
    held = joined.settled().held
    assert joined.get("b", 1) == [SENDS[0]]
    assert time.monotonic_ns() - begun_ns >= 300_000_000
    assert held == {"a": 1, "b": 0}
    assert joined.settled().late == {"a": 1, "b": 0}
    assert interfaces(joined) == ["side-a", "side-a", "to-b"]


def test_a_duplicate_follows_its_original(joined: Joined) -> None:
    """The copies follow at once or later. Each sent copy is recorded."""
    joined.fault(Duplicate(2), opcodes=(0x04,), occurrences=only(1))
    joined.fault(Duplicate(1, after_ns=1_000_000), opcodes=(0x04,), occurrences=only(1))
    joined.a.send(SENDS[0])
    assert joined.get("b", 3) == [SENDS[0]] * 3
    joined.a.send(SENDS[1])
    assert joined.get("b", 2) == [SENDS[1]] * 2
    counts = joined.settled()
    assert (counts.unchanged["a"], counts.duplicated["b"], counts.sent["b"]) == (2, 3, 5)
    assert [f.data for f in reached(joined.recorded())] == [SENDS[0]] * 3 + [SENDS[1]] * 2


def test_a_reordered_frame_waits_for_those_behind_it(joined: Joined) -> None:
    """Two later frames go first. Frames of the other side do not count."""
    joined.fault(Reorder(2, LONG_NS), opcodes=(0x04,), occurrences=only(1))
    joined.a.send(SENDS[0])
    joined.b.send(FRAMES[0])
    joined.get("a", 1)
    joined.a.send(SENDS[1])
    joined.get("b", 1)
    joined.nothing("b")
    joined.a.send(SENDS[2])
    assert joined.get("b", 2) == [SENDS[2], SENDS[0]]
    assert joined.settled().late == {"a": 1, "b": 0}


def test_a_reordered_frame_without_followers_is_forwarded_in_the_end(joined: Joined) -> None:
    """It is forwarded after the fault's time limit."""
    joined.fault(Reorder(2, 1_000_000), opcodes=(0x04,))
    joined.a.send(SENDS[0])
    assert joined.get("b", 1) == SENDS[:1]
    assert joined.settled().late == {"a": 1, "b": 0}


def test_any_number_of_frames_may_wait_for_each_other(joined: Joined) -> None:
    """Three thousand frames, each of which waits for a later one, are all forwarded when one is released."""
    handle = joined.wire.add_fault(Fault("it", Reorder(1, LONG_NS), Match(side="a")))
    for _ in range(3000):
        joined.a.send(SENDS[0])
    handle.wait_hits(3000)
    handle.remove()
    joined.a.send(SENDS[1])
    assert joined.get("b", 3001) == [SENDS[1]] + [SENDS[0]] * 3000
    assert joined.settled().late == {"a": 3000, "b": 0}


def test_a_cut_cable_is_mended_when_its_time_is_over(joined: Joined) -> None:
    """Until then all frames of both sides are dropped and recorded with a comment, as is the frame that cut it."""
    joined.fault(CutCable(300_000_000), opcodes=(0x04,), occurrences=only(1))
    joined.a.send(SENDS[0])
    joined.a.send(SENDS[1])
    joined.b.send(FRAMES[0])
    end_ns = time.monotonic_ns() + 20 * 10**9
    while [entry.get("event") for entry in joined.wire.log()] != [None, "cut", "mended"]:
        assert time.monotonic_ns() < end_ns, joined.wire.log()
        time.sleep(0.01)
    joined.a.send(SENDS[2])
    assert joined.get("b", 1) == [SENDS[2]]
    joined.nothing("a")
    assert joined.settled().dropped == {"a": 2, "b": 1}
    assert [f.data for f in reached(joined.recorded())] == [SENDS[2]]


def test_frames_that_wait_when_the_cable_is_cut_are_dropped(joined: Joined) -> None:
    """They count as dropped when they are due. Their copies are not counted."""
    joined.fault(Delay(500_000_000), opcodes=(0x04,), occurrences=only(1))
    joined.fault(Duplicate(1, after_ns=500_000_000), opcodes=(0x04,))
    joined.a.send(SENDS[0])
    joined.a.send(SENDS[1])
    assert joined.get("b", 1) == [SENDS[1]]
    joined.wire.cut()
    end_ns = time.monotonic_ns() + 20 * 10**9
    while joined.settled().held["a"]:
        assert time.monotonic_ns() < end_ns
        time.sleep(0.01)
    counts = joined.settled()
    assert (counts.dropped["a"], counts.unchanged["a"], counts.sent["b"], counts.duplicated["b"]) == (1, 1, 1, 0)
    joined.nothing("b")


def test_cut_and_mend_by_hand_are_on_the_log(joined: Joined) -> None:
    """Each is logged once, with the time of the monotonic clock."""
    joined.wire.cut()
    joined.wire.mend()
    joined.wire.mend()
    log = joined.wire.log()
    assert [(e["kind"], e["event"]) for e in log] == [("cable", "cut"), ("cable", "mended")]
    assert log[0]["t_ns"] <= log[1]["t_ns"] <= time.monotonic_ns()


def test_a_frame_is_injected(joined: Joined) -> None:
    """It reaches the node and counts as injected. The capture and the log show that it was injected."""
    number = joined.wire.inject("a", SENDS[0])
    assert joined.get("a", 1) == SENDS[:1]
    assert joined.settled().injected == {"a": 1, "b": 0}
    (frame,) = joined.recorded()
    assert (frame.number, frame.interface, frame.comment) == (number, "to-a", "injected")
    assert [(e["kind"], e["side"], e["frame"]) for e in joined.wire.log()] == [("inject", "a", number)]
    for side, data in (("c", SENDS[0]), ("a", b"short")):
        with pytest.raises(FaultError, match="a frame has a header, and a side is a or b"):
            joined.wire.inject(side, data)


def test_every_hit_is_logged_with_its_frame(joined: Joined) -> None:
    """The log names fault, hit, action, side and the frame's number in the capture; the handle counts."""
    handle = joined.wire.add_fault(Fault("lose SENDs", Drop(), Match(opcodes=(0x04,), occurrences=Span(2))))
    for frame in SENDS:
        joined.a.send(frame)
    assert handle.wait_hits(2) == 2
    entries = joined.wire.log()
    told = [(e["kind"], e["fault"], e["hit"], e["action"], e["side"], e["frame"]) for e in entries]
    assert told == [("fault", "lose SENDs", n, "Drop()", "a", n + 1) for n in (1, 2)]
    assert (handle.state().matched, handle.state().hits, handle.state().active) == (3, 2, True)


def test_a_removed_fault_has_no_effect(joined: Joined) -> None:
    """Its counts stay. Removing it again is an error that names it."""
    handle = joined.wire.add_fault(Fault("it", Drop(), Match(cm=(CmAttribute.DREQ,))))
    dreq = next(f for f in FRAMES if (o := outline(f)) and o.cm == CmAttribute.DREQ)
    joined.a.send(dreq)
    handle.wait_hits()
    handle.remove()
    joined.a.send(dreq)
    assert joined.get("b", 1) == [dreq]
    assert handle.hits() == 1 and not handle.state().active
    with pytest.raises(FaultError, match=r"fault it .* is not set"):
        handle.remove()


def test_damaged_frames_never_end_the_wire(joined: Joined) -> None:
    """Each of thousands of altered and cut frames under every fault is counted. The seed is fixed."""
    actions: list[Action] = [
        Corrupt(3),
        Corrupt(-9, repaired=True),
        Truncate(20, lengths_repaired=True),
        Truncate(60, lengths_repaired=True),
        MarkEcn(),
        Duplicate(),
        Reorder(2, 1000),
        Drop(),
    ]
    for number, action in enumerate(actions):
        joined.wire.add_fault(Fault(f"fault {number}", action, Match(probability=0.3, seed=number)))
    rng = random.Random(7)
    joined.b.setblocking(False)
    for _ in range(4000):
        data = bytearray(rng.choice(FRAMES))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        joined.a.send(data[: rng.randrange(1, len(data) + 1)])
        drain(joined.b)
    end_ns = time.monotonic_ns() + 20 * 10**9
    while (counts := joined.settled()).received["a"] < 4000 or any(counts.held.values()):
        assert time.monotonic_ns() < end_ns
        drain(joined.b)
    assert len(list(reached(joined.recorded()))) == counts.sent["b"] + counts.queued["b"]


def drain(end: socket.socket) -> None:
    try:
        while end.recv(65536):
            pass
    except BlockingIOError:
        pass


def test_a_sum_that_does_not_add_up_is_named() -> None:
    """A received frame that is in no other count, and a sent frame that was never received."""
    zero = {"a": 0, "b": 0}
    one = {"a": 1, "b": 0}
    assert WireCounts().mismatch() == ""
    told = WireCounts(received=one).mismatch()
    assert told == "1 frames came in on side a, and 0 are accounted for"
    assert WireCounts(sent=one).mismatch() == "0 frames went on to side a, and 1 were sent, lost or queued"
    assert WireCounts(received=one, unchanged=one, sent=zero).mismatch().startswith("1 frames went on to side b")


def test_frames_to_a_node_that_is_gone_are_lost_and_the_wire_continues(joined: Joined) -> None:
    """They count as lost. Frames of the other side are still read, and the counts add up."""
    joined.b.close()
    joined.a.send(SENDS[0])
    end_ns = time.monotonic_ns() + 20 * 10**9
    while joined.settled().lost["b"] < 1:
        assert time.monotonic_ns() < end_ns
    joined.wire.inject("a", SENDS[1])
    assert joined.get("a", 1) == [SENDS[1]]


def test_a_killed_wire_is_an_error(joined: Joined) -> None:
    """Every call to it raises CaptureError."""
    joined.wire._process.kill()
    joined.wire._process.wait()
    for ask in (joined.wire.counts, joined.wire.log, joined.wire.faults):
        with pytest.raises(CaptureError, match="the wire's process"):
            ask()


def test_the_wire_measures_how_late_its_stamps_are(joined: Joined) -> None:
    """While its process is stopped, a frame waits. The kernel's own stamp shows how late the wire stamped it."""
    joined.a.send(FRAMES[0])
    joined.get("b", 1)
    os.kill(joined.wire.pid, signal.SIGSTOP)
    joined.b.send(FRAMES[0])
    time.sleep(0.3)
    os.kill(joined.wire.pid, signal.SIGCONT)
    joined.get("a", 1)
    assert max(joined.wire.counts().late_frames.values()) >= 300_000_000
