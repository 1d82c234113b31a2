"""The management datagram's common header (InfiniBand volume 1, 13.4.3), for every management class."""

from enum import IntEnum
from typing import Any

from scapy.fields import ByteField, ShortField, XByteEnumField, XIntField, XLongField, XShortField
from scapy.packet import Packet

from hil.roce.layers.cm import CM_MESSAGES, CM_SIZE

MAD_HEADER_SIZE = 24
BASE_VERSION = 1
# MADs go to QP 0 (subnet management) and QP 1 (general services).
MAD_QPS = frozenset({0, 1})


class ManagementClass(IntEnum):
    """Management classes (13.4.4)."""

    SUBNET_LID_ROUTED = 0x01
    SUBNET_ADMINISTRATION = 0x03
    PERFORMANCE = 0x04
    BASEBOARD = 0x05
    DEVICE = 0x06
    COMMUNICATION = 0x07
    SNMP_TUNNELING = 0x08
    DEVICE_ADMINISTRATION = 0x10
    BOOT = 0x11
    BIS = 0x12
    CONGESTION_CONTROL = 0x21
    SUBNET_DIRECTED_ROUTE = 0x81


class Method(IntEnum):
    """Methods that all classes share (13.4.5)."""

    GET = 0x01
    SET = 0x02
    SEND = 0x03
    TRAP = 0x05
    REPORT = 0x06
    TRAP_REPRESS = 0x07
    GET_RESPONSE = 0x81
    REPORT_RESPONSE = 0x86


class MAD(Packet):
    """Management datagram header; only messages of the class communication management are decoded further."""

    name = "MAD"
    fields_desc = [
        ByteField("base_version", BASE_VERSION),
        XByteEnumField("mgmt_class", ManagementClass.COMMUNICATION, {c.value: c.name for c in ManagementClass}),
        ByteField("class_version", 2),
        XByteEnumField("method", Method.SEND, {m.value: m.name for m in Method}),
        XShortField("status", 0),
        XShortField("class_specific", 0),
        XLongField("transaction_id", 0),
        XShortField("attribute_id", 0),
        ShortField("reserved", 0),
        XIntField("attribute_modifier", 0),
    ]

    def guess_payload_class(self, payload: bytes) -> Any:
        if self.mgmt_class == ManagementClass.COMMUNICATION and len(payload) >= CM_SIZE:
            return CM_MESSAGES.get(self.attribute_id) or super().guess_payload_class(payload)
        return super().guess_payload_class(payload)


def is_mad(dest_qp: int, payload: bytes) -> bool:
    """Whether a datagram to ``dest_qp`` holds a MAD."""
    return dest_qp in MAD_QPS and len(payload) >= MAD_HEADER_SIZE and payload[0] == BASE_VERSION
