"""Faults of the wire on recorded frames: picking, actions, and invalid faults."""

import json
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.roce import BTH
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from hil.capture.pcapng import CapturedFrame, read_pcapng
from hil.errors import FaultError
from hil.roce.frames import CMREQ, MAD, CmAttribute, addresses, dissect
from hil.roce.icrc import icrc
from hil.roce.outline import Outline, outline
from hil.testing.roce import Side, connect, disconnect, message
from hil.wire.changes import change, checksum
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
    Span,
    Truncate,
    from_json,
    only,
)
from hil.wire.picking import Faults

FOLDER = Path(__file__).parent / "captures"
CAPTURES = sorted(path.name for path in FOLDER.glob("*.pcapng"))
SEND_ONLY, ACKNOWLEDGE, READ_REQUEST, READ_RESPONSE = 0x04, 0x11, 0x0C, 0x10
ACTIONS: tuple[Action, ...] = (
    Drop(),
    Delay(10**6),
    Duplicate(2, 5),
    Reorder(3, 10**9),
    Corrupt(-4, 1, True),
    Truncate(60, True),
    MarkEcn(),
    CutCable(1),
)


def frames(name: str = "hard_close_ipv4.pcapng") -> list[CapturedFrame]:
    return list(read_pcapng(FOLDER / name))


def picked(match: Match, captured: Sequence[CapturedFrame]) -> list[int]:
    """Numbers of the frames that a fault with ``match`` picks."""
    faults = Faults()
    faults.add(Fault("it", Drop(), match))
    return [f.number for f in captured if faults.decide(f.interface.removeprefix("side-"), f.data)[0] is not None]


def seen(frame: bytes) -> Outline:
    found = outline(frame)
    assert found is not None
    return found


def first(opcode: int = SEND_ONLY, cm: int = -1, name: str = "hard_close_ipv4.pcapng") -> bytes:
    """The first recorded frame with this opcode, or of this CM attribute."""
    wanted = (opcode, cm) if cm == -1 else (0x64, cm)
    return next(f.data for f in frames(name) if (o := outline(f.data)) and (o.opcode, o.cm) == wanted)


# --- the outline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTURES)
def test_the_outline_and_scapy_see_the_same(name: str) -> None:
    """Addresses, opcode, QP, PSN, CM attribute, transaction and comm id equal those of scapy's layers. The ICRC is at
    the outline's offset."""
    for frame in frames(name):
        packet, found = dissect(frame.data), outline(frame.data)
        assert (packet is None) == (found is None)
        if packet is None or found is None:
            continue
        bth, mad = packet[BTH], packet.getlayer(MAD)
        assert (found.opcode, found.dest_qp, found.psn) == (bth.opcode, bth.dqpn, bth.psn)
        fault = Match(source=addresses(packet)[0], destination=addresses(packet)[1])
        assert picked(fault, [frame]) == [frame.number]
        assert struct.unpack_from("<I", frame.data, found.end) == (icrc(frame.data, found.end),)
        if mad is not None:
            message = mad.payload
            assert (found.cm, found.transaction_id) == (mad.attribute_id, mad.transaction_id)
            assert found.local_comm_id == message.local_comm_id
            assert found.remote_comm_id == (-1 if isinstance(message, CMREQ) else message.remote_comm_id)


def test_vlan_tags_and_ethernet_padding_are_seen_through() -> None:
    """One tag or two, and bytes after the ICRC, change the offsets only."""
    frame = first()
    tagged = bytes(Ether() / Dot1Q(vlan=5) / Dot1Q(vlan=6, type=0x800))
    raw = frame[:12] + tagged[12:22] + frame[14:] + b"padding"
    plain, through = seen(frame), seen(raw)
    assert (through.psn, through.opcode, through.end - through.bth) == (plain.psn, plain.opcode, plain.end - plain.bth)
    assert through.bth == plain.bth + 8


