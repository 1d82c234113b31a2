"""The rules of a hard close: pure functions over evidence that yield findings."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from hil.adapters.processes import is_verbs
from hil.evidence.disconnect import (
    Disconnect,
    Finding,
    Release,
    address_finding,
    answer_findings,
    release_findings,
)
from hil.evidence.evidence import Evidence
from hil.evidence.origins import named
from hil.evidence.packets import Connection, RocePacket
from hil.roce.psn import not_before
from hil.winsock.codes import Code, failed

PENDING = int(Code.WSA_IO_PENDING)
OVERLAPPED = ("WSPSend", "WSPRecv", "WSPRdmaWrite", "WSPRdmaRead", "WSPIoctl")
# What frames may wait on the way to the wire's clock, and how long a hard close may take to say so on the wire.
WIRE_DELAY_NS = 100_000_000
RESET_WITHIN_NS = 1_000_000_000
# BTH opcodes of RC that end a message of WSPSend: SEND last and only, with immediate, with invalidate (9.2).
MESSAGE_ENDS = frozenset({0x02, 0x03, 0x04, 0x05, 0x16, 0x17})


@dataclass(frozen=True, slots=True)
class HardClose:
    """Which close is judged: the closer's and the peer's node, socket descriptor and switch handle."""

    closer: str
    closer_socket: int
    closer_handle: int
    peer: str
    peer_socket: int
    peer_handle: int
    killed: bool = False
    both: bool = False

    def other_way(self) -> "HardClose":
        """The same connection with the ends exchanged."""
        ends = (self.peer, self.peer_socket, self.peer_handle, self.closer, self.closer_socket, self.closer_handle)
        return HardClose(*ends, self.killed, self.both)


def judge(evidence: Evidence, close: HardClose) -> list[Finding]:
    """Every finding of one hard close."""
    findings = list(wire_findings(evidence, close))
    if not close.killed:
        findings += closer_findings(evidence, close)
    if close.both:
        findings += closer_findings(evidence, close.other_way())
    if not close.both:
        findings += peer_findings(evidence, close)
    return findings


def closer_findings(evidence: Evidence, close: HardClose) -> Iterable[Finding]:
    """The closer's side: cancelled operations, their code, the order of up-calls."""
    node, handle = close.closer, close.closer_handle
    calls = evidence.of(node, "call", function="WSPCloseSocket", socket=close.closer_socket, result=0)
    begun = evidence.of(node, "begin", function="WSPCloseSocket", socket=close.closer_socket)
    yield Finding("WSPCloseSocket returns 0", ("CLOSE-01",), bool(calls), f"{len(calls)} calls returned 0")
    started_ns = begun[0]["at_ns"] if begun else 0
    posted = _posted(evidence, node, close.closer_socket)
    upcalls = [e for e in evidence.of(node, "upcall", handle=handle) if e["function"] != "WPUCreateSocketHandle"]
    done = [e for e in upcalls if e["function"] == "WPUCompleteOverlappedRequest"]
    counts = {o: sum(e["overlapped"] == o for e in done) for o in posted}
    yield Finding(
        "each operation completes exactly once",
        ("CLOSE-11", "CLOSE-12", "CLOSE-14", "OVL-02"),
        all(n == 1 for n in counts.values()) and len(done) == len(posted),
        f"completions by operation: {counts}",
    )
    late = [e for e in done if e["at_ns"] >= started_ns]
    # When both close, the peer's reset may be here before this close has stopped anything: then it ends operations.
    resets = evidence.of(node, "cm", handle=handle, event="DISCONNECTED") if close.both else []
    reset_ns = min((e["at_ns"] for e in resets), default=None)
    ended = [e for e in late if e["code"] == Code.WSAECONNRESET and reset_ns is not None and reset_ns <= e["at_ns"]]
    cancelled = [e for e in late if e["code"] and e not in ended]
    codes = {str(Code(e["code"])) for e in cancelled}
    yield Finding(
        "cancelled operations end with WSA_OPERATION_ABORTED and zero bytes",
        ("CLOSE-13", "CLOSE-16"),
        all(e["code"] == Code.WSA_OPERATION_ABORTED for e in cancelled)
        and all(e["transferred"] == 0 for e in (*cancelled, *ended)),
        f"{len(cancelled)} cancelled with {sorted(codes)}",
    )
    released = [e["at_ns"] for e in evidence.of(node, "mr", handle=handle, event="released")]
    count = sum(e["count"] for e in evidence.of(node, "mr", handle=handle, event="released"))
    early = [e["overlapped"] for e in cancelled if released and e["at_ns"] < max(released)]
    registered = _succeeded(evidence, node, "WSPRegisterMemory", close.closer_socket)
    registered -= _succeeded(evidence, node, "WSPDeregisterMemory", close.closer_socket)
    yield Finding(
        "memory is released before operations are cancelled",
        ("CLOSE-17",),
        not early and count == registered,
        f"{count} of {registered} registrations released; completed before: {early}",
    )
    closes = [i for i, e in enumerate(upcalls) if e["function"] == "WPUCloseSocketHandle"]
    yield Finding(
        "WPUCloseSocketHandle is the last up-call, made once",
        ("CLOSE-23", "CLOSE-24", "CLOSE-25", "CLOSE-26"),
        closes == [len(upcalls) - 1],
        f"up-calls: {[e['function'] for e in upcalls]}",
    )


