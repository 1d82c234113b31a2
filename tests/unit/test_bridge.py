"""The bridge of a soft lab: frames go where they are heard, each is recorded once, and what is counted adds up."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.capture.pcapng import read_pcapng
from hil.errors import CaptureError, Unsupported
from hil.wire.bridge import Bridge

NAMES = ("n1", "n2", "n3")
MACS = {name: bytes([2, 0, 0, 0, 0, number]) for number, name in enumerate(NAMES)}
BROADCAST = b"\xff" * 6


@pytest.fixture
def ends() -> Iterator[dict[str, tuple[socket.socket, socket.socket]]]:
    """(the node's end, the bridge's end) of each port."""
    made = {name: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for name in NAMES}
    for ours, _ in made.values():
        ours.settimeout(10)
    yield made
    for pair in made.values():
        for end in pair:
            end.close()


@pytest.fixture
def bridge(ends: dict[str, tuple[socket.socket, socket.socket]], tmp_path: Path) -> Iterator[Bridge]:
    made = Bridge({name: theirs for name, (_, theirs) in ends.items()}, tmp_path / "wire.pcapng")
    yield made
    made.stop()


def frame(source: str, destination: bytes, text: bytes) -> bytes:
    return destination + MACS[source] + b"\x88\xb5" + text.ljust(46, b"\0")


def heard(end: socket.socket) -> list[bytes]:
    end.setblocking(False)
    found = []
    try:
        while True:
            found.append(end.recv(65536)[14:].rstrip(b"\0"))
    except BlockingIOError:
        return found


def test_a_frame_goes_to_its_destination_only_once_that_was_heard(
    bridge: Bridge, ends: dict[str, tuple[socket.socket, socket.socket]]
) -> None:
    """An unknown destination and a broadcast are flooded; a known one is sent to its port, and never back."""
    one, two, three = (ends[name][0] for name in NAMES)
    one.send(frame("n1", MACS["n2"], b"where are you"))
    assert {two.recv(65536)[14:27], three.recv(65536)[14:27]} == {b"where are you"}
    two.send(frame("n2", MACS["n1"], b"here"))
    one.recv(65536)
    one.send(frame("n1", MACS["n2"], b"to you only"))
    two.recv(65536)
    one.send(frame("n1", MACS["n1"], b"to myself"))
    one.send(frame("n1", BROADCAST, b"to all"))
    assert [two.recv(65536)[14:20], three.recv(65536)[14:20]] == [b"to all"] * 2
    assert (heard(one), heard(two), heard(three)) == ([], [], [])


def test_each_frame_is_recorded_once_and_counts_add_up(
    bridge: Bridge, ends: dict[str, tuple[socket.socket, socket.socket]]
) -> None:
    """Fifty broadcasts: fifty in the file from that port, and each of the others was sent all of them."""
    for number in range(50):
        ends["n1"][0].send(frame("n1", BROADCAST, b"%02d" % number))
        assert ends["n2"][0].recv(65536)[14:16] == b"%02d" % number
    counts = bridge.stop()
    assert len(heard(ends["n3"][0])) == 50
    assert counts is not None
    assert counts.received == {"n1": 50, "n2": 0, "n3": 0}
    assert counts.sent == {"n1": 0, "n2": 50, "n3": 50}
    assert not counts.capture_error and not any((*counts.lost.values(), *counts.queued.values()))
    frames = list(read_pcapng(bridge.path))
    assert [f.data[14:16] for f in frames] == [b"%02d" % number for number in range(50)]
    assert {f.interface for f in frames} == {"side-n1"}


def test_a_node_that_is_gone_does_not_hold_up_the_others(
    bridge: Bridge, ends: dict[str, tuple[socket.socket, socket.socket]]
) -> None:
    """What was for it is counted as lost."""
    for end in ends["n3"]:
        end.close()
    ends["n1"][0].send(frame("n1", BROADCAST, b"still here"))
    assert ends["n2"][0].recv(65536)[14:24] == b"still here"
    counts = bridge.counts()
    assert (counts.lost["n3"], counts.sent["n2"]) == (1, 1)


def test_a_bridge_holds_nothing_back(bridge: Bridge) -> None:
    """It is no inline wire, and one that has ended says so."""
    with pytest.raises(Unsupported):
        bridge.cut()
    bridge.stop()
    with pytest.raises(CaptureError):
        bridge.counts()


def test_the_bridge_knows_by_how_much_its_stamps_are_late(
    bridge: Bridge, ends: dict[str, tuple[socket.socket, socket.socket]]
) -> None:
    """A frame that waits while the process of the bridge stands still is stamped late by so much, and it says so."""
    bridge.counts()
    os.kill(bridge.pid, signal.SIGSTOP)
    ends["n1"][0].send(frame("n1", BROADCAST, b"late"))
    time.sleep(0.3)
    os.kill(bridge.pid, signal.SIGCONT)
    ends["n2"][0].recv(65536)
    assert max(bridge.counts().late_frames.values()) >= 300_000_000
