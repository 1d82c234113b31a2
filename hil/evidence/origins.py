"""Where what the kernel still holds came from: its list joined with the provider's journal."""

from collections.abc import Iterable, Iterator
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


class _Known:
    """What the journal of a node, and lists of resources, tell of resources; looked through once."""

    def __init__(self, evidence: Evidence, node: str, left: Iterable[Resource]) -> None:
        self.evidence, self.node = evidence, node
        # A key or number may be used again: the last entry with it is of the one that is left.
        self.registered = {e.key: e for e in evidence.of(node, Registered)}
        self.made = {e.qp_num: e for e in evidence.of(node, QueuePairMade)}
        self.within: dict[tuple[str, int | None], list[Resource]] = {}
        self.domains: dict[tuple[str, int | None], list[Resource]] = {}
        for resource in dict.fromkeys((*left, *evidence.during.get(node, ()))):
            self.within.setdefault((resource.device, resource.in_domain), []).append(resource)
            if isinstance(resource, ProtectionDomain):
                self.domains.setdefault((resource.device, resource.context), []).append(resource)
        self.seen = {resource.identity for resource in evidence.during.get(node, ())}
        self.start_ns = start_ns(evidence)

    def entries(self, resource: Resource) -> Iterator[Registered | QueuePairMade]:
        """The journal's entries of the making of a region, a queue pair, or an id's queue pair."""
        if isinstance(resource, MemoryRegion) and resource.key in self.registered:
            yield self.registered[resource.key]
        number = resource.number if isinstance(resource, QueuePair) else None
        number = resource.qp if isinstance(resource, CmId) else number
        if number and number in self.made:
            yield self.made[number]

    def related(self, resource: Resource) -> list[Resource]:
        """What was in a protection domain."""
        if not isinstance(resource, ProtectionDomain):
            return []
        return self.within.get((resource.device, resource.number), [])


def named(resources: Iterable[Resource], evidence: Evidence | None = None, node: str = "") -> str:
    """Resources for people; with the evidence of their ``node``, each with where it came from."""
    left = list(resources)
    known = _Known(evidence, node, left) if evidence and left else None
    texts = [_described(r) + (_opened(known, r) if known else _owner(r)) for r in left[:DESCRIBED]]
    more = [f"and {len(left) - DESCRIBED} more"] if len(left) > DESCRIBED else []
    return "; ".join([*texts, *more]) or "nothing left"


def _described(resource: Resource) -> str:
    number = str(resource.number) if resource.key is None else f"{resource.key:#x}"
    return ", ".join(filter(None, (f"{resource.kind} {number}", resource.detail, resource.device)))


def _owner(resource: Resource, pid: int | None = None) -> str:
    # The kernel forgets the owner when the thread that made a resource ends; the journal remembers the process.
    return f", pid {resource.pid or pid} ({resource.command})"


def _opened(known: _Known, resource: Resource) -> str:
    found = _origin(known, resource)
    if found is None:
        return _owner(resource, _pid_of_context(known, resource)) + _first_seen(known, resource)
    by = f"by {found.function}" if found.function else "by the provider's own thread"
    socket = f" for socket {found.socket}" if found.socket is not None else ""
    at_ms = (found.at_ns - known.start_ns) / 1e6
    return f"{_owner(resource, found.pid)}, opened {by}{socket} at {at_ms:.3f} ms"


def _first_seen(known: _Known, resource: Resource) -> str:
    if known.node not in known.evidence.during:
        return ""
    seen = resource.identity in known.seen
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
    return _origin(_Known(evidence, node, left), resource)


def _origin(known: _Known, resource: Resource) -> Origin | None:
    entries = list(known.entries(resource))
    entries = entries or [e for other in known.related(resource) for e in known.entries(other)]
    return _made_by(known.evidence, known.node, min(entries, key=lambda e: e.at_ns)) if entries else None


def _pid_of_context(known: _Known, resource: Resource) -> int | None:
    """The process that opened the device which a resource belongs to, by any other resource that tells."""
    domains = known.domains.get((resource.device, resource.in_context), [])
    told = [r.pid for domain in domains for r in (domain, *known.related(domain))]
    told += [e.pid for domain in domains for r in known.related(domain) for e in known.entries(r)]
    return next((pid for pid in told if pid), None)


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
