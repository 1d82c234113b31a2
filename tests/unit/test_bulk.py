"""The bulk scan finds in every frame the values of scapy's layers, and gives the reason for every other frame."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from every_frame import ENCAPSULATIONS, ETHER, EXTENDED, V4, V6, every_mad, every_opcode
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_as_columns import columns_of
from scapy.contrib import roce
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from hil.capture.bulk import Batch, Malformed, scan
from hil.capture.chunk import PADDING, Chunk
from hil.capture.ethernet import vlans_of
from hil.capture.reader import open_capture
from hil.roce.frames import dissect
from hil.roce.frames import scan as scan_one
from hil.roce.icrc import icrc
from hil.roce.layers.mad import MAD
from hil.roce.layers.transport import BTH, GRH
from hil.roce.opcodes import LAYOUTS, Header, Operation

CAPTURES = sorted((Path(__file__).parent / "captures").glob("*.pcapng"))
EVERY = [*every_opcode(), *every_mad()]


def chunk_of(frames: list[bytes], originals: list[int] | None = None, link_type: int = 1) -> Chunk:
    sizes = np.array([len(frame) for frame in frames], np.int64)
    count = len(frames)
    return Chunk(
        np.frombuffer(b"".join(frames) + bytes(PADDING), np.uint8),
        np.arange(1, count + 1),
        np.arange(count) * 1000,
        np.zeros(count, np.int64),
        np.full(count, link_type),
        np.cumsum(sizes) - sizes,
        sizes,
        np.array(originals, np.int64) if originals else sizes,
    )


def one(frame: bytes, original: int = 0, *, check_icrc: bool = True) -> Batch:
    return scan(chunk_of([frame], [original or len(frame)]), check_icrc=check_icrc)


def agree(batch: Batch, frames: list[bytes]) -> int:
    """Compare every row that both understand with scapy's layers; the number of rows compared.

    What the layers understand is never passed over.
    """
    compared = 0
    understood = {index for index, frame in enumerate(frames) if dissect(frame) is not None}
    assert understood <= set(batch.index.tolist())
    for row in range(len(batch)):
        packet = dissect(frames[int(batch.index[row])])
        if batch.malformed[row] != Malformed.NO or packet is None:
            continue
        for name, value in columns_of(packet).items():
            assert int(getattr(batch, name)[row]) == value, f"{name} of {packet.summary()}"
        compared += 1
    return compared


def test_every_kind_of_frame() -> None:
    """All columns of every opcode, encapsulation and MAD have the layers' values, and all ICRCs are right."""
    frames = [frame for name, frame in EVERY]
    batch = scan(chunk_of(frames), check_icrc=True)
    assert agree(batch, frames) == len(frames)
    extended = np.array([any(name.endswith(kind) for kind in EXTENDED) for name, frame in EVERY])
    assert (batch.icrc[~extended] == 1).all() and (batch.icrc[extended] == -1).all()


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_recorded_captures(path: Path) -> None:
    """In the kernel's own packets every column has the layers' value, and every ICRC is right."""
    with open_capture(path) as capture:
        (chunk,) = capture
    batch = scan(chunk, check_icrc=True)
    frames = [chunk.frame(index) for index in range(len(chunk))]
    assert agree(batch, frames) == len(batch) == sum(dissect(frame) is not None for frame in frames)
    assert (batch.icrc == 1).all()
    passed = batch.passed
    assert len(batch) + passed.not_roce + passed.other_links + passed.fragments + passed.cut == len(chunk)


def test_scapy_computes_the_same_icrc() -> None:
    """Over IPv4 and IPv6, where scapy knows the rules, scapy computes the same ICRC."""
    for name, frame in every_opcode(3):
        if name.partition(" ")[2] in ("IPv4", "IPv4 with options", "IPv6", "VLAN"):
            base = dissect(frame)["BTH"]
            whole = bytes(base)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = roce.BTH.compute_icrc(base, whole)
            assert theirs == whole[-4:], name


@pytest.mark.parametrize("name", ENCAPSULATIONS)
def test_every_bit_that_counts_is_in_the_icrc(name: str) -> None:
    """A flipped bit makes the ICRC wrong, except for bits that may change on the way; both checks agree."""
    frame = next(frame for what, frame in every_opcode(4) if what == f"{Operation.SEND_ONLY:#04x} {name}")
    begin = 14 + 4 * frame[:22].count(b"\x81\x00") + 4 * frame[:22].count(b"\x88\xa8")
    flipped = [bytes(flip(frame, bit)) for bit in range(begin * 8, len(frame) * 8)]
    batch = scan(chunk_of(flipped), check_icrc=True)
    right = {int(batch.index[row]) for row in range(len(batch)) if batch.icrc[row] == 1}
    checked = [row for row in range(len(batch)) if batch.icrc[row] >= 0]
    for row in checked:
        single = flipped[int(batch.index[row])]
        stored = int.from_bytes(single[-4:], "little")
        assert (icrc(single, len(single) - 4) == stored) == (batch.icrc[row] == 1)
    header = frame[begin:]
    free = variable_bits(header)
    assert right == {bit for bit in free if bit in {int(batch.index[row]) for row in checked}}
    assert len(checked) > len(frame) * 4