@pytest.mark.parametrize(
    ("offset", "value"),
    [(14, 0x65), (14, 0x44), (23, 6), (20, 0x20), (21, 0x01), (36, 0), (16, 0xFF), (12, 0x86)],
    ids=["version", "header length", "TCP", "more fragments", "fragment", "port", "total length", "ethertype"],
)
def test_an_incomplete_or_other_frame_has_no_outline(offset: int, value: int) -> None:
    """Frames of another version, protocol or port, fragments, and lengths beyond the frame are ignored."""
    frame = bytearray(first())
    frame[offset] = value
    assert outline(bytes(frame)) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_the_outline_or_a_change_raise(noise: bytes) -> None:
    """Faults can examine and change any bytes that a node sends."""
    head = first()
    for frame in (noise, head[: 14 + len(noise) % 60] + noise, head[:42] + noise, head[:-4] + noise):
        found = outline(frame)
        for action in ACTIONS:
            change(frame, action, found)


# --- picking ---------------------------------------------------------------------------------------------------------


def test_a_frame_is_picked_by_its_cm_attribute() -> None:
    """Each of the six messages of a connection's life is picked, once."""
    attributes = [CmAttribute.REQ, CmAttribute.REP, CmAttribute.RTU, CmAttribute.DREQ, CmAttribute.DREP]
    assert [len(picked(Match(cm=(a,)), frames())) for a in attributes] == [1] * 5
    assert picked(Match(cm=(CmAttribute.REJ,)), frames()) == []


def test_a_frame_is_picked_by_opcode_side_and_qp() -> None:
    """Three SENDs went from a, three ACKs from b. If one condition fails, no frame is picked."""
    assert len(picked(Match(opcodes=(SEND_ONLY,), side="a", qpns=(17,)), frames())) == 3
    assert len(picked(Match(opcodes=(ACKNOWLEDGE,), side="b"), frames())) == 3
    assert picked(Match(opcodes=(SEND_ONLY,), side="b"), frames()) == []
    assert picked(Match(opcodes=(SEND_ONLY,), qpns=(18,)), frames()) == []
    assert picked(Match(opcodes=(SEND_ONLY,), source="10.77.0.2"), frames()) == []


def test_a_connection_is_picked_by_its_comm_ids() -> None:
    """A comm id picks all five messages that have it as local or as remote comm id."""
    (local,) = {o.local_comm_id for f in frames() if (o := outline(f.data)) and o.cm == CmAttribute.REQ}
    assert len(picked(Match(comm_ids=(local,)), frames())) == 5
    assert picked(Match(comm_ids=(local ^ 1,)), frames()) == []


def test_without_conditions_every_frame_is_picked() -> None:
    """Frames other than RoCE are picked too, unless the action applies to RoCE only."""
    captured = frames()
    assert len(picked(Match(), captured)) == len(captured)
    faults = Faults()
    faults.add(Fault("it", Corrupt()))
    hits = [faults.decide("a", f.data)[0] for f in captured]
    assert [hit is not None for hit in hits] == [outline(f.data) is not None for f in captured]


def test_occurrences_are_counted_and_every_nth_is_picked() -> None:
    """Of rping's acknowledgements: the second; the third and fourth; each other from the second."""
    captured = frames("rping.pcapng")
    all_of_them = picked(Match(opcodes=(ACKNOWLEDGE,)), captured)
    chosen = {
        name: picked(Match(opcodes=(ACKNOWLEDGE,), **facts), captured)
        for name, facts in {
            "second": {"occurrences": only(2)},
            "third and fourth": {"occurrences": Span(3, 4)},
            "each other": {"occurrences": Span(2), "every": 2},
        }.items()
    }
    assert chosen == {
        "second": all_of_them[1:2],
        "third and fourth": all_of_them[2:4],
        "each other": all_of_them[1::2],
    }


def test_psns_are_relative_to_the_first_of_their_stream_and_wrap() -> None:
    """The third SEND is 2 from the first, its ACK too; a PSN that wrapped past 2**24 is still ahead."""
    sent = picked(Match(opcodes=(SEND_ONLY,)), frames())
    assert picked(Match(opcodes=(SEND_ONLY,), psn=only(2)), frames()) == sent[2:]
    assert len(picked(Match(opcodes=(ACKNOWLEDGE,), psn=only(2)), frames())) == 1
    psns = enumerate((0xFFFFFF, 0, 1))
    wrapping = [CapturedFrame(n, 0, "side-a", with_psn(first(), psn), 0) for n, psn in psns]
    assert picked(Match(psn=Span(1, 2)), wrapping) == [1, 2]


