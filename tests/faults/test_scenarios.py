"""Faults of a close that need more than one frame: a lost or stale reset, a cut cable, a lost machine."""

import threading
from collections.abc import Callable

import pytest

from hil import Code
from hil.capture.pcapng import read_pcapng
from hil.labs.pair import Pair
from hil.roce.frames import CmAttribute
from hil.testing import CONNECTOR_PORT, Bench, End
from hil.testing.data import ABORTED, BROKEN, RESET, completions
from hil.wire.faults import CutCable, Delay, Drop, Fault, Match, Span, only

pytestmark = pytest.mark.needs("inline wire")

CLOSED = (0, Code.OK)
S = 10**9
# CM repeats a DREQ after about four seconds, and gives up after the sixteenth.
HEARD_S, TRIES = 25.0, 16
SEND_ONLY = 0x04
DREQS, DREPS = Match(cm=(CmAttribute.DREQ,)), Match(cm=(CmAttribute.DREP,))


def frame_of(bench: Bench, number: int) -> bytes:
    """The frame with this number in the capture."""
    return next(f.data for f in read_pcapng(bench.pair.wire.path) if f.number == number)


@pytest.mark.requirement("CLOSE-01", "CLOSE-13", "CLOSE-47", "RECV-15")
def test_all_dreqs_are_lost(bench: Bench) -> None:
    """With every DREQ lost the close is prompt, and the peer loses the connection when it sends.

    A peer that only receives does not notice. When it sends, its retries run out, and its pending operations end with
    WSAECONNABORTED, because no reset came.
    """
    closer, peer = bench.connect()
    own, theirs = closer.recv(), peer.recv()
    deaf = bench.pair.wire.add_fault(Fault("all DREQs lost", Drop(), DREQS))

    assert closer.close() == CLOSED

    assert closer.completion(own, 1) == ABORTED
    deaf.wait_hits(2, HEARD_S)
    assert peer.completion(theirs, 0) is None
    send = peer.send(b"is anybody there")
    assert completions(peer, [send, theirs], HEARD_S) == [BROKEN] * 2
    evidence = bench.judge()
    assert not [p for p in evidence.delivered if p.cm == "DREQ"]
    assert not evidence.of("b", "cm", event="DISCONNECTED", handle=peer.socket.handle)


@pytest.mark.requirement("CLOSE-01", "CLOSE-13", "CLOSE-31", "RECV-13")
@pytest.mark.timeout(300)
def test_every_drep_is_lost_until_cm_gives_up(bench: Bench) -> None:
    """With every DREP lost the peer is reset at once, and the closer's CM gives up after fifteen repeats.

    The close has returned long before, and nothing is left.
    """
    closer, peer = bench.connect()
    own, theirs = closer.recv(), peer.recv()
    bench.pair.wire.add_fault(Fault("every DREP lost", Drop(), DREPS))

    assert closer.close() == CLOSED

    assert closer.completion(own, 1) == ABORTED
    assert peer.completion(theirs, HEARD_S) == RESET
    bench.wait_packets(lambda p: p.cm == "DREQ", count=TRIES, timeout_s=200)
    bench.wait_journal("a", "cm", event="DISCONNECTED", timeout_s=HEARD_S)
    evidence = bench.judge(bench.hard_close(closer, peer))
    assert len([p for p in evidence.packets if p.cm == "DREQ"]) == TRIES
    assert not [p for p in evidence.delivered if p.cm == "DREP"]