def flip(frame: bytes, bit: int) -> bytearray:
    changed = bytearray(frame)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return changed


def variable_bits(packet: bytes) -> set[int]:
    """The bits behind the network header's start that may change on the way (InfiniBand volume 1, A16.5 and A17.3)."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        free = set(range(8, 16)) | set(range(64, 72)) | set(range(80, 96))
        udp = True
    else:
        size, udp = 40, packet[6] == 17
        free = set(range(4, 32)) | set(range(56, 64))
    if udp:
        free |= set(range((size + 6) * 8, (size + 8) * 8))
        size += 8
    return free | set(range((size + 4) * 8, (size + 5) * 8))


def test_a_packet_that_is_cut_by_the_snap_length() -> None:
    """Complete headers are read, the payload's length is known, and the ICRC cannot be checked."""
    frame = next(frame for name, frame in every_opcode() if name == "0x0a IPv4")
    for size in range(42, len(frame)):
        batch = one(frame[:size], len(frame))
        assert len(batch) == 1
        wanted = Malformed.NO if size >= 70 else Malformed.SNAPPED
        assert batch.malformed[0] == wanted and batch.icrc[0] == -1
        assert (batch.opcode[0] == Operation.RDMA_WRITE_ONLY) == (size >= 54) and (batch.rkey[0] >= 0) == (size >= 70)
        assert (batch.payload[0] == one(frame).payload[0]) == (size >= 70)


def test_a_frame_cut_before_its_udp_header() -> None:
    """A frame that was snapped in front of its UDP header may be RoCE or not, and is counted apart."""
    frame = next(frame for name, frame in every_opcode() if name == "0x0a double VLAN")
    for size in range(70):
        passed = one(frame[:size], len(frame)).passed
        assert (passed.cut, passed.not_roce) == (1, 0)
        passed = one(frame[:size]).passed
        assert (passed.cut, passed.not_roce) == (0, 1)


def over_udp(payload: bytes, **fields: int) -> bytes:
    return bytes(ETHER / IP(**V4) / UDP(dport=4791, chksum=0, **fields) / Raw(payload))


def test_packets_that_end_too_early() -> None:
    """A packet whose own length ends inside a header, or in front of its padding, is truncated."""
    inner = struct.pack("!BBHII", Operation.RDMA_READ_REQUEST, 0x00, 0xFFFF, 7, 9) + bytes(16)
    for size in range(len(inner) + 4):
        frame = over_udp((inner + bytes(4))[:size])
        assert (dissect(frame) is not None) == (size >= 12)
        batch = one(frame)
        assert batch.malformed[0] == Malformed.TRUNCATED
        assert (batch.opcode[0], batch.psn[0]) == ((Operation.RDMA_READ_REQUEST, 9) if size >= 16 else (-1, -1))
    assert one(over_udp(inner + bytes(4))).malformed[0] == Malformed.NO
    padded = struct.pack("!BBHII", Operation.SEND_ONLY, 0x30, 0xFFFF, 7, 9)
    assert one(over_udp(padded + bytes(2 + 4))).malformed[0] == Malformed.TRUNCATED
    assert one(over_udp(padded + bytes(4 + 4))).payload[0] == 1


def test_unknown_opcodes() -> None:
    """Every unknown opcode gives a row with its base header, and its ICRC is checked."""
    unknown = sorted(set(range(256)) - set(LAYOUTS))
    frames = [
        bytes(ETHER / IP(**V4) / UDP(dport=4791) / BTH(opcode=code, psn=code) / Raw(bytes(8))) for code in unknown
    ]
    batch = scan(chunk_of(frames), check_icrc=True)
    assert batch.opcode.tolist() == unknown == batch.psn.tolist()
    assert (batch.malformed == Malformed.UNKNOWN_OPCODE).all() and (batch.icrc == 1).all()
    assert (batch.payload == -1).all()