def test_requests_and_responses_of_one_direction_are_separate_streams() -> None:
    """rping's server answers a SEND and requests a READ with unrelated PSNs."""
    captured = frames("rping.pcapng")
    zero = picked(Match(side="b", psn=only(0)), captured)
    kinds = {seen(f.data).opcode for f in captured if f.number in zero}
    assert kinds == {ACKNOWLEDGE, READ_REQUEST}


def with_psn(frame: bytes, psn: int) -> bytes:
    at = seen(frame).bth + 8
    return frame[:at] + struct.pack("!I", psn) + frame[at + 4 :]


def test_retransmissions_are_distinguished_from_first_transmissions() -> None:
    """In a capture seen twice, each packet of the second time came once before. CM messages match by transaction."""
    captured = frames()
    roce = [f.number for f in captured if outline(f.data)]
    twice = captured + [CapturedFrame(f.number + 100, 0, f.interface, f.data, 0) for f in captured]
    assert picked(Match(retransmissions=only(0)), twice) == roce
    assert picked(Match(retransmissions=Span(1)), twice) == [number + 100 for number in roce]
    assert picked(Match(retransmissions=Span(1), cm=(CmAttribute.DREQ,)), twice + twice)[1:]
    assert picked(Match(retransmissions=Span(2)), twice) == []


def test_psns_restart_when_a_queue_pairs_number_is_used_again() -> None:
    """The PSNs of another connection with the same QPs are relative to its own first PSN."""
    life = [data for pair in (sides(100), sides(9000)) for data in life_of(*pair)]
    captured = [CapturedFrame(n, 0, "side-a", data, len(data)) for n, data in enumerate(life)]
    firsts = picked(Match(opcodes=(0x00,), psn=only(0)), captured)
    assert [seen(life[n]).psn for n in firsts] == [100, 9000]
    assert picked(Match(opcodes=(0x00,), retransmissions=Span(1)), captured) == []


def sides(psn: int) -> tuple[Side, Side]:
    return Side(1, 0x11, psn, psn), Side(2, 0x12, psn + 1, psn)


def life_of(one: Side, two: Side) -> list[bytes]:
    return [data for part in (connect(one, two), message(one, two, 0), disconnect(one, two)) for _, data in part]


def test_a_frame_without_the_byte_to_change_is_no_hit() -> None:
    """Acknowledgements end before the byte, SENDs have it."""
    captured = frames()
    faults = Faults()
    faults.add(Fault("it", Corrupt(offset=18)))
    hit = {seen(f.data).opcode for f in captured if outline(f.data) and faults.decide("a", f.data)[0] is not None}
    assert SEND_ONLY in hit and ACKNOWLEDGE not in hit


def test_draws_depend_on_the_seed() -> None:
    """Half of many frames is picked: the same half with the same seed, another half with another seed."""
    captured = [CapturedFrame(n, 0, "side-a", b"x" * 60, 60) for n in range(1000)]
    halves = [picked(Match(probability=0.5, seed=seed), captured) for seed in (1, 1, 2)]
    assert halves[0] == halves[1] != halves[2]
    assert 400 < len(halves[0]) < 600


def test_the_first_fault_that_picks_a_frame_acts_alone() -> None:
    """A later fault sees the frame only after the first is removed. Both keep their counts."""
    faults, frame = Faults(), first()
    one = faults.add(Fault("one", Drop(), Match(opcodes=(SEND_ONLY,))))
    faults.add(Fault("two", Delay(5)))
    names = [hit.name for _ in range(2) if (hit := faults.decide("a", frame)[0])]
    assert faults.remove(one) and not faults.remove(one)
    names += [hit.name for _ in range(1) if (hit := faults.decide("a", frame)[0])]
    assert names == ["one", "one", "two"]
    told = [(r["name"], r["matched"], r["hits"], r["active"]) for r in faults.tell()]
    assert told == [("one", 2, 2, False), ("two", 1, 1, True)]


