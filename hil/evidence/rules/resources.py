"""Which kernel resources count: those of connected sockets, those that are left behind."""

from collections.abc import Collection, Iterable

from hil.evidence.evidence import Evidence
from hil.evidence.resources import CmId, Context, MemoryRegion, ProtectionDomain, QueuePair, Resource, ResourceKind

AUDITED = (ResourceKind.QP, ResourceKind.CQ, ResourceKind.MR, ResourceKind.PD, ResourceKind.CM_ID)


def held(resources: Iterable[Resource], during: Collection[Resource]) -> list[Resource]:
    """What counts as left behind: everything but librdmacm's context and its idle PD.

    librdmacm opens the device and allocates a PD of its own with the first id of a process, and may keep both until the
    process ends. They are told from a provider's by the context: in librdmacm's no PD carries a QP or MR ``during`` the
    connection.
    """
    carried = {(r.device, r.pd) for r in during if isinstance(r, QueuePair | MemoryRegion)}
    contexts = {
        (r.device, r.context) for r in during if isinstance(r, ProtectionDomain) and (r.device, r.number) in carried
    }
    return [r for r in resources if _is_used(r) or (r.device, r.in_context) in contexts]


def _is_used(resource: Resource) -> bool:
    if isinstance(resource, ProtectionDomain):
        return bool(resource.use_count)
    return not isinstance(resource, Context)


def of_sockets(
    resources: Iterable[Resource], before: Iterable[Resource], during: Collection[Resource]
) -> list[Resource]:
    """Those of ``resources`` that are connected sockets': not there ``before`` the first, no listener's, no idle PD, no
    opened device, which all sockets share."""
    found = [r for r in held(resources, during) if not _is_listener(r) and not isinstance(r, Context)]
    return others(found, before)


def others(resources: Iterable[Resource], before: Iterable[Resource]) -> list[Resource]:
    """Those of ``resources`` that were not there ``before``: on a host, other programs have theirs."""
    known = {r.identity for r in before}
    return [r for r in resources if r.identity not in known]


def _is_listener(resource: Resource) -> bool:
    return isinstance(resource, CmId) and not resource.qp


def unseen(evidence: Evidence) -> list[str]:
    """Kinds of resource that an audit during an open connection should have seen and did not, by node."""
    return [
        f"{kind} on node {node}"
        for node, found in evidence.during.items()
        for kind in AUDITED
        if kind not in {r.kind for r in found}
    ]
