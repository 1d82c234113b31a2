"""What processes hold more of than before."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from hil.adapters.processes import is_verbs
from hil.evidence.journal import Call
from hil.evidence.resources import Process
from hil.winsock.codes import Code

RDMA_CM = "/dev/infiniband/rdma_cm"


def ended_processes(calls: Iterable[Call]) -> set[int]:
    """The processes of a node in whose journal every WSPStartupEx has its WSPCleanup: their providers have ended."""
    balance: dict[int, int] = {}
    for call in calls:
        step = {"WSPStartupEx": 1, "WSPCleanup": -1}.get(call.function, 0)
        if step and call.pid is not None and call.code in (Code.OK, Code.WSAENETDOWN):
            balance[call.pid] = balance.get(call.pid, 0) + step
    return {pid for pid, left in balance.items() if not left}


def grown_processes(before: Iterable[Process], after: Iterable[Process], ended: Collection[int] = ()) -> list[str]:
    """What each process, which ended every use of verbs, has more of than before: descriptors, threads, memory.

    A process that was not there before must hold no verbs descriptor and no pinned memory. In those of ``ended`` a
    provider ran before and does not any more: its own thread must be gone.
    """
    known = {process.pid: process for process in before}
    texts = []
    for process in after:
        old = known.get(process.pid)
        if old and process.pid in ended:
            old = replace(old, threads=old.threads - 1)
        place = f"pid {process.pid} ({process.command})"
        texts += [f"{place}: {text}" for text in _more(old, process)]
    return texts


def _more(old: Process | None, now: Process) -> Iterable[str]:
    held = old.descriptors if old else {}
    grown = {target: count - held.get(target, 0) for target, count in now.descriptors.items()}
    # librdmacm opens the device itself, with an event descriptor, and keeps both until the process ends.
    library = _opened_devices(grown)
    for target, count in grown.items():
        count -= min(count, library.get(target, library["events"])) if is_verbs(target) and target != RDMA_CM else 0
        if count > 0 and (old or is_verbs(target)):
            yield f"{count} descriptors of {target}"
    if old and now.threads > old.threads:
        yield f"{now.threads - old.threads} threads"
    sizes = (("locked", old.locked if old else 0, now.locked), ("pinned", old.pinned if old else 0, now.pinned))
    for kind, had, has in sizes:
        if has > had:
            yield f"{has - had} bytes of {kind} memory"


def _opened_devices(grown: dict[str, int]) -> dict[str, int]:
    """What librdmacm may keep: one descriptor of each device it opened, and an event descriptor for each of them."""
    opened = {target: 1 for target, count in grown.items() if target.startswith("/dev/infiniband/uverbs") and count > 0}
    return opened | {"events": len(opened)}
