"""Each action of the wire's faults between two real kernels: its effect on a message, and its trace in the evidence."""

import pytest

from hil.capture.pcapng import read_pcapng
from hil.capture.sides import reached
from hil.evidence.evidence import Evidence
from hil.roce.frames import CmAttribute
from hil.testing.bench import Bench
from hil.wire.faults import (
    Action,
    Corrupt,
    CutCable,
    Delay,
    Drop,
    Duplicate,
    Fault,
    MarkEcn,
    Match,
    Reorder,
    Truncate,
    only,
)

SEND_ONLY = 0x04
FIRST = Match(opcodes=(SEND_ONLY,), occurrences=only(1))
MS = 1_000_000


def say(bench: Bench, fault: Fault, message: bytes = b"hello over a bad wire") -> Evidence:
    """Connect, set the fault, send a message, which arrives once; close and judge. Returns the evidence."""
    closer, peer = bench.connect()
    handle = bench.pair.wire.add_fault(fault)
    receive, behind = peer.recv(), peer.recv(offset=256)
    send = closer.send(message)

    assert peer.completion(receive)[1:] == (len(message),)  # type: ignore[index]
    assert closer.completion(send)
    assert peer.at.data(peer.socket, len(message)) == message
    assert peer.completion(behind, 0) is None

    assert handle.hits() == 1
    closer.close()
    assert peer.completion(behind)
    evidence = bench.judge(bench.hard_close(closer, peer))
    hits = evidence.of("wire", "fault")
    assert [(e.fault, e.side, e.action) for e in hits] == [(fault.name, "a", str(fault.action))]
    captured = {f.number: f for f in read_pcapng(bench.pair.wire.path)}
    assert captured[hits[0].frame].comment == f"fault {fault.name!r}, hit 1: {fault.action}"
    return evidence


def sends(evidence: Evidence) -> tuple[int, int]:
    """How many SENDs left node a, and how many reached node b."""
    sent = [p for p in evidence.packets if p.opcode == SEND_ONLY]
    return len(sent), len([p for p in evidence.delivered if p.opcode == SEND_ONLY])


@pytest.mark.parametrize(
    "action",
    [Drop(), Corrupt(), Truncate(50), Truncate(58, lengths_repaired=True), CutCable(20 * MS)],
    ids=["drop", "corrupt", "truncate", "truncate with lengths", "cut the cable"],
)
def test_a_message_whose_frame_is_lost_or_spoilt_is_sent_again(bench: Bench, action: Action) -> None:
    """The receiver's adapter drops a frame with a wrong ICRC, and the sender's sends it again."""
    sent, _ = sends(say(bench, Fault("spoil", action, FIRST)))
    assert sent >= 2


def test_a_frame_with_another_payload_and_a_right_icrc_is_accepted(bench: Bench) -> None:
    """A wire that repairs the ICRC can change a message without notice."""
    closer, peer = bench.connect()
    bench.pair.wire.add_fault(Fault("lie", Corrupt(offset=12, mask=0x20, repaired=True), FIRST))
    receive, send = peer.recv(), closer.send(b"hello")

    assert peer.completion(receive) == (0, 5) and closer.completion(send) == (0, 5)

    assert peer.at.data(peer.socket, 5) == b"Hello"
    bench.judge()


def test_a_delayed_message_is_late(bench: Bench) -> None:
    """The message arrives by any of its transmissions."""
    assert sends(say(bench, Fault("late", Delay(20 * MS), FIRST)))[0] >= 1


def test_a_duplicate_is_taken_once(bench: Bench) -> None:
    """Two frames reach the receiver, and one message arrives."""
    sent, arrived = sends(say(bench, Fault("twice", Duplicate(), FIRST)))
    assert arrived == sent + 1


def test_an_ecn_mark_arrives(bench: Bench) -> None:
    """The marked frame carries the message."""
    evidence = say(bench, Fault("congested", MarkEcn(), FIRST))
    carried, arrived = sends(evidence)
    assert arrived == carried >= 1
    marked, *_ = [f for f in reached(read_pcapng(bench.pair.wire.path)) if f.interface == "to-b"]
    assert marked.data[15] & 3 == 3


def test_a_message_that_is_overtaken_is_put_in_order(bench: Bench) -> None:
    """The first of three frames of one message reaches the receiver last; the message arrives whole."""
    message = bytes(range(256)) * 12
    closer, peer = bench.connect()
    first = Match(opcodes=(0x00,), occurrences=only(1))
    bench.pair.wire.add_fault(Fault("overtaken", Reorder(2, 500 * MS), first))
    receive = peer.recv(length=len(message))
    send = closer.send(message)

    assert peer.completion(receive) == (0, len(message)) and closer.completion(send)

    assert peer.at.data(peer.socket, len(message)) == message
    evidence = bench.judge()
    arrived = [p.opcode for p in evidence.delivered if p.opcode in (0, 1, 2)]
    assert arrived.index(0) > arrived.index(1)


def test_a_fault_may_be_set_and_removed_while_the_test_runs(bench: Bench) -> None:
    """Every DREQ is lost until the fault is removed. Then the peer gets the reset."""
    closer, peer = bench.connect()
    receive = peer.recv()
    handle = bench.pair.wire.add_fault(Fault("deaf", Drop(), Match(cm=(CmAttribute.DREQ,))))
    closer.close()
    handle.wait_hits()
    assert peer.completion(receive, 0) is None
    handle.remove()

    assert peer.completion(receive, 25)

    bench.judge(bench.hard_close(closer, peer))


def test_a_recorded_frame_is_injected(bench: Bench) -> None:
    """The DREQ of a connection, sent once more when both ends are closed, is answered, and the counters agree."""
    closer, peer = bench.connect()
    closer.close()
    bench.wait_packets(lambda p: p.cm == "DREP")
    peer.close()
    number = next(p.frame for p in bench.pair.packets() if p.cm == "DREQ")
    dreq = next(f.data for f in read_pcapng(bench.pair.wire.path) if f.number == number)

    bench.pair.wire.inject("b", dreq)

    bench.wait_packets(lambda p: p.cm == "DREP", count=2)
    evidence = bench.judge()
    assert [e.side for e in evidence.of("wire", "inject")] == ["b"]
