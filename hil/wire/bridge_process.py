"""A bridge, a layer-2 switch in user space: it learns each node's port, records every frame once, and loses none.

The control connection takes a line and answers with a line of JSON. ``counts`` returns the counts; ``stop`` and end of
file end the process.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from hil.capture.pcapng import PcapngWriter
from hil.wire.stamps import Lateness

QUEUE_LIMIT = 1024
BATCH = 64
GROUP_BIT = 0x01
MIRROR = "~"


class BridgeProcess:
    """Ports by number. A frame goes to the port from which its destination last sent a frame, else to all others.

    A port whose name begins with ``MIRROR`` gets every frame of the others. Frames received from it are dropped.
    """

    def __init__(self, ports: dict[str, socket.socket], control: socket.socket, out: BinaryIO) -> None:
        self._mirrors = [port for port, name in enumerate(ports) if name.startswith(MIRROR)]
        self._names, self._ends = [name.removeprefix(MIRROR) for name in ports], list(ports.values())
        self._control, self._out = control, out
        self._queues: list[deque[bytes]] = [deque() for _ in self._ends]
        self._where: dict[bytes, int] = {}
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._writer = PcapngWriter(out, [f"side-{name}" for name in self._names])
        self.received, self.sent, self.lost = ([0] * len(self._ends) for _ in range(3))
        self.capture_error = ""
        self._recorded = 0
        self._lateness = Lateness()
        for end in self._ends:
            self._lateness.watch(end)

    def run(self) -> None:
        """Carry frames until the controller asks to stop or has ended."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        by_fd = {end.fileno(): port for port, end in enumerate(self._ends)}
        while True:
            # Back-pressure instead of loss: while any port is full, no port is read.
            full = any(len(queue) >= QUEUE_LIMIT for queue in self._queues)
            for port, end in enumerate(self._ends):
                if end.fileno() in by_fd:
                    events = (0 if full else select.POLLIN) | (select.POLLOUT if self._queues[port] else 0)
                    poller.register(end, events)
            for fd, events in poller.poll():
                if fd == self._control.fileno():
                    if not self._answer():
                        return
                elif events & select.POLLIN:
                    self._receive(by_fd[fd])
                elif events & (select.POLLHUP | select.POLLERR):
                    # The node is gone. Frames to it are lost from now on.
                    poller.unregister(fd)
                    del by_fd[fd]
                if fd in by_fd and events & select.POLLOUT:
                    self._send(by_fd[fd])

    def _receive(self, port: int) -> None:
        for _ in range(BATCH):
            try:
                frame = self._lateness.take(self._ends[port])
            except OSError:
                return
            if len(frame) < 14:
                return
            self.received[port] += 1
            if port in self._mirrors:
                continue
            self._record(port, frame)
            self._where[frame[6:12]] = port
            for other in self.destinations(frame, port):
                self._queues[other].append(frame)
                self._send(other)

    def destinations(self, frame: bytes, port: int) -> list[int]:
        """The ports that a frame from ``port`` is sent to (IEEE 802.1D, 7.7: filtering and flooding)."""
        known = None if frame[0] & GROUP_BIT else self._where.get(frame[:6])
        if known is None:
            return [other for other in range(len(self._ends)) if other != port]
        return [*([known] if known != port else []), *self._mirrors]

    def _record(self, port: int, frame: bytes) -> None:
        if self.capture_error:
            return
        try:
            self._recorded += 1
            self._writer.write(port, self._epoch_ns + self._lateness.stamp_ns(self._recorded), frame)
        except OSError as error:
            self.capture_error = f"the capture could not be written: {error}"

    def _send(self, port: int) -> None:
        queue = self._queues[port]
        while queue:
            try:
                self._ends[port].send(queue[0])
            except BlockingIOError:
                return
            except OSError:
                self.lost[port] += len(queue)
                queue.clear()
                return
            queue.popleft()
            self.sent[port] += 1

    def _answer(self) -> bool:
        line = self._control.recv(4096)
        try:
            self._out.flush()
        except OSError as error:
            self.capture_error = self.capture_error or f"the capture could not be written: {error}"
        if line:
            self._control.sendall(json.dumps(self._counts()).encode() + b"\n")
        return bool(line) and b"stop" not in line

    def _counts(self) -> dict[str, object]:
        queued = [len(queue) for queue in self._queues]
        by_name = {"received": self.received, "sent": self.sent, "lost": self.lost, "queued": queued}
        counts: dict[str, object] = {n: dict(zip(self._names, v, strict=True)) for n, v in by_name.items()}
        facts = {"capture_error": self.capture_error, "epoch_ns": self._epoch_ns, "late_frames": self._lateness.late}
        return counts | facts


def main() -> None:
    """Run a bridge. Arguments: the control's descriptor, the capture's path, then NAME=DESCRIPTOR for every port. The
    name of a mirror port begins with ~."""
    control, path, *ports = sys.argv[1:]
    ends = {name: socket.socket(fileno=int(fd)) for name, fd in (port.split("=") for port in ports)}
    with Path(path).open("wb", buffering=1 << 20) as out:
        BridgeProcess(ends, socket.socket(fileno=int(control)), out).run()


if __name__ == "__main__":
    main()
