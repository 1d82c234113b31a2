"""The wire's own process: carries frames between two datagram sockets, timestamps and records each.

Back-pressure instead of loss: while one side does not take frames, the other side is not read.
Control: one line in, one of JSON out. ``counts`` reports, ``cut`` drops every frame from now on, ``mend`` ends that,
``stop`` and end of file end the process.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from hil.wire.pcapng import PcapngWriter

QUEUE_LIMIT = 512
BATCH = 64
SIDES = ("a", "b")


class Forwarder:
    """Two sides, 0 and 1; a frame read from one is sent to the other."""

    def __init__(self, ends: list[socket.socket], control: socket.socket, out: BinaryIO) -> None:
        self._ends = ends
        self._control = control
        self._queues: list[deque[bytes]] = [deque(), deque()]
        self._out = out
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._writer = PcapngWriter(out, [f"side-{side}" for side in SIDES])
        self.received, self.sent, self.lost = [0, 0], [0, 0], [0, 0]
        self.dropped = [0, 0]
        self.cut = False
        self.capture_error = ""
        for end in ends:
            end.setblocking(False)

    def run(self) -> None:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        while True:
            for side in (0, 1):
                full = len(self._queues[1 - side]) >= QUEUE_LIMIT
                wanted = (0 if full else select.POLLIN) | (select.POLLOUT if self._queues[side] else 0)
                poller.register(self._ends[side], wanted)
            for fd, events in poller.poll():
                if fd == self._control.fileno():
                    if not self._answer():
                        return
                    continue
                side = 0 if fd == self._ends[0].fileno() else 1
                if events & select.POLLIN:
                    self._receive(side)
                if events & select.POLLOUT:
                    self._send(side)
                if events & (select.POLLHUP | select.POLLERR) and not events & select.POLLIN:
                    self._lose(side, poller)

    def _lose(self, side: int, poller: select.poll) -> None:
        # The node is gone. Its end is kept out of the poller by a socket that never has anything to say.
        poller.unregister(self._ends[side])
        self._ends[side].close()
        self._ends[side] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ends[side].setblocking(False)

    def _receive(self, side: int) -> None:
        for _ in range(BATCH):
            try:
                frame = self._ends[side].recv(65536)
            except BlockingIOError:
                break
            except OSError:
                return
            if not frame:
                return
            self.received[side] += 1
            self._record(side, frame)
            if self.cut:
                self.dropped[side] += 1
            else:
                self._queues[1 - side].append(frame)
        self._send(1 - side)

    def _record(self, side: int, frame: bytes) -> None:
        if self.capture_error:
            return
        try:
            self._writer.write(side, self._epoch_ns + time.monotonic_ns(), frame)
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

    def _answer(self) -> bool:
        line = self._control.recv(4096)
        if b"cut" in line or b"mend" in line:
            self.cut = b"cut" in line
        try:
            self._out.flush()
        except OSError as error:
            self.capture_error = self.capture_error or f"the capture could not be written: {error}"
        counts = {
            "received": dict(zip(SIDES, self.received, strict=True)),
            "sent": dict(zip(SIDES, self.sent, strict=True)),
            "dropped": dict(zip(SIDES, self.dropped, strict=True)),
            "lost": dict(zip(SIDES, self.lost, strict=True)),
            "queued": {side: len(q) for side, q in zip(SIDES, self._queues, strict=True)},
            "capture_error": self.capture_error,
            "epoch_ns": self._epoch_ns,
        }
        if line:
            self._control.sendall(json.dumps(counts).encode() + b"\n")
        return bool(line) and b"stop" not in line


def main() -> None:
    """Arguments: descriptors of side a, side b and control, then the path of the capture."""
    a, b, control = (int(text) for text in sys.argv[1:4])
    ends = [socket.socket(fileno=fd) for fd in (a, b)]
    out = Path(sys.argv[4]).open("wb", buffering=1 << 20)  # noqa: SIM115
    Forwarder(ends, socket.socket(fileno=control), out).run()
    try:
        out.close()
    except OSError:
        # A full disk: told already, as capture_error in the last answer.
        pass


if __name__ == "__main__":
    main()
