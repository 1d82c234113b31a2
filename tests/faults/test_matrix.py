"""The fault matrix: each kind of frame meets each fault, and the hard close ends as the contract says."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hil import Code
from hil.errors import UnhitFault
from hil.evidence.disconnect import broken
from hil.evidence.rules.wire import disconnect_findings
from hil.testing import CONNECTOR_PORT, FD_CONNECT, PORT, Bench, End, Socket
from hil.testing.data import Exposed, completions, digest, expose, fill, rdma
from hil.winsock.codes import CF_REJECT
from hil.wire.matrix import Cell, Expectation, Life, cells
from hil.wire.wire import FaultHandle

pytestmark = [pytest.mark.needs("inline wire"), pytest.mark.used_pair]

CLOSED = (0, Code.OK)
# Three packets of a path MTU of 1024 bytes.
LENGTH = 3072
BEHIND, OUT = 8192, 32768
# CM repeats a message after about four seconds. The rest is for a machine that is busy with other cells.
WAIT_S, CONNECT_S = 25.0, 40.0
REQUIREMENTS = ("CLOSE-01", "CLOSE-12", "CLOSE-13", "CLOSE-14", "CLOSE-18", "CLOSE-31", "CLOSE-35", "RECV-13")


def case(cell: Cell) -> object:
    return pytest.param(cell, id=f"{cell.frame.name}-{cell.fault}", marks=pytest.mark.requirement(*REQUIREMENTS))


@dataclass
class Pending:
    """The pending operations when the closer closes: its receive, the peer's, and a transfer with its receives."""

    own: int
    theirs: int
    operation: int | None = None
    receives: tuple[int, ...] = ()


@pytest.mark.parametrize("cell", [case(cell) for cell in cells()])
def test_a_hard_close_ends_as_the_contract_says(bench: Bench, cell: Cell) -> None:
    """Under the cell's fault a hard close aborts the closer's operations and ends the peer's with the cell's code.

    Each operation ends once and in bounded time, nothing leaks, and the packets agree with the nodes' journals.
    """
    bench.start(settings_a={"connect_timeout_s": CONNECT_S})
    handle = LIVES[cell.frame.life](bench, cell)
    if not handle.hits():
        raise UnhitFault(f"{cell}: no such frame came, so the cell shows nothing")


# --- lives -----------------------------------------------------------------------------------------------------------


def connect_under(bench: Bench, cell: Cell) -> FaultHandle:
    """Apply the fault to the connection's set-up. If that fails as it must, close another connection."""
    a, b, expected = bench.endpoints["a"], bench.endpoints["b"], cell.expectation()
    bench.listener = b.listen(PORT)
    bench.pair.note_baseline()
    handle = bench.pair.wire.add_fault(cell.wire_fault())
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    if expected.connect is not Code.OK:
        if cell.frame.life is Life.REFUSE:
            refuse(bench, socket)
        assert a.connect_result(socket, WAIT_S) is expected.connect
        assert a.close(socket).code is Code.OK
        close_and_judge(bench, *bench.connect(CONNECTOR_PORT + 1), expected)
        return handle
    wait_request(bench)
    accepted = End(b, b.accept(bench.listener))
    assert a.connect_result(socket, WAIT_S) is Code.OK
    connector = End(a, a.with_memory(socket))
    bench.pair.note_resources()
    close_and_judge(bench, connector, accepted, expected)
    return handle


def refuse(bench: Bench, connecting: Socket) -> None:
    """Refuse requests until the connect has failed.

    CM repeats a request whose REJ was lost. The kernel has forgotten the first, and gives the repeat to the listener as
    a new request.
    """
    a, b = bench.endpoints["a"], bench.endpoints["b"]
    wait_request(bench)
    assert bench.listener is not None
    listener = bench.listener
    while not a.ask("event_state", event=connecting.event)["set"]:
        if b.ask("wait_event", event=listener.event, timeout_s=0.2):
            b.wsp("WSPEnumNetworkEvents", s=listener.s, event=listener.event)
            answer = b.wsp("WSPAccept", s=listener.s, decision=CF_REJECT)
            assert answer.code in (Code.WSAECONNREFUSED, Code.WSAEWOULDBLOCK)


def wait_request(bench: Bench) -> None:
    assert bench.listener is not None
    event = bench.listener.event
    assert bench.endpoints["b"].ask("wait_event", event=event, timeout_s=WAIT_S), "no connection request came"


