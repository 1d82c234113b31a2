"""The controller's handle on the wire process."""

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hil import jitter
from hil.capture.sides import SIDES
from hil.children import die_with_parent
from hil.errors import CaptureError, FaultError, UnhitFault
from hil.waiting import wait_until
from hil.wire.counts import WireCounts
from hil.wire.faults import ETHERNET_HEADER, Fault

ANSWER_TIMEOUT_S = 10.0
HITS_TIMEOUT_S = 10.0
LONGEST_FRAME = 65535
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class FaultState:
    """The state of a fault that was set: ``matched`` frames, ``hits`` among them, and whether it is ``active`` now."""

    number: int
    name: str
    matched: int
    hits: int
    active: bool


class FaultHandle:
    """A fault on a wire."""

    def __init__(self, wire: "Wire", number: int, fault: Fault) -> None:
        self._wire, self.number, self.fault = wire, number, fault

    def state(self) -> FaultState:
        """The fault's counts now. They stay when the fault is removed. Raises CaptureError when the wire is gone."""
        return next(state for state in self._wire.faults() if state.number == self.number)

    def hits(self) -> int:
        """How many frames the fault acted on."""
        return self.state().hits

    def wait_hits(self, count: int = 1, timeout_s: float = HITS_TIMEOUT_S) -> int:
        """Wait for ``count`` hits and return their number. Raises UnhitFault when they do not come in time."""
        phase = f"hits of fault {self.fault.name}"
        hits = wait_until(self.hits, timeout_s, phase, enough=lambda seen: seen >= count, strict=False, poll_s=_POLL_S)
        if hits < count:
            raise UnhitFault(f"fault {self.fault.name}: {hits} of {count} hits in {timeout_s} s")
        return hits

    def remove(self) -> None:
        """Remove the fault. Raises FaultError if it is no longer set."""
        self._wire.remove_fault(self)


class Wire:
    """Joins two frame sockets and records to ``path``. Use as a context manager.

    ``mutant`` names one of hil.mutants.wires.
    """

    sides: tuple[str, ...] = SIDES
    late_ns = 0
    uncertainty_ns = 0

    def __init__(self, side_a: socket.socket, side_b: socket.socket, path: Path, mutant: str = "") -> None:
        self.path = path
        self._stopped = False
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        fds = [side_a.fileno(), side_b.fileno(), theirs.fileno()]
        module = "hil.mutants.wires" if mutant else "hil.wire.forwarder"
        command = [sys.executable, "-m", module, *map(str, fds), str(path), *([mutant] if mutant else [])]
        self._process = subprocess.Popen(
            command,
            pass_fds=fds,
            env=os.environ | {"HIL_JITTER": jitter.seed()},
            preexec_fn=die_with_parent,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id of the wire."""
        return self._process.pid

    def counts(self) -> WireCounts:
        """Counts now; the capture is flushed first. Raises CaptureError when the wire's process is gone."""
        return WireCounts(**self._ask("counts"))

    def cut(self) -> WireCounts:
        """Drop every frame of both sides from now on; each is still recorded where it came in."""
        return WireCounts(**self._ask("cut"))

    def mend(self) -> WireCounts:
        """Carry frames again."""
        return WireCounts(**self._ask("mend"))

    def add_fault(self, fault: Fault) -> FaultHandle:
        """Set a fault. From now on every frame is checked against it, after the earlier faults. Raises FaultError."""
        return FaultHandle(self, self._ask("add", fault=fault.to_json())["number"], fault)

    def remove_fault(self, handle: FaultHandle) -> None:
        """Remove a fault. Raises FaultError if it is no longer set."""
        if not self._ask("remove", number=handle.number)["removed"]:
            raise FaultError(f"fault {handle.fault.name} (number {handle.number}) is not set")

    def faults(self) -> list[FaultState]:
        """Every fault that was set on this wire, in order, with its counts."""
        return [FaultState(**told) for told in self._ask("faults")["faults"]]

    def inject(self, side: str, frame: bytes) -> int:
        """Send an Ethernet frame to ``side``'s node, as if it came from the other node.

        Returns the frame's number in the capture, on interface ``to-<side>``. Raises FaultError for an invalid frame or
        side.
        """
        if side not in SIDES or not ETHERNET_HEADER <= len(frame) <= LONGEST_FRAME:
            raise FaultError(f"{len(frame)} bytes to side {side!r}: a frame has a header, and a side is a or b")
        return int(self._ask("inject", side=side, frame=frame.hex())["frame"])

    def log(self) -> list[dict[str, Any]]:
        """The actions on the wire in order: hits of faults, cuts and mends of the cable, injected frames.

        Each has ``t_ns`` on the monotonic clock and ``kind`` ("fault", "cable", "inject"); ``frame`` is the number in
        the capture.
        """
        found: list[dict[str, Any]] = []
        while page := self._ask("log", start=len(found))["entries"]:
            found += page
        return found

    def stop(self) -> WireCounts | None:
        """End the wire. Returns its last counts, or None if it had ended before. Safe to call twice."""
        if self._stopped:
            return None
        try:
            return WireCounts(**self._ask("stop"))
        except CaptureError:
            return None
        finally:
            self._stopped = True
            self._control.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        with self._lock:
            try:
                self._control.sendall(json.dumps({"do": do} | arguments).encode() + b"\n")
                data = self._line()
            except OSError as error:
                raise CaptureError(f"the wire's process does not answer: {error}") from error
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise FaultError(answer["error"])
        return answer

    def _line(self) -> bytes:
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):
            part = self._control.recv(1 << 16)
            if not part:
                raise CaptureError("the wire's process has ended")
            parts.append(part)
        return b"".join(parts)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