def test_lengths_that_disagree() -> None:
    """A length that exceeds the frame, or differs from UDP's, is reported, and the headers are read."""
    good = over_udp(struct.pack("!BBHII", Operation.SEND_ONLY, 0, 0xFFFF, 7, 9) + bytes(8))
    for at, value in ((16, 500), (38, 21), (38, 500)):
        frame = good[:at] + struct.pack("!H", value) + good[at + 2 :]
        batch = one(frame)
        assert batch.malformed[0] == Malformed.LENGTH and batch.dest_qp[0] == 7 and batch.icrc[0] == -1


@pytest.mark.parametrize(
    "trailer", [bytes(4), bytes(18), b"\xde\xad\xbe\xef", bytes(300)], ids=["4", "padding", "FCS", "300"]
)
def test_trailers(trailer: bytes) -> None:
    """Ethernet padding and a frame check sequence behind the packet change nothing."""
    for name, frame in EVERY[:: len(EVERY) // 60]:
        plain, batch = one(frame), one(frame + trailer)
        for column in ("malformed", "payload", "icrc", "psn", "va", "syndrome"):
            assert getattr(batch, column)[0] == getattr(plain, column)[0], f"{column} of {name}"


def bare(opcode: int = Operation.SEND_ONLY) -> BTH:
    return BTH(opcode=opcode) / Raw(bytes(8))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ETHER / ARP(), "not_roce"),
        (ETHER / IP(**V4) / TCP(dport=4791), "not_roce"),
        (ETHER / IP(**V4) / UDP(sport=4791, dport=53) / bare(), "not_roce"),
        (ETHER / IP(flags="MF", **V4) / UDP(dport=4791) / bare(), "fragments"),
        (ETHER / IP(frag=3, proto=17, **V4) / Raw(bytes(40)), "fragments"),
        (ETHER / IPv6(**V6) / IPv6ExtHdrFragment(m=1) / UDP(dport=4791) / bare(), "fragments"),
        (ETHER / IPv6(**V6) / IPv6ExtHdrFragment(offset=8, nh=17) / Raw(bytes(40)), "fragments"),
        (ETHER / GRH(nexthdr=17) / Raw(bytes(40)), "not_roce"),
        (ETHER / Raw(bytes(60)), "not_roce"),
        (Ether(type=0x0800) / Raw(b"\x60" + bytes(60)), "not_roce"),
        (Ether(type=0x86DD) / Raw(b"\x45" + bytes(60)), "not_roce"),
        (Ether(type=0x0800) / Raw(b"\x44" + bytes(8) + b"\x11" + bytes(60)), "not_roce"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.summary()[-40:],
)
def test_frames_that_are_not_roce(frame: Ether, reason: str) -> None:
    """Frames that are no RoCE packets are counted by reason, and give no row."""
    batch = one(bytes(frame))
    assert len(batch) == 0 and getattr(batch.passed, reason) == 1
    assert dissect(bytes(frame)) is None


OPTIONS = IP(options=[IPOption_NOP()] * 4, flags="MF", **V4)


