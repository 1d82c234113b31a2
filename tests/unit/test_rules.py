"""Every rule over evidence, on recorded bundles: it holds as recorded, and breaks when one fact is another."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from golden import PASSES, Alter, Altered, bundle

import hil.evidence.rules
from hil.evidence.evidence import Evidence
from hil.evidence.journal import (
    Begin,
    Call,
    CmEvent,
    CmHeard,
    Completed,
    HandleMade,
    Misbehaves,
    QueuePairMade,
    Raised,
    Released,
    UpCall,
)
from hil.evidence.judgement import judge
from hil.evidence.resources import KernelMessage, MemoryRegion
from hil.winsock.codes import Code

CLOSE_HANDLE = "WPUCloseSocketHandle"


def closer_calls(made: Altered, kind: type[Begin], function: str = "WSPCloseSocket") -> list[Begin]:
    node, socket = made.close.closer, made.close.closer_socket
    return [e for e in made.entries(kind, function=function, socket=socket) if e.node == node]


def done(made: Altered, node: str, handle: int) -> list[Completed]:
    return [e for e in made.entries(Completed, handle=handle) if e.node == node]


def closers_done(made: Altered) -> list[Completed]:
    return done(made, made.close.closer, made.close.closer_handle)


def peers_done(made: Altered) -> list[Completed]:
    return done(made, made.close.peer, made.close.peer_handle)


def data_behind(made: Altered, cm: str) -> None:
    """The closer's last data packet once more, behind the message."""
    (connection,) = made.evidence.connections()
    dreq = made.packet("DREQ")
    own = [p for p in connection.packets(made.evidence.packets) if not p.cm and p.source == dreq.source]
    made.add_packet(replace(own[-1], frame=made.packet(cm).frame + 1_000))


def late_close(made: Altered) -> None:
    """The DREQ two seconds behind the call."""
    made.evidence.packet_times_ns[made.packet("DREQ").frame] += 2_000_000_000


def without_acknowledgements(made: Altered) -> None:
    made.evidence.packets = [p for p in made.evidence.packets if p.syndrome < 0]


def release_late(made: Altered) -> None:
    (released,) = [e for e in made.entries(Released) if e.handle == made.close.closer_handle]
    made.change(released, at_ns=max(e.at_ns for e in closers_done(made)) + 1)


def upcall_behind_the_last(made: Altered) -> None:
    (closed,) = [
        e
        for e in made.entries(UpCall, function=CLOSE_HANDLE, handle=made.close.closer_handle)
        if e.node == made.close.closer
    ]
    made.add(replace(closed, t_ns=closed.t_ns + 1))


def heard_before_it_was_carried(made: Altered) -> None:
    (heard,) = [e for e in made.entries(CmHeard, event=CmEvent.DISCONNECTED) if e.handle == made.close.peer_handle]
    carried_ns = made.evidence.packet_times_ns[made.packet("DREQ").frame]
    made.change(heard, at_ns=carried_ns - made.evidence.uncertainty_ns - 1)


def peer_hears_nothing(made: Altered) -> None:
    made.drop(*(e for e in made.entries(CmHeard, event=CmEvent.DISCONNECTED) if e.node == made.close.peer))


def a_leak(where: Callable[[Evidence], dict[str, list[object]]]) -> Alter:
    def leak(made: Altered) -> None:
        where(made.evidence)["a"].append(MemoryRegion(device="rxe0", number=9, key=0x1C2, length=4096))

    return leak


def grows(made: Altered) -> None:
    before, after = made.evidence.processes["a"]
    made.evidence.processes["a"] = before, [replace(after[0], pinned=after[0].pinned + 4096), *after[1:]]


def complains(made: Altered) -> None:
    made.evidence.kernel_log["a"].append(KernelMessage("WARNING: CPU: 0 PID: 5 at restrack.c:122", 4, 99, 99))


def another_code(made: Altered) -> None:
    made.change(closer_calls(made, Call)[0], code=Code.WSAEWOULDBLOCK, result=-1)


def success_beside_a_code(made: Altered) -> None:
    made.change(closer_calls(made, Call)[0], code=Code.WSAENOTSOCK)


def misbehaves(made: Altered) -> None:
    made.add(Misbehaves(node="a", at_ns=0, t_ns=0, requirement="SWITCH-02", seen="x", deliberate=False))


def no_cleanup(made: Altered) -> None:
    made.drop(next(e for e in made.entries(Call, function="WSPCleanup") if e.node == "a"))


