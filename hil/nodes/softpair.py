"""The soft pair: two clones joined by the wire, provisioned, with everything recorded."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hil.errors import CaptureError, NodeError
from hil.evidence.evidence import Evidence
from hil.evidence.packets import RocePacket, roce_packets
from hil.evidence.rules import held, of_sockets, unseen
from hil.nodes.channel import ClockRelation
from hil.nodes.clone import Clone
from hil.nodes.image import building, cache_folder
from hil.nodes.protocol import Message
from hil.nodes.snapshot import Snapshot
from hil.wire.pcapng import read_pcapng
from hil.wire.wire import Wire

SETTLE_TIMEOUT_S = 4.0
QUIET_S = 0.03
CALL_TIMEOUT_S = 30.0
Resources = list[dict[str, Any]]
COUNTED = ("tx_packets", "rx_packets")


@dataclass(frozen=True, slots=True)
class Place:
    """What a node of the pair is given."""

    name: str
    mac: str
    ipv4: str
    ipv6: str


PLACES = (
    Place("a", "52:54:00:00:01:01", "10.77.0.1", "fd77::1"),
    Place("b", "52:54:00:00:01:02", "10.77.0.2", "fd77::2"),
)


class SoftPair:
    """Nodes ``a`` and ``b`` and the wire between them; evidence goes to ``folder``. Use as a context manager."""

    def __init__(self, snapshot: Snapshot, folder: Path, mtu: int = 1500) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.Lock()
        self._events: list[tuple[str, Message]] = []
        self._during: dict[str, Resources] = {}
        self._baseline: dict[str, Resources] = {}
        self._after_close: dict[str, Resources] = {}
        self._open: list[Any] = []
        try:
            for place in PLACES:
                self._open.append(Clone(place.name, snapshot, folder / f"console-{place.name}", self._record))
            self.nodes: dict[str, Clone] = {node.name: node for node in self._open}
            self.wire = Wire(self.nodes["a"].frames, self.nodes["b"].frames, folder / "wire.pcapng")
            self._open.append(self.wire)
            self._provision(mtu)
            self._clocks = {name: [node.clock()] for name, node in self.nodes.items()}
        except BaseException:
            self.close()
            raise

    def _record(self, node: str, worker: int, event: Message) -> None:
        with self._lock:
            self._events.append((node, event | {"worker": worker}))

    def _provision(self, mtu: int) -> None:
        failures: list[BaseException] = []

        def one(place: Place) -> None:
            try:
                addresses = [f"{place.ipv4}/24", f"{place.ipv6}/64"]
                self.nodes[place.name].system(
                    "provision", netdev="eth0", mac=place.mac, addresses=addresses, mtu=mtu, device="rxe0"
                )
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=one, args=(place,)) for place in PLACES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self._before = self._settled()

    def note_baseline(self) -> None:
        """Remember what both kernels hold now, before the first connected socket."""
        for name, node in self.nodes.items():
            self._baseline.setdefault(name, node.system("resources"))

    def note_resources(self) -> None:
        """Remember what both kernels hold now, while connections are open."""
        for name, node in self.nodes.items():
            self._during.setdefault(name, []).extend(node.system("resources"))

    def audit_closed(self, name: str) -> None:
        """Wait until node ``name`` holds nothing of the sockets noted before; what stays is evidence."""
        during = self._during.get(name, [])
        before = self._baseline.get(name, [])
        left = self._when_none(name, lambda found: of_sockets(found, before, during))
        self._after_close[name] = left

    def _when_none(self, name: str, interesting: Callable[[Resources], Resources]) -> Resources:
        # The end of a close goes on for a moment after the call: CM waits for the DREP.
        end_ns = time.monotonic_ns() + int(SETTLE_TIMEOUT_S * 1e9)
        while (left := interesting(self.nodes[name].system("resources"))) and time.monotonic_ns() < end_ns:
            time.sleep(0.05)
        return left

    def evidence(self, *, audit: bool = True) -> Evidence:
        """All evidence up to now; never raises for a dead node: what is missing becomes a problem."""
        evidence = Evidence({p.name: [p.ipv4, p.ipv6] for p in PLACES})
        evidence.during = {name: list(found) for name, found in self._during.items()}
        if missed := unseen(evidence):
            evidence.problems.append(f"the audit did not see {', '.join(missed)} while the connection was open")
        evidence.after_close = dict(self._after_close)
        relations = self._relations(evidence)
        evidence.uncertainty_ns = max(relation.uncertainty_ns for relation in relations.values())
        if audit:
            self._audit(evidence)
        self._check_capture(evidence)
        with self._lock:
            events = list(self._events)
        for node, event in events:
            if "t_ns" in event and event["kind"] != "agent ready":
                evidence.events.append({"node": node, "at_ns": relations[node].to_controller(event["t_ns"])} | event)
        evidence.events.sort(key=lambda e: e["at_ns"])
        self._read_capture(evidence)
        return evidence

    def journal(self, name: str) -> list[Message]:
        """What the workers of node ``name`` have journaled so far, with the node's own times."""
        with self._lock:
            return [event for node, event in self._events if node == name]

    def packets(self) -> list[RocePacket]:
        """What the wire has carried so far, as far as it is written."""
        self.wire.counts()
        found = []
        try:
            for packet in roce_packets(read_pcapng(self.wire.path)):
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
        return {name: min(clocks, key=lambda c: c.uncertainty_ns) for name, clocks in self._clocks.items()}

    def _audit(self, evidence: Evidence) -> None:
        for name in self.nodes:
            during = self._during.get(name, [])
            try:
                evidence.resources[name] = self._when_none(name, lambda found, d=during: held(found, d))  # type: ignore[misc]
            except NodeError as error:
                evidence.problems.append(f"the audit of node {name} failed: {error}")

    def _check_capture(self, evidence: Evidence) -> None:
        try:
            after = self._settled()
        except (NodeError, CaptureError) as error:
            evidence.problems.append(f"the capture cannot be shown to be complete: {error}")
            return
        (counters, counts), (counters_0, counts_0) = after, self._before
        if counts["capture_error"]:
            evidence.problems.append(counts["capture_error"])
        for side in ("a", "b"):
            seen = {
                "tx_packets": counts["received"][side] - counts_0["received"][side],
                "rx_packets": counts["sent"][side] - counts_0["sent"][side],
            }
            told = {n: counters[side][n] - counters_0[side][n] for n in COUNTED}
            if seen != told:
                evidence.problems.append(f"capture incomplete on side {side}: wire {seen}, adapter {told}")

    def _settled(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Counters of both nodes and of the wire, read when none of them moved for a while.

        A frame that an adapter has counted may still be on its way to the wire, and the other way round.
        """
        end_ns = time.monotonic_ns() + int(SETTLE_TIMEOUT_S * 1e9)
        last = None
        while True:
            counters = {name: node.system("counters", netdev="eth0") for name, node in self.nodes.items()}
            counts = self.wire.counts()
            if ((counters, counts) == last and not any(counts.queued.values())) or time.monotonic_ns() > end_ns:
                known = {"received": counts.received, "sent": counts.sent, "capture_error": counts.capture_error}
                return counters, known | {"epoch_ns": counts.epoch_ns}
            last = counters, counts
            time.sleep(QUIET_S)

    def _read_capture(self, evidence: Evidence) -> None:
        try:
            counts = self.wire.counts()
            frames = list(read_pcapng(self.wire.path))
            if len(frames) < sum(counts.received.values()):
                problem = f"capture incomplete: {len(frames)} frames in the file, the wire received {counts.received}"
                evidence.problems.append(problem)
            epoch_ns = counts.epoch_ns
            evidence.packets = list(roce_packets(frames))
            evidence.packet_times_ns = {p.frame: p.time_ns - epoch_ns for p in evidence.packets}
        except (CaptureError, OSError) as error:
            evidence.problems.append(f"the capture cannot be read: {error}")

    def write(self, evidence: Evidence) -> None:
        """Write timeline and versions beside the capture and the consoles."""
        evidence.write(self.folder / "timeline.jsonl")
        facts = {"problems": evidence.problems, "resources": evidence.resources}
        clocks = {n: [(c.offset_ns, c.uncertainty_ns) for c in known] for n, known in self._clocks.items()}
        (self.folder / "evidence.json").write_text(json.dumps(facts | {"clocks": clocks}, indent=1))

    def close(self) -> None:
        """Stop the wire and both nodes, whatever happened before."""
        for part in reversed(self._open):
            part.stop()
        self._open.clear()

    def __enter__(self) -> "SoftPair":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def measure(snapshot: Snapshot, pairs: int, mtu: int) -> Iterator[str]:
    """Time ``pairs`` pristine provisioned pairs and weigh their nodes; a line of text for each figure."""
    times, first, memory = [], [], {}
    for _ in range(pairs):
        with building(cache_folder()) as folder:
            started_ns = time.monotonic_ns()
            with SoftPair(snapshot, folder, mtu) as pair:
                times.append((time.monotonic_ns() - started_ns) / 1e9)
                frame = next(read_pcapng(pair.wire.path), None)
                if frame is not None:
                    first.append((frame.time_ns - pair.wire.counts().epoch_ns - started_ns) / 1e9)
                memory = {n: node.machine.memory_kib() for n, node in pair.nodes.items()}
    yield f"pristine provisioned pair: {min(times):.2f} to {max(times):.2f} s over {pairs}"
    if first:
        yield f"first packet on the wire: after {min(first):.2f} to {max(first):.2f} s"
    for node, kib in memory.items():
        yield f"node {node}: {kib['resident'] // 1024} MiB resident, {kib['private'] // 1024} MiB of its own"