@pytest.mark.parametrize(
    ("frame", "begun"),
    [
        (ETHER / IP(flags="MF", **V4) / UDP(dport=4791) / bare(), 1),
        (ETHER / OPTIONS / UDP(dport=4791) / bare(), 1),
        (ETHER / IP(flags="MF", **V4) / UDP(dport=53) / bare(), 0),
        (ETHER / IP(flags="MF", frag=3, proto=17, **V4) / Raw(bytes(40)), 0),
        (ETHER / IP(flags="MF", **V4) / UDP(dport=4791), 1),
        (ETHER / IP(flags="MF", proto=17, **V4), 0),
        (ETHER / IPv6(**V6) / IPv6ExtHdrFragment(m=1) / UDP(dport=4791) / bare(), 1),
        (ETHER / IPv6(**V6) / IPv6ExtHdrFragment(m=1) / UDP(dport=53) / bare(), 0),
        (ETHER / IPv6(**V6) / IPv6ExtHdrFragment(offset=8, m=1, nh=17) / Raw(bytes(40)), 0),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else value.summary()[-40:],
)
def test_first_fragments_of_roce_packets_are_counted(frame: Ether, begun: int) -> None:
    """First fragments of RoCE packets are recognised by their UDP header, and are not reassembled."""
    passed = one(bytes(frame)).passed
    assert (passed.fragments, passed.roce_fragments) == (1, begun)


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    """A complete packet with an IPv6 fragment header gives a row."""
    frame = bytes(ETHER / IPv6(**V6) / IPv6ExtHdrFragment() / UDP(dport=4791, chksum=0) / bare())
    batch = one(frame)
    assert len(batch) == 1 and batch.malformed[0] == Malformed.NO and agree(batch, [frame]) == 1


def test_other_link_types_are_passed_over() -> None:
    """Frames of a link type that is not supported are counted, and never read as another type."""
    batch = scan(chunk_of([frame for name, frame in EVERY], link_type=105))
    assert len(batch) == 0 and batch.passed.other_links == len(EVERY)


def test_more_tags_than_are_read() -> None:
    """Four VLAN tags are read, and the outer one's id is kept; frames with more tags are not RoCE."""
    for tags in range(6):
        frame: Ether = ETHER.copy()
        for tag in range(tags):
            frame = frame / Dot1Q(vlan=tag + 10)
        batch = one(bytes(frame / IP(**V4) / UDP(dport=4791, chksum=0) / bare()))
        assert len(batch) == (tags <= 4)
        assert not len(batch) or batch.vlan[0] == (10 if tags else -1)
        assert not len(batch) or vlans_of(int(batch.tags[0])) == tuple(range(10, 10 + tags))


def test_no_frames() -> None:
    """A chunk without frames, and one without RoCE, give no rows."""
    assert len(scan(chunk_of([]), check_icrc=True)) == 0
    assert len(scan(chunk_of([bytes(60)]), check_icrc=True)) == 0


def test_the_frame_of_a_row() -> None:
    """A row gives the bytes of its own frame, also behind frames that were passed over."""
    mads = [frame for name, frame in every_mad()][:3]
    batch = scan(chunk_of([bytes(60), mads[0], b"", mads[1], bytes(14), mads[2]]))
    assert [batch.frame(row) for row in range(3)] == mads
    assert batch.number.tolist() == [2, 4, 6]
    assert all(dissect(batch.frame(row)).haslayer(MAD) for row in range(3))


MUTATIONS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(EVERY) - 1), MUTATIONS, st.integers(0, 80), st.integers(0, 60))
def test_changed_frames(which: int, changes: list[tuple[int, int]], cut: int, more: int) -> None:
    """Frames that are changed and cut at random never raise, and both ways agree on what both can read."""
    frame = bytearray(EVERY[which][1])
    for at, value in changes:
        frame[at % len(frame)] = value
    short = bytes(frame[: max(len(frame) - cut, 0)])
    agree(one(short, len(short) + more), [short])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=120), max_size=8),
    st.sampled_from([b"", b"\x08\0", b"\x86\xdd", b"\x89\x15", b"\x81\0"]),
)
def test_any_frames(payloads: list[bytes], ethertype: bytes) -> None:
    """Frames of random bytes never raise, and every frame is a row or is counted."""
    frames = [bytes(12) + ethertype + payload for payload in payloads]
    batch = scan(chunk_of(frames), check_icrc=True)
    passed = batch.passed
    assert len(batch) + passed.not_roce + passed.other_links + passed.fragments + passed.cut == len(frames)
    agree(batch, frames)


def test_the_scan_of_one_frame() -> None:
    """The scan of a single frame finds the same in plain packets as the bulk scan, and refuses fragments."""
    frames = [frame for name, frame in EVERY if name.endswith((" IPv4", " IPv6", " VLAN"))]
    batch, compared = scan(chunk_of(frames)), 0
    for row, found in enumerate(map(scan_one, frames)):
        if found is not None and LAYOUTS[found.opcode][:1] in ((), (Header.RETH,), (Header.AETH,)):
            wanted = [
                int(getattr(batch, name)[row]) for name in ("opcode", "dest_qp", "psn", "syndrome", "rkey", "length")
            ]
            assert [found.opcode, found.dest_qp, found.psn, found.syndrome, found.rkey, found.length] == wanted
            assert found.address in (-1, int(batch.va[row]))
            compared += 1
    assert compared > 50
    for fields in ({"flags": "MF"}, {"frag": 3}, {"frag": 300}):
        assert scan_one(bytes(ETHER / IP(proto=17, **V4, **fields) / Raw(bytes(UDP(dport=4791) / bare())))) is None


def test_only_a_complete_packet_has_an_icrc() -> None:
    """The layers take the last bytes for the ICRC when the packet is complete, and have none when it was cut."""
    for name, frame in EVERY[::7]:
        assert dissect(frame)["BTH"].icrc is not None, name
        assert dissect(frame + bytes(9))["BTH"].icrc == dissect(frame)["BTH"].icrc, name
        assert dissect(frame[:-1])["BTH"].icrc is None, name


def test_layers_give_their_bytes_back() -> None:
    """Packets that are built, dissected and built again from their fields are equal, ICRC included."""
    for name, frame in EVERY:
        packet = dissect(frame)
        fresh = packet.copy()
        layer = fresh
        while layer:
            layer.raw_packet_cache = None
            layer = layer.payload
        if not name.endswith(tuple(EXTENDED)):
            fresh["BTH"].icrc = None
        assert bytes(fresh) == frame, name
