"""A capture point on a node: it starts before the first call, fetches the frames and counts the losses."""

import re
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hil.agent.roles.capture import BLOCK_S, PIECE, RECORD
from hil.capture.pcapng import PcapngWriter
from hil.errors import CaptureError, NodeDied, NodeError, RemoteError, Unsupported
from hil.labs.node import Node
from hil.progress import printable
from hil.waiting import wait_until
from hil.wire.counts import PlainCounts
from hil.wire.point import Onlooker

CALL_TIMEOUT_S, START_TIMEOUT_S = 30.0, 20.0
# The longest wait for a next byte, and for all bytes.
DRAIN_TIMEOUT_S, DRAIN_MOST_S = 30.0, 600.0
# While a test runs: the time between looks at the node's backlog, the backlog that is fetched, and the size of a piece.
LOOK_S, BACKLOG_LIMIT_BYTES, SMALL_PIECE_BYTES = 0.5, 16 << 20, 1 << 18
JOIN_S = 2.0
# A clock that is set during the test could place packets before the calls that sent them.
CLOCK_STEP_NS = 5_000_000
# Each round trip is at least two frames, if the connection to the node uses the recorded netdev.
ROUND_TRIPS = 8
# Errors of a node that lacks the program or the right to record. Any other error means a broken set-up.
LACKING = ("FileNotFoundError", "PermissionError")
REFUSED = re.compile(r"permission|not permitted", re.IGNORECASE)
# dumpcap names its file when the interface is open; "Capturing on" comes before.
PROGRAM_RUNS = re.compile(r"listening on|File: -")
DROPPED = (
    re.compile(r"(\d+) packets? dropped by (?:kernel|interface)"),
    re.compile(r"received/dropped on interface .*: \d+/(\d+)(?:.*ps_ifdrop:(\d+))?"),
)
MIRROR_LATE_NS = 1_000_000_000
MAX_RECORD = 1 << 18
BUFFER = 128 << 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """One frame as the node recorded it. ``sent``: whether the node sent it, or None if that is not recorded."""

    time_ns: int
    data: bytes
    original_length: int
    sent: bool | None


class _Stream:
    """Joins the pieces of a node's recording."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def rest(self) -> int:
        """How many received bytes do not yet form a whole frame."""
        return len(self._bytes)

    def _frame(self, header: int, length: int) -> bytes | None:
        """Take the frame of ``length`` bytes after a header of ``header`` bytes, or None if it is incomplete."""
        if length > MAX_RECORD:
            raise CaptureError(f"the node's capture claims a frame of {length} bytes")
        end = header + length
        if len(self._bytes) < end:
            return None
        data = bytes(self._bytes[header:end])
        del self._bytes[:end]
        return data


class Records(_Stream):
    """Turns pieces of a packet socket's records into frames."""

    def feed(self, piece: bytes) -> Iterator[Recorded]:
        """The frames that ``piece`` completes. Raises CaptureError when the bytes are not records."""
        self._bytes += piece
        while len(self._bytes) >= RECORD.size:
            time_ns, length, sent = RECORD.unpack_from(self._bytes)
            if (data := self._frame(RECORD.size, length)) is None:
                return
            yield Recorded(time_ns, data, length, bool(sent))


class PcapStream(_Stream):
    """Turns pieces of a pcap file into frames (libpcap's format in microseconds or nanoseconds, either byte order)."""

    _MAGIC = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}

    def __init__(self) -> None:
        super().__init__()
        self._record: struct.Struct | None = None
        self._unit_ns = 1

    def feed(self, piece: bytes) -> Iterator[Recorded]:
        """The frames that ``piece`` completes. Raises CaptureError when the bytes are not pcap, or not of Ethernet."""
        self._bytes += piece
        if self._record is None and not self._begin():
            return
        assert self._record is not None
        while len(self._bytes) >= self._record.size:
            seconds, fraction, length, original = self._record.unpack_from(self._bytes)
            if (data := self._frame(self._record.size, length)) is None:
                return
            yield Recorded(seconds * 10**9 + fraction * self._unit_ns, data, original, None)

    def _begin(self) -> bool:
        if len(self._bytes) < 24:
            return False
        for order in "<>":
            magic, link_type = struct.unpack_from(f"{order}I16xI", self._bytes)
            if magic in self._MAGIC:
                if link_type & 0xFFFF != 1:
                    raise CaptureError(f"the node's capture is of link type {link_type}, Ethernet is 1")
                self._unit_ns, self._record = self._MAGIC[magic], struct.Struct(f"{order}IIII")
                del self._bytes[:24]
                return True
        raise CaptureError("the output of the node's capture program is not pcap")