def transfer_under(bench: Bench, cell: Cell) -> FaultHandle:
    """Close as soon as the fault hit the closer's transfer, which may be done before or is aborted."""
    closer, peer = bench.connect()
    life, expected = cell.frame.life, cell.expectation()
    sent = fill(closer.at, closer.socket.memory, LENGTH, seed=1, offset=OUT)
    target = expose(peer)
    wanted = target.fill(LENGTH, seed=2)
    receives = (peer.recv(LENGTH),) if life is Life.SEND else ()
    pending = Pending(closer.recv(offset=BEHIND), peer.recv(offset=BEHIND), receives=receives)
    handle = bench.pair.wire.add_fault(cell.wire_fault())
    pending.operation = begin(closer, life, target)
    handle.wait_hits()

    ended, received = close(closer, peer, expected, pending)

    if received == [Code.OK]:
        assert (digest(peer.at, peer.socket.memory, LENGTH) == sent) is expected.true
    if life is Life.READ and ended is Code.OK:
        assert (digest(closer.at, closer.socket.memory, LENGTH, offset=OUT) == wanted) is expected.true
    if life is Life.WRITE and ended is Code.OK:
        assert (target.digest(LENGTH) == sent) is expected.true
    finish(bench, closer, peer, expected)
    return handle


def begin(closer: End, life: Life, target: Exposed) -> int:
    """Begin the transfer. Returns its WSAOVERLAPPED's number."""
    if life is not Life.SEND:
        return rdma(closer, "WSPRdmaRead" if life is Life.READ else "WSPRdmaWrite", target, (LENGTH, OUT))
    overlapped = int(closer.at.ask("overlapped"))
    buffers = [[LENGTH, closer.socket.address + OUT]]
    closer.at.must("WSPSend", Code.WSA_IO_PENDING, s=closer.socket.s, buffers=buffers, overlapped=overlapped)
    return overlapped


def close_under(bench: Bench, cell: Cell) -> FaultHandle:
    """Apply the fault to the close itself."""
    closer, peer = bench.connect()
    handle = bench.pair.wire.add_fault(cell.wire_fault())
    close_and_judge(bench, closer, peer, cell.expectation())
    return handle


LIVES: dict[Life, Callable[[Bench, Cell], FaultHandle]] = {
    Life.CONNECT: connect_under,
    Life.REFUSE: connect_under,
    Life.SEND: transfer_under,
    Life.READ: transfer_under,
    Life.WRITE: transfer_under,
    Life.CLOSE: close_under,
}


# --- the close -------------------------------------------------------------------------------------------------------


def close(closer: End, peer: End, expected: Expectation, pending: Pending) -> tuple[Code | None, list[Code]]:
    """Close, and check that every operation ends. Returns the code of the transfer and of the receives it was for."""
    assert closer.close() == CLOSED

    assert set(codes(closer, pending.own)) <= expected.own
    assert peer.completion(pending.theirs, WAIT_S) == (expected.receive, 0)
    received = codes(peer, *pending.receives)
    assert set(received) <= {Code.OK, expected.receive}
    if pending.operation is None:
        return None, received
    (ended,) = codes(closer, pending.operation)
    assert ended in expected.operation
    return ended, received


def finish(bench: Bench, closer: End, peer: End, expected: Expectation) -> None:
    """Close the peer too, wait until the closer's CM has its answer, and judge.

    The peer's kernel answers a repeated DREQ only while its id is in time-wait, which is short, or once the id is gone.
    After a lost DREP the closer's id lives until its peer closes, or until CM gives up.
    """
    assert peer.close() == CLOSED
    bench.wait_journal(closer.at.node.name, "cm", event="DISCONNECTED", timeout_s=WAIT_S)
    if expected.receive is Code.WSAECONNRESET:
        bench.judge(bench.hard_close(closer, peer))
        return
    # The connection had broken before the close. Only its end on the wire and leaks can be judged.
    bench.pair.audit_closed(closer.at.node.name)
    evidence = bench.judge()
    (connection,) = evidence.connections()
    broke = broken(disconnect_findings(evidence, connection, [closer.at.ip], [peer.at.ip]))
    assert not broke, "\n".join(map(str, broke))


def codes(end: End, *operations: int) -> list[Code]:
    """The codes of these operations, all of which have ended."""
    found = completions(end, list(operations), 1)
    assert None not in found, f"of {operations} ended: {found}"
    return [done[0] for done in found if done]


def close_and_judge(bench: Bench, closer: End, peer: End, expected: Expectation) -> None:
    """Close a connection with a receive pending at each end, and judge it."""
    close(closer, peer, expected, Pending(closer.recv(), peer.recv()))
    finish(bench, closer, peer, expected)