@pytest.mark.requirement("CLOSE-31", "CLOSE-35", "RECV-13")
def test_a_stale_dreq_of_an_earlier_incarnation(bench: Bench) -> None:
    """A late DREQ of an ended connection does not affect the next connection between the same ends."""
    first, first_peer = bench.connect()
    assert first.close() == CLOSED
    bench.wait_packets(lambda p: p.cm == "DREP")
    assert first_peer.close() == CLOSED
    stale = next(p.frame for p in bench.pair.packets() if p.cm == "DREQ")
    closer, peer = bench.connect(CONNECTOR_PORT + 1)

    bench.pair.wire.inject("b", frame_of(bench, stale))

    bench.wait_packets(lambda p: p.cm == "DREP", count=2)
    receive, theirs = peer.recv(), peer.recv(offset=256)
    assert closer.completion(closer.send(b"still here")) == (Code.OK, 10)
    assert peer.completion(receive) == (Code.OK, 10)
    assert peer.completion(theirs, 0) is None
    assert closer.close() == CLOSED
    assert peer.completion(theirs, HEARD_S) == RESET
    bench.judge(bench.hard_close(first, first_peer), bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-30")
def test_crossed_dreqs(bench: Bench) -> None:
    """Both ends close, the wire delays each DREQ until the other is sent, and each side aborts its own operations."""
    one, two = bench.connect()
    own = [(end, end.recv()) for end in (one, two)]
    delays = Fault("crossed", Delay(S), Match(cm=(CmAttribute.DREQ,), occurrences=Span(1, 2)))
    crossed = bench.pair.wire.add_fault(delays)

    at_once(one.close, two.close)

    assert crossed.wait_hits(2) == 2
    assert [end.completion(receive, 1) for end, receive in own] == [ABORTED] * 2
    evidence = bench.judge(bench.hard_close(one, two, both=True))
    first_arrival = min(p.frame for p in evidence.delivered if p.cm == "DREQ")
    assert {p.source for p in evidence.packets if p.cm == "DREQ" and p.frame < first_arrival} == {one.at.ip, two.at.ip}


def at_once(*closes: Callable[[], tuple[object, Code]]) -> None:
    """Make the closes in one thread each. All must succeed."""
    results: list[tuple[object, Code]] = []
    threads = [threading.Thread(target=lambda close=close: results.append(close())) for close in closes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CLOSED] * len(closes)


def pending(closer: End, peer: End) -> tuple[int, int]:
    """Post a receive at each end."""
    return closer.recv(), peer.recv()


@pytest.mark.requirement("CLOSE-01", "CLOSE-13", "CLOSE-31", "CLOSE-47")
def test_the_cable_is_cut_before_the_close(bench: Bench) -> None:
    """The closer closes while the cable is cut, and the peer is reset once the cable is mended."""
    closer, peer = bench.connect()
    own, theirs = pending(closer, peer)
    bench.pair.wire.cut()

    assert closer.close() == CLOSED

    assert closer.completion(own, 1) == ABORTED
    assert peer.completion(theirs, 0) is None
    bench.pair.wire.mend()
    assert peer.completion(theirs, HEARD_S) == RESET
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-01", "CLOSE-13", "CLOSE-31")
def test_the_cable_is_cut_by_the_close(bench: Bench) -> None:
    """The DREQ passes, the cable is cut before its DREP for longer than CM waits, and a later DREQ is answered.

    The answer comes once the peer has closed too.
    """
    closer, peer = bench.connect()
    own, theirs = pending(closer, peer)
    match = Match(cm=(CmAttribute.DREP,), occurrences=only(1))
    bench.pair.wire.add_fault(Fault("cut by the DREP", CutCable(5 * S), match))

    assert closer.close() == CLOSED

    assert closer.completion(own, 1) == ABORTED
    assert peer.completion(theirs, HEARD_S) == RESET
    assert peer.close() == CLOSED
    bench.wait_journal("a", "cm", event="DISCONNECTED", timeout_s=HEARD_S)
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-01", "CLOSE-13", "CLOSE-31")
def test_the_cable_is_cut_after_the_close(bench: Bench) -> None:
    """The cable is cut once the DREP is back, both ends finish, and nothing is left."""
    closer, peer = bench.connect()
    own, theirs = pending(closer, peer)

    assert closer.close() == CLOSED

    bench.wait_packets(lambda p: p.cm == "DREP")
    bench.wait_journal("a", "cm", event="DISCONNECTED")
    bench.pair.wire.cut()
    assert closer.completion(own, 1) == ABORTED
    assert peer.completion(theirs, HEARD_S) == RESET
    assert peer.close() == CLOSED
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-01", "CLOSE-31", "CLOSE-32", "RECV-15")
def test_the_connection_had_broken_at_the_closer_alone(bench: Bench) -> None:
    """The closer's frames are lost until its retries run out, the peer does not notice, and the close still resets it.

    The first DREQ is lost too.
    """
    closer, peer = bench.connect()
    own, theirs = pending(closer, peer)
    lost = bench.pair.wire.add_fault(Fault("every SEND lost", Drop(), Match(side="a", opcodes=(SEND_ONLY,))))
    send = closer.send(b"is anybody there")
    assert completions(closer, [send, own], HEARD_S) == [BROKEN] * 2
    assert peer.completion(theirs, 0) is None
    lost.remove()
    first = bench.pair.wire.add_fault(Fault("the first DREQ lost", Drop(), Match(cm=DREQS.cm, occurrences=only(1))))

    assert closer.close() == CLOSED

    assert first.wait_hits() == 1
    assert peer.completion(theirs, HEARD_S) == RESET
    buffers = [[64, peer.socket.address]]
    later = peer.at.wsp("WSPRecv", s=peer.socket.s, buffers=buffers, overlapped=peer.at.ask("overlapped"))
    assert later.code is Code.WSAECONNRESET
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-01", "CLOSE-13", "CLOSE-47", "RECV-15")
@pytest.mark.needs("power control")
def test_the_peers_machine_is_gone_without_a_word(pair: Pair) -> None:
    """The peer's machine is lost, pending sends end with WSAECONNABORTED after the retries, and the close is prompt.

    This machine's kernel keeps only the CM id that repeats the DREQ until CM gives up. The other machine is not judged.
    """
    bench = Bench(pair)
    gone, _ = bench.connect()
    idle, _ = bench.connect(6001)
    kept = idle.recv()
    receive = gone.recv()
    pair.power("b").cut()

    send = gone.send(b"into the void")

    assert completions(gone, [send, receive], HEARD_S) == [BROKEN] * 2
    assert idle.completion(kept, 0) is None
    assert gone.close() == idle.close() == CLOSED
    assert idle.completion(kept, 1) == ABORTED
    pair.audit_closed("a")
    evidence = pair.evidence(audit=False)
    pair.write(evidence)
    assert {left.kind for left in evidence.after_close["a"]} <= {"CM_ID"}
    assert [problem for problem in evidence.problems if "node b" in problem]