def peer_findings(evidence: Evidence, close: HardClose) -> Iterable[Finding]:
    """The peer's side: the news arrives, and what was pending ends with WSAECONNRESET."""
    events = evidence.of(close.peer, "cm", event="DISCONNECTED", handle=close.peer_handle)
    yield Finding("the peer's CM hears of it", ("CLOSE-31",), bool(events), f"{len(events)} DISCONNECTED events")
    if events and (connection := _connection(evidence, close)) is not None:
        yield _news_was_carried(evidence, close, connection, events[0])
    posted = _posted(evidence, close.peer, close.peer_socket)
    done = evidence.of(close.peer, "upcall", function="WPUCompleteOverlappedRequest", handle=close.peer_handle)
    counts = {o: sum(e["overlapped"] == o for e in done) for o in posted}
    yield Finding(
        "each operation at the peer completes exactly once",
        ("RECV-13", "CLOSE-31", "CLOSE-34"),
        all(n == 1 for n in counts.values()) and len(done) == len(posted),
        f"completions by operation: {counts}",
    )
    heard_ns = events[0]["at_ns"] if events else 0
    begun = evidence.of(close.peer, "begin", function="WSPCloseSocket", socket=close.peer_socket)
    # What the peer cancels itself is excused only when its own close came first.
    own_ns = begun[0]["at_ns"] if begun and begun[0]["at_ns"] < heard_ns else None
    failed = [e for e in done if e["code"] and (own_ns is None or e["at_ns"] < own_ns)]
    yield Finding(
        "operations pending at the peer end with WSAECONNRESET and zero bytes",
        ("RECV-13", "CLOSE-31"),
        all(e["code"] == Code.WSAECONNRESET and e["transferred"] == 0 for e in failed),
        f"{len(failed)} failed with {sorted({str(Code(e['code'])) for e in failed})}",
    )


def _news_was_carried(evidence: Evidence, close: HardClose, connection: Connection, heard: dict[str, Any]) -> Finding:
    # Wire and node agree: the peer hears of a reset once a DREQ of this connection came, or the answer to its own.
    own, kinds = evidence.addresses[close.peer], ("DREQ", "DREP")
    arrived = [p for p in connection.packets(evidence.delivered) if p.cm in kinds and p.source not in own]
    first = min(
        (evidence.packet_times_ns[p.frame] - evidence.late_frames.get(p.frame, 0) for p in arrived), default=None
    )
    statement, requirements = "what the peer's CM hears the wire has carried", ("CLOSE-31", "CLOSE-35")
    if first is None:
        return Finding(statement, requirements, False, "no DREQ and no DREP reached the peer")
    since_ns = heard["at_ns"] - first
    seen = f"heard {since_ns / 1e6:.1f} ms after it was carried"
    return Finding(statement, requirements, since_ns >= -(evidence.uncertainty_ns + evidence.late_ns), seen)


def wire_findings(evidence: Evidence, close: HardClose) -> Iterable[Finding]:
    """The wire: DREQ and DREP of this very connection, in the right place, and nothing after."""
    connection = _connection(evidence, close)
    if connection is None:
        seen = "no REQ and REP of these nodes found"
        yield Finding("the connection is in the capture", ("CLOSE-35",), False, seen)
        return
    closer, peer = evidence.addresses[close.closer], evidence.addresses[close.peer]
    yield from disconnect_findings(evidence, connection, closer, peer, both=close.both)
    if not close.killed:
        yield _reset_by_close(evidence, close, connection)
        yield _successes_were_carried(evidence, connection, close.closer, close.closer_handle)
    yield _successes_were_carried(evidence, connection, close.peer, close.peer_handle)


