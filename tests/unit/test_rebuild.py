"""The PSNs of one direction, and connections that are hard to distinguish."""

import io
import struct
import tracemalloc

import pytest
from captured import FOLDER, TEARDOWNS, dissect, made, pcapng, rebuilt, recorded

from hil.capture.pcapng import read_pcapng
from hil.capture.reader import open_capture
from hil.evidence.rebuild.facts import Ladder, Where
from hil.evidence.rebuild.file import FileRebuild
from hil.evidence.rebuild.management import read_message
from hil.evidence.rebuild.requester import Requester
from hil.evidence.rebuild.rows import Kind, Row
from hil.evidence.rebuild.window import Window
from hil.roce.layers.cm import CMDREQ, CMREJ, CMREP, CMREQ
from hil.roce.layers.mad import MAD
from hil.roce.layers.transport import BTH
from hil.roce.opcodes import Operation as O
from hil.roce.psn import MASK
from hil.testing.roce import START_NS, Side, write

# Where the base transport header is in an Ethernet frame over IPv4.
BEHIND_UDP = 42
ACK, RNR, SEQUENCE, ACCESS = 0x1F, 0x21, 0x60, 0x62


class Wire:
    """Feeds packets into one direction, each ``step_ns`` after the one before."""

    def __init__(self, first_psn: int = 100, mtu: int = 1024, step_ns: int = 2_000_000) -> None:
        self.requester = Requester(0, Window(), Ladder(), mtu)
        self.requester.start_at(first_psn)
        self.step_ns, self.count = step_ns, 0

    def _row(self, kind: Kind, operation: O, psn: int, syndrome: int = -1, length: int = -1, payload: int = 0) -> Row:
        self.count += 1
        at, psn = self.count, psn & MASK
        return Row(at, at, at * self.step_ns, 0, kind, operation, psn, syndrome, at, length, payload)

    def send(self, *psns: int, operation: O = O.SEND_ONLY, length: int = -1) -> None:
        for psn in psns:
            self.requester.request(self._row(Kind.REQUEST, operation, psn, length=length, payload=10))

    def answer(self, *psns: int, syndrome: int = ACK, operation: O = O.ACKNOWLEDGE, payload: int = 0) -> None:
        for psn in psns:
            self.requester.response(self._row(Kind.RESPONSE, operation, psn, syndrome, payload=payload))


def test_one_acknowledgement_stands_for_all_before_it() -> None:
    """Of three messages and one ACK of the second, the third is in flight."""
    wire = Wire()
    wire.send(100, 101, 102)
    wire.answer(101)
    facts = wire.requester.facts()
    assert (facts.messages_ended, facts.messages_acknowledged, facts.messages_in_flight) == (3, 2, 1)
    assert facts.oldest_unacknowledged_psn == 102


@pytest.mark.parametrize("first", [100, MASK, MASK - 2])
def test_go_back_n_is_one_run_of_retransmissions(first: int) -> None:
    """After a NAK all packets from the missing PSN on come again in one run, also across the wrap."""
    wire = Wire(first)
    wire.send(*range(first, first + 5))
    wire.answer(first + 2, syndrome=SEQUENCE)
    wire.send(*range(first + 2, first + 5))
    wire.answer(first + 4)
    facts = wire.requester.facts()
    assert (facts.retransmissions, facts.resends, facts.go_backs) == (3, 1, 1)
    assert facts.naks == {"PSN sequence error": 1} and facts.fatal_nak is None
    assert (facts.messages_ended, facts.messages_acknowledged) == (5, 5)
    assert facts.gaps == ()


def test_a_receiver_that_is_not_ready_is_counted() -> None:
    """RNR NAKs acknowledge the packets in front of them, and progress restarts the count of tries."""
    wire = Wire()
    wire.send(100, 101)
    for _ in range(3):
        wire.answer(101, syndrome=RNR)
        wire.send(101)
    facts = wire.requester.facts()
    assert (facts.rnr_naks, facts.rnr_since_progress, facts.unanswered_tries) == (3, 3, 3)
    assert facts.messages_acknowledged == 1
    wire.answer(101)
    facts = wire.requester.facts()
    assert (facts.rnr_naks, facts.rnr_since_progress, facts.unanswered_tries) == (3, 0, 0)


def test_a_fatal_nak_is_kept_with_its_place() -> None:
    """A remote access error is recorded with the PSN that it refuses."""
    wire = Wire()
    wire.send(100, 101)
    wire.answer(101, syndrome=ACCESS)
    facts = wire.requester.facts()
    assert facts.fatal_nak is not None and (facts.fatal_nak.psn, facts.fatal_nak.number) == (101, 3)
    assert facts.naks == {"remote access error": 1}


