"""Captures for the tests of the rebuilder, recorded, changed in memory or constructed; and their verdict."""

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hil.capture.pcapng import CapturedFrame, PcapngWriter, read_pcapng
from hil.capture.reader import open_capture
from hil.evidence.rebuild.file import FileFacts, FileRebuild
from hil.evidence.rebuild.judgement import Judged, Reservations, judge
from hil.roce.frames import dissect
from hil.roce.icrc import icrc, network_header
from hil.roce.layers.cm import CmAttribute
from hil.roce.layers.mad import MAD
from hil.roce.layers.transport import BTH
from hil.testing.roce import START_NS, Side, connect, disconnect, message

FOLDER = Path(__file__).parent / "captures"
TEARDOWNS = FOLDER / "teardowns"
FAULTS = FOLDER / "faults"
INTERFACES = ["side-a", "side-b", "mirror"]


def recorded(name: str) -> list[CapturedFrame]:
    """The RoCE frames of a recorded capture."""
    path = TEARDOWNS / f"{name}.pcapng"
    found = read_pcapng(path if path.exists() else FOLDER / f"{name}.pcapng")
    return [frame for frame in found if dissect(frame.data) is not None]


def made(
    sides: tuple[Side, Side], rounds: int, *, start_ns: int = START_NS, step_ns: int = 20_000
) -> list[CapturedFrame]:
    """A constructed connection with that many messages, torn down by its first side."""
    one, two = sides
    parts = [*connect(one, two), *(f for n in range(rounds) for f in message(one, two, n)), *disconnect(one, two)]
    times = (start_ns + n * step_ns for n in range(len(parts)))
    return [
        CapturedFrame(0, at, INTERFACES[side], data, len(data)) for at, (side, data) in zip(times, parts, strict=True)
    ]


def pcapng(frames: Iterable[CapturedFrame]) -> io.BytesIO:
    """The frames as a pcapng file."""
    out = io.BytesIO()
    writer = PcapngWriter(out, INTERFACES)
    for frame in frames:
        writer.write(INTERFACES.index(frame.interface), frame.time_ns, frame.data)
    out.seek(0)
    return out