def _successes_were_carried(evidence: Evidence, connection: Connection, node: str, handle: int) -> Finding:
    # What an end calls a success must have been a message on the wire: the provider's word alone is not evidence.
    own = evidence.addresses[node]
    packets = connection.packets(evidence.packets)
    ends = {(p.source in own, p.psn) for p in packets if p.opcode in MESSAGE_ENDS}
    # Syndrome 000xxxxx is an ACK; RNR and other NAKs acknowledge nothing (9.7.5.2.1).
    acks = {(p.source in own, p.psn) for p in packets if p.syndrome >= 0 and p.syndrome >> 5 == 0}
    ends = {(mine, psn) for mine, psn in ends if any(a != mine and not_before(at, psn) for a, at in acks)}
    since_ns = max((e["at_ns"] for e in evidence.of(node, "qp", handle=handle)), default=0)
    done = evidence.of(node, "upcall", function="WPUCompleteOverlappedRequest", handle=handle, code=0)
    done = [e for e in done if e["at_ns"] >= since_ns]
    kinds = {
        e["overlapped"]: e["function"]
        for e in evidence.of(node, "call")
        if e["function"] in ("WSPSend", "WSPRecv") and e["code"] == PENDING
    }
    told = {f: sum(kinds.get(e["overlapped"]) == f for e in done) for f in ("WSPSend", "WSPRecv")}
    carried = {"WSPSend": sum(mine for mine, _ in ends), "WSPRecv": sum(not mine for mine, _ in ends)}
    held = all(told[f] <= carried[f] for f in told)
    statement = f"every success at node {node} was an acknowledged message on the wire"
    return Finding(statement, ("CLOSE-11", "CLOSE-15"), held, f"successes {told}, acknowledged messages {carried}")


def _reset_by_close(evidence: Evidence, close: HardClose, connection: Connection) -> Finding:
    # Ending the process or the library sends a DREQ too, and a lingering close a late one.
    packets = connection.packets(evidence.packets)
    times = [(evidence.packet_times_ns[p.frame], p.frame) for p in packets if p.cm == "DREQ"]
    facts = {"function": "WSPCloseSocket", "socket": close.closer_socket}
    begun = [e["at_ns"] for e in evidence.of(close.closer, "begin", **facts)]
    ended = [e["at_ns"] for e in evidence.of(close.closer, "call", **facts, result=0)]
    statement = "the DREQ comes while WSPCloseSocket runs, at once"
    if not times or not begun or not ended:
        return Finding(statement, ("CLOSE-06", "CLOSE-35"), False, f"{len(times)} DREQ, {len(begun)} calls begun")
    slack_ns = evidence.uncertainty_ns + WIRE_DELAY_NS
    first, frame = min(times)
    late_ns = evidence.late_frames.get(frame, 0)
    latest = min(ended[0] + slack_ns, begun[0] + RESET_WITHIN_NS) + evidence.late_ns
    held = begun[0] - slack_ns <= first <= latest
    seen = (
        f"DREQ {(first - begun[0]) / 1e6:.1f} ms after the call began, which took {(ended[0] - begun[0]) / 1e6:.1f} ms"
    )
    if not held and begun[0] - slack_ns <= first - late_ns <= latest:
        # A stamp that is late by so much proves nothing: the adapter may have sent it in time.
        doubt = f"the recorder stamped it {late_ns / 1e6:.1f} ms late"
        return Finding(statement, ("CLOSE-06", "CLOSE-07", "CLOSE-35"), True, seen, doubt)
    return Finding(statement, ("CLOSE-06", "CLOSE-07", "CLOSE-35"), held, seen)


