"""Judgements of captures of every tear-down, as recorded and with something wrong in them."""

import io
import random
from dataclasses import replace

import pytest
from captured import (
    acknowledged,
    altered,
    as_v1,
    judged,
    kind,
    later,
    made,
    moved,
    one,
    opcode,
    pcap,
    pcapng,
    place,
    rebuilt,
    recorded,
    resent,
    tagged,
    without,
)

from hil.evidence.rebuild.doubts import file_doubts
from hil.evidence.rebuild.endings import Ending
from hil.evidence.rebuild.facts import Where
from hil.evidence.rebuild.judgement import Reservations, judge
from hil.roce.opcodes import Operation
from hil.testing.roce import Side
from hil.verdict import Verdict

A, B = "10.77.0.1", "10.77.0.2"
PASS, FAIL, INVALID = Verdict.PASS, Verdict.FAIL, Verdict.INVALID
# Capture: how it ends, who ended it, the verdict.
KINDS = {
    "reset": (Ending.CM_DISCONNECT, A, PASS),
    "acceptor_closes": (Ending.CM_DISCONNECT, B, PASS),
    "crossed": (Ending.CM_DISCONNECT, A, PASS),
    "killed": (Ending.CM_DISCONNECT, A, PASS),
    "refused": (Ending.REFUSED, B, PASS),
    "cut_wire": (Ending.RETRY_EXHAUSTED, A, PASS),
    "qp_error": (Ending.QP_ERROR, B, PASS),
    "peer_gone": (Ending.CM_DISCONNECT, A, INVALID),
    "rping": (Ending.CM_DISCONNECT, A, PASS),
    "hard_close_ipv4": (Ending.CM_DISCONNECT, A, PASS),
}
CLOSED = [name for name, (_, _, verdict) in KINDS.items() if verdict is PASS]


def sides(psn: int = -1) -> tuple[Side, Side]:
    return Side(0x0A4D0001, 0x11, 1001, psn), Side(0x0A4D0002, 0x12, 2002)


# --- as recorded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_tear_down_is_recognised(name: str) -> None:
    """The judgement has the kind of ending, the end that caused it, and the verdict."""
    connection = one(recorded(name))
    closer = connection.facts.ends[connection.closer].address
    assert (connection.ending, closer, connection.verdict) == KINDS[name], connection
    assert not connection.facts.inferred


def test_a_refusal_names_its_reason() -> None:
    """The reason of the REJ is given by name and number."""
    assert one(recorded("refused")).how == "REJ: INVALID_SERVICE_ID (8)"


def test_retries_and_messages_in_flight_are_counted() -> None:
    """On the cut wire one message was sent seven times and never acknowledged."""
    requests = one(recorded("cut_wire")).facts.ends[0].requests
    assert (requests.messages_ended, requests.messages_acknowledged, requests.messages_in_flight) == (1, 0, 1)
    assert requests.retransmissions == requests.unanswered_tries == 6
    (step,) = requests.unacknowledged
    assert (step.what, step.size, step.psn) == ("SEND", 13, requests.oldest_unacknowledged_psn)


def test_a_nak_is_given_with_its_code() -> None:
    """The write beyond the range is refused with a remote access error, in the frame of the NAK."""
    connection = one(recorded("qp_error"))
    requests = connection.facts.ends[0].requests
    assert requests.naks == {"remote access error": 1}
    assert requests.fatal_nak is not None and requests.fatal_nak.number == connection.at_number


def test_reads_and_writes_are_counted_with_their_bytes() -> None:
    """rping's server reads and writes 64 bytes in each of its five rounds."""
    server = one(recorded("rping")).facts.ends[1].requests
    assert (server.reads, server.reads_answered, server.read_payload) == (5, 5, 320)
    assert server.messages_begun == server.messages_ended == server.messages_acknowledged == server.last_msn


# --- one packet less -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSED)
def test_one_packet_less_never_makes_a_fail(name: str) -> None:
    """An absent packet proves nothing: the verdict stays or becomes invalid."""
    frames = recorded(name)
    for n in range(len(frames)):
        for connection in judged(without(frames, n)):
            assert connection.verdict is not FAIL, (n, kind(frames[n]), connection)


