"""The wire's process: carries frames between two datagram sockets, timestamps and records each, applies faults.

Back-pressure instead of loss: while one side does not take frames, the other side is not read.
Control: each line is a JSON object ``{"do": ...}``, answered by a JSON object in a line. Commands: ``counts``; ``cut``
and ``mend`` the cable; ``add`` and ``remove`` a fault; ``faults`` lists all faults; ``inject`` a frame; ``log`` returns
the log; ``stop``. End of file ends the process too.

A frame is recorded on ``side-a`` or ``side-b`` where it came in. It has a comment unless it was forwarded unchanged.
Other frames that left the wire are recorded on ``to-a`` or ``to-b``. So a node got the frames of the other side without
a comment, and the frames of its own ``to-``.
"""

import gc
import json
import math
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from hil import jitter
from hil.capture.pcapng import PcapngWriter
from hil.capture.sides import INTERFACES, SIDES
from hil.errors import FaultError
from hil.roce.outline import Outline
from hil.wire.changes import change
from hil.wire.faults import Action, CutCable, Delay, Drop, Duplicate, Reorder, from_json
from hil.wire.later import Later, Waiting
from hil.wire.log import Log
from hil.wire.picking import Faults, Hit
from hil.wire.stamps import Lateness

QUEUE_LIMIT = 512
BATCH = 64
# The limit of delayed frames. Above it, neither side is read until some frames are forwarded.
WAITING_LIMIT = 1 << 16
TO = 2
_FOREVER = math.inf
CUT = "dropped: the cable is cut"


