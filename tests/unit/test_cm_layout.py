"""CM messages without fields in tshark match the specification's tables (volume 1, 12.6 to 12.11)."""

import pytest
from scapy.fields import BitField, StrFixedLenField
from scapy.packet import Packet

from hil.roce.layers.cm import CM_MESSAGES, CM_SIZE, CMREQ, IPCM, CmAttribute, ip_cm_header

# Field: byte, first bit of that byte counted from its most significant, width in bits.
TABLES: dict[CmAttribute, dict[str, tuple[int, int, int]]] = {
    CmAttribute.MRA: {
        "local_comm_id": (0, 0, 32),
        "remote_comm_id": (4, 0, 32),
        "message_mraed": (8, 0, 2),
        "service_timeout": (9, 0, 5),
        "private_data": (10, 0, 1776),
    },
    CmAttribute.LAP: {
        "local_comm_id": (0, 0, 32),
        "remote_comm_id": (4, 0, 32),
        "remote_qpn": (12, 0, 24),
        "remote_cm_response_timeout": (15, 0, 5),
        "alternate_local_lid": (20, 0, 16),
        "alternate_remote_lid": (22, 0, 16),
        "alternate_local_gid": (24, 0, 128),
        "alternate_remote_gid": (40, 0, 128),
        "alternate_flow_label": (56, 0, 20),
        "alternate_traffic_class": (59, 0, 8),
        "alternate_hop_limit": (60, 0, 8),
        "alternate_packet_rate": (61, 2, 6),
        "alternate_sl": (62, 0, 4),
        "alternate_subnet_local": (62, 4, 1),
        "alternate_local_ack_timeout": (63, 0, 5),
        "private_data": (64, 0, 1344),
    },
    CmAttribute.APR: {
        "local_comm_id": (0, 0, 32),
        "remote_comm_id": (4, 0, 32),
        "additional_info_length": (8, 0, 8),
        "ap_status": (9, 0, 8),
        "additional_info": (12, 0, 576),
        "private_data": (84, 0, 1184),
    },
    CmAttribute.SIDR_REQ: {
        "request_id": (0, 0, 32),
        "pkey": (4, 0, 16),
        "service_id": (8, 0, 64),
        "private_data": (16, 0, 1728),
    },
    CmAttribute.SIDR_REP: {
        "request_id": (0, 0, 32),
        "status": (4, 0, 8),
        "additional_info_length": (5, 0, 8),
        "qpn": (8, 0, 24),
        "service_id": (12, 0, 64),
        "qkey": (20, 0, 32),
        "additional_info": (24, 0, 576),
        "private_data": (96, 0, 1088),
    },
    # Of a REQ, only what tshark takes from other bits.
    CmAttribute.REQ: {
        "primary_flow_label": (88, 0, 20),
        "primary_packet_rate": (91, 2, 6),
        "alternate_flow_label": (132, 0, 20),
        "alternate_packet_rate": (135, 2, 6),
        "sap_supported": (139, 5, 1),
    },
}
FIELDS = [(attribute, name) for attribute, table in TABLES.items() for name in table]


def all_ones(message: Packet, name: str) -> bytes:
    """``message`` with all bits of one field set, and no others."""
    for field in message.fields_desc:
        width = field.size if isinstance(field, BitField) else 8 * field.sz
        value = (1 << width) - 1 if field.name == name else 0
        if isinstance(field, StrFixedLenField):
            size = field.length_from(message)
            message.setfieldval(field.name, (b"\xff" if value and field.name == name else b"\0") * size)
        else:
            message.setfieldval(field.name, value)
    return bytes(message)


@pytest.mark.parametrize(("attribute", "name"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_a_field_takes_the_bits_of_its_table(attribute: CmAttribute, name: str) -> None:
    """Setting every bit of a field sets exactly the bits of the specification's table."""
    byte, bit, width = TABLES[attribute][name]
    wanted = ((1 << width) - 1) << (CM_SIZE * 8 - byte * 8 - bit - width)
    message = CM_MESSAGES[attribute]()
    assert int.from_bytes(all_ones(message, name), "big") == wanted


@pytest.mark.parametrize("attribute", CmAttribute, ids=lambda attribute: attribute.name)
def test_every_message_fills_its_datagram(attribute: CmAttribute) -> None:
    """Every CM message is 232 bytes long, so that its MAD has 256."""
    assert len(bytes(CM_MESSAGES[attribute]())) == CM_SIZE


def test_only_an_ip_cm_service_id_has_an_ip_cm_header() -> None:
    """A REQ of another service has no RDMA IP CM header, whatever its private data hold."""
    header = bytes(IPCM(ip_version=4, source_port=4660))
    assert ip_cm_header(CMREQ(service_id=0x0000_0000_0106_1234, private_data=header)).source_port == 4660
    assert ip_cm_header(CMREQ(service_id=0x1000_0000_0106_1234, private_data=header)) is None
    assert ip_cm_header(CMREQ(service_id=0x0000_0000_0106_1234, private_data=bytes(92))) is None