@pytest.mark.parametrize("name", ["REQ", "REP", "DREQ", "DREP"])
@pytest.mark.parametrize("capture", ["reset", "acceptor_closes", "rping"])
def test_without_a_necessary_message_the_judgement_is_invalid(capture: str, name: str) -> None:
    """A doubt names each of the four messages that is missing."""
    frames = recorded(capture)
    verdicts = {c.verdict: c.doubts for c in judged(without(frames, place(frames, name)))}
    assert set(verdicts) == {INVALID}
    assert verdicts[INVALID]


def test_an_acknowledged_packet_that_is_missing_was_missed_by_the_capture() -> None:
    """A gap that was acknowledged and never sent again is missing in the capture, and the judgement is invalid."""
    frames = recorded("rping")
    sends = [n for n, frame in enumerate(frames) if kind(frame) == "RC" and opcode(frame) == Operation.SEND_ONLY]
    connection = one(without(frames, sends[3]))
    assert connection.verdict is INVALID
    assert sum(end.requests.gaps_by.get(Where.MISSED, 0) for end in connection.facts.ends) == 1


def test_a_capture_of_the_end_alone_is_inferred() -> None:
    """In half a capture acknowledgements pair the directions; the ending is known, and the verdict is invalid."""
    frames = recorded("rping")
    connection = one(frames[10:])
    assert connection.facts.inferred and connection.verdict is INVALID
    assert connection.ending is Ending.CM_DISCONNECT
    assert {end.qpn for end in connection.facts.ends} == {0x11}
    assert "it began before the capture: neither REQ nor REP is there" in connection.doubts


def test_one_direction_alone_is_a_doubt() -> None:
    """A mirror of one direction cannot carry a judgement."""
    frames = [frame for frame in recorded("rping") if frame.interface == "side-a"]
    assert {connection.verdict for connection in judged(frames)} == {INVALID}


# --- packets that should not be there --------------------------------------------------------------------------------


def test_data_behind_the_dreq_is_a_fail() -> None:
    """A message of the closer behind its DREQ breaks that finding, and the finding about the DREP."""
    frames = recorded("reset")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a")
    connection = one(moved(frames, data, place(frames, "DREQ")))
    assert connection.verdict is FAIL
    assert [f.statement for f in connection.findings if not f.held] == ["no data leaves the closer after its DREQ"]


def test_a_packet_behind_the_drep_is_a_fail() -> None:
    """An acknowledgement after both ends have closed breaks the last finding."""
    frames = recorded("reset")
    ack = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-b")
    connection = one(moved(frames, ack, len(frames) - 1))
    assert connection.verdict is FAIL
    assert [f.statement for f in connection.findings if not f.held] == ["nothing of the connection follows the DREP"]


def test_a_repeated_drep_hides_nothing() -> None:
    """A packet of the peer between its DREP and the repeated DREP still breaks the last finding."""
    frames = recorded("reset")
    ack = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-b")
    connection = one([*moved(frames, ack, len(frames) - 1), *resent(frames[-2:], 4_000_000_000)])
    assert [f.statement for f in connection.findings if not f.held] == ["nothing of the connection follows the DREP"]


def test_data_that_was_under_way_is_noted_and_no_fail() -> None:
    """A packet a few microseconds behind the DREQ was in another queue of the adapter."""
    frames = recorded("reset")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a")
    connection = one(moved(frames, data, place(frames, "DREQ"), later_ns=5_000))
    assert not [f for f in connection.findings if not f.held]
    assert any("under way" in note for note in connection.notes)


def test_a_dreq_for_another_queue_pair_is_a_fail() -> None:
    """A DREQ with another QPN and a right ICRC is wrong, and the adapter accepts it."""
    frames = recorded("reset")
    n = place(frames, "DREQ")
    frames[n] = altered(frames[n], 8 + 24 + 10, 0x40, repaired=True)
    connection = one(frames)
    assert connection.verdict is FAIL
    assert [f.statement for f in connection.findings if not f.held] == [
        "the closer's DREQ is on the wire, for this connection"
    ]


def test_a_corrupted_packet_is_passed_over() -> None:
    """No adapter accepts a DREQ with a wrong ICRC, so the DREQ is missing."""
    frames = recorded("reset")
    n = place(frames, "DREQ")
    frames[n] = altered(frames[n], 8 + 24 + 10, 0x40, repaired=False)
    (connection,), facts = rebuilt(pcapng(frames))
    assert connection.verdict is INVALID
    assert (facts.wrong_icrc, facts.first_wrong_icrc) == (1, n + 1)