def disconnect_findings(
    evidence: Evidence, connection: Connection, closer: list[str], peer: list[str], *, both: bool = False
) -> Iterable[Finding]:
    """A connection's end on the wire, whoever made it; ``closer`` and ``peer`` are the ends' addresses.

    ``both``: either end may have sent the DREQ.
    """
    packets = connection.packets(evidence.packets)
    dreqs = [p for p in packets if p.cm == "DREQ" and (p.source in closer or both)]
    dreps = [p for p in packets if p.cm == "DREP" and (p.source in peer or both)]
    qpns = {True: connection.passive_qpn, False: connection.active_qpn}
    own = [dreqs[0].source] if dreqs else []
    facts = Disconnect(
        described=str(connection),
        ends=(connection.active, connection.passive),
        gids=connection.gids,
        dreqs=tuple(Release(p.frame, p.qpn == qpns[p.source == connection.active]) for p in dreqs),
        dreps=tuple(p.frame for p in dreps),
        answered=bool(dreps) and bool(dreqs) and dreps[0].frame > dreqs[0].frame,
        after_dreq=_after(packets, dreqs[0], own) if dreqs else (),
        after_drep=_after(packets, dreps[-1], [*closer, *peer]) if dreps else (),
        closers_last_data=_last_data(packets, own),
        last_data=_last_data(packets, [*closer, *peer]),
    )
    yield address_finding(facts)
    yield from release_findings(facts)
    yield from answer_findings(facts)


AUDITED = ("QP", "CQ", "MR", "PD", "CM_ID")


