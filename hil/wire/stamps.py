"""How late a process looks at frames that wait for it: the kernel stamps each when its machine sends it."""

import socket
import struct
import time

LONGEST = 65536
# socket(7) has it since Linux 2.6.22; Python has no name for it. The stamp is a struct timespec.
SO_TIMESTAMPNS = 35
STAMP = struct.Struct("qq")
STAMP_SIZE = socket.CMSG_SPACE(STAMP.size)


class Lateness:
    """Takes frames from sockets; ``late_ns`` is the longest time that one had waited."""

    def __init__(self) -> None:
        self.late_ns = 0

    @staticmethod
    def watch(end: socket.socket) -> None:
        """Let the kernel stamp what comes in at ``end``, which does not block from now on."""
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def take(self, end: socket.socket) -> bytes:
        """The next frame of ``end``. Raises OSError."""
        frame, told, _, _ = end.recvmsg(LONGEST, STAMP_SIZE)
        if told:
            seconds, rest_ns = STAMP.unpack(told[0][2])
            self.late_ns = max(self.late_ns, time.time_ns() - seconds * 10**9 - rest_ns)
        return frame
