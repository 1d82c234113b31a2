"""Functions that a SAN provider need not offer, because the switch does their work itself (SHUT)."""

import pytest

from hil import Code
from hil.evidence.disconnect import broken
from hil.evidence.journal import Call, Misbehaves, chosen
from hil.testing import CONNECTOR_PORT, FD_CONNECT, Bench
from hil.winsock.codes import EXTENSIONS

pytestmark = pytest.mark.used_pair

GRACEFUL = {"WSPShutdown", "WSPSendDisconnect", "WSPRecvDisconnect"}
MSG_OOB = 0x1


@pytest.mark.requirement("SHUT-01", "SHUT-02")
def test_a_whole_life_needs_no_shutdown_and_no_cancelling(bench: Bench) -> None:
    """The switch connects, cancels a connect, exchanges messages and closes without the slots for these functions."""
    connector, acceptor = bench.connect()
    a = connector.at
    cancelled = a.socket(CONNECTOR_PORT + 1, FD_CONNECT)
    a.connect(cancelled, bench.unused_address, 5000)
    assert a.close(cancelled).code is Code.OK
    receive = acceptor.recv()
    connector.send(b"goodbye")
    assert acceptor.completion(receive) == (Code.OK, 7)
    assert connector.close() == (0, Code.OK)

    table = set(a.ask("surface")["table"])
    evidence = bench.judge(bench.hard_close(connector, acceptor))
    called = {e.function for e in chosen(evidence.events, Call)}
    for unneeded in (GRACEFUL, {"WSPCancelBlockingCall"}):
        assert not unneeded & (table | set(EXTENSIONS.values()))
        assert not unneeded & called


@pytest.mark.requirement("SHUT-04")
def test_the_bench_itself_notices_a_send_with_flags(bench: Bench) -> None:
    """The bench names WSPSend with MSG_OOB as the switch's mistake; the provider refuses it, and takes flags 0."""
    connector, acceptor = bench.connect()
    receive = acceptor.recv()
    connector.send(b"ordinary")
    assert acceptor.completion(receive) == (Code.OK, 8)
    assert not chosen(bench.pair.journal("a"), Misbehaves)

    buffers = [[8, connector.socket.address]]
    answer = connector.wsp("WSPSend", buffers=buffers, overlapped=connector.at.ask("overlapped"), flags=MSG_OOB)

    assert (answer.result, answer.code) == (-1, Code.WSAEOPNOTSUPP)
    findings = broken(bench.findings())
    assert [finding.requirements for finding in findings] == [("SHUT-04",)]
