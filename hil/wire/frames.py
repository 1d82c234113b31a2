"""InfiniBand frames for scapy: DETH, MAD and the connection manager's messages (InfiniBand Architecture
Specification, volume 1: 9.3.1 DETH, 13.4.3 MAD, 12.6 CM messages; annex A11 the RDMA IP CM service), and a scan of data
packets that is fast enough for long captures.
"""

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from scapy.contrib.roce import BTH
from scapy.fields import (
    BitField,
    ByteField,
    IntField,
    LongField,
    ShortField,
    StrFixedLenField,
    XByteField,
    XIntField,
    XLongField,
    XShortField,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, bind_layers

UD_SEND_ONLY = 0x64
CM_CLASS = 0x07
ROCE_PORT = 4791
# RC opcodes (9.2) whose BTH is followed by an RDMA header (RETH) or by an acknowledgement's (AETH).
RDMA_WRITES, RDMA_READ_REQUEST = frozenset({0x06, 0x0A, 0x0B}), 0x0C
WITH_RETH = RDMA_WRITES | {RDMA_READ_REQUEST}
WITH_AETH = frozenset({0x0D, 0x0F, 0x10, 0x11, 0x12})
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_BTH, _RETH = struct.Struct("!BBHII"), struct.Struct("!QII")


class CmAttribute(IntEnum):
    """Attribute ids of CM messages (12.6)."""

    REQ = 0x10
    MRA = 0x11
    REJ = 0x12
    REP = 0x13
    RTU = 0x14
    DREQ = 0x15
    DREP = 0x16


class DETH(Packet):
    """Datagram extended transport header."""

    name = "DETH"
    fields_desc = [XIntField("qkey", 0x80010000), ByteField("reserved", 0), BitField("srcqp", 1, 24)]

    def guess_payload_class(self, payload: bytes) -> Any:
        return MAD if payload[:1] == b"\x01" else super().guess_payload_class(payload)


class MAD(Packet):
    """Management datagram header."""

    name = "MAD"
    fields_desc = [
        ByteField("base_version", 1),
        XByteField("mgmt_class", CM_CLASS),
        ByteField("class_version", 2),
        XByteField("method", 3),
        ShortField("status", 0),
        ShortField("class_specific", 0),
        XLongField("transaction_id", 0),
        XShortField("attribute_id", 0),
        ShortField("reserved", 0),
        XIntField("attribute_modifier", 0),
    ]

    def guess_payload_class(self, payload: bytes) -> Any:
        known = CM_MESSAGES.get(self.attribute_id) if self.mgmt_class == CM_CLASS else None
        return known or super().guess_payload_class(payload)


class CMREQ(Packet):
    """Request for communication (12.6.5)."""

    name = "CM REQ"
    fields_desc = [
        XIntField("local_comm_id", 0),
        IntField("reserved1", 0),
        XLongField("service_id", 0),
        XLongField("local_ca_guid", 0),
        IntField("reserved2", 0),
        XIntField("local_qkey", 0),
        BitField("local_qpn", 0, 24),
        ByteField("responder_resources", 0),
        BitField("local_eecn", 0, 24),
        ByteField("initiator_depth", 0),
        BitField("remote_eecn", 0, 24),
        BitField("remote_cm_response_timeout", 0, 5),
        BitField("transport_service_type", 0, 2),
        BitField("end_to_end_flow_control", 0, 1),
        BitField("starting_psn", 0, 24),
        BitField("local_cm_response_timeout", 0, 5),
        BitField("retry_count", 0, 3),
        XShortField("pkey", 0xFFFF),
        BitField("path_packet_payload_mtu", 0, 4),
        BitField("rdc_exists", 0, 1),
        BitField("rnr_retry_count", 0, 3),
        BitField("max_cm_retries", 0, 4),
        BitField("srq", 0, 1),
        BitField("extended_transport_type", 0, 3),
        XShortField("primary_local_lid", 0),
        XShortField("primary_remote_lid", 0),
        StrFixedLenField("primary_local_gid", b"\0" * 16, 16),
        StrFixedLenField("primary_remote_gid", b"\0" * 16, 16),
        BitField("primary_flow_label", 0, 20),
        BitField("reserved3", 0, 6),
        BitField("primary_packet_rate", 0, 6),
        ByteField("primary_traffic_class", 0),
        ByteField("primary_hop_limit", 0),
        BitField("primary_sl", 0, 4),
        BitField("primary_subnet_local", 0, 1),
        BitField("reserved4", 0, 3),
        BitField("primary_local_ack_timeout", 0, 5),
        BitField("reserved5", 0, 3),
        StrFixedLenField("alternate_path", b"\0" * 44, 44),
        StrFixedLenField("private_data", b"\0" * 92, 92),
    ]


class CMMRA(Packet):
    """Message receipt acknowledgement (12.6.6)."""

    name = "CM MRA"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        BitField("message_mraed", 0, 2),
        BitField("reserved1", 0, 6),
        BitField("service_timeout", 0, 5),
        BitField("reserved2", 0, 3),
        StrFixedLenField("private_data", b"\0" * 222, 222),
    ]


class CMREJ(Packet):
    """Reject (12.6.7)."""

    name = "CM REJ"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        BitField("message_rejected", 0, 2),
        BitField("reserved1", 0, 6),
        BitField("reject_info_length", 0, 7),
        BitField("reserved2", 0, 1),
        ShortField("reason", 0),
        StrFixedLenField("additional_reject_info", b"\0" * 72, 72),
        StrFixedLenField("private_data", b"\0" * 148, 148),
    ]