def test_a_dreq_sent_again_and_answered_again_is_one_tear_down() -> None:
    """A retransmitted DREQ and its second DREP are legal."""
    frames = recorded("reset")
    connection = one([*frames, *resent(frames[-2:], 4_000_000_000)])
    assert connection.verdict is PASS
    assert "(2 times)" in connection.how


def test_a_dreq_that_is_never_answered_is_a_fail_once_the_closer_gave_up() -> None:
    """After the REQ's sixteen DREQs and a long wait, a peer that was there before does not disconnect."""
    frames = recorded("reset")[:-1]
    again = [f for n in range(1, 16) for f in resent(frames[-1:], n * 5_000_000_000, number=n)]
    somebody = [tagged(frame, 9) for frame in later(recorded("killed")[:1], 0)]
    late = [replace(somebody[0], time_ns=again[-1].time_ns + 60_000_000_000)]
    assert judged([*frames, *again[:-1], *late])[0].verdict is INVALID
    connection = judged([*frames, *again, *late])[0]
    assert connection.verdict is FAIL
    assert [f.statement for f in connection.findings if not f.held] == ["the peer's DREP follows"]


# --- captures from other tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("nanoseconds", [True, False])
@pytest.mark.parametrize("name", CLOSED)
def test_clocks_of_micro_and_nanoseconds_say_the_same(name: str, nanoseconds: bool) -> None:
    """A pcap file with micro- or nanoseconds has the verdict of the pcapng file."""
    (connection,), _ = rebuilt(pcap(recorded(name), nanoseconds=nanoseconds))
    assert (connection.ending, connection.verdict) == (KINDS[name][0], KINDS[name][2])


def test_a_snap_length_behind_the_headers_does_no_harm() -> None:
    """192 bytes of each frame carry the judgement; only the ICRC cannot be checked."""
    (connection,), facts = rebuilt(pcap(recorded("reset"), snap=192))
    assert connection.verdict is PASS, connection
    assert facts.snapped


@pytest.mark.parametrize("snap", [16, 48, 60, 64, 90, 96])
def test_a_snap_length_inside_the_headers_is_no_pass(snap: int) -> None:
    """Headers that are cut cannot be judged."""
    connections, _ = rebuilt(pcap(recorded("reset"), snap=snap))
    assert all(connection.verdict is INVALID for connection in connections)


@pytest.mark.parametrize("name", CLOSED)
def test_second_copies_of_a_mirror_are_no_retransmissions(name: str) -> None:
    """With every frame twice, 2 us apart at another interface, verdict and retransmissions stay the same."""
    frames = recorded(name)
    copies = [replace(frame, interface="mirror", time_ns=frame.time_ns + 2_000) for frame in frames]
    doubled = sorted([*frames, *copies], key=lambda frame: frame.time_ns)
    plain, connection = one(frames), one(doubled)
    assert (connection.ending, connection.verdict) == (plain.ending, plain.verdict), connection
    for end, other in zip(plain.facts.ends, connection.facts.ends, strict=True):
        assert end.requests.retransmissions == other.requests.retransmissions
        assert end.requests.packets == other.requests.packets
    assert sum(end.requests.copies for end in connection.facts.ends) == len(frames)


def test_times_out_of_order_are_sorted() -> None:
    """Frames in another order, as a mirror port delivers them, give the same verdict by their times."""
    frames = recorded("rping")
    rng = random.Random(4)
    shuffled = sorted(frames, key=lambda frame: frame.time_ns + rng.randrange(20_000_000))
    assert shuffled != frames
    connection = one(shuffled)
    assert (connection.ending, connection.verdict) == (Ending.CM_DISCONNECT, PASS), connection


def test_an_uncertain_order_is_not_judged() -> None:
    """Data behind the DREQ is in doubt, not a fail, when the capture's times step back by more."""
    frames = recorded("reset")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a")
    failing = moved(frames, data, place(frames, "DREQ"))
    other = made((Side(1, 0x31, 31), Side(2, 0x32, 32)), 2, start_ns=failing[0].time_ns)
    late = replace(other[3], time_ns=other[3].time_ns - 8_000_000)
    connections = judged([*failing, *other[:3], late, *other[4:]])
    (connection,) = [c for c in connections if c.facts.ends[0].address == A]
    assert connection.verdict is INVALID
    assert any("out of order" in doubt for doubt in connection.doubts)


