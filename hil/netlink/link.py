"""RDMA netlink over a plain socket: no event loop, one descriptor, usable in any thread and inside an event loop."""

import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from pyroute2.netlink import NLM_F_MULTI, NLMSG_DONE, NLMSG_ERROR

from hil.netlink.messages import NETLINK_RDMA, Command, MarshalRdma, message_type, plain
from hil.netlink.requests import NLM_F_ACK, NLM_F_DUMP, Attributes, Requests, request

READ_SIZE = 1 << 20


class RdmaLink(Requests):
    """An open RDMA netlink socket. Raises OSError (EPROTONOSUPPORT) where the kernel has no RDMA.

    ``timeout_s``: how long to wait for an answer. ``groups``: multicast groups to join, for ``hil.netlink.monitor``.
    """

    def __init__(self, timeout_s: float = 10.0, groups: tuple[int, ...] = ()) -> None:
        self._marshal = MarshalRdma()
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_RDMA)
        self._socket.settimeout(timeout_s)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_SIZE)
        self._socket.bind((0, sum(1 << (group - 1) for group in groups)))

    def __enter__(self) -> "RdmaLink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor for poll and select; it is readable when an event has arrived."""
        return self._socket.fileno()

    def exchange(self, command: Command, flags: int, attributes: Attributes) -> Iterator[Attributes]:
        self._sequence += 1
        message = request(attributes)
        message["header"]["type"] = message_type(command)
        message["header"]["flags"] = flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.sendto(bytes(message.data), (0, 0))
        return self._replies(command, self._sequence, single=not flags & (NLM_F_ACK | NLM_F_DUMP))

    def _replies(self, command: Command, sequence: int, *, single: bool) -> Iterator[Attributes]:
        while True:
            for message in self.receive():
                if message["header"]["sequence_number"] != sequence:
                    continue
                if ended(message, command):
                    return
                yield plain(message)
                if single and not message["header"]["flags"] & NLM_F_MULTI:
                    return

    def receive(self) -> list[Any]:
        """The messages of the next datagram. Raises TimeoutError, and OSError for a datagram above READ_SIZE bytes."""
        data, _, flags, _ = self._socket.recvmsg(READ_SIZE)
        if flags & socket.MSG_TRUNC:
            raise OSError(f"a netlink datagram of more than {READ_SIZE} bytes was cut")
        return list(self._marshal.parse(data))


def ended(message: Any, command: Command) -> bool:
    """Whether ``message`` ends an exchange. Raises OSError when it holds an errno, also in a DONE message."""
    if error := message["header"]["error"]:
        number = getattr(error, "code", None)
        if number is None:
            raise OSError(f"RDMA netlink: the answer to {command.name} cannot be read: {error!r}")
        raise OSError(number, f"RDMA netlink, {command.name}: {os.strerror(number)}")
    return message["header"]["type"] in (NLMSG_ERROR, NLMSG_DONE)
