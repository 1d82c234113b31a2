"""Each way in which a connection ends on the soft pair, recognised by ``hil verify`` from the capture alone."""

import threading
from collections.abc import Iterator

import pytest

from hil.capture.reader import open_capture
from hil.evidence.rebuild.endings import Ending
from hil.evidence.rebuild.file import FileRebuild
from hil.evidence.rebuild.judgement import Judged, judge
from hil.labs.soft.pair import SoftPair
from hil.testing.bench import PORT, Bench
from hil.testing.data import BROKEN, RESET, expose
from hil.testing.memory import forged
from hil.verdict import Verdict
from hil.winsock.codes import MEM_WRITE, Code

A, B = "10.77.0.1", "10.77.0.2"


@pytest.fixture
def ends(pair: SoftPair) -> Iterator[Bench]:
    """A bench whose test judges the capture only, so nodes may die in it."""
    made = Bench(pair)
    yield made
    pair.write(pair.evidence(audit=False))


def judged(bench: Bench) -> list[Judged]:
    """Every connection in the current capture."""
    bench.pair.wire.counts()
    with open_capture(bench.pair.wire.path) as capture:
        return [judge(facts) for facts in FileRebuild(capture)]


def the_one(bench: Bench) -> Judged:
    (connection,) = judged(bench)
    return connection


def closer(connection: Judged) -> str:
    return connection.facts.ends[connection.closer].address


def wait_for(bench: Bench, message: str, count: int = 1) -> None:
    bench.wait_packets(lambda p: p.cm == message, count)


def test_the_acceptor_closes(ends: Bench) -> None:
    """A message each way, then the passive end's DREQ and the active end's DREP."""
    connector, acceptor = ends.connect()
    receives = acceptor.recv(), connector.recv()
    assert connector.completion(connector.send(b"question")) == (Code.OK, 8)
    assert acceptor.completion(acceptor.send(b"answer")) == (Code.OK, 6)
    assert acceptor.completion(receives[0]) == (Code.OK, 8)

    acceptor.close()

    wait_for(ends, "DREP")
    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.CM_DISCONNECT, B)
    assert connection.verdict is Verdict.PASS, connection


def test_a_close_with_pending_receives_resets(ends: Bench) -> None:
    """The connector closes, and the peer's pending receives end. The capture alone shows it."""
    connector, acceptor = ends.connect()
    receives = [acceptor.recv(offset=256 * i) for i in range(3)]
    connector.send(b"first")
    assert acceptor.completion(receives[0]) == (Code.OK, 5)

    connector.close()

    assert [acceptor.completion(r) for r in receives[1:]] == [RESET] * 2
    wait_for(ends, "DREP")
    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.CM_DISCONNECT, A)
    assert connection.verdict is Verdict.PASS, connection
    assert connection.facts.ends[0].requests.messages_acknowledged == 1


def test_the_process_is_killed(ends: Bench) -> None:
    """The kernel of a killed process sends the DREQ."""
    connector, acceptor = ends.connect()
    pending = acceptor.recv()
    connector.at.node.channel.kill(connector.at.worker)
    assert acceptor.completion(pending) == RESET

    wait_for(ends, "DREP")
    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.CM_DISCONNECT, A)
    assert connection.verdict is Verdict.PASS, connection


def test_both_close_at_once(ends: Bench) -> None:
    """Crossed DREQs are one tear-down."""
    one, two = ends.connect()
    threads = [threading.Thread(target=end.close) for end in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    wait_for(ends, "DREP")
    connection = the_one(ends)
    assert connection.ending is Ending.CM_DISCONNECT
    assert connection.verdict is Verdict.PASS, connection


def test_no_listener(ends: Bench) -> None:
    """A REJ with its reason, and no frame after it."""
    a, b = ends.start()
    socket = a.socket(6000, 0x10)
    a.wsp("WSPConnect", s=socket.s, address=b.ip, port=PORT)
    wait_for(ends, "REJ")

    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.REFUSED, B)
    assert "INVALID_SERVICE_ID (8)" in connection.how
    assert connection.verdict is Verdict.PASS, connection


def test_the_wire_is_cut_under_a_send(ends: Bench) -> None:
    """The same PSN again and again without an answer, then the DREQ without an answer."""
    connector, acceptor = ends.connect()
    acceptor.recv()
    ends.pair.wire.cut()
    send = connector.send(b"into the void")
    assert connector.completion(send, 20) == BROKEN
    connector.close()

    wait_for(ends, "DREQ")
    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.RETRY_EXHAUSTED, A)
    assert connection.facts.ends[0].requests.retransmissions >= 2
    assert connection.verdict is Verdict.PASS, connection


def test_the_peer_is_gone_without_a_message(ends: Bench) -> None:
    """A DREQ without an answer: the capture ends before the closer gives up, so it proves neither."""
    connector, _ = ends.connect()
    ends.pair.nodes["b"].machine.freeze()
    connector.close()

    wait_for(ends, "DREQ")
    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.CM_DISCONNECT, A)
    assert connection.verdict is Verdict.INVALID
    assert any("ends before the DREP" in doubt for doubt in connection.doubts), connection.doubts
    ends.pair.nodes["b"].machine.thaw()


def test_access_beyond_a_range_ends_the_queue_pair(ends: Bench) -> None:
    """A NAK with a remote access error, then the tear-down."""
    connector, acceptor = ends.connect()
    target = expose(acceptor, MEM_WRITE)
    operation = connector.at.rdma(
        "WSPRdmaWrite", connector.socket, forged(target.descriptor, beyond=1), 64, offset=65536 - 63
    )
    assert connector.completion(operation) == BROKEN
    connector.close()

    wait_for(ends, "DREP")
    connection = the_one(ends)
    assert (connection.ending, closer(connection)) == (Ending.QP_ERROR, B)
    assert connection.facts.ends[0].requests.naks == {"remote access error": 1}
    assert connection.verdict is Verdict.PASS, connection
