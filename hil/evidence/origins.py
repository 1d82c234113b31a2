"""Where what the kernel still holds came from: its list joined with the provider's journal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hil.evidence.evidence import Evidence
from hil.netlink.codes import CmState, QpState

Resource = dict[str, Any]
STATES = {"QP": QpState, "CM_ID": CmState}


@dataclass(frozen=True, slots=True)
class Origin:
    """Who made a resource: the process, and the call of which socket that did it, at ``at_ns``.

    ``function`` is None for what the provider's own thread made; ``socket`` is the descriptor, None when not known.
    """

    pid: int | None
    function: str | None
    socket: int | None
    at_ns: int


def named(resources: Iterable[Resource], evidence: Evidence | None = None, node: str = "") -> str:
    """Resources for people; with the evidence of their ``node``, each with where it came from."""
    known = list(resources)
    texts = [_described(r) + (_opened(evidence, node, r, known) if evidence else _owner(r)) for r in known]
    return "; ".join(texts) or "nothing left"


def _described(resource: Resource) -> str:
    number = f"{resource['key']:#x}" if "key" in resource else str(resource["number"])
    parts = [f"{resource['kind']} {number}"]
    if "length" in resource:
        parts.append(f"{resource['length']} bytes")
    if "entries" in resource:
        parts.append(f"{resource['entries']} entries")
    if resource["kind"] in STATES and "state" in resource:
        parts.append(STATES[resource["kind"]](resource["state"]).name)
    if "source" in resource:
        parts.append(f"{resource['source']} to {resource.get('destination', 'anywhere')}")
    return ", ".join([*parts, resource["device"]])


def _owner(resource: Resource, pid: int | None = None) -> str:
    # The kernel forgets the owner when the thread that made a resource ends; the journal remembers the process.
    return f", pid {resource['pid'] or pid} ({resource['command']})"


def _opened(evidence: Evidence, node: str, resource: Resource, left: list[Resource]) -> str:
    found = origin(evidence, node, resource, left)
    if found is None:
        return _owner(resource, _pid_of_context(evidence, node, resource, left)) + _first_seen(evidence, node, resource)
    by = f"by {found.function}" if found.function else "by the provider's own thread"
    socket = f" for socket {found.socket}" if found.socket is not None else ""
    at_ms = (found.at_ns - start_ns(evidence)) / 1e6
    return f"{_owner(resource, found.pid)}, opened {by}{socket} at {at_ms:.3f} ms"


def _first_seen(evidence: Evidence, node: str, resource: Resource) -> str:
    if node not in evidence.during:
        return ""
    seen = any(_same(resource, other) for other in evidence.during[node])
    return ", there when the connection was open" if seen else ", made when the connection was open already"


def start_ns(evidence: Evidence) -> int:
    """When the timeline begins, which the times of findings count from."""
    return min([*(e["at_ns"] for e in evidence.events), *evidence.packet_times_ns.values()], default=0)


def origin(evidence: Evidence, node: str, resource: Resource, left: Iterable[Resource] = ()) -> Origin | None:
    """Where a resource came from, or None when the journal does not tell.

    A region is known by its key and a queue pair by its number. A protection domain is known by the regions and queue
    pairs in it, a connection manager's id by its queue pair, as the kernel listed them in ``left`` or while the
    connection was open.
    """
    entries = list(_entries(evidence, node, resource))
    if not entries:
        entries = [e for other in _related(evidence, node, resource, left) for e in _entries(evidence, node, other)]
    return _made_by(evidence, node, min(entries, key=lambda e: e["at_ns"])) if entries else None


def _entries(evidence: Evidence, node: str, resource: Resource) -> Iterator[dict[str, Any]]:
    """The journal's entries of the making of a region, a queue pair, or an id's queue pair."""
    if resource["kind"] == "MR" and "key" in resource:
        # A key may be used again: the last registration with it is the one that is left.
        yield from evidence.of(node, "mr", event="registered", key=resource["key"])[-1:]
    elif resource["kind"] == "QP":
        yield from evidence.of(node, "qp", qp_num=resource["number"])[-1:]
    elif resource["kind"] == "CM_ID" and resource.get("qp"):
        yield from evidence.of(node, "qp", qp_num=resource["qp"])[-1:]


def _related(evidence: Evidence, node: str, resource: Resource, left: Iterable[Resource]) -> list[Resource]:
    if resource["kind"] != "PD":
        return []
    known = [*left, *evidence.during.get(node, ())]
    return [r for r in known if (r["device"], r.get("pd")) == (resource["device"], resource["number"])]


def _pid_of_context(evidence: Evidence, node: str, resource: Resource, left: Iterable[Resource]) -> int | None:
    """The process that opened the device which a resource belongs to, by any other resource that tells."""
    known = [*left, *evidence.during.get(node, ())]
    place = (resource["device"], resource.get("context"))
    domains = [r for r in known if r["kind"] == "PD" and (r["device"], r.get("context")) == place]
    within = [r for domain in domains for r in _related(evidence, node, domain, known)]
    pids = [r["pid"] for r in (*domains, *within)]
    pids += [e.get("pid") for r in within for e in _entries(evidence, node, r)]
    return next((pid for pid in pids if pid), None)


def _made_by(evidence: Evidence, node: str, entry: dict[str, Any]) -> Origin:
    call = _call_around(evidence, node, entry)
    socket = call.get("socket") if call else None
    if socket is None:
        socket = _socket_of(evidence, node, entry.get("handle"), entry.get("worker"))
    return Origin(entry.get("pid"), call["function"] if call else None, socket, entry["at_ns"])


def _call_around(evidence: Evidence, node: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """The call that was under way in the thread of a journal entry, if there was one."""
    place = {"worker": entry.get("worker"), "thread": entry.get("thread")}
    before = [e for kind in ("begin", "call") for e in evidence.of(node, kind, **place) if e["at_ns"] <= entry["at_ns"]]
    last = max(before, key=lambda e: e["at_ns"], default=None)
    return last if last and last["kind"] == "begin" else None


def _socket_of(evidence: Evidence, node: str, handle: int | None, worker: int | None) -> int | None:
    made = evidence.of(node, "upcall", function="WPUCreateSocketHandle", handle=handle, worker=worker)
    return made[-1].get("context") if handle and made else None


def _same(one: Resource, other: Resource) -> bool:
    return all(one[name] == other[name] for name in ("kind", "device", "number"))
