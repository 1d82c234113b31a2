"""Captures that were taken badly: mirrors with different clocks, all packets twice, answers that stop, queue pairs in
two networks at once. None makes a fail of a right tear-down, nor a pass of packets that are not there."""

import io
import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest
from capture_files import enhanced, interface, section
from captured import (
    INTERFACES,
    acknowledged,
    arp,
    between,
    judged,
    kind,
    later,
    made,
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

import hil.testing.roce as roce
from hil.capture.pcapng import CapturedFrame
from hil.evidence.rebuild.endings import Ending
from hil.evidence.rebuild.judgement import Judged
from hil.roce.icrc import icrc
from hil.roce.layers.cm import CmAttribute
from hil.roce.opcodes import Operation
from hil.testing.roce import START_NS, Side, connect, disconnect, management, message
from hil.verdict import Verdict

PASS, FAIL, INVALID = Verdict.PASS, Verdict.FAIL, Verdict.INVALID
READ_RESPONSES = range(Operation.RDMA_READ_RESPONSE_FIRST, Operation.RDMA_READ_RESPONSE_ONLY)


def sides(ids: tuple[int, int] = (11, 22), psn: int = -1) -> tuple[Side, Side]:
    return Side(0x0A000001, 0x11, ids[0], psn), Side(0x0A000002, 0x12, ids[1], psn)


def frame(time_ns: int, data: bytes, name: str) -> CapturedFrame:
    return CapturedFrame(0, time_ns, name, data, len(data))


def in_time(*streams: Iterable[CapturedFrame]) -> list[CapturedFrame]:
    return sorted(itertools.chain(*streams), key=lambda frame: frame.time_ns)


def at(name: str, frames: Iterable[CapturedFrame], by_ns: int = 0) -> list[CapturedFrame]:
    """The frames as seen at another interface, some time later."""
    return [replace(frame, interface=name, time_ns=frame.time_ns + by_ns) for frame in frames]


def numbered(frames: Iterable[CapturedFrame], first: int = 1) -> list[CapturedFrame]:
    """The frames with consecutive IPv4 identifications."""
    return [again for n, frame in enumerate(frames) for again in resent([frame], 0, number=first + n)]


def sending(rounds: int, *, step_ns: int = 20_000, back: int = 0) -> tuple[list[CapturedFrame], tuple[Side, Side]]:
    """A connection with messages of its active end and then of the other end, and the state of both ends."""
    ends = sides()
    parts = [*connect(*ends), *(part for _ in range(rounds) for part in message(*ends, 0))]
    parts += [(1 - side, data) for _ in range(back) for side, data in message(ends[1], ends[0], 0)]
    parts += disconnect(*ends)
    return numbered(frame(START_NS + n * step_ns, data, INTERFACES[side]) for n, (side, data) in enumerate(parts)), ends


def cut(frames: Iterable[CapturedFrame], snap: int) -> io.BytesIO:
    """A capture with a snap length that ends inside the CM messages."""
    blocks = [enhanced(f.data[:snap], ticks=f.time_ns, original=len(f.data)) for f in frames]
    return io.BytesIO(section() + interface(name="m", resolution=9, snap=snap) + b"".join(blocks))


def only(file: io.BytesIO) -> Judged:
    (connection,), _ = rebuilt(file)
    return connection


# --- mirrors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_ns", [600_000, 5_000_000, 400_000_000])
@pytest.mark.parametrize("link", ["DREQ", "DREP"])
def test_a_late_packet_is_timed_by_its_own_interface(early_ns: int, link: str) -> None:
    """One mirror shows a packet under way, 10 us behind the message; another mirror's clock is ahead or behind."""
    frames, ends = sending(6)
    end = place(frames, link)
    if link == "DREQ":
        late = next(message(*ends, 0))[1]
    else:
        late = [f for f in frames if kind(f) == "RC" and f.interface == "side-b"][-1].data
    (under_way,) = numbered([frame(frames[end].time_ns + 10_000, late, "side-a")], 900)
    first = at("side-a", [*frames[: end + 1], under_way, *frames[end + 1 :]])
    assert one(first).verdict is PASS
    assert FAIL not in {c.verdict for c in judged(in_time(first, at("mirror", frames, -early_ns)))}


@pytest.mark.parametrize("behind_ns", [150_000, 300_000, 500_000, 3_000_000])
@pytest.mark.parametrize("from_last", [0, 1])
def test_a_single_copy_in_a_doubled_capture_proves_nothing(behind_ns: int, from_last: int) -> None:
    """Two mirror sessions share a port, and the first copy of a packet in front of the DREQ is missing."""
    frames = at("mirror", sending(6)[0])
    end = place(frames, "DREQ")
    last = max(n for n in range(end) if kind(frames[n]) == "RC" and opcode(frames[n]) == 2) - from_last
    assert one(in_time(frames, later(frames, behind_ns))).verdict is PASS
    alone = one(in_time(without(frames, last), later(frames, behind_ns)))
    # The packet is so close that it was under way in any case.
    assert alone.verdict is (PASS if (behind_ns, from_last) == (150_000, 1) else INVALID)


@pytest.mark.parametrize("behind_ns", [9_000_000, 11_000_000, 25_000_000])
def test_captures_merged_into_one_interface_without_numbers_make_no_fail(behind_ns: int) -> None:
    """A DREQ that comes again too early for a retry is a copy, and so is every packet in front of it."""
    frames = at("mirror", made(sides(), 300))
    assert FAIL not in {c.verdict for c in judged(in_time(frames, later(frames, behind_ns)))}


def test_copies_whose_first_bytes_are_not_kept_make_no_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is so much data between the copies that the bytes of the first are not kept."""
    monkeypatch.setattr(roce, "MTU", 4096)
    monkeypatch.setattr(roce, "MTU_CODE", 5)
    frames = at("mirror", sending(800, step_ns=5_000)[0])
    assert FAIL not in {c.verdict for c in judged(in_time(frames, later(frames, 15_000_000)))}


@pytest.mark.parametrize("behind_ns", [15_000_000, 2_500_000_000])
@pytest.mark.parametrize("name", ["mirror", "side-a"])
def test_copies_of_a_dreq_are_not_its_repetitions(behind_ns: int, name: str) -> None:
    """Nine DREQs of the sixteen that the REQ allows, each with a copy, do not show that the CM gave up."""
    frames = unnumbered(recorded("reset")[:-1])
    asked = [*frames[:-1], *(f for n in range(9) for f in later(frames[-1:], n * 5_000_000_000))]
    assert {c.verdict for c in judged(arp(in_time(asked, at(name, asked, behind_ns)), 120))} == {INVALID}


@pytest.mark.parametrize(("name", "behind_ns"), [("mirror", 1_500_000), ("side-a", 150_000), ("side-a", 5_000_000)])
def test_copies_of_retries_are_no_further_tries(name: str, behind_ns: int) -> None:
    """Three of six retries with a copy each do not show that the peer is deaf, so its DREP is missing."""
    frames = made(sides(), 3, step_ns=1_000_000)
    end = place(frames, "DREQ")
    last = [f for f in frames[:end] if kind(f) == "RC" and f.interface == "side-a"][-1]
    kept = [f for f in frames[:end] if f.interface == "side-a" or f.time_ns < last.time_ns]
    tries = [f for n in range(3) for f in later([last], (n + 1) * 70_000_000)]
    asked = at("side-a", unnumbered([*kept, *tries, *later(frames[end : end + 1], 10**9)]))
    connection = one(in_time(asked, at(name, asked, behind_ns)))
    assert (connection.ending, connection.verdict) == (Ending.CM_DISCONNECT, INVALID), connection


def test_a_clock_that_goes_on_in_unequal_steps_is_coarse() -> None:
    """Stamps come in bursts of about 4 ms, so packets under way behind the DREQ cannot be identified."""
    frames, ends = sending(300)
    end = place(frames, "DREQ")
    late = frame(frames[end].time_ns + 10_000, next(message(*ends, 0))[1], "side-a")
    sequence = [*frames[: end + 1], late, *frames[end + 1 :]]
    assert one(sequence).verdict is PASS
    last_tick = frames[end].time_ns + 5_000
    ticks = [*(last_tick - n * 3_999_987 for n in range(9, 1, -1)), last_tick - 4_000_000, last_tick]
    stamped = [replace(f, time_ns=max(tick for tick in ticks if tick <= f.time_ns)) for f in sequence]
    assert one(stamped).verdict is INVALID


def test_a_wrong_order_makes_no_fail() -> None:
    """One interface's clock was a second ahead and was set right just in front of the DREP."""
    frames = recorded("reset")
    end = place(frames, "DREP")
    skewed = [
        replace(f, time_ns=f.time_ns + 10**9 * (f.interface == "side-b" and n < end)) for n, f in enumerate(frames)
    ]
    assert one(in_time(skewed)).verdict is INVALID


# --- networks --------------------------------------------------------------------------------------------------------


def test_two_labs_with_one_gateway_address_make_no_fail() -> None:
    """Their gateways share a virtual MAC address, and their PSNs are close enough for one stream."""
    gateway = 0x5E000101
    here = between(made(sides(), 60, step_ns=100_000), 0xA1, gateway)
    there = later(between(made(sides((111, 222), 136_000), 5, step_ns=31_000), 0xB1, gateway), 300_000)
    assert FAIL not in {c.verdict for c in judged(in_time(at("mirror", [*here, *there])))}


def test_data_that_goes_another_way_than_the_cm_is_missed() -> None:
    """Data goes over another uplink or VLAN than the CM's messages, which alone make no pass."""
    frames, ends = sending(20)
    late = frame(frames[-1].time_ns + 50_000_000, next(message(*ends, 0))[1], "side-a")
    cm, data = between(frames, 0xC1, 0xD1), between([*frames, late], 0xC2, 0xD2)
    mixed = [cm[n] if kind(f) != "RC" else data[n] for n, f in enumerate(frames)]
    for capture in ([*mixed, data[-1]], [f if kind(f) != "RC" else tagged(f, 5) for f in frames]):
        announced = judged(capture)[0]
        assert announced.verdict is INVALID
        assert any("in another VLAN or network as well" in doubt for doubt in announced.doubts)


def test_a_pass_by_cm_messages_alone_is_noted() -> None:
    """The connection sent no data, or sent it over a link that was not captured."""
    frames = [f for f in made(sides(), 4) if kind(f) != "RC"]
    connection = one(frames)
    assert connection.verdict is PASS and "no data of it is in the capture, only the CM's messages" in connection.notes


@pytest.mark.parametrize("macs", [*itertools.permutations((1, 2, 3, 4))])
@pytest.mark.parametrize("chunk_bytes", [1 << 12, 1 << 20])
def test_networks_do_not_depend_on_the_values_of_macs(macs: tuple[int, int, int, int], chunk_bytes: int) -> None:
    """Of four routers one direction uses two, the other the other two, and one packet uses one of each."""
    frames, ends = sending(20)
    late = frame(frames[-1].time_ns + 50_000_000, next(message(*ends[::-1], 0))[1], "side-b")
    (late,) = numbered([late], 900)
    one_way = [n for n, f in enumerate(frames) if f.interface == "side-a"]

    def sent(n: int, f: CapturedFrame) -> CapturedFrame:
        there, back, to, other = (mac.to_bytes(6) for mac in macs)
        between = (other if n == one_way[30] else to) + there if f.interface == "side-a" else back + other
        return replace(f, data=between + f.data[12:])

    connections, _ = rebuilt(pcapng(sent(n, f) for n, f in enumerate([*frames, late])), chunk_bytes=chunk_bytes)
    assert [c.verdict for c in connections] == [FAIL]
    broke = [f.statement for f in connections[0].findings if not f.held]
    assert broke == ["nothing of the connection follows the DREP"]


# --- missing packets -------------------------------------------------------------------------------------------------


def test_answers_that_stop_are_missed() -> None:
    """Nineteen seconds pass without an answer or a retry, and the answers of the last READ are missing."""
    frames, _ = sending(200, step_ns=20_000_000)
    stopped = [f for n, f in enumerate(frames) if not (kind(f) == "RC" and f.interface == "side-b" and n > 30)]
    read = made(sides(), 8)
    end = place(read, "DREQ")
    unread = [*(f for f in read[:end] if not 0x0D <= opcode(f) <= 0x0F), *later(read[end:], 5 * 10**9)]
    for capture in (stopped, unread):
        connection = one(capture)
        assert connection.verdict is INVALID
        assert any("packets of 10.0.0.1 get no answer" in doubt for doubt in connection.doubts)


def first_message_back(frames: Sequence[CapturedFrame]) -> list[int]:
    """The places of the packets of the passive end's first message."""
    return [n for n, f in enumerate(frames) if kind(f) == "RC" and f.interface == "side-b" and opcode(f) < 3][:4]


@pytest.mark.parametrize("snap", [122, 128, 132])
def test_a_snap_length_that_cuts_the_first_psn_away_is_a_doubt(snap: int) -> None:
    """The passive end's first message, or retries that the REQ allows, may be missing."""
    frames, _ = sending(1, back=2)
    lost = without(frames, *first_message_back(frames))
    assert one(lost).verdict is INVALID
    connection = only(cut(lost, snap))
    assert connection.verdict is INVALID
    assert "a snap length cuts CM messages in front of their first PSN or their retry counts" in connection.doubts


def test_a_first_psn_that_comes_late_still_counts() -> None:
    """The complete copy of the REQ comes after the first packets, and shows that earlier ones are missing."""
    frames, _ = sending(1, back=2)
    lost = without(frames, *first_message_back(frames))
    both = [(f.time_ns, 0, f.data[:128], len(f.data)) for f in lost]
    both += [(f.time_ns + 500_000, 1, f.data, len(f.data)) for f in lost]
    file = section() + interface(name="m1", resolution=9, snap=128) + interface(name="m2", resolution=9)
    file += b"".join(enhanced(data, index=n, ticks=t, original=o) for t, n, data, o in sorted(both))
    assert only(io.BytesIO(file)).verdict is INVALID


def test_an_rnr_nak_is_no_silence() -> None:
    """Three RNR NAKs and three of six tries without an answer do not show that the peer is deaf."""
    frames = made(sides(), 3, step_ns=1_000_000)
    end = place(frames, "DREQ")
    last = [f for f in frames[:end] if kind(f) == "RC" and f.interface == "side-a"][-1]
    ack = [f for f in frames[:end] if kind(f) == "RC" and f.interface == "side-b"][-1]
    sequence, after_ns = [f for f in frames[:end] if f.interface == "side-a" or f.time_ns < last.time_ns], 0
    for n in range(3):
        refusal = acknowledged(ack, syndrome=0x2E, behind=0)
        sequence.append(replace(refusal, time_ns=last.time_ns + after_ns + 1_000_000))
        after_ns += 20_000_000
        sequence += resent([last], after_ns, number=n + 1)
    for n in range(3):
        after_ns += 70_000_000
        sequence += resent([last], after_ns, number=10 + n)
    assert one([*sequence, *later(frames[end : end + 1], 10**9)]).verdict is INVALID


def test_a_rej_of_a_rep_that_is_missing_is_no_pass() -> None:
    """A REJ names the message that it answers, and an RTU answers a REP too."""
    ends = sides()
    request, _, ready = connect(*ends)
    rej = bytearray(232)
    struct.pack_into("!II", rej, 0, ends[0].comm_id, ends[1].comm_id)
    rej[8], rej[10:12] = 1 << 6, (28).to_bytes(2)
    first, second = frame(START_NS, request[1], "side-a"), START_NS + 10**7
    refused = one([first, frame(second, management(*ends, CmAttribute.REJ, bytes(rej)), "side-a")])
    assert (refused.ending, refused.verdict) == (Ending.REFUSED, INVALID)
    asked = [f for n in range(16) for f in resent([first], n * 5_000_000_000, number=n)]
    answered = one(arp([*asked, frame(asked[-1].time_ns + 10**7, ready[1], "side-a")], 600))
    assert answered.verdict is INVALID and "never answered" not in answered.how


def test_a_psn_that_is_sent_again_twice_fills_no_other_gap() -> None:
    """Of two skipped PSNs one came again twice, the other one never."""
    frames, _ = sending(2)
    sent = frames[3:7]
    again = [sent[0], sent[1], sent[3]]
    twice = [*resent(again, 70_000_000, number=100), *resent(again, 140_000_000, number=200)]
    assert one([*frames[:3], sent[0], sent[3], *twice, *later(frames[7:], 140_000_000)]).verdict is INVALID


def test_a_queue_pair_used_again_without_the_cm_makes_no_fail() -> None:
    """Packets with far other PSNs behind the DREP belong to another connection."""
    frames, _ = sending(4)
    ends = sides(psn=500_000)
    parts = [part for n in range(3) for part in message(*ends, n)]
    again = [
        frame(frames[-1].time_ns + 10**9 + n * 20_000, data, INTERFACES[side]) for n, (side, data) in enumerate(parts)
    ]
    assert FAIL not in {c.verdict for c in judged([*frames, *again])}


# --- words -----------------------------------------------------------------------------------------------------------


def changed(f: CapturedFrame, changes: dict[int, bytes]) -> CapturedFrame:
    """A frame with other bytes at these places of its CM message."""
    data, start = bytearray(f.data), 14 + 20 + 8 + 12 + 8 + 24
    for offset, value in changes.items():
        data[start + offset : start + offset + len(value)] = value
    data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
    return replace(f, data=bytes(data))


def test_an_xrc_rep_has_its_queue_pair_in_another_field() -> None:
    """The QP is in the field of the end-to-end context (annex A14)."""
    frames = made(sides(), 0)
    request, reply = frames[:2]
    start = 14 + 20 + 8 + 12 + 8 + 24
    number = reply.data[start + 12 : start + 15]
    xrc = changed(request, {43: bytes([request.data[start + 43] | 3 << 1])})
    connection = one([xrc, changed(reply, {12: bytes(3), 16: number}), *frames[2:]])
    assert (connection.verdict, connection.facts.ends[1].qpn) == (PASS, 0x12)


def test_a_late_packet_belongs_to_the_drep_in_front_of_it() -> None:
    """DREQ and DREP come again behind the data, which followed the first DREP."""
    frames, ends = sending(2)
    late = numbered([frame(frames[-1].time_ns + 5_000_000, next(message(*ends, 0))[1], "side-a")], 900)
    connection = one([*frames, *late, *resent(frames[-2:], 5_000_000_000, number=500)])
    (broken,) = [f for f in connection.findings if not f.held and "DREP" in f.statement]
    assert f"after frame {len(frames)}: [{len(frames) + 1}]" in broken.seen


def test_the_answer_to_a_flush_is_no_read_response() -> None:
    """FLUSH and ATOMIC WRITE have a response without data (annex A19), which is missed when it is absent."""
    ends = sides()
    parts = list(connect(*ends))
    for n in range(2):
        parts.append((0, roce.frame(*ends, Operation.FLUSH, ends[1].qpn, ends[0].psn, bytes(24))))
        answer, aeth = Operation.RDMA_READ_RESPONSE_ONLY, struct.pack("!I", 0x1F << 24 | n + 1)
        parts.append((1, roce.frame(*ends[::-1], answer, ends[0].qpn, ends[0].psn, aeth)))
        ends[0].psn += 1
    parts += [*message(*ends, 0), *disconnect(*ends)]
    frames = numbered(frame(START_NS + n * 20_000, data, INTERFACES[side]) for n, (side, data) in enumerate(parts))
    connection = one(frames)
    requests = connection.facts.ends[0].requests
    assert (connection.verdict, requests.reads, requests.reads_answered) == (PASS, 0, 0), connection
    assert "response" in [step.what for step in connection.facts.steps]
    assert one(without(frames, 4)).verdict is INVALID


def test_one_try_is_given_in_the_singular() -> None:
    """The words of a REQ that was never answered use the singular for one time."""
    assert one(recorded("reset")[:1]).how == "the REQ was sent 1 time and never answered"


# --- verdicts that must stay -----------------------------------------------------------------------------------------


def built(parts: Iterable[tuple[int, bytes]], *, step_ns: int = 20_000) -> list[CapturedFrame]:
    """Frames one after the other, with consecutive identifications of each sender."""
    return numbered(frame(START_NS + n * step_ns, data, INTERFACES[side]) for n, (side, data) in enumerate(parts))


def late_data(frames: Sequence[CapturedFrame], ends: tuple[Side, Side], name: str = "side-a") -> list[CapturedFrame]:
    """The next data packet of the active end, 50 ms behind the last frame."""
    data = next(message(*ends, 0))[1]
    return numbered([frame(frames[-1].time_ns + 50_000_000, data, name)], 900)


@pytest.mark.parametrize("made_as", [list, unnumbered])
def test_a_peer_that_is_gone_owes_no_drep_however_short_the_timer_is(
    made_as: Callable[[Sequence[CapturedFrame]], list[CapturedFrame]],
) -> None:
    """Retries every 8 ms would be copies if other packets were twice there; all sixteen DREQs follow."""
    ends = sides()
    base = built([*connect(*ends), *message(*ends, 0)])
    data = [part for side, part in message(*ends, 0) if side == 0]
    start_ns, release = base[-1].time_ns, next(iter(disconnect(*ends)))[1]
    tries = [frame(start_ns + 8_000_000 * n + k, part, "side-a") for n in range(8) for k, part in enumerate(data)]
    dreqs = [frame(start_ns + 10**9 + n * 5 * 10**9, release, "side-a") for n in range(16)]
    sent = made_as(numbered([*base, *tries, *dreqs]))
    connection = one(arp(sent, 100))
    assert (connection.ending, connection.verdict) == (Ending.RETRY_EXHAUSTED, PASS), connection
    for behind_ns in (5_000, 300_000, 5_000_000):
        twice = one(arp(in_time(sent, at("mirror", sent, behind_ns)), 100))
        assert twice.verdict is not FAIL


def test_both_ports_of_a_router_show_only_a_real_breach() -> None:
    """Each packet comes twice, with the MAC addresses of sender and receiver; the router has one for all ports."""
    frames, ends = sending(40, back=3)

    def mirrored(sent: Sequence[CapturedFrame]) -> list[CapturedFrame]:
        near, far = between(sent, 0xA1, 0xC1), between(sent, 0xC1, 0xB1)
        pairs = [
            (one, other) if f.interface == "side-a" else (other, one)
            for f, one, other in zip(sent, near, far, strict=True)
        ]
        return in_time(at("mirror", (f for f, _ in pairs)), at("mirror", (f for _, f in pairs), 1000))

    assert one(mirrored(frames)).verdict is PASS
    assert one(mirrored([*frames, *late_data(frames, ends)])).verdict is FAIL


def test_a_router_that_takes_over_takes_nothing_from_a_breach() -> None:
    """From the middle on the packets come through another router and continue the earlier ones."""
    frames, ends = sending(40)
    ways = [between([*frames, *late_data(frames, ends)], 0xA1, router) for router in (0xC1, 0xC2)]
    moved = [ways[n >= 100][n] for n in range(len(ways[0]))]
    assert one(moved[:-1]).verdict is PASS
    assert one(moved).verdict is FAIL


@pytest.mark.parametrize("lag_ns", [3_000, 8_000, 50_000])
@pytest.mark.parametrize("made_as", [list, unnumbered])
def test_a_doubled_capture_still_shows_a_breach(
    lag_ns: int, made_as: Callable[[Sequence[CapturedFrame]], list[CapturedFrame]]
) -> None:
    """A packet under way stays no breach, and one behind the DREP stays one, also before repeated DREQs and DREPs."""
    ends = sides()
    frames = at("mirror", built([*connect(*ends), *message(*ends, 0), *disconnect(*ends)]))
    data = next(message(*ends, 0))[1]
    under_way = in_time(frames, numbered([frame(frames[-2].time_ns + 5_000, data, "mirror")], 90))
    breach = numbered([frame(frames[-1].time_ns + 50_000_000, data, "mirror")], 90)
    again = resent(frames[-2:], 5 * 10**9, number=500)
    for sent, verdict in ((under_way, PASS), ([*frames, *breach, *again], FAIL)):
        once = made_as(sent)
        assert one(once).verdict is verdict
        assert one(in_time(once, later(once, lag_ns))).verdict is verdict


@pytest.mark.parametrize("lost", [0, 1])
def test_a_breach_without_its_first_packet_is_a_breach(lost: int) -> None:
    """PSNs that nearly continue the earlier ones belong to this queue pair."""
    ends = sides()
    frames = built([*connect(*ends), *message(*ends, 0), *disconnect(*ends)])
    data = [part for side, part in message(*ends, 0) if side == 0]
    late = [frame(frames[-1].time_ns + (n + 1) * 10**7, part, "side-a") for n, part in enumerate(data)]
    assert one([*frames, *numbered(late, 90)[lost:]]).verdict is FAIL


@pytest.mark.parametrize("behind", [40, 5000])
def test_a_queue_pair_used_again_from_earlier_psns_makes_no_fail(behind: int) -> None:
    """No packet of the connection has a PSN in front of the first one in the CM message."""
    frames, _ = sending(10, step_ns=1_000_000)
    ends = sides(psn=Side(0x0A000001, 0x11, 11).psn - behind)
    parts = [part for n in range(5) for part in message(*ends, n)]
    start_ns = frames[-1].time_ns + 2 * 10**9
    again = [frame(start_ns + n * 20_000, data, INTERFACES[side]) for n, (side, data) in enumerate(parts)]
    assert one([*frames, *numbered(again, 3000)]).verdict is INVALID


def test_data_in_another_vlan_is_missed_by_each_of_two_connections() -> None:
    """The second connection reuses the queue pairs, and its data takes the way of the first one's."""

    def connection(ids: tuple[int, int], psn: int, start_ns: int) -> list[CapturedFrame]:
        ends = sides(ids, psn)
        frames = built([*connect(*ends), *(p for _ in range(5) for p in message(*ends, 0)), *disconnect(*ends)])
        sent = later([*frames, *late_data(frames, ends)], start_ns)
        return [f if kind(f) != "RC" else tagged(f, 5) for f in sent]

    connections = judged([*connection((11, 22), 1000, 0), *connection((111, 222), 2000, 10**10)])
    assert PASS not in {c.verdict for c in connections}


def test_two_tenants_with_equal_numbers_are_independent() -> None:
    """One VLAN's connection began before the capture; the other VLAN's is complete, with its own data."""
    frames, _ = sending(10)
    both = in_time((tagged(f, 10) for f in frames), (tagged(f, 20) for f in frames[5:]))
    verdicts = {c.facts.vlans[0]: c.verdict for c in judged(both)}
    assert verdicts[(10,)] is PASS


def test_equal_answers_to_repeated_messages_are_no_copies() -> None:
    """Three messages are sent again by the timer, and each gets the same ACK, without identifications."""
    ends = sides()
    frames = built(connect(*ends), step_ns=1_000_000)
    messages = [list(message(*ends, n)) for n in range(3)]
    at_ns = frames[-1].time_ns
    for again in (False, True):
        at_ns += 70_000_000
        for parts in messages:
            for _, data in parts[:4]:
                at_ns += 500
                frames.append(frame(at_ns, data, "side-a"))
            at_ns += 1_500
            if again:
                frames.append(frame(at_ns, messages[-1][4][1], "side-b"))
    frames += [
        frame(at_ns + 10**6 * (n + 1), data, INTERFACES[side]) for n, (side, data) in enumerate(disconnect(*ends))
    ]
    connection = one(unnumbered(frames))
    assert connection.verdict is PASS, connection
    assert not any(end.requests.copies for end in connection.facts.ends)


def test_an_end_that_closed_owes_no_answer() -> None:
    """The peer sends for 30 ms, for the first time, until its CM has read the DREQ."""
    ends = sides()
    frames = built([*connect(*ends), *(p for _ in range(5) for p in message(*ends, 0))], step_ns=1_000_000)
    (_, dreq), (_, drep) = disconnect(*ends)
    at_ns = frames[-1].time_ns + 1_500_000
    ended = [frame(at_ns - 500_000, dreq, "side-a")]
    for _ in range(6):
        ended += [frame(at_ns, data, "side-b") for side, data in message(*ends[::-1], 0) if side == 0]
        at_ns += 5_000_000
    ended.append(frame(at_ns, drep, "side-b"))
    assert one([*frames, *numbered(ended, 600)]).verdict is PASS


@pytest.mark.parametrize(("remote", "wait_ns"), [(20, 4_500_000_000), (14, 150_000_000)])
def test_a_cm_message_is_sent_again_after_the_shorter_of_two_time_outs(remote: int, wait_ns: int) -> None:
    """The REQ has a time-out for each end: a DREQ that comes again after the shorter one was sent again."""
    frames, ends = sending(10, step_ns=1_000_000)
    request = changed(frames[0], {43: bytes([remote << 3]), 47: bytes([20 << 3 | 6])})
    frames = at("mirror", [request, *frames[1:]])
    end = place(frames, "DREQ")
    late = late_data(frames[: end + 1], ends, "mirror")
    again = [*resent(frames[end : end + 1], wait_ns, number=1000), *resent(frames[end + 1 :], wait_ns, number=1001)]
    assert one(unnumbered([*frames[: end + 1], *late, *again])).verdict is FAIL
    asked = unnumbered([f for n in range(16) for f in resent(frames[:1], n * 2 * wait_ns, number=n)])
    assert one(arp(asked, 600)).verdict is PASS


@pytest.mark.parametrize("gap_ns", [1_000_000, 100_000_000])
def test_a_fine_clock_that_shows_bursts_is_not_coarse(gap_ns: int) -> None:
    """On a fast link most packets share their microsecond with the one before, and bursts are far apart."""
    ends, frames, at_ns = sides(), [], START_NS
    for side, data in connect(*ends):
        at_ns += 1_000_003
        frames.append(frame(at_ns, data, INTERFACES[side]))
    for n in range(60):
        at_ns += gap_ns
        for side, data in message(*ends, 0):
            at_ns += 29 * (n % 30 + 1)
            frames.append(frame(at_ns, data, INTERFACES[side]))
    at_ns += gap_ns
    for side, data in disconnect(*ends):
        at_ns += 40_000
        frames.append(frame(at_ns, data, INTERFACES[side]))
    late = frame(at_ns + 500_000, next(message(*ends, 0))[1], "side-a")
    stamped = [replace(f, time_ns=f.time_ns // 1000 * 1000) for f in numbered([*frames, late])]
    assert one(stamped[:-1]).verdict is PASS
    assert one(stamped).verdict is FAIL
