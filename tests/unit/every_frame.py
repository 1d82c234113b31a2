"""Frames of every kind: each opcode, encapsulation and CM message, with field values from a seed."""

import random
from collections.abc import Iterator

from scapy.fields import BitField, StrFixedLenField
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from hil.roce.layers.cm import CM_MESSAGES, IPCM, CmAttribute
from hil.roce.layers.mad import MAD, ManagementClass, Method
from hil.roce.layers.transport import BTH, CLASSES, DETH, GRH
from hil.roce.opcodes import CNP_OPCODE, LAYOUTS, UD_SEND_ONLY, Operation

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4 = {"src": "10.77.0.1", "dst": "10.77.0.2"}
MAPPED = bytes(10) + b"\xff\xff"
V6 = {"src": "fd77::1", "dst": "fd77::2"}
ENCAPSULATIONS: dict[str, Packet] = {
    "IPv4": ETHER / IP(tos=2, ttl=7, flags="DF", **V4),
    "IPv4 with options": ETHER / IP(options=[IPOption_NOP()] * 8, **V4),
    "IPv6": ETHER / IPv6(tc=0x61, fl=0x12345, hlim=9, **V6),
    "VLAN": ETHER / Dot1Q(vlan=5, prio=3) / IP(**V4),
    "double VLAN": ETHER / Dot1AD(vlan=100) / Dot1Q(vlan=7) / IPv6(**V6),
    "RoCE v1": ETHER / GRH(tclass=0x62, flowlabel=0xABCDE, sgid=1 << 100 | 1, dgid=1 << 100 | 2),
    "RoCE v1 in a VLAN": ETHER / Dot1Q(vlan=9) / GRH(sgid=0xFFFF0A4D0001, dgid=0xFFFF0A4D0002),
}
WITHOUT_PAYLOAD = frozenset(
    {
        Operation.RDMA_READ_REQUEST,
        Operation.ACKNOWLEDGE,
        Operation.ATOMIC_ACKNOWLEDGE,
        Operation.COMPARE_SWAP,
        Operation.FETCH_ADD,
        Operation.RESYNC,
        Operation.FLUSH,
    }
)
# The ICRC's rules name no extension headers; tshark reads these as well.
EXTENDED: dict[str, Packet] = {
    "IPv6 with extension headers": ETHER / IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
}


def filled(layer: type[Packet], rng: random.Random, **fixed: int) -> Packet:
    """``layer`` with a different value in every field except reserved ones; GIDs are no mapped IPv4 addresses."""
    packet = layer()
    for field in packet.fields_desc:
        if field.name.startswith("res") or field.name == "icrc":
            continue
        if isinstance(field, StrFixedLenField):
            value: object = rng.randbytes(field.length_from(packet))
        else:
            bits = field.size if isinstance(field, BitField) else 8 * field.sz
            value = rng.getrandbits(bits)
        setattr(packet, field.name, value)
    for name, value in fixed.items():
        setattr(packet, name, value)
    return packet


def transport(opcode: int, rng: random.Random) -> Packet:
    """A base header of ``opcode``, the headers of that opcode, and a payload with padding."""
    size = payload_size(opcode, rng)
    pad = rng.randrange(4) if size > 8 else 0
    base = filled(BTH, rng, opcode=opcode, padcount=pad, version=0, dqpn=rng.randrange(2, 1 << 24))
    for header in LAYOUTS[opcode]:
        base = base / filled(CLASSES[header], rng)
    return base / Raw(rng.randbytes(size - pad) + bytes(pad)) if size else base


def payload_size(opcode: int, rng: random.Random) -> int:
    """The number of payload and padding bytes for ``opcode``."""
    operation = opcode & 0x1F
    if opcode == CNP_OPCODE or operation in WITHOUT_PAYLOAD:
        return 0
    return 8 if operation == Operation.ATOMIC_WRITE else rng.randrange(1, 9) * 4


def around(below: Packet, inner: Packet, rng: random.Random) -> Packet:
    if below.haslayer(GRH):
        return below / inner
    return below / UDP(sport=rng.randrange(49152, 65536), dport=4791, chksum=0) / inner


def every_opcode(seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """Every opcode in every encapsulation, with a name for each."""
    rng = random.Random(seed)
    for name, below in (ENCAPSULATIONS | EXTENDED).items():
        for opcode in LAYOUTS:
            yield f"{opcode:#04x} {name}", bytes(around(below, transport(opcode, rng), rng))


def datagram(mad: Packet, below: Packet, rng: random.Random) -> bytes:
    base = filled(BTH, rng, opcode=UD_SEND_ONLY, padcount=0, version=0, dqpn=1)
    return bytes(around(below, base / DETH(qkey=0x80010000, srcqp=1) / mad, rng))


def cm_messages(rng: random.Random) -> Iterator[tuple[str, Packet]]:
    for attribute in CmAttribute:
        header = MAD(transaction_id=rng.getrandbits(64), attribute_id=attribute, status=rng.getrandbits(16))
        yield f"CM {attribute.name}", header / filled(CM_MESSAGES[attribute], rng)
    for ip_version in (4, 6):
        request = filled(CM_MESSAGES[CmAttribute.REQ], rng, service_id=0x01061234)
        if ip_version == 4:
            request.primary_local_gid, request.primary_remote_gid = (MAPPED + rng.randbytes(4) for _ in range(2))
        request.private_data = bytes(filled(IPCM, rng, ip_version=ip_version, major_version=0))
        yield f"CM REQ of IPv{ip_version}", MAD(attribute_id=CmAttribute.REQ) / request


def other_mads(rng: random.Random) -> Iterator[tuple[str, Packet]]:
    for management in set(ManagementClass) - {ManagementClass.COMMUNICATION}:
        header = filled(MAD, rng, base_version=1, mgmt_class=management, method=Method.GET, attribute_id=0x7777)
        yield management.name, header / Raw(rng.randbytes(232))


def every_mad(seed: int = 2) -> Iterator[tuple[str, bytes]]:
    """Every CM message and a MAD of every other class, over IPv4, IPv6 and RoCE v1."""
    rng = random.Random(seed)
    for name in ("IPv4", "IPv6", "RoCE v1"):
        for what, mad in [*cm_messages(rng), *other_mads(rng)]:
            yield f"{what} {name}", datagram(mad, ENCAPSULATIONS[name], rng)
