"""A pair of nodes of any kind, joined by a link with a capture point of any kind, with everything recorded."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hil import stopwatch
from hil.agent.protocol import Message
from hil.capture.pcapng import read_pcapng
from hil.capture.sides import came_in, reached
from hil.errors import CaptureError, EvidenceError, NodeError, SetupError, Unsupported
from hil.evidence.bundle import Judged, write_evidence
from hil.evidence.evidence import Evidence
from hil.evidence.journal import UNJOURNALED, Call, Entry, entry_of
from hil.evidence.packets import RocePacket, roce_packets
from hil.evidence.rebuild.missing import missing_in
from hil.evidence.resources import (
    PortCounters,
    Process,
    Resource,
    kernel_log_of,
    port_counters_of,
    processes_of,
    resources_of,
)
from hil.evidence.rules.kernel_log import starved
from hil.evidence.rules.processes import ended_processes, grown_processes
from hil.evidence.rules.resources import held, of_sockets, others, unseen
from hil.labs.channel import ClockRelation, joined
from hil.labs.node import Node, Record
from hil.labs.place import Place
from hil.labs.power import Power
from hil.stopwatch import Phase
from hil.waiting import wait_until
from hil.wire.point import CapturePoint, Counts

# Longer than the connection manager waits before it repeats an unanswered message.
SETTLE_TIMEOUT_S, SETTLE_POLL_S = 6.0, 0.05
# Sixteen nodes on a busy machine have much to say to each other before all is quiet.
QUIET_TIMEOUT_S = 20.0
QUIET_S = 0.03
CALL_TIMEOUT_S = 30.0
COUNTED = ("tx_packets", "rx_packets")


DEAF_MEND = (
    "the device or its driver is started anew. Soft-RoCE comes to this when the send queue of its netdev overflows: "
    "ip link set NETDEV txqueuelen 10000"
)


class Pair:
    """Nodes, ``a`` and ``b`` or more, and the link between them; evidence goes to ``folder``. Use as a context manager.

    ``passed`` is set when its test has passed: only then others may have its nodes.
    A subclass makes nodes and capture point, adds what must be stopped to ``_open``, and calls ``_begin``.
    """

    def __init__(self, folder: Path, places: tuple[Place, ...]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.places = places
        self.nodes: Mapping[str, Node] = {}
        self.wire: CapturePoint
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._malformed: list[str] = []
        self._during: dict[str, dict[Resource, None]] = {}
        self._baseline: dict[str, list[Resource]] = {}
        self._after_close: dict[str, list[Resource]] = {}
        self._processes: dict[str, list[Process]] = {}
        self._port_counters: dict[str, PortCounters] = {}
        self._at_start: dict[str, list[Resource]] = {}
        self._open: list[Any] = []
        self.made_with: dict[str, Any] = {}
        self.passed = False
        self._observer: Record | None = None

    def _begin(self) -> None:
        """The nodes are provisioned and frames are recorded: what happens from now on is evidence.

        Raises SetupError where nothing could be connected.
        """
        if deaf := self._deaf():
            raise SetupError("; ".join(deaf))
        self._before = self._settled()
        self._clocks = {name: [node.clock()] for name, node in self.nodes.items()}
        self._port_counters = {name: self._counters_of_ports(name) for name in self.nodes}
        self._at_start = {name: self.resources(name, contexts=True) for name in self.nodes}

    def _deaf(self) -> list[str]:
        """The adapters where no message of the connection manager is sent or heard. Raises NodeError."""
        found = []
        for place in self.places:
            states = self.nodes[place.name].system("general_services", device=place.device)
            if any(state != "RTS" for state in states):
                what = f"the connection manager's own queue pair of {place.device} is {' and '.join(states)}, not RTS"
                found.append(f"node {place.name}: {what}: nothing connects there until {DEAF_MEND}")
        return found

    def all_nodes(self) -> Mapping[str, Node]:
        """The nodes, and those of the lab that only record, by name."""
        return self.nodes

    def place(self, name: str) -> Place:
        """The place of node ``name``."""
        return next(place for place in self.places if place.name == name)

    def power(self, name: str) -> Power:
        """Power control of node ``name``. Raises Unsupported where the lab lacks Need.POWER."""
        raise Unsupported(f"the lab has no power control of node {name}")

    def unused_address(self, *, ipv6: bool = False) -> str:
        """An address on node a's network that no node has. Raises Unsupported."""
        taken = [ip for place in self.places for ip in (place.ipv4, place.ipv6)]
        return self.places[0].unused_address(ipv6=ipv6, taken=taken)

    def _unused_addresses(self) -> list[str]:
        """Every address that ``unused_address`` gives."""
        found = []
        for ipv6 in (False, True):
            if not ipv6 or self.places[0].ipv6:
                with suppress(Unsupported):
                    found.append(self.unused_address(ipv6=ipv6))
        return found

    def observe(self, observer: Record) -> None:
        """Tell ``observer`` as well, from now on, what workers say."""
        self._observer = observer

    def _record(self, node: str, worker: int, event: Message) -> None:
        if self._observer is not None:
            self._observer(node, worker, event)
        if event.get("kind") not in UNJOURNALED:
            self._take(node, event | {"worker": worker})

    def _take(self, node: str, told: Message) -> None:
        """An entry of a journal; one that is malformed is a problem of the evidence, since a rule may need it."""
        try:
            # Until the clocks are known, the time is the node's own.
            entry = entry_of(told | {"node": node, "at_ns": told.get("t_ns")}, f"the journal of node {node}")
        except EvidenceError as error:
            with self._lock:
                self._malformed.append(str(error))
        else:
            with self._lock:
                self._entries.append(entry)

    def resources(self, name: str, *, contexts: bool = False) -> list[Resource]:
        """What the kernel of node ``name`` holds now, with ``contexts`` opened devices too.

        What processes hold that have nothing to do with the bench is other people's. Raises NodeError, and
        EvidenceError where the answer is malformed.
        """
        found = resources_of(self.nodes[name].system("resources", contexts=contexts), f"the resources of node {name}")
        return [resource for resource in found if resource.ours]

    def _processes_of(self, name: str, **pids: Any) -> list[Process]:
        return processes_of(self.nodes[name].system("processes", **pids), f"the processes of node {name}")

    def _counters_of_ports(self, name: str) -> PortCounters:
        return port_counters_of(self.nodes[name].system("port_counters"), f"the port counters of node {name}")

    def note_baseline(self) -> None:
        """Remember what both kernels hold now, before the first connected socket."""
        for name in self.nodes:
            if name not in self._baseline:
                self._baseline[name], self._processes[name] = self.resources(name), self._processes_of(name)

    def note_resources(self) -> None:
        """Remember what both kernels hold now, while connections are open."""
        for name in self.nodes:
            self._during.setdefault(name, {}).update(dict.fromkeys(self.resources(name)))

    @stopwatch.phase(Phase.AUDIT)
    def audit_closed(self, name: str) -> None:
        """Wait until node ``name`` holds nothing of the sockets noted before; what stays is evidence."""
        during = self._during.get(name, {})
        before = self._baseline.get(name, [])
        left = self._when_none(name, lambda found: of_sockets(found, before, during))
        self._after_close[name] = left

    def _when_none(self, name: str, interesting: Callable[[list[Resource]], list[Resource]]) -> list[Resource]:
        # The end of a close goes on for a moment after the call: CM waits for the DREP.
        return wait_until(
            lambda: interesting(self.resources(name, contexts=True)),
            SETTLE_TIMEOUT_S,
            f"release of what node {name} holds",
            enough=lambda left: not left,
            strict=False,
            poll_s=SETTLE_POLL_S,
        )

    def _processes_after(self, name: str) -> list[Process]:
        """What the processes hold in the end: a thread that has answered a call takes a moment to be gone."""
        before = self._processes.get(name, [])

        def settled(found: list[Process]) -> bool:
            ended = ended_processes(entry for entry in self.journal(name) if isinstance(entry, Call))
            return not grown_processes(before, found, ended)

        return wait_until(
            lambda: self._processes_of(name, pids=[process.pid for process in before]),
            SETTLE_TIMEOUT_S,
            f"end of the threads on node {name}",
            enough=settled,
            strict=False,
            poll_s=SETTLE_POLL_S,
        )

    def _conclude(self) -> None:
        """Nothing more is to be recorded: a capture point that tells its losses only when it ends is ended."""

    @stopwatch.phase(Phase.AUDIT)
    def evidence(self, *, audit: bool = True, last: bool = False) -> Evidence:
        """All evidence up to now; never raises for a dead node: what is missing becomes a problem.

        After one with ``audit``, or the ``last``, nothing more may be recorded.
        """
        evidence = Evidence({p.name: [ip for ip in (p.ipv4, p.ipv6) if ip] for p in self.places})
        evidence.during = {name: list(found) for name, found in self._during.items()}
        if missed := unseen(evidence):
            evidence.problems.append(f"the audit did not see {', '.join(missed)} while the connection was open")
        evidence.after_close = dict(self._after_close)
        relations = self._relations(evidence)
        known = [relation.uncertainty_ns for relation in relations.values()]
        evidence.uncertainty_ns, evidence.late_ns = max(*known, self.wire.uncertainty_ns), self.wire.late_ns
        if audit:
            self._audit(evidence)
        try:
            evidence.problems += self._deaf()
        except NodeError:
            # That it does not live is told already.
            pass
        if audit or last:
            self._conclude()
        self._check_capture(evidence)
        evidence.clocks = {n: [(c.offset_ns, c.uncertainty_ns) for c in known] for n, known in self._clocks.items()}
        with self._lock:
            entries = list(self._entries)
        evidence.problems += self.malformed()
        evidence.events += [replace(e, at_ns=relations[e.node].to_controller(e.t_ns)) for e in entries]
        self._note_log(evidence)
        evidence.events.sort(key=lambda e: e.at_ns)
        self._read_capture(evidence)
        if (audit or last) and not self.wire.sides:
            self._look_for_gaps(evidence)
        if problem := unseen_link(evidence, counted=bool(self.wire.sides)):
            evidence.problems.append(problem)
        return evidence

    def _note_log(self, evidence: Evidence) -> None:
        """Put what was done to the wire among the events; its clock is the controller's."""
        try:
            for told in self.wire.log():
                place = {"node": "wire", "at_ns": told.get("t_ns")}
                evidence.events.append(entry_of(told | place, "the log of the wire"))
        except (CaptureError, EvidenceError) as error:
            evidence.problems.append(f"what was done to the wire is not known: {error}")

    def journal(self, name: str) -> list[Entry]:
        """What the workers of node ``name`` have journaled so far, with the node's own times."""
        with self._lock:
            return [entry for entry in self._entries if entry.node == name]

    def malformed(self) -> list[str]:
        """What nodes sent as entries of their journals that are none: problems of the evidence."""
        with self._lock:
            return list(self._malformed)

    def packets(self) -> list[RocePacket]:
        """What has come in on the wire so far, as far as it is written."""
        self.wire.counts()
        found = []
        try:
            for packet in roce_packets(came_in(read_pcapng(self.wire.path))):
                found.append(packet)
        except CaptureError:
            # Under load the last frame may be half written.
            pass
        return found

    def _relations(self, evidence: Evidence) -> dict[str, ClockRelation]:
        for name, node in self.nodes.items():
            try:
                self._clocks[name].append(node.clock())
            except NodeError as error:
                evidence.problems.append(f"node {name} does not live: {error}")
        return {name: joined(clocks) for name, clocks in self._clocks.items()}

    def _audit(self, evidence: Evidence) -> None:
        for name, node in self.nodes.items():
            during, start = self._during.get(name, {}), self._at_start[name]
            try:
                evidence.resources[name] = self._when_none(
                    name,
                    lambda found, d=during, s=start: held(others(found, s), d),  # type: ignore[misc]
                )
                evidence.processes[name] = self._processes.get(name, []), self._processes_after(name)
                evidence.kernel_log[name] = kernel_log_of(node.system("kernel_log"), f"the kernel log of node {name}")
                if ended := starved(evidence.kernel_log[name]):
                    evidence.problems.append(f"node {name} ran out of memory: {'; '.join(ended)}")
                evidence.port_counters[name] = self._port_counters[name], self._counters_of_ports(name)
            except (NodeError, EvidenceError) as error:
                evidence.problems.append(f"the audit of node {name} failed: {error}")

    def _check_capture(self, evidence: Evidence) -> None:
        try:
            after = self._settled()
        except (NodeError, CaptureError) as error:
            evidence.problems.append(f"the capture cannot be shown to be complete: {error}")
            return
        (counters, counts), (counters_0, counts_0) = after, self._before
        if counts.capture_error:
            evidence.problems.append(counts.capture_error)
        if wrong := counts.mismatch():
            evidence.problems.append(f"the wire's counts do not add up: {wrong}")
        if counts.unlogged:
            evidence.problems.append(f"the wire's log had no room for {counts.unlogged} entries")
        for side in self.wire.sides:
            seen = {
                "tx_packets": counts.received[side] - counts_0.received[side],
                "rx_packets": counts.sent[side] - counts_0.sent[side],
            }
            told = {n: counters[side][n] - counters_0[side][n] for n in COUNTED}
            if seen != told:
                evidence.problems.append(f"capture incomplete on side {side}: wire {seen}, adapter {told}")

    def _settled(self) -> tuple[dict[str, Any], Counts]:
        """Counters of the nodes that are compared with the wire's, and those, read when none moved for a while.

        A frame that an adapter has counted may still be on its way to the wire, and the other way round. The others'
        may move with every question: the way to a node may lead over its adapter's netdev.
        """
        # A capture on a node may have much to bring home: that is no time in which anything could settle.
        self.wire.counts()
        compared = [place for place in self.places if place.name in self.wire.sides]
        looks: list[tuple[dict[str, Any], Counts]] = []

        def look() -> tuple[dict[str, Any], Counts]:
            counters = {p.name: self.nodes[p.name].system("counters", netdev=p.netdev) for p in compared}
            looks.append((counters, self.wire.counts()))
            return looks[-1]

        def quiet(seen: tuple[dict[str, Any], Counts]) -> bool:
            moving = any((*seen[1].queued.values(), *seen[1].held.values()))
            return not moving and looks[-2:-1] == [seen]

        return wait_until(look, QUIET_TIMEOUT_S, "quiet on the link", enough=quiet, strict=False, poll_s=QUIET_S)

    def _read_capture(self, evidence: Evidence) -> None:
        try:
            counts = self.wire.counts()
            frames = list(read_pcapng(self.wire.path))
            came = list(came_in(frames))
            if len(came) < sum(counts.received.values()):
                problem = f"capture incomplete: {len(came)} frames in the file, the wire received {counts.received}"
                evidence.problems.append(problem)
            evidence.late_frames = {int(n): ns for n, ns in counts.late_frames.items()}
            evidence.epoch_ns, evidence.frames = counts.epoch_ns, len(frames)
            evidence.take_packets([*roce_packets(came)], [*roce_packets(reached(frames))])
        except (CaptureError, OSError) as error:
            evidence.problems.append(f"the capture cannot be read: {error}")

    def _look_for_gaps(self, evidence: Evidence) -> None:
        """No adapter's counters tell of a frame that this capture point missed; other frames may."""
        try:
            missing = missing_in(self.wire.path, self._unused_addresses())
            evidence.problems += [f"the capture misses frames {line}" for line in missing]
        except (CaptureError, OSError) as error:
            evidence.problems.append(f"the capture cannot be searched for gaps: {error}")

    @stopwatch.phase(Phase.WRITING)
    def write(self, evidence: Evidence, judged: Judged | None = None) -> None:
        """Write the evidence and what was ``judged`` of it beside the capture and the consoles."""
        write_evidence(self.folder, evidence, judged, self.made_with)

    def close(self) -> None:
        """Stop the wire and both nodes; safe to call twice."""
        for part in reversed(self._open):
            part.stop()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def unseen_link(evidence: Evidence, *, counted: bool) -> str:
    """Why a capture does not show the link at all, or an empty text.

    ``counted``: it was compared with the adapters' counters, so that what is not in it was not sent.
    """
    if counted or not any(evidence.during.values()) or any(p.cm in ("REQ", "REP") for p in evidence.packets):
        return ""
    return (
        "the capture does not see the link: a connection was made, and none of its CM messages was recorded; "
        "is the right port mirrored, the right interface named?"
    )
