"""Where what the kernel still holds came from: its list joined with the provider's journal."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from hil.evidence.evidence import Evidence
from hil.evidence.journal import Begin, Call, Entry, HandleMade, QueuePairMade, Registered
from hil.evidence.resources import CmId, MemoryRegion, ProtectionDomain, QueuePair, Resource

# Who left more behind has the first of them described.
DESCRIBED = 50


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
    shown = known[:DESCRIBED]
    texts = [_described(r) + (_opened(evidence, node, r, known) if evidence else _owner(r)) for r in shown]
    more = [f"and {len(known) - DESCRIBED} more"] if len(known) > DESCRIBED else []
    return "; ".join([*texts, *more]) or "nothing left"


def _described(resource: Resource) -> str:
    number = str(resource.number) if resource.key is None else f"{resource.key:#x}"
    return ", ".join(filter(None, (f"{resource.kind} {number}", resource.detail, resource.device)))


def _owner(resource: Resource, pid: int | None = None) -> str:
    # The kernel forgets the owner when the thread that made a resource ends; the journal remembers the process.
    return f", pid {resource.pid or pid} ({resource.command})"


def _opened(evidence: Evidence, node: str, resource: Resource, left: Collection[Resource]) -> str:
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
    seen = any(resource.identity == other.identity for other in evidence.during[node])
    return ", there when the connection was open" if seen else ", made when the connection was open already"


def start_ns(evidence: Evidence) -> int:
    """When the timeline begins, which the times of findings count from."""
    return min([*(e.at_ns for e in evidence.events), *evidence.packet_times_ns.values()], default=0)


def origin(evidence: Evidence, node: str, resource: Resource, left: Iterable[Resource] = ()) -> Origin | None:
    """Where a resource came from, or None when the journal does not tell.

    A region is known by its key and a queue pair by its number. A protection domain is known by the regions and queue
    pairs in it, a connection manager's id by its queue pair, as the kernel listed them in ``left`` or while the
    connection was open.
    """
    entries = list(_entries(evidence, node, resource))
    if not entries:
        entries = [e for other in _related(evidence, node, resource, left) for e in _entries(evidence, node, other)]
    return _made_by(evidence, node, min(entries, key=lambda e: e.at_ns)) if entries else None


def _entries(evidence: Evidence, node: str, resource: Resource) -> Iterator[Registered | QueuePairMade]:
    """The journal's entries of the making of a region, a queue pair, or an id's queue pair."""
    if isinstance(resource, MemoryRegion) and resource.key is not None:
        # A key may be used again: the last registration with it is the one that is left.
        yield from evidence.of(node, Registered, key=resource.key)[-1:]
    elif isinstance(resource, QueuePair):
        yield from evidence.of(node, QueuePairMade, qp_num=resource.number)[-1:]
    elif isinstance(resource, CmId) and resource.qp:
        yield from evidence.of(node, QueuePairMade, qp_num=resource.qp)[-1:]


def _related(evidence: Evidence, node: str, resource: Resource, left: Iterable[Resource]) -> list[Resource]:
    if not isinstance(resource, ProtectionDomain):
        return []
    known = [*left, *evidence.during.get(node, ())]
    within = [r for r in known if (r.device, r.in_domain) == (resource.device, resource.number)]
    return list(dict.fromkeys(within))[:DESCRIBED]


def _pid_of_context(evidence: Evidence, node: str, resource: Resource, left: Iterable[Resource]) -> int | None:
    """The process that opened the device which a resource belongs to, by any other resource that tells."""
    known = [*left, *evidence.during.get(node, ())]
    place = resource.device, resource.in_context
    domains = [r for r in known if isinstance(r, ProtectionDomain) and (r.device, r.context) == place][:DESCRIBED]
    within = [r for domain in domains for r in _related(evidence, node, domain, known)]
    pids = [r.pid for r in (*domains, *within)]
    pids += [e.pid for r in within for e in _entries(evidence, node, r)]
    return next((pid for pid in pids if pid), None)


def _made_by(evidence: Evidence, node: str, entry: Registered | QueuePairMade) -> Origin:
    call = _call_around(evidence, node, entry)
    socket = call.socket if call else None
    if socket is None:
        socket = _socket_of(evidence, node, entry.handle, entry.worker)
    return Origin(entry.pid, call.function if call else None, socket, entry.at_ns)


def _call_around(evidence: Evidence, node: str, entry: Entry) -> Begin | None:
    """The call that was under way in the thread of a journal entry, if there was one."""
    begun = evidence.of(node, Begin, worker=entry.worker, thread=entry.thread)
    ended = evidence.of(node, Call, worker=entry.worker, thread=entry.thread)
    before = [e for e in (*begun, *ended) if e.at_ns <= entry.at_ns]
    last = max(before, key=lambda e: e.at_ns, default=None)
    return None if last is None or isinstance(last, Call) else last


def _socket_of(evidence: Evidence, node: str, handle: int, worker: int | None) -> int | None:
    made = evidence.of(node, HandleMade, handle=handle, worker=worker)
    return made[-1].context if handle and made else None