class CMREP(Packet):
    """Reply to request for communication (12.6.8)."""

    name = "CM REP"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        XIntField("local_qkey", 0),
        BitField("local_qpn", 0, 24),
        ByteField("reserved1", 0),
        BitField("local_eecn", 0, 24),
        ByteField("reserved2", 0),
        BitField("starting_psn", 0, 24),
        ByteField("reserved3", 0),
        ByteField("responder_resources", 0),
        ByteField("initiator_depth", 0),
        BitField("target_ack_delay", 0, 5),
        BitField("failover_accepted", 0, 2),
        BitField("end_to_end_flow_control", 0, 1),
        BitField("rnr_retry_count", 0, 3),
        BitField("srq", 0, 1),
        BitField("reserved4", 0, 4),
        LongField("local_ca_guid", 0),
        StrFixedLenField("private_data", b"\0" * 196, 196),
    ]


class CMRTU(Packet):
    """Ready to use (12.6.9)."""

    name = "CM RTU"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        StrFixedLenField("private_data", b"\0" * 224, 224),
    ]


class CMDREQ(Packet):
    """Request for communication release (12.6.10); ``remote_qpn`` is the receiver's QP."""

    name = "CM DREQ"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        BitField("remote_qpn", 0, 24),
        ByteField("reserved", 0),
        StrFixedLenField("private_data", b"\0" * 220, 220),
    ]


class CMDREP(Packet):
    """Reply to request for communication release (12.6.11)."""

    name = "CM DREP"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        StrFixedLenField("private_data", b"\0" * 224, 224),
    ]


class IPCM(Packet):
    """The RDMA IP CM service's header at the start of a REQ's private data (A11.6)."""

    name = "RDMA IP CM"
    fields_desc = [
        BitField("major_version", 0, 4),
        BitField("minor_version", 0, 4),
        BitField("ip_version", 4, 4),
        BitField("reserved", 0, 4),
        ShortField("source_port", 0),
        StrFixedLenField("source_address", b"\0" * 16, 16),
        StrFixedLenField("destination_address", b"\0" * 16, 16),
        StrFixedLenField("consumer_private_data", b"\0" * 56, 56),
    ]


CM_MESSAGES = {
    CmAttribute.REQ: CMREQ,
    CmAttribute.MRA: CMMRA,
    CmAttribute.REJ: CMREJ,
    CmAttribute.REP: CMREP,
    CmAttribute.RTU: CMRTU,
    CmAttribute.DREQ: CMDREQ,
    CmAttribute.DREP: CMDREP,
}

bind_layers(BTH, DETH, opcode=UD_SEND_ONLY)


def dissect(frame: bytes) -> Packet | None:
    """The frame by scapy's layers when it is RoCE v2 over UDP, else None. Never raises on what a node sent."""
    try:
        packet = Ether(frame)
        udp = packet.getlayer(UDP)
        if udp is None or udp.dport != ROCE_PORT or not isinstance(udp.payload, BTH):
            return None
        return packet
    except Exception:
        return None


def addresses(packet: Packet) -> tuple[str, str]:
    """Source and destination IP address."""
    layer = packet.getlayer(IP) or packet.getlayer(IPv6)
    return (layer.src, layer.dst) if layer else ("", "")


@dataclass(frozen=True, slots=True)
class DataPacket:
    """An RC packet's headers. ``syndrome`` is the AETH's; ``address``, ``rkey`` and ``length`` are the RETH's (9.3.3);
    -1 is absent."""

    source: str
    destination: str
    opcode: int
    dest_qp: int
    psn: int
    syndrome: int = -1
    address: int = -1
    rkey: int = -1
    length: int = -1


def scan(frame: bytes) -> DataPacket | None:
    """The headers of an RC packet in plain Ethernet, IP and UDP, or None: then it is ``dissect``'s."""
    (kind,) = struct.unpack_from("!H", frame, 12) if len(frame) > 14 else (0,)
    if kind == _IPV4 and len(frame) > 34 and frame[14] == 0x45 and not frame[20] & 0x3F and frame[23] == _UDP:
        parts, udp = (frame[26:30], frame[30:34]), 34
    elif kind == _IPV6 and len(frame) > 54 and frame[20] == _UDP:
        parts, udp = (frame[22:38], frame[38:54]), 54
    else:
        return None
    bth = udp + 8
    if len(frame) < bth + _BTH.size + 4 or struct.unpack_from("!H", frame, udp + 2) != (ROCE_PORT,):
        return None
    opcode, _, _, qp, psn = _BTH.unpack_from(frame, bth)
    after, syndrome, reth = bth + _BTH.size, -1, (-1, -1, -1)
    if opcode == UD_SEND_ONLY or len(frame) < after + 4 + _RETH.size * (opcode in WITH_RETH) + 4 * (
        opcode in WITH_AETH
    ):
        return None
    if opcode in WITH_AETH:
        syndrome = frame[after]
    elif opcode in WITH_RETH:
        reth = _RETH.unpack_from(frame, after)
    source, destination = (str(ipaddress.ip_address(part)) for part in parts)
    return DataPacket(source, destination, opcode, qp & 0xFFFFFF, psn & 0xFFFFFF, syndrome, *reth)