# Statement, the bundle in which it holds, what breaks it. N is a node, W a worker.
BREAKS: list[tuple[str, str, Alter]] = [
    (
        "the REQ's GIDs are the ends'",
        "pass_data",
        lambda made: made.change_packet(made.packet("REQ"), local_gid="10.0.0.9"),
    ),
    (
        "the closer's DREQ is on the wire, for this connection",
        "pass_data",
        lambda made: made.change_packet(made.packet("DREQ"), qpn=made.packet("DREQ").qpn + 1),
    ),
    ("no data leaves the closer after its DREQ", "pass_data", lambda made: data_behind(made, "DREQ")),
    ("the peer's DREP follows", "pass_data", lambda made: made.drop_packet(made.packet("DREP"))),
    ("nothing of the connection follows the DREP", "pass_data", lambda made: data_behind(made, "DREP")),
    ("the DREQ comes while WSPCloseSocket runs, at once", "pass_data", late_close),
    ("every success at node N was an acknowledged message on the wire", "pass_data", without_acknowledgements),
    ("WSPCloseSocket returns 0", "pass_data", lambda made: made.change(closer_calls(made, Call)[0], result=-1)),
    ("each operation completes exactly once", "pass_closer_pending", lambda made: made.drop(closers_done(made)[0])),
    (
        "cancelled operations end with WSA_OPERATION_ABORTED and zero bytes",
        "pass_closer_pending",
        lambda made: made.change(closers_done(made)[0], code=Code.WSAECONNRESET),
    ),
    ("memory is released before operations are cancelled", "pass_closer_pending", release_late),
    ("WPUCloseSocketHandle is the last up-call, made once", "pass_closer_pending", upcall_behind_the_last),
    ("the peer's CM hears of it", "pass_peer_pending", peer_hears_nothing),
    ("what the peer's CM hears the wire has carried", "pass_peer_pending", heard_before_it_was_carried),
    (
        "each operation at the peer completes exactly once",
        "pass_peer_pending",
        lambda made: made.add(replace(peers_done(made)[0], t_ns=1)),
    ),
    (
        "operations pending at the peer end with WSAECONNRESET and zero bytes",
        "pass_peer_pending",
        lambda made: made.change(peers_done(made)[0], code=Code.WSAENETRESET),
    ),
    ("node N's kernel holds nothing of the closed socket", "pass_data", a_leak(lambda e: e.after_close)),  # type: ignore[arg-type, return-value]
    ("node N's kernel holds nothing after WSPCleanup", "pass_data", a_leak(lambda e: e.resources)),  # type: ignore[arg-type, return-value]
    ("node N's processes hold no more than before the first connection", "pass_data", grows),
    ("node N's kernel does not complain", "pass_data", complains),
    (
        "no provider's thread raised",
        "pass_data",
        lambda made: made.add(Raised(node="a", at_ns=0, t_ns=0, handle=0, traceback="KeyError: 5")),
    ),
    (
        "every up-call names a live handle and a pending operation",
        "pass_data",
        lambda made: made.change(made.entries(Completed)[0], was_pending=False),
    ),
    ("no call ends with a code of blocking calls", "pass_data", another_code),
    ("a call that fails returns its sentinel and stores a code", "pass_data", success_beside_a_code),
    ("the switch keeps its obligations", "pass_data", misbehaves),
    ("worker W of node N pairs every WSPStartupEx with a WSPCleanup", "pass_data", no_cleanup),
]


def in_general(statement: str) -> str:
    """A statement without the names of nodes and workers."""
    return re.sub(r"\bworker \d+\b", "worker W", re.sub(r"\bnode [ab]\b", "node N", statement))


def statements(made: Altered, *, held: bool) -> set[str]:
    return {in_general(f.statement) for f in made.findings() if f.held is held}


@pytest.mark.parametrize(("statement", "name", "alter"), BREAKS, ids=[row[0] for row in BREAKS])
def test_a_rule_holds_as_recorded_and_breaks_by_one_fact(statement: str, name: str, alter: Alter) -> None:
    """Nothing breaks in the bundle as it was recorded; with the fact altered the statement does."""
    made = Altered(name)
    assert statement in statements(made, held=True)
    assert statements(made, held=False) == set()
    alter(made)
    assert statement in statements(made, held=False)


def test_every_statement_is_broken_here() -> None:
    """What any rule states of any bundle is in the list above."""
    stated = {statement for name in PASSES for statement in statements(Altered(name), held=True)}
    assert stated == {statement for statement, _, _ in BREAKS}


def test_no_rule_reads_plain_data() -> None:
    """A misspelt fact of a dict would be a rule that never breaks: rules read attributes, which mypy checks."""
    folder = Path(hil.evidence.rules.__file__).parent
    others = (folder.parent / name for name in ("disconnect.py", "origins.py", "judgement.py", "resources.py"))
    sources = {path.name: path.read_text() for path in (*folder.glob("*.py"), *others)}
    assert not [name for name, text in sources.items() if "dict[str, Any]" in text]


def test_a_close_whose_connection_is_not_in_the_capture_is_a_broken_finding() -> None:
    """The queue pair that the journal names is no packet's."""
    made = Altered("pass_data")
    for qp in made.entries(QueuePairMade):
        made.change(qp, qp_num=99)
    (finding,) = [f for f in made.findings() if not f.held]
    assert finding.statement == "the connection is in the capture"


def test_a_reset_that_came_first_excuses_the_closer_when_both_close() -> None:
    """Of two closes, one may find its operations ended by the other's reset; without the reset that breaks."""
    made = Altered("pass_both")
    (reset,) = [e for e in made.entries(Completed) if e.code == Code.WSAECONNRESET]
    aborted = "cancelled operations end with WSA_OPERATION_ABORTED and zero bytes"
    assert aborted in statements(made, held=True)
    made.drop(*(e for e in made.entries(CmHeard, event=CmEvent.DISCONNECTED) if e.node == reset.node))
    begun = [e for e in made.entries(Begin, function="WSPCloseSocket") if e.node == reset.node]
    made.change(begun[0], at_ns=reset.at_ns - 1)
    assert aborted in statements(made, held=False)


def test_without_a_close_only_the_run_is_judged() -> None:
    """No finding speaks of a close, and none breaks."""
    findings = judge(bundle("pass_data").evidence, []).findings
    assert findings and all(f.held for f in findings)
    assert not {"WSPCloseSocket returns 0", "the peer's DREP follows"} & {f.statement for f in findings}


def test_a_killed_closer_owes_nothing_but_the_wire_and_the_peer() -> None:
    """It made no call, so none is judged; the peer hears of it all the same."""
    made = Altered("pass_peer_pending")
    made.close = replace(made.close, killed=True)
    made.drop(*closer_calls(made, Call), *closer_calls(made, Begin))
    made.drop(*(e for e in made.entries(UpCall, handle=made.close.closer_handle) if not isinstance(e, HandleMade)))
    assert statements(made, held=False) == set()
    assert "the peer's CM hears of it" in statements(made, held=True)
