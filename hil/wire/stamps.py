"""How late a process stamps frames that wait for it: the kernel stamps each, too, when its machine sends it."""

import socket
import struct
import time

LONGEST = 65536
# socket(7) has it since Linux 2.6.22; Python has no name for it. The stamp is a struct timespec.
SO_TIMESTAMPNS = 35
STAMP = struct.Struct("qq")
STAMP_SIZE = socket.CMSG_SPACE(STAMP.size)
NOTABLE_NS = 1_000_000
MOST_KEPT = 4096


class Lateness:
    """Takes frames from sockets and stamps them on the monotonic clock; ``late`` has those that were stamped late.

    ``late``: frame number to nanoseconds, of the latest frames that were late by a millisecond or more.
    """

    def __init__(self) -> None:
        self.late: dict[int, int] = {}
        self._begun_ns = time.time_ns()
        self._sent_ns = 0

    @staticmethod
    def watch(end: socket.socket) -> None:
        """Let the kernel stamp what comes in at ``end``, which does not block from now on."""
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def take(self, end: socket.socket) -> bytes:
        """The next frame of ``end``. Raises OSError."""
        frame, told, _, _ = end.recvmsg(LONGEST, STAMP_SIZE)
        seconds, rest_ns = STAMP.unpack(told[0][2]) if told else (0, 0)
        self._sent_ns = seconds * 10**9 + rest_ns
        return frame

    def stamp_ns(self, number: int) -> int:
        """The time now, as the stamp of the frame that was taken last, which has this number in the capture."""
        now_ns = time.monotonic_ns()
        # What was sent before this process began has waited for its start, and is of no test.
        late_ns = time.time_ns() - self._sent_ns if self._sent_ns >= self._begun_ns else 0
        if late_ns >= NOTABLE_NS:
            self.late[number] = late_ns
            if len(self.late) > MOST_KEPT:
                del self.late[next(iter(self.late))]
        return now_ns
