"""RDMA netlink's objects as typed facts."""

# _attribute() only describes a field; no value is shared between objects.
# ruff: noqa: RUF009

import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar

from hil.netlink.codes import (
    CmState,
    NodeType,
    PathMigration,
    PhysicalState,
    PollContext,
    PortSpace,
    PortState,
    QpState,
    QpType,
    SrqType,
)
from hil.netlink.messages import Command

T = TypeVar("T")


def _attribute(attribute: str, kind: Callable[[Any], object] = lambda value: value) -> Any:
    """A field read from the netlink attribute ``attribute`` by ``kind``; None when the kernel leaves it out."""
    return field(default=None, metadata={"attribute": attribute, "kind": kind})


def facts(kind: type[T], attributes: dict[str, Any]) -> T:
    """An object of ``kind``, one of the classes below, from netlink's ``attributes``."""
    values = {}
    for known in fields(kind):  # type: ignore[arg-type]
        value = attributes.get(known.metadata["attribute"])
        values[known.name] = None if value is None else known.metadata["kind"](value)
    return kind(**values)


def socket_address(data: bytes) -> tuple[str, int] | None:
    """(address, port) of a sockaddr_in, sockaddr_in6 or sockaddr_storage; None for another family."""
    family = struct.unpack_from("=H", data)[0] if len(data) >= 2 else None
    if family == socket.AF_INET and len(data) >= 8:
        return str(ipaddress.IPv4Address(data[4:8])), int.from_bytes(data[2:4], "big")
    if family == socket.AF_INET6 and len(data) >= 24:
        return str(ipaddress.IPv6Address(data[8:24])), int.from_bytes(data[2:4], "big")
    return None


def guid(number: int) -> str:
    """A GUID as sysfs and rdma-core print it: four groups of four hexadecimal digits."""
    digits = f"{number:016x}"
    return ":".join(digits[i : i + 4] for i in range(0, 16, 4))


@dataclass(frozen=True, slots=True)
class Device:
    """An RDMA device. ``ports``: their number. ``moderation``: adaptive moderation of completion queues."""

    index: int = _attribute("DEV_INDEX")
    name: str = _attribute("DEV_NAME")
    ports: int = _attribute("PORT_INDEX")
    node_type: NodeType = _attribute("DEV_NODE_TYPE", NodeType)
    protocol: str | None = _attribute("DEV_PROTOCOL")
    firmware: str | None = _attribute("FW_VERSION")
    node_guid: str = _attribute("NODE_GUID", guid)
    system_guid: str = _attribute("SYS_IMAGE_GUID", guid)
    capabilities: int = _attribute("CAP_FLAGS")
    moderation: bool | None = _attribute("DEV_DIM", bool)


@dataclass(frozen=True, slots=True)
class Port:
    """A port. An InfiniBand port has LIDs and a subnet prefix, a RoCE port has a netdev."""

    device_index: int = _attribute("DEV_INDEX")
    device: str = _attribute("DEV_NAME")
    number: int = _attribute("PORT_INDEX")
    state: PortState = _attribute("PORT_STATE", PortState)
    physical_state: PhysicalState = _attribute("PORT_PHYS_STATE", PhysicalState)
    netdev_index: int | None = _attribute("NDEV_INDEX")
    netdev: str | None = _attribute("NDEV_NAME")
    lid: int | None = _attribute("LID")
    subnet_manager_lid: int | None = _attribute("SM_LID")
    lid_mask: int | None = _attribute("LMC")
    subnet_prefix: str | None = _attribute("SUBNET_PREFIX", guid)