@dataclass(frozen=True, slots=True)
class _Told:
    """A node's counts of its recording: frames seen by the kernel, frames dropped, frames read, and their bytes."""

    seen: int
    drops: int
    frames: int
    written: int
    ended: bool


class NodeCapture(Onlooker):
    """Records ``interface`` of ``node`` to ``path``. ``sides`` are the nodes whose adapter counters the capture must
    match.

    TCP is not recorded if ``sides`` is empty, or if the connection to the node uses the recorded netdev. In the second
    case each call changes the adapter's counters, so the capture is not compared with them. ``macs`` are the adapters'
    Ethernet addresses by node, a and b; they identify a frame's sender. ``polled``: frames are stamped when they are
    read, as libpcap does on RDMA devices. Raises Unsupported when the node lacks the program or the right to record,
    CaptureError when it cannot record for another reason, NodeError when the node is gone.
    """

    def __init__(
        self,
        node: Node,
        method: str,
        interface: str,
        path: Path,
        macs: dict[str, str],
        sides: tuple[str, ...] = (),
        buffer: int = BUFFER,
        *,
        polled: bool = False,
    ) -> None:
        self.path, self.sides = path, sides
        self._node, self._method, self._interface, self._buffer = node, method, interface, buffer
        self._macs = {bytes.fromhex(mac.replace(":", "")): name for name, mac in macs.items()}
        relation = node.clock()
        self._offset_ns, self.uncertainty_ns = relation.offset_ns, relation.uncertainty_ns
        # A mirror's copies go to a third machine, which may stamp them late.
        self.late_ns = MIRROR_LATE_NS if polled or node.name not in macs else 0
        self._lock = threading.Lock()
        self._frames, self._brought = {"a": 0, "b": 0}, 0
        self._problem = ""
        self._where = f"the capture on node {node.name}"
        # A packet socket counts losses at all times, a program only when it ends.
        self.tells_at_end = method != "packet-socket"
        self._stopped = False
        self._stream: Records | PcapStream = Records() if method == "packet-socket" else PcapStream()
        self._worker, _ = node.channel.spawn("capture")
        self._start(everything=bool(sides))
        if sides and self._records_us():
            self.sides = ()
            self._start(everything=False)
        self._wait_running()
        self._out = path.open("wb")
        self._writer = PcapngWriter(self._out, ["side-a", "side-b"])
        self._ending = threading.Event()
        self._taker = threading.Thread(target=self._take_meanwhile, name=f"capture {node.name}", daemon=True)
        self._taker.start()

    def _call(self, call: str, /, **arguments: Any) -> Any:
        return self._node.channel.call(self._worker, call, CALL_TIMEOUT_S, "capture", **arguments)

    def _start(self, *, everything: bool) -> None:
        facts = {"method": self._method, "interface": self._interface, "buffer": self._buffer}
        try:
            told = self._call("start", everything=everything, **facts)
            self._epoch_ns: int = told["epoch_ns"]
            self._backlog_limit = min(BACKLOG_LIMIT_BYTES, told["most"] // 4)
        except RemoteError as error:
            self._refuse(str(error), lacking=error.kind in LACKING)

    def _refuse(self, why: str, *, lacking: bool) -> NoReturn:
        what = f"node {self._node.name} cannot record {self._interface} by {self._method}: {printable(why)}"
        raise Unsupported(what) if lacking else CaptureError(what)

    def _records_us(self) -> bool:
        """Whether the node's recording contains the frames of the bench's own calls."""
        before = self._call("counts")["seen"]
        for _ in range(ROUND_TRIPS):
            self._node.channel.call(0, "clock", CALL_TIMEOUT_S, "capture")
        return bool(self._call("counts")["seen"] - before >= 2 * ROUND_TRIPS)

    def _wait_running(self) -> None:
        """Wait until the program prints that it records. A packet socket records at once."""
        if not self.tells_at_end:
            return

        def runs(told: dict[str, Any]) -> bool:
            return PROGRAM_RUNS.search(told["said"]) is not None

        told = wait_until(
            lambda: dict(self._call("state")),
            START_TIMEOUT_S,
            f"start of {self._where}",
            enough=lambda state: runs(state) or state["problem"],
            strict=False,
        )
        if not runs(told):
            # Once the program has ended, its output is complete.
            told = self._call("stop")
            self._refuse(told["said"].strip() or told["problem"], lacking=bool(REFUSED.search(told["said"])))

    def _take_meanwhile(self) -> None:
        """Fetch a large backlog while the test runs, so that it does not exhaust the node's memory."""
        while not self._ending.wait(LOOK_S):
            try:
                waits = int(self._call("counts")["written"]) - self._brought
                if waits >= self._backlog_limit:
                    self._take_what_waits()
            except NodeDied:
                # The next call of ``counts`` raises the error.
                return
            except NodeError:
                # The node was slow. Try again.
                continue
            except CaptureError as error:
                # Frames that the node has handed over may be lost, so no later count would be complete.
                self._blame(str(error))
                return
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                self._blame(f"{self._where} gave an answer that is not counts: {error!r}")
                return

    def _take_what_waits(self) -> None:
        """Fetch the backlog in small pieces, so that the test's own calls pass in between. The last piece may stay."""
        much = True
        while much:
            with self._lock:
                if self._stopped or self._ending.is_set():
                    return
                before = self._brought
                told = self._pull(SMALL_PIECE_BYTES)
                much = before < self._brought < told.written - SMALL_PIECE_BYTES

    def counts(self) -> PlainCounts:
        """Fetch the frames recorded up to now, write them to the file and count them. Raises CaptureError when the node
        is gone or the file cannot be written."""
        if self._method == "dumpcap":
            # dumpcap hands frames over some time after they arrive.
            time.sleep(BLOCK_S)
        with self._lock:
            if not self._stopped:
                self._drain()
            return self._counted()

    def _drain(self) -> None:
        """Fetch the frames recorded up to now. Later frames are not awaited: the bench's own calls may cause them."""
        begun_ns = time.monotonic_ns()
        end_ns = begun_ns + int(DRAIN_TIMEOUT_S * 1e9)
        told = self._pull()
        seen, wanted = told.seen, None
        while True:
            if wanted is None and (told.ended or told.frames + told.drops >= seen):
                wanted = told.written
            if wanted is not None and self._brought >= wanted:
                break
            if time.monotonic_ns() > end_ns:
                self._blame(f"{self._where} did not deliver all frames in time")
                break
            before = self._brought
            told = self._pull()
            if wanted is not None and self._brought > before:
                # The time needed depends on the amount and on the connection to the node.
                end_ns = min(time.monotonic_ns() + int(DRAIN_TIMEOUT_S * 1e9), begun_ns + int(DRAIN_MOST_S * 1e9))
        try:
            self._out.flush()
        except OSError as error:
            raise self._not_written(error) from error

    def _pull(self, most: int = PIECE) -> _Told:
        """Fetch one piece of at most ``most`` bytes. Returns the node's counts. Raises CaptureError."""
        try:
            told = self._call("pull", most=most)
            piece, epoch_ns, problem = told["piece"], int(told["epoch_ns"]), str(told["problem"])
            if not isinstance(piece, bytes):
                raise TypeError(type(piece))
            seen, drops, frames, written = (int(told.get(n, 0)) for n in ("seen", "drops", "frames", "written"))
            lost = {str(name): int(count) for name, count in told.get("lost", {}).items() if int(count)}
        except NodeError as error:
            raise CaptureError(f"{self._where} has ended: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CaptureError(f"{self._where} gave an answer that is not frames: {error!r}") from error
        try:
            self._keep(piece)
        except OSError as error:
            raise self._not_written(error) from error
        if abs(epoch_ns - self._epoch_ns) > CLOCK_STEP_NS:
            self._blame(f"the clock of node {self._node.name} was set while it recorded")
        if problem:
            self._blame(f"{self._where} is not whole: {problem}")
        if drops:
            self._blame(f"{self._where} dropped {drops} frames")
        if lost:
            what = ", ".join(f"{printable(name)} {count}" for name, count in sorted(lost.items()))
            self._blame(f"{self._where} lacks frames that the adapter of {self._interface} lost: {what}")
        return _Told(seen, drops, frames, written, self._stopped or bool(problem))

    def _blame(self, problem: str) -> None:
        """Keep the first problem: later problems follow from it."""
        self._problem = self._problem or problem

    def _not_written(self, error: OSError) -> CaptureError:
        # The disk may have room again later, but the missing frames stay missing.
        problem = f"{self.path} cannot be written: {error.strerror}"
        self._blame(problem)
        return CaptureError(problem)

    def _keep(self, piece: bytes) -> None:
        self._brought += len(piece)
        for frame in self._stream.feed(piece):
            side = self._side(frame)
            self._frames[side] += 1
            if frame.original_length != len(frame.data):
                self._blame(f"{self._where} cut a frame of {frame.original_length} bytes")
            self._writer.write(0 if side == "a" else 1, frame.time_ns, frame.data)

    def _side(self, frame: Recorded) -> str:
        """The node that sent a frame: the node with its source address. A frame of another machine was received."""
        if (known := self._macs.get(frame.data[6:12])) is not None:
            return known
        here = self._node.name if self._node.name in self._frames else "a"
        return here if frame.sent else "b" if here == "a" else "a"

    def _counted(self) -> PlainCounts:
        none = {"a": 0, "b": 0}
        sent = {"a": self._frames["b"], "b": self._frames["a"]}
        # The file's times are the node's CLOCK_REALTIME.
        epoch_ns = self._epoch_ns - self._offset_ns
        return PlainCounts(dict(self._frames), sent, dict(none), dict(none), self._problem, epoch_ns)

    def stop(self) -> PlainCounts | None:
        """End the recording on the node and fetch its rest. Returns the last counts, or None if the node is gone."""
        self._ending.set()
        try:
            return self._stop()
        finally:
            self._taker.join(JOIN_S)

    def _stop(self) -> PlainCounts | None:
        with self._lock:
            if self._stopped:
                return self._counted()
            self._stopped = True
            try:
                told = self._call("stop")
                self._judge(told["said"], told["problem"])
                self._drain()
                if self._stream.rest:
                    self._blame(f"{self._where} ended within a frame, {self._stream.rest} bytes of it are there")
                return self._counted()
            except (NodeError, CaptureError) as error:
                self._blame(f"{self._where} did not end well: {error}")
                return None
            finally:
                try:
                    self._out.close()
                except OSError as error:
                    self._not_written(error)

    def _judge(self, said: str, problem: str) -> None:
        """Check the final output of the recording. A program prints its losses only when it ends."""
        said_last = printable(said.strip()[-300:]) or "nothing"
        if problem:
            self._blame(f"{self._where} is not whole: {problem}; it said: {said_last}")
        if not self.tells_at_end:
            return
        if losses := told_losses(said):
            if any(losses):
                self._blame(f"{self._method} on node {self._node.name} dropped {max(losses)} frames")
        else:
            self._blame(f"{self._method} on node {self._node.name} did not tell its losses: {said_last}")


def told_losses(said: str) -> list[int]:
    """Every count of lost frames in the output of a capture program; empty if it printed none."""
    return [int(count) for pattern in DROPPED for match in pattern.finditer(said) for count in match.groups() if count]
