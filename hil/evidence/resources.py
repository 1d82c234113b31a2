"""What kernels hold and log, as typed facts made from what a node tells.

A fact that the kernel does not tell is None. Sizes are in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from hil.evidence import plain
from hil.netlink.codes import CmState, QpState


class ResourceKind(StrEnum):
    """RDMA netlink's kinds of resources; CTX is an opened device."""

    QP = "QP"
    CQ = "CQ"
    MR = "MR"
    PD = "PD"
    CM_ID = "CM_ID"
    SRQ = "SRQ"
    CTX = "CTX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What every resource has.

    ``number`` is the kernel's, unique among a device's resources of one kind. ``pid`` and ``command`` are the process
    of ``thread``, which made it, while that thread lives. ``ours``: a process that the bench started holds it.
    """

    kind: ClassVar[ResourceKind]

    device: str
    number: int
    pid: int | None = None
    command: str = ""
    thread: int | None = None
    ours: bool | None = None
    use_count: int | None = None
    key: int | None = None

    @property
    def identity(self) -> tuple[ResourceKind, str, int]:
        """Two resources with one identity are one."""
        return self.kind, self.device, self.number

    @property
    def in_context(self) -> int | None:
        """The number of the opened device that it belongs to."""
        return None

    @property
    def in_domain(self) -> int | None:
        """The number of the protection domain that it belongs to."""
        return None

    @property
    def detail(self) -> str:
        """Size, state or addresses for people; an empty text where it has none."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfContext(Resource):
    context: int | None = None

    @property
    def in_context(self) -> int | None:
        return self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfDomain(_OfContext):
    pd: int | None = None

    @property
    def in_domain(self) -> int | None:
        return self.pd


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePair(_OfDomain):
    """``number`` is its QPN; ``state`` as ``hil.netlink.codes.QpState`` numbers it."""

    kind: ClassVar[ResourceKind] = ResourceKind.QP

    state: int | None = None

    @property
    def detail(self) -> str:
        return "" if self.state is None else QpState(self.state).name


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionQueue(_OfContext):
    kind: ClassVar[ResourceKind] = ResourceKind.CQ

    entries: int | None = None

    @property
    def detail(self) -> str:
        return "" if self.entries is None else f"{self.entries} entries"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRegion(_OfDomain):
    """``key``: the local key, told to CAP_NET_ADMIN only."""

    kind: ClassVar[ResourceKind] = ResourceKind.MR

    length: int | None = None

    @property
    def detail(self) -> str:
        return "" if self.length is None else f"{self.length} bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionDomain(_OfContext):
    """Its ``pd`` is its own number, where the kernel tells it."""

    kind: ClassVar[ResourceKind] = ResourceKind.PD

    pd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CmId(_OfContext):
    """An id of the connection manager: ``qp`` is its queue pair's number, None or 0 without one; ``state`` as
    ``hil.netlink.codes.CmState`` numbers it; ``source`` and ``destination``: address and port for people."""

    kind: ClassVar[ResourceKind] = ResourceKind.CM_ID

    qp: int | None = None
    state: int | None = None
    source: str | None = None
    destination: str | None = None

    @property
    def detail(self) -> str:
        state = "" if self.state is None else CmState(self.state).name
        ends = f"{self.source} to {self.destination or 'anywhere'}" if self.source else ""
        return ", ".join(filter(None, (state, ends)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedReceiveQueue(_OfDomain):
    kind: ClassVar[ResourceKind] = ResourceKind.SRQ

    entries: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(Resource):
    """An opened device."""

    kind: ClassVar[ResourceKind] = ResourceKind.CTX

    context: int | None = None

    @property
    def in_context(self) -> int | None:
        return self.number


@dataclass(frozen=True, slots=True)
class Process:
    """What a process holds: threads, ``descriptors`` (what they refer to, with how many do), memory in bytes."""

    pid: int
    command: str
    threads: int
    descriptors: Mapping[str, int]
    locked: int
    pinned: int


@dataclass(frozen=True, slots=True)
class KernelMessage:
    """A message of a kernel's own log: ``level`` 0 to 7, ``time_us`` microseconds since its boot."""

    text: str
    level: int
    sequence: int
    time_us: int


PortCounters = Mapping[str, Mapping[str, int]]
"""Counters by name, of each port by its name DEVICE/NUMBER."""

_CLASSES: dict[str, type[Resource]] = {
    cls.kind: cls
    for cls in (
        QueuePair,
        CompletionQueue,
        MemoryRegion,
        ProtectionDomain,
        CmId,
        SharedReceiveQueue,
        Context,
    )
}
plain.teach(Resource, _CLASSES.values(), lambda facts: _CLASSES.get(facts["kind"]))


def resources_of(told: Any, place: str) -> list[Resource]:
    """The resources that a node listed. Raises EvidenceError."""
    return [*plain.read(tuple[Resource, ...], told, place)]


def processes_of(told: Any, place: str) -> list[Process]:
    """The processes that a node listed. Raises EvidenceError."""
    return [*plain.read(tuple[Process, ...], told, place)]


def kernel_log_of(told: Any, place: str) -> list[KernelMessage]:
    """The messages that a node's kernel logged. Raises EvidenceError."""
    return [*plain.read(tuple[KernelMessage, ...], told, place)]


def port_counters_of(told: Any, place: str) -> PortCounters:
    """The counters of a node's ports. Raises EvidenceError."""
    counters: PortCounters = plain.reader(PortCounters)(told, place)
    return counters