@dataclass(frozen=True, slots=True)
class QueuePair:
    """A queue pair.

    ``thread`` (here and below): the id of the thread that made it, while that thread lives. ``kernel``: the part of the
    kernel that owns it.
    """

    number: int = _attribute("RES_LQPN")
    port: int | None = _attribute("PORT_INDEX")
    remote: int | None = _attribute("RES_RQPN")
    type: QpType = _attribute("RES_TYPE", QpType)
    state: QpState = _attribute("RES_STATE", QpState)
    receive_psn: int | None = _attribute("RES_RQ_PSN")
    send_psn: int = _attribute("RES_SQ_PSN")
    migration: PathMigration | None = _attribute("RES_PATH_MIG_STATE", PathMigration)
    domain: int | None = _attribute("RES_PDN")
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class CompletionQueue:
    number: int = _attribute("RES_CQN")
    entries: int = _attribute("RES_CQE")
    users: int = _attribute("RES_USECNT")
    polled: PollContext | None = _attribute("RES_POLL_CTX", PollContext)
    moderation: bool | None = _attribute("DEV_DIM", bool)
    context: int | None = _attribute("RES_CTXN")
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A memory region. ``length``: in bytes. Reading the keys takes CAP_NET_ADMIN."""

    number: int = _attribute("RES_MRN")
    remote_key: int | None = _attribute("RES_RKEY")
    local_key: int | None = _attribute("RES_LKEY")
    address: int | None = _attribute("RES_IOVA")
    length: int = _attribute("RES_MRLEN")
    domain: int | None = _attribute("RES_PDN")
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class ProtectionDomain:
    number: int = _attribute("RES_PDN")
    local_key: int | None = _attribute("RES_LOCAL_DMA_LKEY")
    users: int = _attribute("RES_USECNT")
    context: int | None = _attribute("RES_CTXN")
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class CmId:
    """An id of the connection manager. ``queue_pair``: the number of its queue pair, once it has one."""

    number: int = _attribute("RES_CM_IDN")
    port: int | None = _attribute("PORT_INDEX")
    queue_pair: int | None = _attribute("RES_LQPN")
    type: QpType | None = _attribute("RES_TYPE", QpType)
    state: CmState = _attribute("RES_STATE", CmState)
    space: PortSpace = _attribute("RES_PS", PortSpace)
    source: tuple[str, int] | None = _attribute("RES_SRC_ADDR", socket_address)
    destination: tuple[str, int] | None = _attribute("RES_DST_ADDR", socket_address)
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


def _numbers(entries: list[dict[str, Any]]) -> tuple[int, ...]:
    """The queue pair numbers of entries that hold one number, or a range of numbers."""
    found: list[int] = []
    for entry in entries:
        first = entry.get("RES_LQPN", entry.get("MIN_RANGE"))
        last = entry.get("RES_LQPN", entry.get("MAX_RANGE"))
        if first is not None and last is not None:
            found += range(first, last + 1)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class SharedReceiveQueue:
    """A shared receive queue. ``queue_pairs``: the numbers of the queue pairs that use it."""

    number: int = _attribute("RES_SRQN")
    type: SrqType = _attribute("RES_TYPE", SrqType)
    queue_pairs: tuple[int, ...] | None = _attribute("RES_QP", _numbers)
    domain: int | None = _attribute("RES_PDN")
    completion_queue: int | None = _attribute("RES_CQN")
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class Context:
    """An opened device; protection domains and queues belong to it."""

    number: int = _attribute("RES_CTXN")
    thread: int | None = _attribute("RES_PID")
    kernel: str | None = _attribute("RES_KERN_NAME")


def shown(value: Any) -> dict[str, Any]:
    """The facts that are not None, as plain data; codes are given by name."""
    facts_by_name = {known.name: getattr(value, known.name) for known in fields(value)}
    return {n: v.name if isinstance(v, Enum) else v for n, v in facts_by_name.items() if v is not None}


RESOURCES: dict[Command, type] = {
    Command.RES_QP_GET: QueuePair,
    Command.RES_CQ_GET: CompletionQueue,
    Command.RES_MR_GET: MemoryRegion,
    Command.RES_PD_GET: ProtectionDomain,
    Command.RES_CM_ID_GET: CmId,
    Command.RES_SRQ_GET: SharedReceiveQueue,
    Command.RES_CTX_GET: Context,
}
"""The class of each kind of resource, by the command that lists it."""
