"""What a node's capture sends home: frames out of pieces cut anywhere, and no harm from bytes that are none."""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.agent.roles import capture as on_node
from hil.agent.roles.capture import CLOCK_READINGS, RECORD, epoch_ns, leave_tcp_out, with_ancillary
from hil.capture.pcapng import read_pcapng
from hil.errors import CaptureError, NodeDied, PhaseTimeout, RemoteError, Unsupported
from hil.labs.channel import ClockRelation
from hil.labs.hosts import capture as nodecapture
from hil.labs.hosts.capture import NodeCapture, PcapStream, Recorded, Records, told_losses
from hil.labs.node import Node

FRAMES = [
    (1_700_000_000_123_456_789, b"a" * 60),
    (1_700_000_001_000_000_001, b""),
    (1_700_000_002_000_000_999, b"c" * 1500),
]


def records() -> bytes:
    return b"".join(RECORD.pack(time_ns, len(data), number % 2) + data for number, (time_ns, data) in enumerate(FRAMES))


def pcap(order: str, magic: int, unit_ns: int, link_type: int = 1) -> bytes:
    out = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262144, link_type)
    for time_ns, data in FRAMES:
        seconds, rest = divmod(time_ns, 10**9)
        out += struct.pack(f"{order}IIII", seconds, rest // unit_ns, len(data), len(data)) + data
    return out


def fed(stream: Records | PcapStream, data: bytes, cuts: list[int]) -> list[Recorded]:
    found, start = [], 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        found += stream.feed(data[start:cut])
        start = cut
    return found


@given(st.lists(st.integers(0, 10**6), max_size=8))
def test_pieces_may_be_cut_anywhere(cuts: list[int]) -> None:
    """The same frames come out of records and of pcap, wherever the pieces end."""
    assert [(f.time_ns, f.data, f.sent) for f in fed(Records(), records(), cuts)] == [
        (time_ns, data, bool(number % 2)) for number, (time_ns, data) in enumerate(FRAMES)
    ]
    for order in "<>":
        nano = fed(PcapStream(), pcap(order, 0xA1B23C4D, 1), cuts)
        assert [(f.time_ns, f.data) for f in nano] == FRAMES
        micro = fed(PcapStream(), pcap(order, 0xA1B2C3D4, 1000), cuts)
        assert [(f.time_ns, f.data) for f in micro] == [(t // 1000 * 1000, data) for t, data in FRAMES]


@pytest.mark.parametrize("make", [Records, PcapStream])
@given(st.binary(max_size=400))
def test_foreign_bytes_are_an_error_or_no_frames(make: Callable[[], Records | PcapStream], data: bytes) -> None:
    """Whatever a node sends: frames, nothing yet, or a CaptureError."""
    try:
        list(make().feed(data))
    except CaptureError:
        pass


def test_another_link_type_is_refused() -> None:
    """Frames that are not Ethernet's would be misread."""
    with pytest.raises(CaptureError, match="link type 113"):
        list(PcapStream().feed(pcap("<", 0xA1B23C4D, 1, link_type=113)))


def test_a_vlan_tag_that_the_kernel_took_out_is_put_back() -> None:
    """The tag of the auxiliary data stands behind the addresses again, and the time stamp is the kernel's."""
    stamp = (1, 35, struct.pack("=qq", 5, 7))
    auxiliary = (263, 8, struct.pack("=IIIHHHH", 0x50, 64, 64, 0, 0, 0x2005, 0x88A8))
    data = bytes(range(12)) + b"\x08\x00payload"
    assert with_ancillary(data, [stamp, auxiliary]) == (
        5_000_000_007,
        bytes(range(12)) + b"\x88\xa8\x20\x05\x08\x00payload",
    )


class Here:
    """A node whose capture role runs in this process; ``broken`` is raised by every call of it."""

    name = "a"

    def __init__(self, broken: Exception | None = None) -> None:
        self.channel = self
        self._calls, self._broken = on_node.serve(lambda event: None), broken

    def clock(self) -> ClockRelation:
        return ClockRelation(0, 0)

    def spawn(self, role: str) -> tuple[int, int]:
        return 1, 0

    def call(self, worker: int, call: str, timeout_s: float, phase: str, /, **arguments: Any) -> Any:
        if self._broken is not None:
            raise self._broken
        try:
            return self._calls[call](**arguments)
        except Exception as error:
            raise RemoteError(type(error).__name__, str(error), "") from error


PROGRAM = """#!{python}
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
data = bytes.fromhex("{data}")
def write(part):
    sys.stdout.buffer.write(part)
    sys.stdout.flush()
def say(text):
    print(text, file=sys.stderr, flush=True)
losses = "Packets received/dropped on interface 'x': 3/0 (pcap:0/dumpcap:0/flushed:0/ps_ifdrop:0) (100.0%)"
def until_told():
    signal.sigwait([signal.SIGTERM])
{does}
"""
WHOLE = 'say("File: -"); write(data); until_told(); say(losses)'


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a dumpcap that does what a text of Python says."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def make(does: str) -> None:
        data = pcap("<", 0xA1B23C4D, 1).hex()
        (tmp_path / "dumpcap").write_text(PROGRAM.format(python=sys.executable, data=data, does=does))
        (tmp_path / "dumpcap").chmod(0o755)

    return make


def recording(tmp_path: Path, node: Here | None = None) -> NodeCapture:
    return NodeCapture(cast(Node, node or Here()), "dumpcap", "x", tmp_path / "wire.pcapng", {})


def test_a_whole_capture_has_no_problem(program: Callable[[str], None], tmp_path: Path) -> None:
    """A program that records until it is told to end, and tells no losses, has kept every frame."""
    program(WHOLE)
    capture = recording(tmp_path)
    assert sum(capture.counts().received.values()) == len(FRAMES)
    counts = capture.stop()
    assert counts is not None and counts.capture_error == "" and sum(counts.received.values()) == len(FRAMES)


@pytest.mark.parametrize(
    ("does", "problem"),
    [
        ('say("File: -"); write(data); say(losses)', "ended too early, with status 0"),
        ('say("File: -"); write(data + data[24:60]); say("gone"); sys.exit(1)', "status 1; it said: File: -\ngone"),
        (WHOLE + "; write(data[24:60])", "ended within a frame, 36 bytes of it are there"),
        (WHOLE + "; sys.exit(3)", "it failed, with status 3"),
        (WHOLE.replace("losses", 'losses.replace("ps_ifdrop:0", "ps_ifdrop:7")'), "dropped 7 frames"),
        (WHOLE.replace("say(losses)", "say('')"), "did not tell its losses"),
    ],
)
def test_a_capture_that_is_not_whole_says_why(
    does: str, problem: str, program: Callable[[str], None], tmp_path: Path
) -> None:
    """An early end, a failure, half a frame, and every kind of loss make a capture incomplete."""
    program(does)
    counts = recording(tmp_path).stop()
    assert counts is not None and problem in counts.capture_error


def test_a_capture_that_nobody_takes_ends_before_the_nodes_memory(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of what is free is kept, and the capture is not whole: neither the node nor the capture is killed."""
    monkeypatch.setattr(on_node, "free_memory", lambda: 4 << 20)
    program('say("File: -"); write(data)\nwhile True: write(data[24:] * 1000)')
    capture = recording(tmp_path)
    end_ns = time.monotonic_ns() + 10 * 10**9
    while not (told := capture._call("state"))["problem"] and time.monotonic_ns() < end_ns:
        time.sleep(0.02)
    assert told["problem"] == "1 MiB waited to be taken, and the node has no memory for more"
    counts = capture.stop()
    assert counts is not None and "the node has no memory for more" in counts.capture_error
    assert sum(counts.received.values()) > 1000


def test_what_is_recorded_comes_home_while_the_test_runs(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording four times as large as what a node may keep is whole, though nobody asks for it before its end."""
    monkeypatch.setattr(on_node, "free_memory", lambda: 32 << 20)
    monkeypatch.setattr(nodecapture, "LOOK_S", 0.01)
    program("""
say("File: -"); write(data[:24])
piece = data[24:] * ((1 << 20) // len(data[24:]))
for _ in range(32):
    write(piece)
    time.sleep(0.05)
say("all"); until_told(); say(losses)""")
    capture = recording(tmp_path)
    end_ns = time.monotonic_ns() + 20 * 10**9
    while "all" not in capture._call("state")["said"] and time.monotonic_ns() < end_ns:
        time.sleep(0.02)
    counts = capture.stop()
    assert counts is not None and counts.capture_error == ""
    data = pcap("<", 0xA1B23C4D, 1)[24:]
    assert sum(counts.received.values()) == 32 * ((1 << 20) // len(data)) * len(FRAMES)
    assert len(list(read_pcapng(capture.path))) == sum(counts.received.values())


def test_a_disk_that_is_full_while_the_test_runs_makes_the_capture_incomplete(
    program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is told when the recording ends, not lost with the thread that met it."""
    monkeypatch.setattr(nodecapture, "LOOK_S", 0.01)
    program('say("File: -"); write(data + data[24:] * 200000); say("all"); until_told(); say(losses)')
    capture = NodeCapture(cast(Node, Here()), "dumpcap", "x", Path("/dev/full"), {})
    end_ns = time.monotonic_ns() + 20 * 10**9
    while "cannot be written" not in capture._problem and time.monotonic_ns() < end_ns:
        time.sleep(0.02)
    assert capture._problem == "/dev/full cannot be written: No space left on device"
    assert capture.stop() is None


class Losing(Here):
    """A node that answers the first ``fails`` calls of one kind too late: what they took is gone."""

    def __init__(self, call: str, fails: int) -> None:
        super().__init__()
        self._late, self._fails = call, fails

    def call(self, worker: int, call: str, timeout_s: float, phase: str, /, **arguments: Any) -> Any:
        answer = super().call(worker, call, timeout_s, phase, **arguments)
        if call == self._late and self._fails:
            self._fails -= 1
            raise PhaseTimeout(f"{call} did not answer")
        return answer


MUCH = """
say("File: -"); write(data[:24])
write(data[24:] * 3000)
say("all"); until_told(); say(losses)"""


@pytest.mark.parametrize(("call", "fails", "problem"), [("pull", 1, "pull did not answer"), ("counts", 2, "")])
def test_only_what_was_given_away_and_did_not_come_is_lost(
    call: str, fails: int, problem: str, program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece whose answer came too late makes the capture incomplete for good; a count is asked for again."""
    monkeypatch.setattr(nodecapture, "LOOK_S", 0.01)
    monkeypatch.setattr(nodecapture, "BACKLOG_LIMIT_BYTES", 1 << 20)
    program(MUCH)
    capture = recording(tmp_path, Losing(call, fails))
    end_ns = time.monotonic_ns() + 20 * 10**9
    while not (capture._problem or capture._brought > 1 << 20) and time.monotonic_ns() < end_ns:
        time.sleep(0.02)
    assert problem in capture._problem and bool(capture._problem) == bool(problem)
    monkeypatch.setattr(nodecapture, "DRAIN_TIMEOUT_S", 0.5)
    counts = capture.stop()
    assert not capture._taker.is_alive()
    if problem:
        assert counts is None or problem in counts.capture_error
    else:
        assert counts is not None and counts.capture_error == ""
        assert sum(counts.received.values()) == 3001 * len(FRAMES) - len(FRAMES)


@pytest.mark.parametrize(
    "answer", [{"epoch_ns": float("inf")}, {"piece": 1 << 62}, {"piece": {}}, {"written": None}, {"lost": [1]}]
)
def test_an_answer_that_is_none_is_an_error(
    answer: dict[str, Any], program: Callable[[str], None], tmp_path: Path
) -> None:
    """Whatever a broken node says, the capture is not whole, and nothing else raises."""
    program(WHOLE)

    class Odd(Here):
        def call(self, worker: int, call: str, timeout_s: float, phase: str, /, **arguments: Any) -> Any:
            told = super().call(worker, call, timeout_s, phase, **arguments)
            return told | answer if call == "pull" else told

    capture = recording(tmp_path, Odd())
    with pytest.raises(CaptureError, match="gave an answer that is not frames"):
        capture.counts()
    assert capture.stop() is None


@pytest.mark.parametrize("name", on_node.LOST_BY_ADAPTER)
def test_what_the_adapter_lost_is_missing_in_the_capture(
    name: str, program: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counters moved while it was recorded: the socket was never given those frames, and cannot know of them."""
    monkeypatch.setattr(on_node, "NETDEVS", tmp_path)
    counter = tmp_path / "x" / "statistics" / name
    counter.parent.mkdir(parents=True)
    counter.write_text("5\n")
    program(WHOLE)
    capture = recording(tmp_path)
    assert capture.counts().capture_error == ""
    counter.write_text("8\n")
    told = capture.stop()
    assert told is not None and told.capture_error.endswith(f"frames that the adapter of x lost: {name} 3")


def test_the_port_below_a_vlan_and_the_netdev_of_a_device_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in is lost at the port, whichever of its interfaces is recorded."""
    monkeypatch.setattr(on_node, "NETDEVS", tmp_path / "net")
    monkeypatch.setattr(on_node, "DEVICES", tmp_path / "infiniband")
    for netdev, lost in (("ens1", 7), ("ens1.5", 0)):
        folder = tmp_path / "net" / netdev / "statistics"
        folder.mkdir(parents=True)
        (folder / "rx_missed_errors").write_text(str(lost))
    (tmp_path / "net" / "ens1.5" / "lower_ens1").symlink_to(tmp_path / "net" / "ens1")
    (tmp_path / "infiniband" / "mlx5_0" / "device" / "net" / "ens1").mkdir(parents=True)
    for interface in ("ens1", "ens1.5", "mlx5_0"):
        assert on_node.lost_by_adapter(interface) == {"rx_missed_errors": 7}


def test_every_netdev_has_the_counters_of_what_its_adapter_lost() -> None:
    """The kernel's own folder: a counter that is named wrongly would never be seen to move."""
    assert set(on_node.lost_by_adapter("lo")) == set(on_node.LOST_BY_ADAPTER)
    assert on_node.lost_by_adapter("no netdev of this name") == {}


def test_an_early_end_is_seen_while_the_test_runs(program: Callable[[str], None], tmp_path: Path) -> None:
    """It need not be stopped to be found out."""
    program('say("File: -"); write(data); say(losses)')
    capture = recording(tmp_path)
    end_ns = time.monotonic_ns() + 10 * 10**9
    while "ended too early" not in capture.counts().capture_error:
        assert time.monotonic_ns() < end_ns
    capture.stop()


@pytest.mark.parametrize(
    ("does", "error", "said"),
    [
        ('say("You do not have permission to capture"); sys.exit(2)', Unsupported, "permission"),
        ('say("There is no device named x"); sys.exit(1)', CaptureError, "There is no device"),
        ("sys.exit(1)", CaptureError, "ended too early"),
    ],
)
def test_only_what_the_lab_lacks_is_unsupported(
    does: str, error: type[Exception], said: str, program: Callable[[str], None], tmp_path: Path
) -> None:
    """No right to record is a lack of the lab; a wrong interface or a broken program is a broken set-up."""
    program(does)
    with pytest.raises(error, match=said):
        recording(tmp_path)


def test_a_node_that_dies_at_the_start_of_a_capture_is_no_lack(tmp_path: Path) -> None:
    """Its tests are invalid, not unsupported."""
    with pytest.raises(NodeDied):
        recording(tmp_path, Here(NodeDied("gone")))


def test_a_missing_program_is_a_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without the program cannot do what the lab file says."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="dumpcap is not installed"):
        recording(tmp_path)


def test_every_count_of_losses_is_read() -> None:
    """dumpcap's own drops and the interface's, tcpdump's two lines; no number, no losses told."""
    dumpcap = "Packets received/dropped on interface 'lo': 9/2 (pcap:2/dumpcap:0/flushed:0/ps_ifdrop:5) (81.8%)"
    assert told_losses(dumpcap) == [2, 5]
    assert told_losses("received/dropped on interface 'lo': 9/2 (81.8%)") == [2]
    assert told_losses("3 packets dropped by kernel\n1 packet dropped by interface") == [3, 1]
    assert told_losses("Capturing on lo") == []


def ethernet(kind: int, payload: bytes, *tags: int) -> bytes:
    return bytes(12) + b"".join(struct.pack(">HH", tag, 5) for tag in tags) + struct.pack(">H", kind) + payload


@pytest.mark.parametrize("tags", [(), (0x8100,), (0x88A8,)])
@pytest.mark.parametrize(
    ("frame", "passes"),
    [
        ((0x0800, bytes(9) + b"\x06" + bytes(30)), False),
        ((0x0800, bytes(9) + b"\x11" + bytes(30)), True),
        ((0x86DD, bytes(6) + b"\x06" + bytes(50)), False),
        ((0x86DD, bytes(6) + b"\x3a" + bytes(50)), True),
        ((0x8915, bytes(9) + b"\x06" + bytes(30)), True),
        ((0x0806, bytes(28)), True),
    ],
)
def test_the_filter_leaves_out_tcp_and_nothing_else(
    frame: tuple[int, bytes], passes: bool, tags: tuple[int, ...]
) -> None:
    """UDP, ICMP, ARP and RoCE pass, with a VLAN tag and without; TCP over IPv4 and IPv6 does not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        leave_tcp_out(ours)
        ours.setblocking(False)
        data = ethernet(*frame, *tags)
        theirs.send(data)
        if passes:
            assert ours.recv(1 << 16) == data
        else:
            with pytest.raises(BlockingIOError):
                ours.recv(1 << 16)


def test_a_program_that_is_held_up_sees_no_clock_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several readings of both clocks the one counts that took the least time."""
    pauses = iter([0, 30 * 10**6, *[0, 1000] * (CLOCK_READINGS - 1)])
    now = [10**9]

    def monotonic_ns() -> int:
        now[0] += next(pauses)
        return now[0]

    monkeypatch.setattr("hil.agent.roles.capture.time.monotonic_ns", monotonic_ns)
    monkeypatch.setattr("hil.agent.roles.capture.time.time_ns", lambda: now[0] + 5 * 10**9)
    assert epoch_ns() == 5 * 10**9 - 500
