"""What a test recorded, and the one timeline that joins it. Times are the controller's monotonic clock in ns."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hil.evidence.packets import Connection, RocePacket, connections


@dataclass(slots=True)
class Evidence:
    """Everything rules may look at.

    ``addresses``: node to its IP addresses. ``events``: journal entries of both nodes, each with ``node``, ``at_ns``.
    ``during``: node to what the kernel held while connections were open. ``after_close``: node to what was left of
    closed sockets before WSPCleanup. ``resources``: what the kernel held at the end. ``processes``: node to what its
    processes held before the first connection and at the end. ``kernel_log``: node to what its kernel logged.
    ``port_counters``: node to the counters of its ports at the start and at the end. ``problems``: why the evidence
    cannot carry a judgement. ``uncertainty_ns``: the largest of the clock relations'. ``late_ns``: by how much a
    packet's time may be later than its receiver had it, as a mirror's is. ``late_frames``: by how
    many ns the stamps of single frames are known to be late. ``packets``: what the nodes sent.
    ``delivered``: what the nodes got, another thing only where something was done to the wire, which then is among the
    events of node "wire".
    """

    addresses: dict[str, list[str]]
    events: list[dict[str, Any]] = field(default_factory=list)
    packets: list[RocePacket] = field(default_factory=list)
    delivered: list[RocePacket] = field(default_factory=list)
    packet_times_ns: dict[int, int] = field(default_factory=dict)
    resources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    during: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    after_close: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    processes: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = field(default_factory=dict)
    kernel_log: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    port_counters: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    uncertainty_ns: int = 0
    late_ns: int = 0
    late_frames: dict[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def connections(self) -> list[Connection]:
        return connections(self.packets)

    def of(self, node: str, kind: str, **facts: Any) -> list[dict[str, Any]]:
        """The journal entries of a node of one kind that carry these facts, in order."""
        return [
            e
            for e in self.events
            if e["node"] == node and e["kind"] == kind and all(e.get(n) == v for n, v in facts.items())
        ]

    def timeline(self) -> list[dict[str, Any]]:
        """Calls, up-calls, CM events, completions and packets in one order of time."""
        sent = {p.frame for p in self.packets}
        packets = [("packet", p) for p in self.packets]
        packets += [("arrived", p) for p in self.delivered if p.frame not in sent]
        entries = [
            {"at_ns": self.packet_times_ns[p.frame], "node": "wire", "kind": kind} | p.facts() for kind, p in packets
        ]
        return sorted([*self.events, *entries], key=lambda entry: entry["at_ns"])

    def write(self, path: Path) -> None:
        """Write the timeline as JSON lines."""
        timeline = self.timeline()
        with path.open("w") as out:
            for entry in timeline:
                out.write(json.dumps(entry, default=repr) + "\n")
        path.with_suffix(".txt").write_text(show(timeline) + "\n")


def describe(entry: dict[str, Any], start_ns: int) -> str:
    """One line of a timeline for people: milliseconds since ``start_ns``, where, what."""
    skipped = {"at_ns", "t_ns", "node", "kind", "thread", "pid", "begun_ns", "time_ns"}
    facts = " ".join(f"{name}={value}" for name, value in entry.items() if name not in skipped)
    return f"{(entry['at_ns'] - start_ns) / 1e6:10.3f} ms  {entry['node']:>5}  {entry['kind']:<8} {facts}"


def show(timeline: list[dict[str, Any]]) -> str:
    """The whole timeline for people."""
    return "\n".join(describe(entry, timeline[0]["at_ns"]) for entry in timeline) or "nothing was recorded"
