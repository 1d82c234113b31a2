"""RDMA netlink's objects as typed facts."""

# What _told() makes only describes a field: nothing is shared between objects.
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


def _told(attribute: str, kind: Callable[[Any], object] = lambda value: value) -> Any:
    """A field read from ``attribute``; None when the kernel does not tell it."""
    return field(default=None, metadata={"attribute": attribute, "kind": kind})


def facts(kind: type[T], attributes: dict[str, Any]) -> T:
    """An object of one of the classes below from netlink's ``attributes``."""
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
    """A GUID in the notation of sysfs and rdma-core: four groups of four hexadecimal digits."""
    digits = f"{number:016x}"
    return ":".join(digits[i : i + 4] for i in range(0, 16, 4))


@dataclass(frozen=True, slots=True)
class Device:
    """``ports``: how many there are. ``moderation``: adaptive moderation of completion queues."""

    index: int = _told("DEV_INDEX")
    name: str = _told("DEV_NAME")
    ports: int = _told("PORT_INDEX")
    node_type: NodeType = _told("DEV_NODE_TYPE", NodeType)
    protocol: str | None = _told("DEV_PROTOCOL")
    firmware: str | None = _told("FW_VERSION")
    node_guid: str = _told("NODE_GUID", guid)
    system_guid: str = _told("SYS_IMAGE_GUID", guid)
    capabilities: int = _told("CAP_FLAGS")
    moderation: bool | None = _told("DEV_DIM", bool)


@dataclass(frozen=True, slots=True)
class Port:
    """LIDs and subnet prefix are InfiniBand's; a RoCE port has a netdev instead."""

    device_index: int = _told("DEV_INDEX")
    device: str = _told("DEV_NAME")
    number: int = _told("PORT_INDEX")
    state: PortState = _told("PORT_STATE", PortState)
    physical_state: PhysicalState = _told("PORT_PHYS_STATE", PhysicalState)
    netdev_index: int | None = _told("NDEV_INDEX")
    netdev: str | None = _told("NDEV_NAME")
    lid: int | None = _told("LID")
    subnet_manager_lid: int | None = _told("SM_LID")
    lid_mask: int | None = _told("LMC")
    subnet_prefix: str | None = _told("SUBNET_PREFIX", guid)


@dataclass(frozen=True, slots=True)
class QueuePair:
    """``thread``: the one that made it, while it lives (here and below); ``kernel``: the kernel's part that owns it."""

    number: int = _told("RES_LQPN")
    port: int | None = _told("PORT_INDEX")
    remote: int | None = _told("RES_RQPN")
    type: QpType = _told("RES_TYPE", QpType)
    state: QpState = _told("RES_STATE", QpState)
    receive_psn: int | None = _told("RES_RQ_PSN")
    send_psn: int = _told("RES_SQ_PSN")
    migration: PathMigration | None = _told("RES_PATH_MIG_STATE", PathMigration)
    domain: int | None = _told("RES_PDN")
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class CompletionQueue:
    number: int = _told("RES_CQN")
    entries: int = _told("RES_CQE")
    users: int = _told("RES_USECNT")
    polled: PollContext | None = _told("RES_POLL_CTX", PollContext)
    moderation: bool | None = _told("DEV_DIM", bool)
    context: int | None = _told("RES_CTXN")
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """``length`` in bytes. The keys are told to CAP_NET_ADMIN only."""

    number: int = _told("RES_MRN")
    remote_key: int | None = _told("RES_RKEY")
    local_key: int | None = _told("RES_LKEY")
    address: int | None = _told("RES_IOVA")
    length: int = _told("RES_MRLEN")
    domain: int | None = _told("RES_PDN")
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class ProtectionDomain:
    number: int = _told("RES_PDN")
    local_key: int | None = _told("RES_LOCAL_DMA_LKEY")
    users: int = _told("RES_USECNT")
    context: int | None = _told("RES_CTXN")
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class CmId:
    """``queue_pair``: the local number, once there is one."""

    number: int = _told("RES_CM_IDN")
    port: int | None = _told("PORT_INDEX")
    queue_pair: int | None = _told("RES_LQPN")
    type: QpType | None = _told("RES_TYPE", QpType)
    state: CmState = _told("RES_STATE", CmState)
    space: PortSpace = _told("RES_PS", PortSpace)
    source: tuple[str, int] | None = _told("RES_SRC_ADDR", socket_address)
    destination: tuple[str, int] | None = _told("RES_DST_ADDR", socket_address)
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


def _numbers(entries: list[dict[str, Any]]) -> tuple[int, ...]:
    """The queue pairs that share a queue: single ones, and ranges of them."""
    found: list[int] = []
    for entry in entries:
        first = entry.get("RES_LQPN", entry.get("MIN_RANGE"))
        last = entry.get("RES_LQPN", entry.get("MAX_RANGE"))
        if first is not None and last is not None:
            found += range(first, last + 1)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class SharedReceiveQueue:
    """``queue_pairs``: the local numbers of those that take their receives from it."""

    number: int = _told("RES_SRQN")
    type: SrqType = _told("RES_TYPE", SrqType)
    queue_pairs: tuple[int, ...] | None = _told("RES_QP", _numbers)
    domain: int | None = _told("RES_PDN")
    completion_queue: int | None = _told("RES_CQN")
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


@dataclass(frozen=True, slots=True)
class Context:
    """An opened device, which protection domains and queues belong to."""

    number: int = _told("RES_CTXN")
    thread: int | None = _told("RES_PID")
    kernel: str | None = _told("RES_KERN_NAME")


def shown(value: Any) -> dict[str, Any]:
    """The facts that the kernel told, as plain data: codes by name."""
    told = {known.name: getattr(value, known.name) for known in fields(value)}
    return {n: v.name if isinstance(v, Enum) else v for n, v in told.items() if v is not None}


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