@pytest.mark.parametrize("step", [3, 5, 6])
def test_a_clock_that_is_set_back_is_continued(step: int) -> None:
    """A clock that falls back by an hour or to 1970 changes neither the order nor the verdict."""
    frames = recorded("reset")
    for by_ns in (3600 * 10**9, frames[step].time_ns):
        connection = one([*frames[:step], *later(frames[step:], -by_ns)])
        assert connection.verdict is PASS, connection
        assert connection.facts.last_ns >= connection.facts.first_ns


def test_other_traffic_between_is_passed_over() -> None:
    """ARP, TCP, UDP to other ports and noise change nothing."""
    frames = recorded("rping")
    strangers = [bytes(60), b"\xff" * 12 + b"\x08\x06" + bytes(46), frames[0].data[:23] + b"\x06" + frames[0].data[24:]]
    strangers.append(frames[5].data[:36] + b"\x00\x35" + frames[5].data[38:])
    mixed = [f for frame in frames for f in (frame, *(replace(frame, data=data) for data in strangers))]
    connection = one(mixed)
    assert (connection.verdict, connection.notes) == (PASS, one(frames).notes)


def test_a_frame_check_sequence_at_the_end_does_no_harm() -> None:
    """With four bytes behind each frame the IP length still locates the ICRC."""
    frames = [replace(frame, data=frame.data + b"\xde\xad\xbe\xef") for frame in recorded("rping")]
    (connection,), facts = rebuilt(pcapng(frames))
    assert connection.verdict is PASS
    assert facts.wrong_icrc == 0 and facts.right_icrc == len(frames)


def test_the_same_addresses_in_two_vlans_are_two_connections() -> None:
    """Two connections with equal QPNs, PSNs and comm ids are interleaved frame by frame."""
    frames = recorded("rping")
    both = [f for frame in frames for f in (tagged(frame, 7), tagged(replace(frame, time_ns=frame.time_ns + 100), 8))]
    connections = judged(both)
    assert sorted(c.facts.vlans for c in connections) == [((7,), (7,)), ((8,), (8,))]
    assert {c.verdict for c in connections} == {PASS}


def test_the_same_queue_pairs_at_another_time_are_another_connection() -> None:
    """A later connection reuses the QPNs, with other comm ids and PSNs or even with the same ones."""
    first = made(sides(), 3)
    one_, two = sides(psn=77)
    one_.comm_id, two.comm_id = 5005, 6006
    again = made((one_, two), 4, start_ns=first[-1].time_ns + 10**9)
    connections = judged([*first, *again])
    assert [c.verdict for c in connections] == [PASS, PASS]
    assert [c.facts.ends[0].requests.messages_ended for c in connections] == [3, 4]


def test_captures_that_were_joined_prove_no_order() -> None:
    """Equal addresses in two sections may be two networks: data behind a DREQ is in doubt, not a fail."""
    frames = recorded("reset")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a")
    failing = pcapng(moved(frames, data, place(frames, "DREQ"))).getvalue()
    assert [c.verdict for c in rebuilt(io.BytesIO(failing))[0]] == [FAIL]
    connections, facts = rebuilt(io.BytesIO(failing + pcapng(later(recorded("rping"), 10**9)).getvalue()))
    assert facts.joined
    assert FAIL not in {c.verdict for c in connections}


@pytest.mark.parametrize("name", ["reset", "rping", "qp_error", "cut_wire"])
def test_roce_v1_is_judged_alike(name: str) -> None:
    """The same packets behind a GRH instead of IP and UDP have the same verdict."""
    connection = one(map(as_v1, recorded(name)))
    closer = connection.facts.ends[connection.closer].address
    assert (connection.ending, closer, connection.verdict) == KINDS[name], connection


def test_frames_that_the_capturing_side_dropped_are_no_pass() -> None:
    """Dropped frames may have been any frames."""
    (connection,), facts = rebuilt(pcapng(recorded("reset")))
    facts.dropped = {"eth0": 3}
    assert connection.verdict is PASS
    assert judge(connection.facts, Reservations.about(facts)).verdict is INVALID
    assert file_doubts(facts) == ["interface eth0 dropped 3 frames"]