# --- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hard_close_ipv4.pcapng", "hard_close_ipv6.pcapng"])
@pytest.mark.parametrize("repaired", [False, True])
def test_a_corrupted_frame_has_a_wrong_icrc_or_a_repaired_one(name: str, repaired: bool) -> None:
    """One byte differs. With repair the ICRC is right again."""
    frame = first(cm=CmAttribute.DREQ, name=name)
    at = seen(frame)
    changed = change(frame, Corrupt(offset=12, mask=0x0F, repaired=repaired), at)
    differ = [n for n in range(len(frame)) if frame[n] != changed[n] and n < at.end]
    assert differ == [at.bth + 12] and changed[at.bth + 12] == frame[at.bth + 12] ^ 0x0F
    (carried,) = struct.unpack_from("<I", changed, at.end)
    assert (carried == icrc(changed, at.end)) == repaired


def test_the_last_covered_byte_is_corrupted_by_default() -> None:
    """-1 is the byte before the ICRC. An offset outside of BTH to ICRC has no effect."""
    frame = first()
    at = seen(frame)
    assert change(frame, Corrupt(), at)[at.end - 1] == frame[at.end - 1] ^ 0xFF
    assert change(frame, Corrupt(offset=at.end - at.bth), at) == frame
    assert change(frame, Corrupt(offset=at.bth - at.end - 1), at) == frame


def test_a_udp_checksum_stays_right() -> None:
    """If the sender gave one, it is corrected, so that only the ICRC shows the corruption."""
    bare = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=49152, dport=4791) / Raw(bytes(first())[42:])
    frame = bytes(Ether(dst="52:54:00:00:00:01") / bare)
    at = seen(frame)
    changed = change(frame, Corrupt(offset=13, repaired=True), at)
    carried, packet = Ether(changed)[UDP].chksum, Ether(changed)
    del packet[UDP].chksum
    assert carried == Ether(bytes(packet))[UDP].chksum != Ether(frame)[UDP].chksum


def test_a_truncated_frame_keeps_its_first_bytes() -> None:
    """They are unchanged, or have corrected lengths and checksum."""
    frame = first()
    at = seen(frame)
    assert change(frame, Truncate(50), at) == frame[:50]
    assert change(frame, Truncate(len(frame)), at) == frame
    fitting = Ether(change(frame, Truncate(58, lengths_repaired=True), at))
    assert (fitting[IP].len, fitting[UDP].len) == (44, 24)
    assert checksum(bytes(fitting)[14:34]) == 0
    assert change(frame, Truncate(30, lengths_repaired=True), at) == frame[:30]


@pytest.mark.parametrize("name", ["hard_close_ipv4.pcapng", "hard_close_ipv6.pcapng"])
def test_an_ecn_mark_leaves_checksum_and_icrc_right(name: str) -> None:
    """The IP header has Congestion Experienced, and a receiver's checks still succeed."""
    frame = first(cm=CmAttribute.DREQ, name=name)
    at = seen(frame)
    marked = change(frame, MarkEcn(), at)
    packet = Ether(marked)
    assert (packet[IP].tos if packet.haslayer(IP) else packet.payload.tc) & 3 == 3
    assert not packet.haslayer(IP) or checksum(marked[14:34]) == 0
    assert struct.unpack_from("<I", marked, at.end) == (icrc(marked, at.end),)
    assert change(marked, MarkEcn(), at) == marked


