"""What a test recorded, and the one timeline that joins it. Times are the controller's monotonic clock in ns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from hil.evidence.journal import E, Entry, chosen, plain_entry
from hil.evidence.packets import Connection, RocePacket, connections
from hil.evidence.resources import KernelMessage, PortCounters, Process, Resource


@dataclass(slots=True)
class Evidence:
    """Everything rules may look at.

    ``addresses``: node to its IP addresses. ``events``: journal entries of both nodes and the wire. ``during``: node to
    what the kernel held while connections were open. ``after_close``: node to what was left of closed sockets before
    WSPCleanup. ``resources``: what the kernel held at the end. ``processes``: node to what its processes held before
    the first connection and at the end. ``kernel_log``: node to what its kernel logged. ``port_counters``: node to the
    counters of its ports at the start and at the end. ``problems``: why the evidence cannot carry a judgement.
    ``clocks``: node to its relations to the controller's clock, each (offset, uncertainty) in ns. ``uncertainty_ns``:
    the largest of the clock relations'. ``late_ns``: by how much a packet's time may be later than its receiver had it,
    as a mirror's is. ``late_frames``: by how many ns the stamps of single frames are known to be late. ``packets``:
    what the nodes sent. ``delivered``: what the nodes got, another thing only where something was done to the wire,
    which then is among the events of node "wire". ``packet_times_ns``: when each frame was seen: its stamp less
    ``epoch_ns``. ``frames``: how many frames of the capture were looked at.
    """

    addresses: dict[str, list[str]]
    events: list[Entry] = field(default_factory=list)
    packets: list[RocePacket] = field(default_factory=list)
    delivered: list[RocePacket] = field(default_factory=list)
    packet_times_ns: dict[int, int] = field(default_factory=dict)
    resources: dict[str, list[Resource]] = field(default_factory=dict)
    during: dict[str, list[Resource]] = field(default_factory=dict)
    after_close: dict[str, list[Resource]] = field(default_factory=dict)
    processes: dict[str, tuple[list[Process], list[Process]]] = field(default_factory=dict)
    kernel_log: dict[str, list[KernelMessage]] = field(default_factory=dict)
    port_counters: dict[str, tuple[PortCounters, PortCounters]] = field(default_factory=dict)
    clocks: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    uncertainty_ns: int = 0
    late_ns: int = 0
    late_frames: dict[int, int] = field(default_factory=dict)
    epoch_ns: int = 0
    frames: int = 0
    problems: list[str] = field(default_factory=list)

    def connections(self) -> list[Connection]:
        return connections(self.packets)

    @overload
    def of(self, node: str, kind: type[E], /, **facts: Any) -> list[E]: ...
    @overload
    def of(self, node: str, kind: str, /, **facts: Any) -> list[Any]: ...
    def of(self, node: str, kind: Any, /, **facts: Any) -> list[Any]:
        """The journal entries of a node that carry these facts, in order.

        ``kind`` is a class of ``hil.evidence.journal``, or a kind by its name. Raises ValueError for a kind that is
        none, TypeError for a fact that entries of the kind do not have.
        """
        return [entry for entry in chosen(self.events, kind, **facts) if entry.node == node]

    def take_packets(self, sent: Sequence[RocePacket], delivered: Sequence[RocePacket]) -> None:
        """Take the capture's packets; their times are by ``epoch_ns``."""
        self.packets, self.delivered = list(sent), list(delivered)
        self.packet_times_ns = {p.frame: p.time_ns - self.epoch_ns for p in (*sent, *delivered)}

    def timeline(self) -> list[dict[str, Any]]:
        """Calls, up-calls, CM events, completions and packets in one order of time, as plain data."""
        sent = {p.frame for p in self.packets}
        packets = [("packet", p) for p in self.packets]
        packets += [("arrived", p) for p in self.delivered if p.frame not in sent]
        entries = [
            {"at_ns": self.packet_times_ns[p.frame], "node": "wire", "kind": kind} | p.facts() for kind, p in packets
        ]
        return sorted([*map(plain_entry, self.events), *entries], key=lambda entry: entry["at_ns"])


def describe(entry: dict[str, Any], start_ns: int) -> str:
    """One line of a timeline for people: milliseconds since ``start_ns``, where, what."""
    skipped = {"at_ns", "t_ns", "node", "kind", "thread", "pid", "begun_ns", "time_ns"}
    facts = " ".join(f"{name}={value}" for name, value in entry.items() if name not in skipped)
    return f"{(entry['at_ns'] - start_ns) / 1e6:10.3f} ms  {entry['node']:>5}  {entry['kind']:<8} {facts}"


def show(timeline: list[dict[str, Any]]) -> str:
    """The whole timeline for people."""
    return "\n".join(describe(entry, timeline[0]["at_ns"]) for entry in timeline) or "nothing was recorded"
