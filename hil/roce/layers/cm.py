"""Messages of the connection manager (InfiniBand volume 1, 12.6 to 12.11) and of the RDMA IP CM service (annex A11)."""

from enum import IntEnum
from typing import Any

from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    IntField,
    ShortEnumField,
    ShortField,
    StrFixedLenField,
    XIntField,
    XLongField,
    XShortField,
)
from scapy.packet import Packet

# The size in bytes of every message behind the MAD header.
CM_SIZE = 232
GID_SIZE = 16


class CmAttribute(IntEnum):
    """Attribute ids of CM messages (12.6)."""

    REQ = 0x10
    MRA = 0x11
    REJ = 0x12
    REP = 0x13
    RTU = 0x14
    DREQ = 0x15
    DREP = 0x16
    SIDR_REQ = 0x17
    SIDR_REP = 0x18
    LAP = 0x19
    APR = 0x1A


class RejectReason(IntEnum):
    """Reason codes of a REJ (12.6.7.2)."""

    NO_QP = 1
    NO_EEC = 2
    NO_RESOURCES = 3
    TIMEOUT = 4
    UNSUPPORTED_REQUEST = 5
    INVALID_COMM_ID = 6
    INVALID_COMM_INSTANCE = 7
    INVALID_SERVICE_ID = 8
    INVALID_TRANSPORT_TYPE = 9
    STALE_CONNECTION = 10
    RDC_NOT_EXIST = 11
    PRIMARY_GID_REJECTED = 12
    PRIMARY_LID_REJECTED = 13
    INVALID_PRIMARY_SL = 14
    INVALID_PRIMARY_TRAFFIC_CLASS = 15
    INVALID_PRIMARY_HOP_LIMIT = 16
    INVALID_PRIMARY_PACKET_RATE = 17
    ALTERNATE_GID_REJECTED = 18
    ALTERNATE_LID_REJECTED = 19
    INVALID_ALTERNATE_SL = 20
    INVALID_ALTERNATE_TRAFFIC_CLASS = 21
    INVALID_ALTERNATE_HOP_LIMIT = 22
    INVALID_ALTERNATE_PACKET_RATE = 23
    PORT_AND_CM_REDIRECT = 24
    PORT_REDIRECT = 25
    INVALID_MTU = 26
    INSUFFICIENT_RESPONDER_RESOURCES = 27
    CONSUMER_REJECT = 28
    RNR_RETRY_COUNT_REJECTED = 29
    DUPLICATE_COMM_ID = 30
    INVALID_CLASS_VERSION = 31
    INVALID_FLOW_LABEL = 32
    INVALID_ALTERNATE_FLOW_LABEL = 33
    VENDOR_OPTION_NOT_SUPPORTED = 35


class SidrStatus(IntEnum):
    """Status codes of a SIDR_REP (12.11.2)."""

    QPN_VALID = 0
    SERVICE_ID_NOT_SUPPORTED = 1
    REJECTED_BY_SERVICE = 2
    NO_QP = 3
    REDIRECT = 4
    UNSUPPORTED_CLASS_VERSION = 5


def _names(codes: type[IntEnum]) -> dict[int, str]:
    return {code.value: code.name for code in codes}


def _gid(name: str) -> Any:
    return StrFixedLenField(name, bytes(GID_SIZE), GID_SIZE)


def _data(name: str, size: int) -> Any:
    return StrFixedLenField(name, bytes(size), size)


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
        _gid("primary_local_gid"),
        _gid("primary_remote_gid"),
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
        XShortField("alternate_local_lid", 0),
        XShortField("alternate_remote_lid", 0),
        _gid("alternate_local_gid"),
        _gid("alternate_remote_gid"),
        BitField("alternate_flow_label", 0, 20),
        BitField("reserved6", 0, 6),
        BitField("alternate_packet_rate", 0, 6),
        ByteField("alternate_traffic_class", 0),
        ByteField("alternate_hop_limit", 0),
        BitField("alternate_sl", 0, 4),
        BitField("alternate_subnet_local", 0, 1),
        BitField("reserved7", 0, 3),
        BitField("alternate_local_ack_timeout", 0, 5),
        BitField("sap_supported", 0, 1),
        BitField("reserved8", 0, 2),
        _data("private_data", 92),
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
        _data("private_data", 222),
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
        ShortEnumField("reason", 0, _names(RejectReason)),
        _data("additional_reject_info", 72),
        _data("private_data", 148),
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
        XLongField("local_ca_guid", 0),
        _data("private_data", 196),
    ]


