"""Captures that mislead: packets twice, late, cut, mixed or untimed make neither a fail nor a pass."""

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from capture_files import enhanced, interface, section, simple, statistics
from captured import (
    FAULTS,
    arp,
    as_v1,
    between,
    judged,
    kind,
    later,
    made,
    moved,
    one,
    opcode,
    pcapng,
    place,
    rebuilt,
    recorded,
    resent,
    tagged,
    unnumbered,
    without,
)

from hil.capture.pcapng import CapturedFrame
from hil.evidence.rebuild.doubts import file_doubts, file_notes
from hil.evidence.rebuild.endings import Ending
from hil.evidence.rebuild.facts import Where
from hil.evidence.rebuild.judgement import Judged, Reservations, judge
from hil.report.words import ends_words
from hil.roce.icrc import icrc
from hil.roce.layers.cm import CmAttribute
from hil.roce.opcodes import Operation
from hil.testing.roce import Side, disconnect, message
from hil.verdict import Verdict

PASS, FAIL, INVALID = Verdict.PASS, Verdict.FAIL, Verdict.INVALID
WRITES = range(Operation.RDMA_WRITE_FIRST, Operation.RDMA_WRITE_ONLY_WITH_IMMEDIATE + 1)


def faster(frames: Sequence[CapturedFrame], times: int) -> list[CapturedFrame]:
    """The frames, that many times closer together."""
    begun = frames[0].time_ns
    return [replace(frame, time_ns=begun + (frame.time_ns - begun) // times) for frame in frames]


@pytest.mark.parametrize(("behind_ns", "verdicts"), [(500_000, {PASS}), (9_000_000, {PASS, INVALID})])
def test_a_mirrors_second_copies_behind_the_dreq_are_no_fail(behind_ns: int, verdicts: set[Verdict]) -> None:
    """A slower mirror repeats packets of before the DREQ behind it, which is at most a doubt."""
    frames = faster(recorded("rping"), 50)
    copies = [replace(frame, interface="mirror", time_ns=frame.time_ns + behind_ns) for frame in frames]
    assert one(sorted([*frames, *copies], key=lambda frame: frame.time_ns)).verdict in verdicts


def sides(qpn: int = 0x11, ids: tuple[int, int] = (11, 22), psn: int = -1) -> tuple[Side, Side]:
    return Side(0x0A000001, qpn, ids[0], psn), Side(0x0A000002, qpn + 1, ids[1], psn)


@pytest.mark.parametrize(("step_ns", "behind_ns"), [(1000, 200_000), (2000, 900_000), (20_000, 900_000)])
def test_on_a_fast_link_a_mirrors_copy_is_hundreds_of_packets_behind(step_ns: int, behind_ns: int) -> None:
    """A copy is found as long as its bytes are kept, however many packets lie between."""
    frames = made(sides(), 300, step_ns=step_ns)
    copies = [replace(frame, interface="mirror", time_ns=frame.time_ns + behind_ns) for frame in frames]
    connection = one(sorted([*frames, *copies], key=lambda frame: frame.time_ns))
    assert connection.verdict is PASS
    assert not any(end.requests.retransmissions for end in connection.facts.ends)


def test_the_copy_of_another_mirror_may_be_cut_shorter() -> None:
    """Copies are equal in the bytes that both have, so the packet was not sent twice."""
    frames, snap = made(sides(), 100, step_ns=1000), 200
    both = [(frame.time_ns, 0, frame.data, len(frame.data)) for frame in frames]
    both += [(frame.time_ns + 300_000, 1, frame.data[:snap], len(frame.data)) for frame in frames]
    file = section() + interface(name="m1", resolution=9) + interface(name="m2", resolution=9, snap=snap)
    for time_ns, index, data, original in sorted(both):
        file += enhanced(data, index=index, ticks=time_ns, original=original)
    (connection,), _ = rebuilt(io.BytesIO(file))
    assert connection.verdict is PASS
    assert not any(end.requests.retransmissions for end in connection.facts.ends)


@pytest.mark.parametrize("behind_ns", [50_000_000, 400_000_000])
def test_captures_merged_into_one_interface_make_no_fail(behind_ns: int) -> None:
    """Equal IPv4 identifications show that a packet may be the same one, whatever the two clocks say."""
    frames = recorded("hard_close_ipv4")
    copies = [replace(frame, time_ns=frame.time_ns + behind_ns) for frame in frames]
    found = judged(sorted([*frames, *copies], key=lambda frame: frame.time_ns))
    assert FAIL not in {c.verdict for c in found}


@pytest.mark.parametrize("answered", [True, False])
def test_a_stale_dreq_takes_nothing_from_a_live_connection_with_the_same_queue_pairs(answered: bool) -> None:
    """The earlier connection's DREQ and DREP come again inside the later one, and both connections pass."""
    earlier = made(sides(), 4, step_ns=1_000_000)
    live = later(made(sides(ids=(111, 222), psn=900), 20, step_ns=1_000_000), 2_000_000_000)
    stale = [replace(earlier[place(earlier, "DREQ")], time_ns=live[30].time_ns + 1000)]
    stale += [replace(earlier[place(earlier, "DREP")], time_ns=live[30].time_ns + 5000)] * answered
    found = judged([*earlier, *live[:31], *stale, *live[31:]])
    assert [c.verdict for c in found[:2]] == [PASS, PASS]
    assert FAIL not in {c.verdict for c in found}


def test_in_the_middle_of_a_connection_a_stale_dreq_proves_nothing() -> None:
    """Without the REQ it is unknown which connection the DREQ of the queue pair belongs to."""
    frames = made(sides(), 20, step_ns=1_000_000)
    stale = [
        replace(frames[40], data=data, original_length=len(data), interface=f"side-{'ab'[side]}")
        for side, data in disconnect(*sides(ids=(911, 922)))
    ]
    assert FAIL not in {c.verdict for c in judged([*frames[3:41], *stale, *frames[41:]])}


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_queue_pairs_used_again_unannounced_make_no_fail(lost: int) -> None:
    """The later connection's first messages are missing, so its packets prove nothing about the earlier one."""
    again = later(made(sides(ids=(111, 222), psn=900), 4), 2_000_000_000)
    assert FAIL not in {c.verdict for c in judged([*made(sides(), 4), *again[lost:]])}


@pytest.mark.parametrize(
    ("code", "right"), [(Operation.SEND_ONLY, False), (0x1F, True)], ids=["wrong ICRC", "unknown opcode"]
)
def test_a_packet_that_no_adapter_accepts_is_no_silence(code: int, right: bool) -> None:
    """A packet behind the DREP that adapters ignore was sent, and its kind is unknown: invalid."""
    frames = made(sides(), 2)
    last = [frame for frame in frames if kind(frame) == "RC" and frame.interface == "side-a"][-1]
    data = bytearray(last.data)
    data[51:54] = (int.from_bytes(data[51:54], "big") + 1 & 0xFFFFFF).to_bytes(3, "big")
    data[42] = code
    data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
    data[-5] ^= not right
    late = replace(last, data=bytes(data), time_ns=frames[-1].time_ns + 5_000_000)
    assert one([*frames, late]).verdict is INVALID


@pytest.mark.parametrize("behind_ns", [9_900_000, 15_000_000, 200_000_000])
@pytest.mark.parametrize("name", ["rping", "qp_error", "cut_wire", "acceptor_closes"])
def test_no_delay_of_a_mirror_makes_a_fail(name: str, behind_ns: int) -> None:
    """Repeated packets between the two copies, and packets without an IPv4 identification, make no fail either."""
    for frames in (faster(recorded(name), 50), [as_v1(frame) for frame in faster(recorded(name), 50)]):
        copies = [replace(frame, interface="mirror", time_ns=frame.time_ns + behind_ns) for frame in frames]
        verdicts = {c.verdict for c in judged(sorted([*frames, *copies], key=lambda frame: frame.time_ns))}
        assert FAIL not in verdicts


@pytest.mark.parametrize("name", ["ack_delayed", "dreq_repaired"])
def test_frames_that_the_wire_emitted_are_not_the_nodes(name: str) -> None:
    """The wire held a frame back behind the DREP, or changed one; the nodes are not blamed."""
    (connection,), facts = rebuilt(io.BytesIO((FAULTS / f"{name}.pcapng").read_bytes()))
    assert connection.verdict is PASS, connection
    assert facts.tally.emitted
    assert any("the wire emitted" in note for note in file_notes(facts))


def behind_the_drep() -> list[CapturedFrame]:
    """A capture with an acknowledgement one second behind the DREP."""
    frames = recorded("reset")
    ack = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-b")
    return moved(frames, ack, len(frames) - 1, later_ns=10**9)


UNTIMED = {
    "no times": lambda frame: simple(frame.data),
    "all times alike": lambda frame: enhanced(frame.data, ticks=5),
    "seconds": lambda frame: enhanced(frame.data, ticks=frame.time_ns // 10**9),
    "some without": lambda frame: simple(frame.data) if frame.number % 2 else enhanced(frame.data, ticks=frame.number),
}


@pytest.mark.parametrize("kind_of_times", UNTIMED)
def test_without_usable_times_a_late_packet_is_invalid(kind_of_times: str) -> None:
    """Without times a packet behind the DREP may have been under way or not: neither a pass nor a fail."""
    resolution = 0 if kind_of_times == "seconds" else 9
    block = UNTIMED[kind_of_times]
    file = section() + interface(resolution=resolution) + b"".join(map(block, behind_the_drep()))
    (connection,), _ = rebuilt(io.BytesIO(file))
    assert connection.verdict is INVALID, connection


def test_a_capture_without_times_passes_by_its_order() -> None:
    """No time is needed when no packet follows the DREP."""
    file = section() + interface() + b"".join(simple(frame.data) for frame in recorded("reset"))
    (connection,), facts = rebuilt(io.BytesIO(file))
    assert (connection.verdict, facts.clock.untimed) == (PASS, facts.frames), connection


def test_a_capture_goes_on_with_frames_of_any_protocol() -> None:
    """Ten minutes of ARP show that no DREP, no answer to a REQ and no DREQ came."""
    unanswered = one(arp(recorded("peer_gone"), 600))
    assert not [doubt for doubt in unanswered.doubts if "the capture ends" in doubt]
    frames = recorded("reset")
    asked = [f for n in range(16) for f in resent(frames[:1], n * 5_000_000_000, number=n)]
    refused = one(arp(asked, 600))
    assert (refused.ending, refused.verdict) == (Ending.NOT_ESTABLISHED, PASS), refused
    assert one(arp(asked[:-1], 600)).verdict is INVALID
    assert one(arp(frames[: place(frames, "DREQ")], 600)).ending is Ending.SILENCE


@pytest.mark.parametrize("chunk_bytes", [1 << 12, 1 << 20])
def test_wrong_icrcs_are_no_evidence_where_others_are_right(chunk_bytes: int) -> None:
    """A connection with wrong ICRCs far in front of one with right ones is no pass, with any size of chunks."""
    wrong = [replace(frame, data=frame.data[:-4] + bytes(4)) for frame in recorded("hard_close_ipv4")]
    right = later(recorded("reset"), 10**12)
    connections, facts = rebuilt(pcapng([*arp(wrong, 200), *right]), chunk_bytes=chunk_bytes)
    assert PASS not in {c.verdict for c in connections if c.facts.first_number <= len(wrong)}
    assert connections[-1].verdict is PASS
    assert "(the first is frame 1)" in " ".join(file_notes(facts))


def stacked(frame: CapturedFrame, *vlans: int) -> CapturedFrame:
    """The frame with VLAN tags; the outer one's id is the first."""
    for vlan in reversed(vlans):
        frame = tagged(frame, vlan)
    return frame


def test_the_same_addresses_in_two_inner_vlans_are_two_connections() -> None:
    """The VLANs of two customers are inside one VLAN of the provider, interleaved frame by frame."""
    frames = recorded("rping")
    both = [f for frame in frames for f in (stacked(frame, 100, 10), stacked(frame, 100, 20))]
    connections = judged(both)
    assert sorted(c.facts.vlans[0] for c in connections) == [(100, 10), (100, 20)]
    assert {c.verdict for c in connections} == {PASS}
    assert {ends_words(c.facts)[-13:] for c in connections} == {"(VLAN 100.10)", "(VLAN 100.20)"}


def test_a_priority_tag_is_no_vlan() -> None:
    """Tags with id 0 on some of the frames do not split the connection."""
    frames = recorded("rping")
    connection = one(tagged(frame, 0) if n % 3 else frame for n, frame in enumerate(frames))
    assert (connection.verdict, connection.facts.vlans) == (PASS, ((), ()))


@pytest.mark.parametrize("side", ["side-a", "side-b"])
@pytest.mark.parametrize("name", ["rping", "reset", "refused", "crossed"])
def test_one_direction_with_tags_and_one_without_are_one_connection(name: str, side: str) -> None:
    """The CM ids join a direction that a mirror shows with tags and one that it shows without."""
    connection = one(tagged(frame, 9) if frame.interface == side else frame for frame in recorded(name))
    assert connection.verdict is PASS, connection
    assert {*connection.facts.vlans} == {(9,), ()}
    assert any("different VLANs" in note for note in connection.notes)


def missed(connection: Judged) -> int:
    """The number of packets that are missing in the capture."""
    return sum(end.requests.gaps_by.get(Where.MISSED, 0) for end in connection.facts.ends)


def test_responses_that_the_capture_lacks_are_no_pass() -> None:
    """In rping without the responses to its five READs, each later acknowledgement shows the gap."""
    frames = recorded("rping")
    responses = [n for n, frame in enumerate(frames) if opcode(frame) == Operation.RDMA_READ_RESPONSE_ONLY]
    connection = one(without(frames, *responses))
    assert (connection.verdict, missed(connection), len(responses)) == (INVALID, 5, 5)


@pytest.mark.parametrize("operation", [Operation.RDMA_READ_RESPONSE_FIRST, Operation.RDMA_READ_RESPONSE_LAST])
def test_a_part_of_a_response_that_the_capture_lacks_is_no_pass(operation: int) -> None:
    """The first or the last packet of a READ's response is missing."""
    frames = made((Side(1, 0x11, 11), Side(2, 0x12, 22)), 9)
    assert one(frames).verdict is PASS
    part = next(n for n, frame in enumerate(frames) if opcode(frame) == operation)
    connection = one(without(frames, part))
    assert (connection.verdict, missed(connection)) == (INVALID, 1)


def test_a_nak_to_a_request_that_the_capture_lacks_is_no_pass() -> None:
    """The remote access error is in the capture, and the write that it refuses is missing."""
    frames = recorded("qp_error")
    write = max(n for n, frame in enumerate(frames) if kind(frame) == "RC" and opcode(frame) in WRITES)
    connection = one(without(frames, write))
    assert connection.facts.ends[0].requests.fatal_nak is not None
    assert (connection.verdict, missed(connection)) == (INVALID, 1)


def test_the_closers_own_drep_does_not_answer_its_dreq() -> None:
    """Two closes crossed, and the peer's DREQ, which the closer's DREP answers, is missing."""
    frames = recorded("crossed")
    theirs = max(n for n, frame in enumerate(frames) if kind(frame) == "DREQ")
    connection = one(without(frames, theirs))
    assert connection.verdict is INVALID
    assert "the DREQ that the DREP answers is missing in the capture" in connection.doubts
    assert "no DREP" in connection.how


@pytest.mark.parametrize("in_file", ["one end after the other", "backwards"])
@pytest.mark.parametrize("name", ["qp_error", "cut_wire", "crossed", "reset", "rping"])
def test_times_decide_which_end_closed(name: str, in_file: str) -> None:
    """Frames that keep their times but not their places give the same ending by the same end."""
    frames = recorded(name)
    placed = frames[::-1] if in_file == "backwards" else sorted(frames, key=lambda frame: frame.interface)
    plain, connection = one(frames), one(placed)
    assert (connection.ending, connection.closer, connection.verdict) == (plain.ending, plain.closer, plain.verdict)


def test_the_second_of_two_crossing_closers_must_be_silent_too() -> None:
    """A message behind its own DREQ breaks the finding, although the other end's DREQ came first."""
    one_, two = Side(1, 0x11, 11), Side(2, 0x12, 22)
    frames = made((one_, two), 1)
    dreq = place(frames, "DREQ")
    (_, theirs), *_ = disconnect(two, one_)
    (_, data), *_ = message(two, one_, 0)
    at = frames[dreq].time_ns
    crossing = CapturedFrame(0, at + 5_000, "side-b", theirs, len(theirs))
    late = CapturedFrame(0, at + 5_000_000, "side-b", data, len(data))
    connection = one([*frames[: dreq + 1], crossing, late, *later(frames[dreq + 1 :], 10_000_000)])
    assert [f.statement for f in connection.findings if not f.held] == ["no data leaves the closer after its DREQ"]


def test_of_many_interfaces_with_drops_the_first_are_named() -> None:
    """Drops of interfaces with one name are added up, and only the first of many interfaces are named."""
    (connection,), facts = rebuilt(pcapng(recorded("reset")))
    facts.dropped = {f"eth{n}": 1 for n in range(2000)}
    assert file_doubts(facts)[-1] == "and 1,990 more interfaces dropped frames"
    assert len(file_doubts(facts)) == 11
    about = Reservations.about(facts)
    assert judge(connection.facts, about).doubts == about.doubts


def test_a_pass_says_how_far_the_capture_goes_on() -> None:
    """A capture that ends with the DREP shows little of the silence behind it."""
    frames = recorded("reset")
    words = "the capture ends 0.000 ms behind the last DREP: it cannot show what came later"
    assert words in one(frames).notes
    assert not [note for note in one(arp(frames, 2)).notes if "behind the last DREP" in note]


def test_drops_of_interfaces_with_one_name_are_added_up() -> None:
    """500 and 3 drops of one name are 503."""
    file = section() + interface(name="eth0") * 2 + statistics(index=0, dropped=500) + statistics(index=1, dropped=3)
    _, facts = rebuilt(io.BytesIO(file))
    assert facts.dropped == {"eth0": 503}


def test_a_refusal_that_is_sent_again_is_one_refusal() -> None:
    """The first REJ was lost: the REQ comes again, and so does a REJ with another comm id of its sender."""
    connections, _ = rebuilt(io.BytesIO((FAULTS / "rej_dropped.pcapng").read_bytes()))
    assert [(c.ending, c.verdict) for c in connections] == [(Ending.REFUSED, PASS), (Ending.CM_DISCONNECT, PASS)]
    assert len([m for m in connections[0].facts.messages if m.message.attribute is CmAttribute.REJ]) == 2


def relinked(frames: Sequence[CapturedFrame], link: int) -> io.BytesIO:
    """A capture of Ethernet frames with another link type."""
    heads = {
        1: lambda data: data[:14],
        101: lambda _: b"",
        113: lambda data: bytes(14) + data[12:14],
        276: lambda data: data[12:14] + bytes(18),
        105: lambda data: data[:14],
    }
    parts = [enhanced(heads[link](f.data) + f.data[14:], ticks=f.time_ns, index=1) for f in frames]
    return io.BytesIO(section() + interface() + interface(resolution=9, link=link) + b"".join(parts))


@pytest.mark.parametrize("name", ["hard_close_ipv4", "hard_close_ipv6", "rping"])
@pytest.mark.parametrize("link", [1, 101, 113, 276])
def test_captures_of_cooked_and_raw_interfaces_are_read(name: str, link: int) -> None:
    """tcpdump writes these link types on "any", and on a device without an Ethernet header."""
    (connection,), facts = rebuilt(relinked(recorded(name), link))
    assert connection.verdict is PASS, connection
    assert facts.right_icrc == facts.tally.packets


def test_frames_of_a_link_type_that_is_not_read_are_a_doubt() -> None:
    """Frames of a link type that is not supported may be RoCE."""
    connections, facts = rebuilt(relinked(recorded("reset"), 105))
    assert not connections
    assert file_doubts(facts) == [f"{facts.frames} frames of link type 105 (IEEE802_11), which is not read"]


def test_messages_behind_extension_headers_are_read() -> None:
    """The CM messages are found behind a hop-by-hop header in front of UDP."""

    def extended(data: bytes) -> bytes:
        length = int.from_bytes(data[18:20]) + 8
        head = data[:18] + length.to_bytes(2) + b"\0" + data[21:54]
        return head + b"\x11\0\x01\x04\0\0\0\0" + data[54:]

    plain = one(recorded("hard_close_ipv6"))
    connection = one(replace(frame, data=extended(frame.data)) for frame in recorded("hard_close_ipv6"))
    assert (connection.verdict, connection.facts.ends[0].qpn) == (PASS, plain.facts.ends[0].qpn)


@pytest.mark.parametrize("lag_ns", [0, 7_000, 300_000])
def test_equal_networks_with_other_macs_are_distinguished(lag_ns: int) -> None:
    """Two labs made of one image have equal addresses, queue pairs and comm ids, and different MACs."""
    here = between(made(sides(), 20), 0xA1, 0xA2)
    there = later(between(made(sides(psn=70_000), 20, step_ns=31_000), 0xB1, 0xB2), lag_ns)
    found = judged(sorted([*here, *there], key=lambda frame: frame.time_ns))
    assert [c.verdict for c in found] == [PASS, PASS]
    assert {end.requests.retransmissions for c in found for end in c.facts.ends} == {0}


def test_packets_by_way_of_several_routers_are_one_connection() -> None:
    """The peer's packets come from two routers by turns, and all have the host's own MAC address."""
    ways = [between(made(sides(), 20), 0xA1, router) for router in (0xC1, 0xC2)]
    connection = one(ways[n % 2][n] for n in range(len(ways[0])))
    assert connection.verdict is PASS, connection


def test_two_directions_on_two_sides_of_a_router_are_one_connection() -> None:
    """The two ports of a router are mirrored, and each has its own MAC addresses."""
    frames = made(sides(), 20)
    ways = [between(frames, 0xA1, 0xC1), between(frames, 0xC2, 0xB1)]
    connection = one(ways[frame.interface == "side-b"][n] for n, frame in enumerate(frames))
    assert connection.verdict is PASS, connection


@pytest.mark.parametrize("behind_ns", [1_500_000_000, 30_000_000_000, -30_000_000_000])
@pytest.mark.parametrize("name", ["hard_close_ipv4", "rping", "crossed", "long"])
def test_merged_captures_with_clocks_far_apart_make_no_fail(name: str, behind_ns: int) -> None:
    """The same packets come twice, at two interfaces, without identifications."""
    frames = made(sides(), 20, step_ns=100_000_000) if name == "long" else unnumbered(recorded(name))
    copies = [replace(frame, interface="mirror", time_ns=frame.time_ns + behind_ns) for frame in frames]
    merged = sorted([*frames, *copies], key=lambda frame: frame.time_ns)
    assert FAIL not in {c.verdict for c in judged(merged)}


def test_data_at_an_interface_with_another_clock_is_in_doubt() -> None:
    """Data behind the DREQ is a fail at the DREQ's interface, and in doubt at one with another clock."""
    frames = recorded("reset")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a")
    late = moved(frames, data, len(frames) - 1)
    assert one(late).verdict is FAIL
    elsewhere = one([*late[:-1], replace(late[-1], interface="mirror")])
    assert elsewhere.verdict is INVALID
    assert any("behind the DREQ" in doubt for doubt in elsewhere.doubts)


@pytest.mark.parametrize("ahead_ns", [400_000_000, -400_000_000])
@pytest.mark.parametrize("name", ["rping", "reset", "acceptor_closes"])
def test_clocks_of_two_interfaces_that_differ_make_no_verdict(name: str, ahead_ns: int) -> None:
    """Each end has its own interface, one of them 0.4 s ahead, so the order is wrong."""
    frames = recorded(name)
    skewed = [replace(f, time_ns=f.time_ns + ahead_ns * (f.interface == "side-b")) for f in frames]
    assert {c.verdict for c in judged(sorted(skewed, key=lambda frame: frame.time_ns))} == {INVALID}


@pytest.mark.parametrize("snap", [120, 128, 200])
@pytest.mark.parametrize("behind_ns", [300_000, -300_000, 5_000_000])
@pytest.mark.parametrize("name", ["hard_close_ipv4", "rping", "refused", "crossed"])
def test_cm_messages_that_one_mirror_cuts_are_completed_by_the_other(name: str, behind_ns: int, snap: int) -> None:
    """One mirror's snap length ends inside the CM messages; the other's copies complete them."""
    frames = faster(recorded(name), 50)
    both = [(frame.time_ns, 0, frame.data, len(frame.data)) for frame in frames]
    both += [(frame.time_ns + behind_ns, 1, frame.data[:snap], len(frame.data)) for frame in frames]
    file = section() + interface(name="m1", resolution=9) + interface(name="m2", resolution=9, snap=snap)
    for time_ns, index, data, original in sorted(both):
        file += enhanced(data, index=index, ticks=time_ns, original=original)
    connections, _ = rebuilt(io.BytesIO(file))
    assert FAIL not in {c.verdict for c in connections}
    assert len(connections) == len(judged(frames))


def test_a_direction_without_any_answers_is_no_pass() -> None:
    """One direction has only its CM messages, and no packet was sent again."""
    frames = made(sides(), 40, step_ns=1_000_000)
    answered = [frame for frame in frames if kind(frame) != "RC" or frame.interface == "side-a"]
    connection = one(answered)
    assert connection.verdict is INVALID
    assert any("packets of 10.0.0.1 get no answer" in doubt for doubt in connection.doubts)
    assert one(frames).verdict is PASS


def test_an_unreliable_connection_needs_no_answers() -> None:
    """The REQ says that the connection is UC, which has no acknowledgements."""
    frames = made(sides(), 40, step_ns=1_000_000)
    data = bytearray(frames[0].data)
    data[14 + 20 + 8 + 12 + 8 + 24 + 43] |= 1 << 1
    data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
    sent = [frame for frame in frames[1:] if kind(frame) != "RC" or frame.interface == "side-a"]
    doubts = one([replace(frames[0], data=bytes(data)), *sent]).doubts
    assert not any("nothing answers" in doubt for doubt in doubts)


@pytest.mark.parametrize("behind_ns", [300_000, 900_000])
def test_a_packet_repeated_right_behind_the_drep_is_no_copy(behind_ns: int) -> None:
    """No other packet is twice in the capture, so the adapter sent this one again, however soon."""
    frames = made(sides(), 1, step_ns=1000)
    data = [f for f in frames if kind(f) == "RC" and f.interface == "side-a"][-1]
    again = replace(data, time_ns=frames[-1].time_ns + behind_ns)
    assert one([*frames, again]).verdict is FAIL
    twice = [replace(frame, time_ns=frame.time_ns + 300) for frame in frames]
    assert one(sorted([*frames, *twice, again], key=lambda frame: frame.time_ns)).verdict is INVALID


@pytest.mark.parametrize("tries", [2, 5, 6])
def test_retries_are_used_up_when_the_req_allows_no_more(tries: int) -> None:
    """The REQ allows six retries: with fewer the end has not given up."""
    frames = made(sides(), 3, step_ns=1_000_000)
    n = place(frames, "DREQ")
    last = [frame for frame in frames[:n] if kind(frame) == "RC" and frame.interface == "side-a"][-1]
    kept = [frame for frame in frames[:n] if frame.interface == "side-a" or frame.time_ns < last.time_ns]
    again = [f for k in range(tries) for f in resent([last], (k + 1) * 70_000_000, number=k + 1)]
    ended = one([*kept, *again, *later(frames[n:], 10**9)])
    assert (ended.ending is Ending.RETRY_EXHAUSTED) == (tries == 6), ended


def test_a_mirrors_late_copies_of_a_dreq_are_not_counted_as_tries() -> None:
    """Eight DREQs with a copy each are not the sixteen that the REQ allows."""
    frames = unnumbered(recorded("reset")[:-1])
    asked = [f for n in range(8) for f in later(frames[-1:], n * 5_000_000_000)]
    copies = [replace(frame, interface="mirror", time_ns=frame.time_ns + 5_000_000) for frame in asked]
    both = sorted([*frames[:-1], *asked, *copies], key=lambda frame: frame.time_ns)
    assert one(arp(both, 120)).verdict is INVALID


def test_roce_in_fragments_is_no_silence() -> None:
    """A first fragment of a RoCE packet behind the DREP may be any packet."""
    frames = recorded("reset")
    data = bytearray(frames[-1].data)
    data[20] |= 0x20
    (connection,), facts = rebuilt(pcapng([*frames, replace(frames[-1], data=bytes(data))]))
    assert connection.verdict is INVALID
    assert file_doubts(facts) == ["1 RoCE packet in IP fragments, which are not put together"]
    other = bytearray(data)
    other[36:38] = (53).to_bytes(2)
    (connection,), facts = rebuilt(pcapng([*frames, replace(frames[-1], data=bytes(other))]))
    assert connection.verdict is PASS and "1 IP fragment passed over" in file_notes(facts)