class Forwarder:
    """Forwards frames between two sides, 0 and 1."""

    def __init__(self, ends: list[socket.socket], control: socket.socket, out: BinaryIO) -> None:
        self._ends, self._control, self._out = ends, control, out
        self._queues: list[deque[bytes]] = [deque(), deque()]
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._writer = PcapngWriter(out, list(INTERFACES))
        self._captured = 0
        self.received, self.sent, self.lost = [0, 0], [0, 0], [0, 0]
        self.unchanged, self.changed, self.late, self.dropped = [0, 0], [0, 0], [0, 0], [0, 0]
        self.duplicated, self.injected = [0, 0], [0, 0]
        self._faults, self._later, self._log = Faults(), Later(), Log()
        self._cut_until_ns = 0.0
        self._lateness = Lateness()
        self.capture_error = ""
        self._asked = b""
        self._running = True
        self._answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "counts": self._counts,
            "cut": self._cable,
            "mend": self._cable,
            "add": self._add,
            "remove": self._remove,
            "faults": self._tell_faults,
            "log": self._tell_log,
            "inject": self._inject,
            "stop": self._stop,
        }
        self._poller = select.poll()
        self._wanted = [-1, -1]
        self._places = {end.fileno(): side for side, end in enumerate(ends)}
        for end in ends:
            self._lateness.watch(end)

    def run(self) -> None:
        """Carry frames until ``stop`` or the end of the control connection."""
        self._poller.register(self._control, select.POLLIN)
        while self._running:
            self._watch()
            for fd, events in self._poller.poll(self._time_left_ms()):
                if (side := self._places.get(fd)) is None:
                    self._hear()
                else:
                    self._serve(side, events)
            if self._cut_until_ns or self._later:
                self._on_time()

    def _watch(self) -> None:
        crowded = len(self._later) >= WAITING_LIMIT
        for side in (0, 1):
            full = crowded or len(self._queues[1 - side]) >= QUEUE_LIMIT
            wanted = (0 if full else select.POLLIN) | (select.POLLOUT if self._queues[side] else 0)
            if wanted != self._wanted[side]:
                self._poller.register(self._ends[side], wanted)
                self._wanted[side] = wanted

    def _time_left_ms(self) -> int | None:
        if not (self._cut_until_ns or self._later):
            return None
        times = [t for t in (self._later.next_ns(), self._cut_until_ns) if t and t != _FOREVER]
        # Round up, so that no frame is early.
        return max(0, math.ceil((min(times) - time.monotonic_ns()) / 1e6)) if times else None

    def _serve(self, side: int, events: int) -> None:
        if events & select.POLLIN:
            self._receive(side)
        if events & select.POLLOUT:
            self._send(side)
        if events & (select.POLLHUP | select.POLLERR) and not events & select.POLLIN:
            self._lose(side)

    def _lose(self, side: int) -> None:
        # The node is gone. Replace its socket by one that is never readable.
        self._poller.unregister(self._ends[side])
        self._ends[side].close()
        self._ends[side] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._places = {end.fileno(): place for place, end in enumerate(self._ends)}
        self._ends[side].setblocking(False)
        self._wanted[side] = -1

    # --- frames ----------------------------------------------------------------------------------------------------

    def _receive(self, side: int) -> None:
        jitter.nap(jitter.WIRE)
        if self._cut_until_ns or self._faults.active or self._later:
            self._receive_judged(side)
            return
        take, end, to, count = self._lateness.take, self._ends[side], 1 - side, 0
        try:
            while count < BATCH and (frame := take(end)):
                count += 1
                self._record(side, frame)
                self._pass(to, frame)
        except OSError:
            # No more frames to read.
            pass
        self.received[side] += count
        self.unchanged[side] += count

    def _pass(self, side: int, frame: bytes) -> None:
        """Send a frame to ``side``. If other frames are queued, it waits behind them."""
        queue = self._queues[side]
        if not queue:
            try:
                self._ends[side].send(frame)
                self.sent[side] += 1
                return
            except BlockingIOError:
                pass
            except OSError:
                self.lost[side] += 1
                return
        queue.append(frame)

    def _receive_judged(self, side: int) -> None:
        for _ in range(BATCH):
            try:
                frame = self._lateness.take(self._ends[side])
            except OSError:
                return
            if not frame:
                return
            self.received[side] += 1
            self._judge(side, frame)

    def _judge(self, side: int, frame: bytes) -> None:
        if self._is_cut():
            self._record(side, frame, CUT)
            self.dropped[side] += 1
            return
        hit, found = self._faults.decide(SIDES[side], frame)
        if hit is not None:
            comment = f"fault {hit.name!r}, hit {hit.number}: {hit.action}"
            self._record(side, frame, comment)
            self._log_hit(side, hit)
            self._act(side, frame, found, hit.action, comment)
            return
        self._record(side, frame)
        self.unchanged[side] += 1
        self._pass(1 - side, frame)
        self._went_by(side)

    def _log_hit(self, side: int, hit: Hit) -> None:
        facts = {"fault": hit.name, "hit": hit.number, "action": str(hit.action), "side": SIDES[side]}
        self._log.add(time.monotonic_ns(), "fault", **facts, number=hit.fault, frame=self._captured)

    def _act(self, side: int, frame: bytes, found: Outline | None, action: Action, comment: str) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(action, Drop):
            self.dropped[side] += 1
        elif isinstance(action, CutCable):
            self.dropped[side] += 1
            self._cut(now_ns + action.for_ns)
        elif isinstance(action, Delay):
            self._later.add(now_ns + action.for_ns, Waiting(side, frame, comment))
        elif isinstance(action, Reorder):
            self._later.add(now_ns + action.at_most_ns, Waiting(side, frame, comment), frames=action.frames)
        else:
            changed = change(frame, action, found)
            (self.unchanged if changed == frame else self.changed)[side] += 1
            self._go_on(side, changed, comment)
            if isinstance(action, Duplicate):
                self._duplicate(side, frame, action, comment)

    def _duplicate(self, side: int, frame: bytes, action: Duplicate, comment: str) -> None:
        due_ns = time.monotonic_ns() + action.after_ns
        for _ in range(action.copies):
            if action.after_ns:
                self._later.add(due_ns, Waiting(side, frame, comment, copy=True))
            else:
                self.duplicated[1 - side] += 1
                self._go_on(side, frame, comment)

    def _go_on(self, side: int, frame: bytes, comment: str) -> None:
        """Send a frame that a fault or a test made to the other side of ``side``."""
        self._emit(side, frame, comment)
        self._went_by(side)

    def _emit(self, side: int, frame: bytes, comment: str) -> None:
        self._record(TO + 1 - side, frame, comment)
        self._pass(1 - side, frame)

    def _went_by(self, side: int) -> None:
        # A released frame may release further frames. A loop, not recursion, because the chain may be long.
        ready = deque(self._later.went_by(side))
        while ready:
            waiting = ready.popleft()
            if self._release(waiting):
                ready.extend(self._later.went_by(waiting.side))

    def _release(self, waiting: Waiting) -> bool:
        """Forward a waiting frame. Returns whether it was forwarded."""
        side = waiting.side
        if self._is_cut():
            # The frame was waiting when the cable was cut. A copy was never received, so it is not counted as dropped.
            self.dropped[side] += not waiting.copy
            return False
        if waiting.copy:
            self.duplicated[1 - side] += 1
        else:
            self.late[side] += 1
        self._emit(side, waiting.frame, waiting.comment)
        return True

    def _on_time(self) -> None:
        self._is_cut()
        while (waiting := self._later.due(time.monotonic_ns())) is not None:
            if self._release(waiting):
                self._went_by(waiting.side)

    def _is_cut(self) -> bool:
        if self._cut_until_ns and self._cut_until_ns <= time.monotonic_ns():
            self._mend()
        return bool(self._cut_until_ns)

    def _cut(self, until_ns: float) -> None:
        self._cut_until_ns = until_ns
        self._log.add(time.monotonic_ns(), "cable", event="cut")

    def _mend(self) -> None:
        if self._cut_until_ns:
            self._log.add(time.monotonic_ns(), "cable", event="mended")
        self._cut_until_ns = 0

    def _record(self, interface: int, frame: bytes, comment: str = "") -> None:
        if self.capture_error:
            return
        came_in = interface < TO
        stamp_ns = self._lateness.stamp_ns(self._captured + 1) if came_in else time.monotonic_ns()
        try:
            self._writer.write(interface, self._epoch_ns + stamp_ns, frame, comment)
            self._captured += 1
        except OSError as error:
            self.capture_error = f"the capture could not be written: {error}"

    def _send(self, side: int) -> None:
        queue = self._queues[side]
        while queue:
            try:
                self._ends[side].send(queue[0])
            except BlockingIOError:
                return
            except OSError:
                self.lost[side] += len(queue)
                queue.clear()
                return
            queue.popleft()
            self.sent[side] += 1

    # --- control ---------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        part = self._control.recv(1 << 16)
        self._running = bool(part)
        *lines, self._asked = (self._asked + part).split(b"\n")
        for line in lines:
            self._control.sendall(json.dumps(self._answer(json.loads(line))).encode() + b"\n")

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._answers[asked["do"]](asked)
        except FaultError as error:
            return {"error": str(error)}

    def _add(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"number": self._faults.add(from_json(told["fault"]))}

    def _remove(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"removed": self._faults.remove(told["number"])}

    def _tell_faults(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"faults": self._faults.tell()}

    def _tell_log(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"entries": self._log.page(told["start"])}

    def _inject(self, told: dict[str, Any]) -> dict[str, Any]:
        frame, side = bytes.fromhex(told["frame"]), SIDES.index(told["side"])
        self.injected[side] += 1
        self._go_on(1 - side, frame, "injected")
        self._log.add(time.monotonic_ns(), "inject", side=told["side"], frame=self._captured)
        return {"frame": self._captured}

    def _cable(self, told: dict[str, Any]) -> dict[str, Any]:
        if told["do"] == "cut":
            self._cut(_FOREVER)
        else:
            self._mend()
        return self._counts(told)

    def _stop(self, told: dict[str, Any]) -> dict[str, Any]:
        self._running = False
        return self._counts(told)

    def _counts(self, _: dict[str, Any]) -> dict[str, Any]:
        try:
            self._out.flush()
        except OSError as error:
            self.capture_error = self.capture_error or f"the capture could not be written: {error}"
        names = ("received", "unchanged", "changed", "late", "dropped", "duplicated", "injected", "sent", "lost")
        counted = {name: getattr(self, name) for name in names}
        counted["held"] = [self._later.held(side) for side in (0, 1)]
        counted["queued"] = [len(queue) for queue in self._queues]
        by_side = {name: dict(zip(SIDES, numbers, strict=True)) for name, numbers in counted.items()}
        facts = {
            "unlogged": self._log.unlogged,
            "capture_error": self.capture_error,
            "epoch_ns": self._epoch_ns,
            "late_frames": self._lateness.late,
        }
        return by_side | facts


def serve(kind: type[Forwarder] = Forwarder) -> None:
    """Run a wire. Arguments: descriptors of side a, side b and control, then the path of the capture."""
    jitter.start(os.environ.get("HIL_JITTER", ""))
    a, b, control = (int(text) for text in sys.argv[1:4])
    ends = [socket.socket(fileno=fd) for fd in (a, b)]
    out = Path(sys.argv[4]).open("wb", buffering=1 << 20)  # noqa: SIM115
    # This process makes no reference cycles, and garbage collection would delay frames.
    gc.disable()
    kind(ends, socket.socket(fileno=control), out).run()
    try:
        out.close()
    except OSError:
        # The disk is full. The last answer has reported it as capture_error.
        pass


if __name__ == "__main__":
    serve()
