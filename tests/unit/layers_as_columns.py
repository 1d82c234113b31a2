"""The values of scapy's layers in one frame, by the names of the bulk scan's columns."""

import ipaddress

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet, Padding, Raw

from hil.roce.frames import addresses
from hil.roce.layers.mad import MAD
from hil.roce.layers.transport import AETH, BTH, DETH, GRH, IETH, RETH, XRCETH, AtomicETH, ImmDt

MAPPED = 0xFFFF << 32
HALF = 2**64 - 1


def columns_of(packet: Packet) -> dict[str, int]:
    """Every column that a frame's layers give; absent values are marked as in the bulk scan."""
    return _network(packet) | _base(packet[BTH]) | _extended(packet[BTH])


def _network(packet: Packet) -> dict[str, int]:
    source, destination = (ipaddress.ip_address(text) for text in addresses(packet))
    tag = next((packet[layer].vlan for layer in (Dot1AD, Dot1Q) if type(packet.payload) is layer), -1)
    found = {"version": 1 if packet.haslayer(GRH) else 2, "vlan": tag}
    for name, address in (("src", source), ("dst", destination)):
        value = int(address) | (MAPPED if address.version == 4 else 0)
        found |= {f"{name}_hi": value >> 64, f"{name}_lo": value & HALF}
    found["udp_sport"] = packet[UDP].sport if packet.haslayer(UDP) else -1
    return found | {"ecn": _traffic_class(packet) & 3}


def _traffic_class(packet: Packet) -> int:
    if packet.haslayer(GRH):
        return int(packet[GRH].tclass)
    return int(packet[IP].tos if packet.haslayer(IP) else packet[IPv6].tc)


def _base(base: Packet) -> dict[str, int]:
    names = ("opcode", "solicited", "migreq", "padcount", "pkey", "fecn", "becn", "ackreq", "psn")
    found = {name: int(base.getfieldval(name)) for name in names}
    return found | {"transport_version": base.version, "dest_qp": base.dqpn}


def _extended(base: Packet) -> dict[str, int]:
    found = {"va": HALF}
    for column, places in EXTENDED.items():
        layer, field = next(((one, name) for one, name in places if base.haslayer(one)), (None, ""))
        found[column] = int(base[layer].getfieldval(field)) if layer else found.get(column, -1)
    if base.icrc is not None:
        found["payload"] = _payload(base) - base.padcount
    return found


EXTENDED: dict[str, list[tuple[type[Packet], str]]] = {
    "syndrome": [(AETH, "syndrome")],
    "msn": [(AETH, "msn")],
    "va": [(RETH, "va"), (AtomicETH, "va")],
    "rkey": [(RETH, "rkey"), (AtomicETH, "rkey")],
    "length": [(RETH, "dmalen")],
    "qkey": [(DETH, "qkey")],
    "srcqp": [(DETH, "srcqp")],
    "immdt": [(ImmDt, "data")],
    "ieth": [(IETH, "rkey")],
    "xrcsrq": [(XRCETH, "xrcsrq")],
}


def _payload(base: Packet) -> int:
    layer = base
    while layer and not isinstance(layer, Raw | MAD):
        layer = layer.payload
    # Padding behind the packet is a subclass of Raw.
    return len(layer.original) if layer and not isinstance(layer, Padding) else 0