# --- invalid faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(
    "match",
    [
        Match("a", (4, 17), (), "10.0.0.1", "10.0.0.2", (17,), (), Span(0, 9), only(1), Span(2), 3, 0.5, 42),
        Match("b", (0x64,), (0x15,), "fd77::1", "fd77::2", (1,), (5,), None, only(1), Span(2)),
    ],
    ids=["data", "CM"],
)
def test_a_fault_is_read_back_from_json(action: Action, match: Match) -> None:
    """The wire's process gets the same fault that was set."""
    fault = Fault("all of it", action, match)
    assert from_json(json.loads(json.dumps(fault.to_json()))) == fault


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Match(side="c"), "side is one of a, b, or empty for both, not 'c'"),
        (lambda: Match(opcodes=[4]), "opcodes is a tuple of whole numbers"),  # type: ignore[arg-type]
        (lambda: Match(opcodes=(256,)), r"opcodes are whole numbers from 0 to 0xff, not \[256\]"),
        (lambda: Match(cm=(True,)), "cm are whole numbers"),
        (lambda: Match(qpns=(-1,)), "qpns are whole numbers from 0 to 0xffffff"),
        (lambda: Match(source="10.0.0.256"), "source is an IP address, and a text, not '10.0.0.256'"),
        (lambda: Match(source=ip_address("10.0.0.1")), "source is an IP address, and a text"),  # type: ignore[arg-type]
        (lambda: Match(source="10.0.0.1", destination="fd77::1"), "source and destination are of one IP version"),
        (lambda: Match(cm=(0x15, 0x9999)), "no CM message has the attribute id 0x9999"),
        (lambda: Match(psn=Span(1 << 24)), "no PSN is farther than 16777215 from the first"),
        (lambda: Match(cm=(0x15,), psn=only(0)), "CM messages have no PSN that counts"),
        (lambda: Match(cm=(0x15,), opcodes=(4,)), "CM messages have the opcode 0x64, which opcodes leave out"),
        (lambda: Match(comm_ids=(5,), opcodes=(4,)), "CM messages have the opcode 0x64, which opcodes leave out"),
        (lambda: Match(psn=3), "psn is a Span, not 3"),  # type: ignore[arg-type]
        (lambda: Match(occurrences=Span(0)), "occurrences are counted from 1"),
        (lambda: Match(every=0), "every is a whole number from 1"),
        (lambda: Match(probability=0), "probability is above 0 and at most 1"),
        (lambda: Match(probability=float("nan")), "probability is above 0 and at most 1"),
        (lambda: Match(seed=-1), "seed is a whole number"),
        (lambda: Span(3, 2), "a span that begins with 3 cannot end with 2"),
        (lambda: Span(-1), "a span begins with a whole number from 0, not with -1"),
        (lambda: Delay(0), "for_ns is whole nanoseconds from 1 to"),
        (lambda: Delay(0.5), "for_ns is whole nanoseconds"),  # type: ignore[arg-type]
        (lambda: Duplicate(0), "copies is a whole number from 1 to 1000, not 0"),
        (lambda: Reorder(0, 1), "frames is a whole number from 1"),
        (lambda: Corrupt(mask=0), "mask is a whole number from 1 to 255"),
        (lambda: Corrupt(repaired=1), "repaired is true or false, not 1"),  # type: ignore[arg-type]
        (lambda: Truncate(13), "keep is a whole number of bytes from 14, the Ethernet header, not 13"),
        (lambda: Truncate(65535), "keep is less than any frame has, 16384 bytes, not 65535"),
        (lambda: MarkEcn(4), "codepoint is from 0 to 3, not 4"),
        (lambda: CutCable(10**15), "for_ns is whole nanoseconds"),
        (lambda: Fault("", Drop()), "a fault's name is 1 to 200 printable characters, not ''"),
        (lambda: Fault("x", "drop"), "fault x: 'drop' is no action"),  # type: ignore[arg-type]
        (lambda: Fault("x", Drop(), None), "fault x: None is no Match"),  # type: ignore[arg-type]
        (lambda: from_json({"name": "x", "action": {"kind": "Explode"}, "match": {}}), "not a fault: .*Explode"),
        (lambda: from_json({"name": "x", "action": {"kind": "Drop"}, "match": {"colour": 1}}), "not a fault: .*colour"),
        (lambda: from_json({"name": "x", "action": {"kind": "Drop"}, "match": {}, "side": "a"}), "unknown keys: side"),
    ],
)
def test_a_mistake_in_a_fault_is_named(make: object, told: str) -> None:
    """The error comes before the fault is sent to the wire, and has the wrong value."""
    with pytest.raises(FaultError, match=told):
        make()  # type: ignore[operator]


def test_the_history_of_packets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many packets, only the newest are remembered."""
    monkeypatch.setattr("hil.wire.picking.REMEMBERED", 100)
    faults, frame = Faults(), first()
    faults.add(Fault("again", Drop(), Match(retransmissions=Span(1))))
    for psn in range(1000):
        faults.decide("a", with_psn(frame, psn))
    hits = [faults.decide("a", with_psn(frame, psn))[0] is not None for psn in (0, 999, 998)]
    assert hits == [False, True, True]