class CMRTU(Packet):
    """Ready to use (12.6.9)."""

    name = "CM RTU"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        _data("private_data", 224),
    ]


class CMDREQ(Packet):
    """Request for communication release (12.6.10); ``remote_qpn`` is the receiver's QP."""

    name = "CM DREQ"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        BitField("remote_qpn", 0, 24),
        ByteField("reserved", 0),
        _data("private_data", 220),
    ]


class CMDREP(Packet):
    """Reply to request for communication release (12.6.11)."""

    name = "CM DREP"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        _data("private_data", 224),
    ]


class CMLAP(Packet):
    """Load alternate path (12.8.1)."""

    name = "CM LAP"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        IntField("reserved1", 0),
        BitField("remote_qpn", 0, 24),
        BitField("remote_cm_response_timeout", 0, 5),
        BitField("reserved2", 0, 3),
        IntField("reserved3", 0),
        XShortField("alternate_local_lid", 0),
        XShortField("alternate_remote_lid", 0),
        _gid("alternate_local_gid"),
        _gid("alternate_remote_gid"),
        BitField("alternate_flow_label", 0, 20),
        BitField("reserved4", 0, 4),
        ByteField("alternate_traffic_class", 0),
        ByteField("alternate_hop_limit", 0),
        BitField("reserved5", 0, 2),
        BitField("alternate_packet_rate", 0, 6),
        BitField("alternate_sl", 0, 4),
        BitField("alternate_subnet_local", 0, 1),
        BitField("reserved6", 0, 3),
        BitField("alternate_local_ack_timeout", 0, 5),
        BitField("reserved7", 0, 3),
        _data("private_data", 168),
    ]


class CMAPR(Packet):
    """Alternate path response (12.8.2)."""

    name = "CM APR"
    fields_desc = [
        XIntField("local_comm_id", 0),
        XIntField("remote_comm_id", 0),
        ByteField("additional_info_length", 0),
        ByteField("ap_status", 0),
        ShortField("reserved", 0),
        _data("additional_info", 72),
        _data("private_data", 148),
    ]


class CMSIDRREQ(Packet):
    """Service id resolution request (12.11.1)."""

    name = "CM SIDR_REQ"
    fields_desc = [
        XIntField("request_id", 0),
        XShortField("pkey", 0xFFFF),
        ShortField("reserved", 0),
        XLongField("service_id", 0),
        _data("private_data", 216),
    ]


class CMSIDRREP(Packet):
    """Service id resolution response (12.11.2)."""

    name = "CM SIDR_REP"
    fields_desc = [
        XIntField("request_id", 0),
        ByteEnumField("status", 0, _names(SidrStatus)),
        ByteField("additional_info_length", 0),
        ShortField("reserved1", 0),
        BitField("qpn", 0, 24),
        ByteField("reserved2", 0),
        XLongField("service_id", 0),
        XIntField("qkey", 0),
        _data("additional_info", 72),
        _data("private_data", 136),
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
        _data("source_address", 16),
        _data("destination_address", 16),
        _data("consumer_private_data", 56),
    ]


CM_MESSAGES: dict[int, type[Packet]] = {
    CmAttribute.REQ: CMREQ,
    CmAttribute.MRA: CMMRA,
    CmAttribute.REJ: CMREJ,
    CmAttribute.REP: CMREP,
    CmAttribute.RTU: CMRTU,
    CmAttribute.DREQ: CMDREQ,
    CmAttribute.DREP: CMDREP,
    CmAttribute.SIDR_REQ: CMSIDRREQ,
    CmAttribute.SIDR_REP: CMSIDRREP,
    CmAttribute.LAP: CMLAP,
    CmAttribute.APR: CMAPR,
}
# A service id of the RDMA IP CM service is this prefix, the IP protocol and the port (A11.3).
_IP_CM_PREFIX = 0x0000000001
_IPV4, _IPV6 = 4, 6


def ip_cm_header(message: Packet) -> IPCM | None:
    """The RDMA IP CM service's header in the private data of a REQ or SIDR_REQ, or None when there is none."""
    if not isinstance(message, CMREQ | CMSIDRREQ) or message.service_id >> 24 != _IP_CM_PREFIX:
        return None
    header = IPCM(message.private_data)
    return header if header.ip_version in (_IPV4, _IPV6) else None