def held(resources: list[dict[str, Any]], during: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What counts as left behind: everything but librdmacm's context and its idle PD.

    librdmacm opens the device and allocates a PD of its own with the first id of a process, and may keep both until the
    process ends. They are told from a provider's by the context: in librdmacm's no PD carries a QP or MR ``during`` the
    connection.
    """
    carried = {(r["device"], r.get("pd")) for r in during if r["kind"] in ("QP", "MR")}
    pds = [r for r in during if r["kind"] == "PD" and (r["device"], r.get("number")) in carried]
    contexts = {(r["device"], r.get("context")) for r in pds}
    return [r for r in resources if _is_used(r) or (r["device"], _context(r)) in contexts]


def _is_used(resource: dict[str, Any]) -> bool:
    return resource["kind"] != "CTX" and (resource["kind"] != "PD" or bool(resource.get("use_count")))


def _context(resource: dict[str, Any]) -> int | None:
    context: int | None = resource.get("number" if resource["kind"] == "CTX" else "context")
    return context


def of_sockets(
    resources: list[dict[str, Any]], before: list[dict[str, Any]], during: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those of ``resources`` that are connected sockets': not there ``before`` the first, no listener's, no idle PD, no
    opened device, which all sockets share."""
    found = [r for r in held(resources, during) if not _is_listener(r) and r["kind"] != "CTX"]
    return others(found, before)


def others(resources: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of ``resources`` that were not there ``before``: on a host, other programs have theirs."""
    known = {(r["kind"], r["device"], r["number"]) for r in before}
    return [r for r in resources if (r["kind"], r["device"], r["number"]) not in known]


def _is_listener(resource: dict[str, Any]) -> bool:
    return resource["kind"] == "CM_ID" and not resource.get("qp")


def sound_findings(evidence: Evidence) -> Iterable[Finding]:
    """No provider raised where nobody but the bench would see it."""
    raised = [e["traceback"].strip().splitlines()[-1] for e in evidence.events if e["kind"] == "error"]
    yield Finding("no provider's thread raised", ("CLOSE-28",), not raised, "; ".join(raised) or "nothing raised")
    upcalls = [e for e in evidence.events if e["kind"] == "upcall"]
    stray = [
        e
        for e in upcalls
        if not e.get("known", True)
        or (e["function"] == "WPUCompleteOverlappedRequest" and not (e["was_pending"] and e["overlapped"]))
    ]
    seen = [f"{e['function']} handle {e['handle']} at node {e['node']}" for e in stray]
    statement = "every up-call names a live handle and a pending operation"
    told = "; ".join(seen) or f"{len(upcalls)} up-calls"
    yield Finding(statement, ("CLOSE-14", "CLOSE-25", "OVL-02"), not stray, told)
    calls = [e for e in evidence.events if e["kind"] == "call"]
    never = [e for e in calls if e["code"] in (Code.WSAEINPROGRESS, Code.WSAEINTR)]
    waits = [e for e in calls if e["code"] == Code.WSAEWOULDBLOCK and e["function"] not in ("WSPConnect", "WSPAccept")]
    seen = [f"{e['function']}: {Code(e['code'])}" for e in (*never, *waits)]
    requirements = ("ERR-01", "ERR-02", "ERR-03", "CLOSE-04", "CLOSE-05")
    yield Finding("no call ends with a code of blocking calls", requirements, not seen, "; ".join(seen) or "none did")
    # WSPStartupEx returns the code itself.
    odd = [
        e for e in calls if e["function"] != "WSPStartupEx" and failed(e["function"], e["result"]) != bool(e["code"])
    ]
    seen = [f"{e['function']} returned {e['result']} with {Code(e['code'])}" for e in odd]
    statement = "a call that fails returns its sentinel and stores a code"
    yield Finding(statement, ("CLOSE-02", "SOCK-10", "OVL-01"), not seen, "; ".join(seen) or f"{len(calls)} calls")


def switch_findings(evidence: Evidence) -> Iterable[Finding]:
    """The switch kept its obligations, but for those a test broke deliberately."""
    broken = [e for e in evidence.events if e["kind"] == "misbehaves" and not e["deliberate"]]
    requirements = tuple(sorted({e["requirement"] for e in broken})) or ("SWITCH-14",)
    seen = "; ".join(f"{e['requirement']} at node {e['node']}: {e['seen']}" for e in broken)
    yield Finding("the switch keeps its obligations", requirements, not broken, seen or "it does")
    for (node, worker), (starts, ends) in _starts_and_ends(evidence).items():
        statement = f"worker {worker} of node {node} pairs every WSPStartupEx with a WSPCleanup"
        yield Finding(statement, ("SWITCH-13",), starts == ends, f"{starts} of the one, {ends} of the other")


def _starts_and_ends(evidence: Evidence) -> dict[tuple[str, int], tuple[int, int]]:
    found: dict[tuple[str, int], tuple[int, int]] = {}
    killed = {(e["node"], e["worker"]) for e in evidence.events if e["kind"] == "exit"}
    for e in evidence.events:
        begun, ended = (e.get("function") == name for name in ("WSPStartupEx", "WSPCleanup"))
        # A clean-up that reports the network down counts all the same.
        counts = e.get("code") == Code.OK or (ended and e.get("code") == Code.WSAENETDOWN)
        if e["kind"] == "call" and (begun or ended) and counts:
            place = (e["node"], e["worker"])
            starts, ends = found.get(place, (0, 0))
            if place not in killed:
                found[place] = (starts + begun, ends + (not begun))
    return found


def leak_findings(evidence: Evidence) -> Iterable[Finding]:
    """Nothing of a closed socket is left before WSPCleanup, and nothing at all after it."""
    for node, left in evidence.after_close.items():
        statement = f"node {node}'s kernel holds nothing of the closed socket"
        yield Finding(statement, ("CLOSE-18", "CLOSE-27"), not left, named(left, evidence, node))
    for node, found in evidence.resources.items():
        left = held(found, evidence.during.get(node, []))
        statement = f"node {node}'s kernel holds nothing after WSPCleanup"
        yield Finding(statement, ("CLOSE-18", "CLOSE-27", "CLEAN-04"), not left, named(left, evidence, node))
    ours = {e["pid"] for e in evidence.events if "pid" in e}
    for node, (before, after) in evidence.processes.items():
        ended = ended_processes(evidence.of(node, "call"))
        grown = grown_processes(before, [process for process in after if process["pid"] in ours], ended)
        statement = f"node {node}'s processes hold no more than before the first connection"
        yield Finding(
            statement, ("CLOSE-27", "CLEAN-04"), not grown, "; ".join(grown) or f"{len(after)} processes looked at"
        )
    for node, log in evidence.kernel_log.items():
        bad = complaints(log)
        statement = f"node {node}'s kernel does not complain"
        told = "; ".join(bad) or f"{len(log)} messages, none of them a complaint"
        yield Finding(statement, ("CLOSE-28",), not bad, told)


def ended_processes(calls: Iterable[dict[str, Any]]) -> set[int]:
    """The processes of a node in whose journal every WSPStartupEx has its WSPCleanup: their providers have ended."""
    balance: dict[int, int] = {}
    for call in calls:
        step = {"WSPStartupEx": 1, "WSPCleanup": -1}.get(call.get("function", ""), 0)
        if step and "pid" in call and call.get("code") in (Code.OK, Code.WSAENETDOWN):
            balance[call["pid"]] = balance.get(call["pid"], 0) + step
    return {pid for pid, left in balance.items() if not left}


def grown_processes(
    before: list[dict[str, Any]], after: list[dict[str, Any]], ended: Collection[int] = ()
) -> list[str]:
    """What each process, which ended every use of verbs, has more of than before: descriptors, threads, memory.

    A process that was not there before must hold no verbs descriptor and no pinned memory. In those of ``ended`` a
    provider ran before and does not any more: its own thread must be gone.
    """
    known = {process["pid"]: process for process in before}
    texts = []
    for process in after:
        old = known.get(process["pid"])
        if old and process["pid"] in ended:
            old = old | {"threads": old["threads"] - 1}
        place = f"pid {process['pid']} ({process['command']})"
        texts += [f"{place}: {text}" for text in _more(old, process)]
    return texts


def _more(old: dict[str, Any] | None, now: dict[str, Any]) -> Iterable[str]:
    held = old["descriptors"] if old else {}
    grown = {target: count - held.get(target, 0) for target, count in now["descriptors"].items()}
    # librdmacm opens the device itself, with an event descriptor, and keeps both until the process ends.
    library = _opened_devices(grown)
    for target, count in grown.items():
        count -= min(count, library.get(target, library["events"])) if is_verbs(target) and target != RDMA_CM else 0
        if count > 0 and (old or is_verbs(target)):
            yield f"{count} descriptors of {target}"
    if old and now["threads"] > old["threads"]:
        yield f"{now['threads'] - old['threads']} threads"
    for kind in ("locked", "pinned"):
        if now[kind] > (old[kind] if old else 0):
            yield f"{now[kind] - (old[kind] if old else 0)} bytes of {kind} memory"


RDMA_CM = "/dev/infiniband/rdma_cm"


def _opened_devices(grown: dict[str, int]) -> dict[str, int]:
    """What librdmacm may keep: one descriptor of each device it opened, and an event descriptor for each of them."""
    opened = {target: 1 for target, count in grown.items() if target.startswith("/dev/infiniband/uverbs") and count > 0}
    return opened | {"events": len(opened)}


# How the kernel says that something of its own is wrong; a driver's own errors are level 3 and below.
COMPLAINT = re.compile(
    r"BUG:|WARNING:|Oops|general protection|Call Trace|refcount_t:|list_(add|del) corruption|blocked for more than|"
    r"unregister_netdevice: waiting|KASAN|UBSAN"
)
STARVED = re.compile(r"Out of memory")


def complaints(log: list[dict[str, Any]]) -> list[str]:
    """The messages of a kernel's log that tell of a fault."""
    return [record["text"] for record in log if COMPLAINT.search(record["text"])]


def starved(log: list[dict[str, Any]]) -> list[str]:
    """The messages of a kernel's log that tell of a machine without memory: what it ended says nothing of an adapter.

    One that a control group's limit ended concerns nobody outside of that group.
    """
    return [record["text"] for record in log if STARVED.search(record["text"])]


def unseen(evidence: Evidence) -> list[str]:
    """Kinds of resource that an audit during an open connection should have seen and did not, by node."""
    return [
        f"{kind} on node {node}"
        for node, found in evidence.during.items()
        for kind in AUDITED
        if kind not in {r["kind"] for r in found}
    ]


def broken(findings: Iterable[Finding]) -> list[Finding]:
    return [f for f in findings if not f.held]


def _succeeded(evidence: Evidence, node: str, function: str, socket: int) -> int:
    return len(evidence.of(node, "call", function=function, socket=socket, code=0))


def _after(packets: list[RocePacket], last: RocePacket, sources: list[str]) -> tuple[int, ...]:
    after = [p for p in packets if p.frame > last.frame and p.source in sources and p.cm not in ("DREQ", "DREP")]
    return tuple(p.frame for p in after)


def _last_data(packets: list[RocePacket], sources: list[str]) -> int | None:
    return max((p.frame for p in packets if not p.cm and p.source in sources), default=None)


def _connection(evidence: Evidence, close: HardClose) -> Connection | None:
    ends = set(evidence.addresses[close.closer]), set(evidence.addresses[close.peer])
    # A hand-over gives a socket another queue pair: the last is the one that was closed.
    qpn = next((e["qp_num"] for e in reversed(evidence.of(close.closer, "qp", handle=close.closer_handle))), None)
    matches: Callable[[Connection], bool] = lambda c: (  # noqa: E731
        (c.active in ends[0] and c.passive in ends[1] and c.active_qpn == qpn)
        or (c.active in ends[1] and c.passive in ends[0] and c.passive_qpn == qpn)
    )
    return next((c for c in evidence.connections() if matches(c)), None)


def _posted(evidence: Evidence, node: str, socket: int) -> list[int]:
    calls = [e for e in evidence.of(node, "call", socket=socket) if e["function"] in OVERLAPPED]
    return [e["overlapped"] for e in calls if e["code"] == PENDING and not e["polled"]]