def test_a_receiver_that_is_never_ready_exhausts_the_retries() -> None:
    """Every try gets an RNR NAK, and the DREQ follows."""
    frames = made(sides(), 1)
    sends = [n for n, frame in enumerate(frames) if kind(frame) == "RC"]
    nak = acknowledged(frames[sends[-1]], syndrome=0x21, behind=3)
    tries = [f for n in range(3) for f in later([frames[sends[0]], nak], n * 20_000_000)]
    connection = one([*frames[: sends[0]], *tries, *later(frames[sends[-1] + 1 :], 10**9)])
    assert connection.ending is Ending.RETRY_EXHAUSTED, connection
    assert "3 times answered that the receiver is not ready" in connection.how


def test_psns_wrap() -> None:
    """A connection that begins three packets in front of the wrap passes."""
    connection = one(made(sides(psn=(1 << 24) - 3), 20))
    requests = connection.facts.ends[0].requests
    assert connection.verdict is PASS, connection
    assert requests.next_psn < requests.first_psn
    assert (requests.messages_ended, requests.messages_acknowledged, requests.gaps) == (20, 20, ())


def test_a_loss_across_the_wrap_is_a_loss() -> None:
    """A packet that was lost in front of the capture point, asked for and sent again makes no doubt."""
    frames = made(sides(psn=(1 << 24) - 2), 1)
    sends = [n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a"]
    again = replace(frames[sends[2]], time_ns=frames[sends[3]].time_ns + 4_000_000)
    last = replace(frames[sends[3]], time_ns=again.time_ns + 10_000)
    lossy = [*frames[: sends[2]], frames[sends[3]], again, last, *later(frames[sends[3] + 1 :], 8_000_000)]
    connection = one(lossy)
    requests = connection.facts.ends[0].requests
    assert connection.verdict is PASS, connection
    assert requests.gaps_by == {Where.LOST: 1}
    assert requests.retransmissions == 1


def test_thousands_of_connections() -> None:
    """Each of two thousand, with interleaved packets, is rebuilt and passes."""
    pairs = [
        (Side(0x0A000000 + n // 50, 0x100 + n, 10_000 + n), Side(0x0B000001, 0x5000 + n, 90_000 + n))
        for n in range(2000)
    ]
    parts = [made(pair, 1) for pair in pairs]
    frames = [
        replace(part[n], time_ns=part[n].time_ns + m) for n in range(len(parts[0])) for m, part in enumerate(parts)
    ]
    connections = judged(frames)
    assert len(connections) == 2000
    assert {c.verdict for c in connections} == {PASS}
    assert {c.facts.ends[0].requests.messages_ended for c in connections} == {1}


def test_an_unexplained_gap_is_no_pass() -> None:
    """A gap neither asked for nor acknowledged was lost or not captured, so nothing can be concluded."""
    frames = made(sides(), 1)
    sends = [n for n, frame in enumerate(frames) if kind(frame) == "RC"]
    connection = one(without(frames, sends[1], sends[-1]))
    assert connection.verdict is INVALID
    assert connection.facts.ends[0].requests.gaps_by == {Where.UNKNOWN: 1}


def test_a_stale_dreq_of_an_earlier_connection_ends_nothing() -> None:
    """The active end reuses comm id and QPN; a DREQ with the earlier peer's id is not the new connection's."""
    first, again = sides(), sides(psn=500)
    again[1].comm_id, again[1].qpn = 3003, 0x19
    old = made(first, 1)
    new = made(again, 3, start_ns=old[-1].time_ns + 10**9)
    stale = replace(old[place(old, "DREQ")], time_ns=new[9].time_ns + 1)
    connections = judged([*old, *new[:10], stale, *new[10:]])
    assert [c.verdict for c in connections[:2]] == [PASS, PASS], connections
    assert connections[1].at_number > connections[1].facts.ends[0].requests.last_request.number  # type: ignore[union-attr]


def test_a_lost_message_that_was_asked_for_and_never_came_again_was_lost() -> None:
    """The receiver asked for the message, so the capture did not miss it."""
    frames = made(sides(), 1)
    sends = [n for n, frame in enumerate(frames) if kind(frame) == "RC"]
    nak = acknowledged(frames[sends[-1]], syndrome=0x60, behind=2)
    connection = one([*frames[: sends[1]], *frames[sends[2] : sends[4]], nak, *frames[sends[4] + 1 :]])
    assert connection.facts.ends[0].requests.gaps_by == {Where.LOST: 1}
    assert connection.verdict is PASS, connection
