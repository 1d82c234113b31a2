"""Measure how late a process stamps frames, by the kernel's own stamp from the time when the frame was sent."""

import socket
import struct
import time

LONGEST = 65536
# Linux has this option since 2.6.22 (socket(7)); Python has no name for it. The stamp is a struct timespec.
SO_TIMESTAMPNS = 35
STAMP = struct.Struct("qq")
STAMP_SIZE = socket.CMSG_SPACE(STAMP.size)
NOTABLE_NS = 1_000_000
MOST_KEPT = 4096


class Lateness:
    """Takes frames from sockets and stamps them on the monotonic clock.

    ``late``: the delay of the stamp in nanoseconds by frame number, for the last frames with a millisecond or more.
    """

    def __init__(self) -> None:
        self.late: dict[int, int] = {}
        self._begun_ns = time.time_ns()
        self._sent_ns = 0

    @staticmethod
    def watch(end: socket.socket) -> None:
        """Make ``end`` non-blocking, and let the kernel stamp its frames."""
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def take(self, end: socket.socket) -> bytes:
        """Take the next frame of ``end``. Raises OSError."""
        frame, told, _, _ = end.recvmsg(LONGEST, STAMP_SIZE)
        seconds, rest_ns = STAMP.unpack(told[0][2]) if told else (0, 0)
        self._sent_ns = seconds * 10**9 + rest_ns
        return frame

    def stamp_ns(self, number: int) -> int:
        """The time now, as the stamp of the frame taken last. ``number`` is its number in the capture."""
        now_ns = time.monotonic_ns()
        # Frames sent before this process began belong to no test.
        late_ns = time.time_ns() - self._sent_ns if self._sent_ns >= self._begun_ns else 0
        if late_ns >= NOTABLE_NS:
            self.late[number] = late_ns
            if len(self.late) > MOST_KEPT:
                del self.late[next(iter(self.late))]
        return now_ns