def pcap(frames: Iterable[CapturedFrame], *, snap: int = 262144, nanoseconds: bool = False) -> io.BytesIO:
    """The frames as a pcap file with micro- or nanoseconds, each cut to ``snap`` bytes."""
    magic, ticks = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    parts = [struct.pack("<IHHiIII", magic, 2, 4, 0, 0, snap, 1)]
    for frame in frames:
        seconds, rest = divmod(frame.time_ns, 10**9)
        data = frame.data[:snap]
        parts.append(struct.pack("<IIII", seconds & 0xFFFFFFFF, rest // ticks, len(data), len(frame.data)) + data)
    return io.BytesIO(b"".join(parts))


def rebuilt(file: io.BytesIO, *, chunk_bytes: int = 1 << 20) -> tuple[list[Judged], FileFacts]:
    """Each connection of a file with its judgement, in the order in which they begin."""
    with open_capture(file, chunk_bytes=chunk_bytes) as capture:
        rebuild = FileRebuild(capture)
        found = sorted(rebuild, key=lambda facts: facts.first_ns)
    about = Reservations.about(rebuild.facts)
    return [judge(facts, about) for facts in found], rebuild.facts


def judged(frames: Iterable[CapturedFrame]) -> list[Judged]:
    return rebuilt(pcapng(frames))[0]


def one(frames: Iterable[CapturedFrame]) -> Judged:
    """The judgement of the only connection."""
    (connection,) = judged(frames)
    return connection


def kind(frame: CapturedFrame) -> str:
    """A CM message's name, or RC."""
    packet = dissect(frame.data)
    if packet is None or not packet.haslayer(MAD):
        return "RC"
    return CmAttribute(packet[MAD].attribute_id).name


def opcode(frame: CapturedFrame) -> int:
    packet = dissect(frame.data)
    assert packet is not None
    return int(packet[BTH].opcode)


def without(frames: Sequence[CapturedFrame], *places: int) -> list[CapturedFrame]:
    return [frame for place, frame in enumerate(frames) if place not in places]


def place(frames: Sequence[CapturedFrame], name: str) -> int:
    """The place of the first CM message with that name."""
    return next(n for n, frame in enumerate(frames) if kind(frame) == name)


def moved(
    frames: Sequence[CapturedFrame], source: int, destination: int, *, later_ns: int = 5_000_000
) -> list[CapturedFrame]:
    """One frame taken out and put behind another, ``later_ns`` after it; the following frames come later too."""
    rest = list(frames)
    frame = rest.pop(source)
    behind = destination - (source < destination)
    at = rest[behind].time_ns + later_ns
    later = [replace(f, time_ns=f.time_ns + 2 * later_ns) for f in rest[behind + 1 :]]
    return [*rest[: behind + 1], replace(frame, time_ns=at), *later]


def altered(frame: CapturedFrame, offset: int, value: int, *, repaired: bool) -> CapturedFrame:
    """A frame with one byte behind its base transport header changed; ``repaired`` makes its ICRC right again."""
    data = bytearray(frame.data)
    _, at = network_header(frame.data)
    data[at + 28 + 12 + offset] ^= value
    if repaired:
        data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
    return replace(frame, data=bytes(data))


def acknowledged(frame: CapturedFrame, *, syndrome: int, behind: int) -> CapturedFrame:
    """An ACK changed into another answer, to a PSN ``behind`` its own, with a right ICRC."""
    data = bytearray(frame.data)
    bth = network_header(frame.data)[1] + 28
    psn = int.from_bytes(data[bth + 9 : bth + 12], "big") - behind
    data[bth + 9 : bth + 12] = (psn & 0xFFFFFF).to_bytes(3, "big")
    data[bth + 12] = syndrome
    data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
    return replace(frame, data=bytes(data))


def tagged(frame: CapturedFrame, vlan: int) -> CapturedFrame:
    """The frame with a VLAN tag."""
    data = frame.data[:12] + struct.pack("!HH", 0x8100, vlan) + frame.data[12:]
    return replace(frame, data=data, original_length=len(data))


def as_v1(frame: CapturedFrame) -> CapturedFrame:
    """An IPv4 frame as RoCE v1: the same packet behind a GRH, with its own ICRC."""
    _, at = network_header(frame.data)
    gids = b"".join(bytes(10) + b"\xff\xff" + frame.data[at + n : at + n + 4] for n in (12, 16))
    transport = frame.data[at + 28 :]
    grh = struct.pack("!IHBB", 0x60000000, len(transport), 0x1B, 64) + gids
    data = frame.data[:12] + b"\x89\x15" + grh + transport
    data = data[:-4] + icrc(data, len(data) - 4).to_bytes(4, "little")
    return replace(frame, data=data, original_length=len(data))


def resent(frames: Iterable[CapturedFrame], by_ns: int, *, number: int = 1) -> list[CapturedFrame]:
    """IPv4 frames sent again after some time with new identifications, ``number`` higher."""

    def numbered(frame: CapturedFrame) -> CapturedFrame:
        data = bytearray(frame.data)
        data[18:20] = (int.from_bytes(data[18:20]) + number & 0xFFFF).to_bytes(2)
        data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
        return replace(frame, data=bytes(data), time_ns=frame.time_ns + by_ns)

    return [numbered(frame) for frame in frames]


def later(frames: Iterable[CapturedFrame], by_ns: int) -> list[CapturedFrame]:
    return [replace(frame, time_ns=frame.time_ns + by_ns) for frame in frames]


def arp(frames: Sequence[CapturedFrame], seconds: int) -> list[CapturedFrame]:
    """The frames, followed by ARP only."""
    one_of_it = replace(frames[-1], data=b"\xff" * 12 + b"\x08\x06" + bytes(46))
    return [*frames, *(frame for n in range(seconds) for frame in later([one_of_it], (n + 1) * 10**9))]


def between(frames: Sequence[CapturedFrame], one_mac: int, other_mac: int) -> list[CapturedFrame]:
    """The frames between two other MAC addresses; the first is that of side a."""
    macs = [mac.to_bytes(6) for mac in (one_mac, other_mac)]

    def moved(frame: CapturedFrame) -> CapturedFrame:
        source, destination = macs if frame.interface == "side-a" else macs[::-1]
        return replace(frame, data=destination + source + frame.data[12:])

    return [moved(frame) for frame in frames]


def unnumbered(frames: Sequence[CapturedFrame]) -> list[CapturedFrame]:
    """The IPv4 frames with identification 0, as some adapters send them."""
    zeroed = []
    for frame in frames:
        data = bytearray(frame.data)
        data[18:20] = bytes(2)
        data[-4:] = icrc(bytes(data), len(data) - 4).to_bytes(4, "little")
        zeroed.append(replace(frame, data=bytes(data)))
    return zeroed
