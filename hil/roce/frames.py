"""One frame at a time: ``dissect`` decodes it with scapy, ``scan`` reads only its RC headers.

The scapy layers are in ``hil.roce.layers``; ``hil.capture.bulk`` reads whole captures.
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from hil.roce.icrc import ICRC_SIZE
from hil.roce.layers.cm import (
    CM_MESSAGES,
    CMAPR,
    CMDREP,
    CMDREQ,
    CMLAP,
    CMMRA,
    CMREJ,
    CMREP,
    CMREQ,
    CMRTU,
    CMSIDRREP,
    CMSIDRREQ,
    IPCM,
    CmAttribute,
    ip_cm_header,
)
from hil.roce.layers.mad import MAD
from hil.roce.layers.transport import BTH, DETH, GRH, ROCE_PORT
from hil.roce.opcodes import LAYOUTS, UD_SEND_ONLY, Header
from hil.roce.psn import Psn, psn_of
from hil.roce.qpn import Qpn, qpn_of
from hil.roce.rkey import Rkey

__all__ = [
    "CMAPR",
    "CMDREP",
    "CMDREQ",
    "CMLAP",
    "CMMRA",
    "CMREJ",
    "CMREP",
    "CMREQ",
    "CMRTU",
    "CMSIDRREP",
    "CMSIDRREQ",
    "CM_MESSAGES",
    "DETH",
    "IPCM",
    "MAD",
    "CmAttribute",
    "DataPacket",
    "addresses",
    "dissect",
    "ip_cm_header",
    "scan",
]

# Opcodes whose base header is followed directly by a RETH, or by an AETH.
_WITH_RETH, _WITH_AETH = (
    frozenset(opcode for opcode, layout in LAYOUTS.items() if layout[:1] == (header,))
    for header in (Header.RETH, Header.AETH)
)
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_UDP_SIZE, _AETH_SIZE = 8, 4
_LINK = (Ether, Dot1Q, Dot1AD)
_EXTENSIONS = (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting, IPv6ExtHdrFragment)
_BTH, _RETH = struct.Struct("!BBHII"), struct.Struct("!QII")


def dissect(frame: bytes) -> Packet | None:
    """The frame as scapy layers when it is RoCE with a complete base transport header, else None.

    Fragments, and packets quoted or tunnelled in other packets, are not RoCE. A header that is cut behind the base
    header is returned as raw bytes. No frame raises an error.
    """
    try:
        packet = Ether(frame)
        return packet if _is_roce(packet) else None
    except Exception:
        return None


def _is_roce(packet: Packet) -> bool:
    layer: Any = packet
    while type(layer) in _LINK:
        layer = layer.payload
    if not _is_whole(layer):
        return False
    layer = layer.payload
    while type(layer) in _EXTENSIONS:
        if type(layer) is IPv6ExtHdrFragment and (layer.offset or layer.m):
            return False
        layer = layer.payload
    return type(layer.payload if type(layer) is UDP else layer) is BTH


def _is_whole(network: Any) -> bool:
    if type(network) is IP:
        return bool(network.version == 4 and network.ihl >= 5 and not network.frag and not network.flags.MF)
    return bool((type(network) is IPv6 and network.version == 6) or (type(network) is GRH and network.ipver == 6))


def addresses(packet: Packet) -> tuple[str, str]:
    """Source and destination IP address; for RoCE v1 the GIDs; empty texts without a network header."""
    if (grh := packet.getlayer(GRH)) is not None:
        return str(ipaddress.IPv6Address(grh.sgid)), str(ipaddress.IPv6Address(grh.dgid))
    layer = packet.getlayer(IP) or packet.getlayer(IPv6)
    return (layer.src, layer.dst) if layer else ("", "")


_NO_KEY = Rkey(-1)


@dataclass(frozen=True, slots=True)
class DataPacket:
    """The headers of an RC packet (InfiniBand volume 1, 9.2 and 9.3); absent values are -1.

    ``syndrome`` is of the AETH. ``address``, ``rkey`` and ``length`` are of the RETH (9.3.3), the length in bytes.
    """

    source: str
    destination: str
    opcode: int
    dest_qp: Qpn
    psn: Psn
    syndrome: int = -1
    address: int = -1
    rkey: Rkey = _NO_KEY
    length: int = -1


def scan(frame: bytes) -> DataPacket | None:
    """The headers of an RC packet in plain Ethernet, IP and UDP, or None for a frame that only ``dissect`` can read."""
    found = _plain_udp(frame)
    if found is None:
        return None
    udp, source, destination = found
    after = udp + _UDP_SIZE + _BTH.size
    if len(frame) < after + ICRC_SIZE or struct.unpack_from("!H", frame, udp + 2) != (ROCE_PORT,):
        return None
    opcode, _, _, qp, psn = _BTH.unpack_from(frame, udp + _UDP_SIZE)
    extended = _AETH_SIZE if opcode in _WITH_AETH else _RETH.size if opcode in _WITH_RETH else 0
    if opcode == UD_SEND_ONLY or len(frame) < after + ICRC_SIZE + extended:
        return None
    syndrome = frame[after] if opcode in _WITH_AETH else -1
    reth = _RETH.unpack_from(frame, after) if opcode in _WITH_RETH else ()
    ends = (str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination)))
    return DataPacket(*ends, opcode, qpn_of(qp), psn_of(psn), syndrome, *reth)


def _plain_udp(frame: bytes) -> tuple[int, bytes, bytes] | None:
    """The offset of the UDP header and the packed IP addresses of a plain datagram, else None.

    A plain datagram is no fragment, and has no VLAN tags, IP options or extension headers.
    """
    (kind,) = struct.unpack_from("!H", frame, 12) if len(frame) > 14 else (0,)
    if kind == _IPV4 and len(frame) > 34 and frame[14] == 0x45 and frame[23] == _UDP:
        fragment = frame[20] & 0x3F or frame[21]
        return None if fragment else (34, frame[26:30], frame[30:34])
    if kind == _IPV6 and len(frame) > 54 and frame[14] >> 4 == 6 and frame[20] == _UDP:
        return 54, frame[22:38], frame[38:54]
    return None