@pytest.mark.parametrize("mtu", [256, 1024, -1])
def test_a_read_takes_as_many_psns_as_its_response_has_packets(mtu: int) -> None:
    """With the MTU from the REQ or from the response's first packet, the next request is in order."""
    size = 256 if mtu < 0 else mtu
    wire = Wire(mtu=mtu)
    wire.send(100, operation=O.RDMA_READ_REQUEST, length=3 * size)
    wire.answer(100, operation=O.RDMA_READ_RESPONSE_FIRST, payload=size)
    wire.answer(101, operation=O.RDMA_READ_RESPONSE_MIDDLE, syndrome=-1, payload=size)
    wire.answer(102, operation=O.RDMA_READ_RESPONSE_LAST, payload=size)
    wire.send(103)
    wire.answer(103)
    facts = wire.requester.facts()
    assert (facts.reads, facts.reads_answered, facts.read_payload) == (1, 1, 3 * size)
    assert facts.gaps == ()
    assert facts.messages_acknowledged == 2


def test_a_read_of_unknown_mtu_hides_no_gap_behind_it() -> None:
    """The next request may be no farther than the number of packets with the smallest MTU."""
    wire = Wire(mtu=-1)
    wire.send(100, operation=O.RDMA_READ_REQUEST, length=512)
    wire.send(103)
    assert [gap.packets for gap in wire.requester.facts().gaps] == [2]


def test_a_part_of_a_read_that_is_asked_for_again_was_lost() -> None:
    """A gap in a response that is read again is a loss; another gap is missing in the capture."""
    for again in (True, False):
        wire = Wire()
        wire.send(100, operation=O.RDMA_READ_REQUEST, length=3 * 1024)
        wire.answer(100, operation=O.RDMA_READ_RESPONSE_FIRST)
        if again:
            wire.answer(102, operation=O.RDMA_READ_RESPONSE_LAST)
            wire.send(101, operation=O.RDMA_READ_REQUEST, length=2 * 1024)
            wire.answer(101, operation=O.RDMA_READ_RESPONSE_FIRST)
        wire.answer(102, operation=O.RDMA_READ_RESPONSE_LAST)
        assert set(wire.requester.facts().gaps_by) == {Where.LOST if again else Where.MISSED}


def test_an_atomic_takes_one_psn() -> None:
    """The response of an atomic acknowledges its PSN."""
    wire = Wire()
    wire.send(100, operation=O.FETCH_ADD)
    wire.answer(100, operation=O.ATOMIC_ACKNOWLEDGE)
    wire.send(101)
    facts = wire.requester.facts()
    assert (facts.atomics, facts.messages_acknowledged, facts.next_psn, facts.gaps) == (1, 1, 102, ())


def test_gaps_have_four_causes() -> None:
    """A gap is missed (acknowledged), lost (asked for and sent again), reordered (late by microseconds) or unknown."""
    missed = Wire()
    missed.send(100, 102)
    missed.answer(102)
    lost = Wire()
    lost.send(100, 102)
    lost.answer(101, syndrome=SEQUENCE)
    lost.send(101, 102)
    lost.answer(102)
    reordered = Wire(step_ns=1000)
    reordered.send(100, 102, 101)
    unknown = Wire()
    unknown.send(100, 102)
    found = [wire.requester.facts().gaps_by for wire in (missed, lost, reordered, unknown)]
    assert found == [{Where.MISSED: 1}, {Where.LOST: 1}, {Where.REORDERED: 1}, {Where.UNKNOWN: 1}]
    assert lost.requester.facts().messages_ended == 3


def test_an_acknowledged_request_that_was_not_captured_is_a_gap() -> None:
    """Requests that are missing in the capture are counted by their acknowledgements."""
    wire = Wire()
    wire.send(100)
    wire.answer(104)
    assert wire.requester.facts().gaps_by == {Where.MISSED: 4}


def test_a_message_of_many_packets_has_its_bytes_and_frames() -> None:
    """First, middle and last packets form one message."""
    wire = Wire()
    for psn, operation in enumerate((O.SEND_FIRST, O.SEND_MIDDLE, O.SEND_MIDDLE, O.SEND_LAST), 100):
        wire.send(psn, operation=operation)
    (step,) = wire.requester.facts().unacknowledged
    assert (step.number, step.last_number, step.psn, step.last_psn, step.size) == (1, 4, 100, 103, 40)


