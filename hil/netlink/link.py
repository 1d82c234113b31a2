"""RDMA netlink requests over a plain netlink socket: an exchange ends with data, an acknowledgement or DONE.

A dump that fails carries its errno in the DONE message. It raises here: an empty list must mean "nothing there".
"""

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from hil.netlink.messages import NETLINK_RDMA, Command, message_type, rdmamsg

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ERRNO = struct.Struct("=i")

Attributes = dict[str, Any]


class RdmaLink:
    """An open RDMA netlink socket. Raises OSError (EPROTONOSUPPORT) where the kernel has no RDMA."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_RDMA)
        self._socket.settimeout(timeout_s)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> "RdmaLink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def devices(self) -> list[Attributes]:
        """Every RDMA device the socket's network namespace sees."""
        return list(self._dump(Command.GET))

    def ports(self, device_index: int) -> list[Attributes]:
        return list(self._dump(Command.PORT_GET, DEV_INDEX=device_index))

    def add_link(self, name: str, link_type: str, netdev: str) -> None:
        """RDMA_NLDEV_CMD_NEWLINK. Raises OSError as the kernel answers."""
        self._acknowledged(Command.NEWLINK, DEV_NAME=name, LINK_TYPE=link_type, NDEV_NAME=netdev)

    def delete_link(self, device_index: int) -> None:
        self._acknowledged(Command.DELLINK, DEV_INDEX=device_index)

    def resources(self, command: Command, device_index: int) -> list[Attributes]:
        """The entries of one kind of resource (RES_QP_GET and its siblings) of a device."""
        nest = "RES_" + command.name.removeprefix("RES_").removesuffix("_GET")
        found = []
        for message in self._dump(command, DEV_INDEX=device_index):
            for entry in message.get(nest, []):
                found.append(entry)
        return found

    def port_counters(self, device_index: int, port: int) -> dict[str, int]:
        """The hardware counters of a port by name."""
        request = self._send(Command.STAT_GET, 0, {"DEV_INDEX": device_index, "PORT_INDEX": port})
        counters = {}
        for message in self._replies(request, single=True):
            for entry in message.get("STAT_HWCOUNTERS", []):
                counters[entry["STAT_HWCOUNTER_ENTRY_NAME"]] = entry["STAT_HWCOUNTER_ENTRY_VALUE"]
        return counters

    def _dump(self, command: Command, **attributes: Any) -> Iterator[Attributes]:
        return self._replies(self._send(command, NLM_F_DUMP, attributes), single=False)

    def _acknowledged(self, command: Command, **attributes: Any) -> None:
        for _ in self._replies(self._send(command, NLM_F_ACK, attributes), single=False):
            pass

    def _send(self, command: Command, flags: int, attributes: Attributes) -> int:
        self._sequence += 1
        message = rdmamsg()
        message["attrs"] = list(attributes.items())
        message["header"]["type"] = message_type(command)
        message["header"]["flags"] = NLM_F_REQUEST | flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.sendto(bytes(message.data), (0, 0))
        return self._sequence

    def _replies(self, sequence: int, *, single: bool) -> Iterator[Attributes]:
        while True:
            for kind, number, body in split(self._socket.recv(1 << 20)):
                if number != sequence:
                    continue
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    raise_errno(body)
                    return
                yield plain(body)
                if single:
                    return


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, body or, for data messages, the whole message) of each message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise OSError("a netlink datagram is cut short")
        start = offset + (_HEADER.size if kind in (NLMSG_ERROR, NLMSG_DONE) else 0)
        yield kind, sequence, data[start : offset + length]
        offset += (length + 3) & ~3


def raise_errno(body: bytes) -> None:
    """Raise OSError for the non-zero errno of an ERROR or DONE message."""
    (errno,) = _ERRNO.unpack_from(body) if len(body) >= _ERRNO.size else (0,)
    if errno:
        raise OSError(-errno, f"RDMA netlink: {os.strerror(-errno)}")


def plain(data: bytes) -> Attributes:
    """A data message as a dict; a nest of entries becomes a list of dicts."""
    message = rdmamsg(data)
    message.decode()
    return _attributes(message)


def _attributes(holder: Any) -> Attributes:
    found: Attributes = {}
    for name, value in holder["attrs"]:
        if hasattr(value, "get") and "attrs" in value:
            inner = value["attrs"]
            if inner and all(n.endswith("_ENTRY") for n, _ in inner):
                found[name] = [_attributes(entry) for _, entry in inner]
            elif name.endswith("_ENTRY"):
                found.setdefault(name, []).append(_attributes(value))
            else:
                found[name] = [] if not inner else _attributes(value)
        else:
            found[name] = value
    return found