def test_another_stream_on_the_same_queue_pair_is_noticed() -> None:
    """PSNs far from all others are strange, and are followed once the next packet continues them."""
    wire = Wire()
    wire.send(100, 101, 9_000_000, 9_000_001, 9_000_002)
    facts = wire.requester.facts()
    assert facts.strange == 2 and facts.next_psn == 9_000_003
    assert facts.gaps == ()


@pytest.mark.parametrize("path", sorted([*FOLDER.glob("*.pcapng"), *TEARDOWNS.glob("*.pcapng")]), ids=lambda p: p.stem)
def test_cm_messages_are_read_as_scapys_layers_read_them(path) -> None:  # type: ignore[no-untyped-def]
    """Every field of a CM message has the value of scapy's layers."""
    seen = 0
    for frame in read_pcapng(path):
        packet = dissect(frame.data)
        if packet is None or not packet.haslayer(MAD):
            continue
        message, layer = read_message(bytes(packet[BTH]), 1, 2), packet[MAD].payload
        assert message is not None
        seen += 1
        assert (message.attribute, message.transaction_id) == (packet[MAD].attribute_id, packet[MAD].transaction_id)
        assert message.local_comm_id == layer.local_comm_id
        if isinstance(layer, CMREQ):
            told = (layer.local_qpn, layer.starting_psn, layer.retry_count, layer.max_cm_retries)
            assert (message.qpn, message.psn, message.retry_count, message.max_cm_retries) == told
            assert message.local_timeout == layer.local_cm_response_timeout
            assert message.remote_timeout == layer.remote_cm_response_timeout
            assert message.mtu == 128 << layer.path_packet_payload_mtu
            gids = layer.primary_local_gid, layer.primary_remote_gid
            assert tuple(gid.to_bytes(16, "big") for gid in message.gids) == gids
        else:
            assert message.remote_comm_id == layer.remote_comm_id
        if isinstance(layer, CMREP):
            assert (message.qpn, message.psn) == (layer.local_qpn, layer.starting_psn)
        if isinstance(layer, CMDREQ):
            assert message.qpn == layer.remote_qpn
        if isinstance(layer, CMREJ):
            assert (message.answered, message.reason) == (layer.message_rejected, layer.reason)
    assert seen


def test_a_cut_cm_message_lacks_only_the_cut_fields() -> None:
    """At any length the reader gives a message with absent fields, or none, and never raises."""
    frame = next(frame for frame in recorded("reset"))
    whole = read_message(frame.data[BEHIND_UDP:], 1, 2)
    for length in range(BEHIND_UDP, len(frame.data)):
        message = read_message(frame.data[BEHIND_UDP:length], 1, 2)
        assert message is None or (message.qpn in (-1, whole.qpn) and message.local_comm_id == whole.local_comm_id)  # type: ignore[union-attr]


def test_too_many_live_connections_are_dropped_with_a_doubt() -> None:
    """A capture with more live connections than the limit loses the oldest, which are then no pass."""
    pairs = [(Side(1, 0x100 + n, 10 + n), Side(2, 0x200 + n, 900 + n)) for n in range(40)]
    frames = [f for n, pair in enumerate(pairs) for f in made(pair, 1, start_ns=START_NS + n * 10**9)[:5]]
    with open_capture(pcapng(frames)) as capture:
        found = list(FileRebuild(capture, max_live=10))
    assert len(found) == 40
    assert sum(facts.evicted for facts in found) >= 25


def test_chunks_of_any_size_give_the_same() -> None:
    """The borders of chunks have no influence on the result."""
    frames = recorded("rping")
    whole, _ = rebuilt(pcapng(frames))
    for size in (1 << 12, 1 << 13):
        assert rebuilt(pcapng(frames), chunk_bytes=size)[0] == whole


def test_memory_does_not_grow_with_the_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Four times the packets of the same connections take the same memory, within the variation of lists of numbers."""
    peaks = []
    for packets in (6_000, 24_000):
        path = tmp_path / f"{packets}.pcapng"
        write(path, packets, 20)
        tracemalloc.start()
        with open_capture(path, chunk_bytes=1 << 18) as capture:
            found = list(FileRebuild(capture, check_icrc=False))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found) == 20
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_an_empty_file_has_no_connections() -> None:
    """A pcap file that holds only its header gives no connection."""
    connections, facts = rebuilt(io.BytesIO(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)))
    assert (connections, facts.frames) == ([], 0)
