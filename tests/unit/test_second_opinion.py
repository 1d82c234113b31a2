"""tshark reads every kind of frame as this project does, field by field.

What tshark 4.0 cannot give, and what is done instead:

- It reads RD's headers eight bytes too late, and no RDETH of an ACKNOWLEDGE: it is shown frames with more bytes there.
- It knows neither XRC nor ATOMIC WRITE: it is shown XRC's packets as RC's without their XRCETH, an ATOMIC WRITE as the
  RDMA WRITE that it resembles. It knows no header of FLUSH, RESYNC and CNP: only their base header is compared.
- It takes the flow label of a REQ's path from the label's upper twelve bits, and the packet rate from another byte.
- It has no fields for FECN and BECN, for MRA, LAP, APR, SIDR_REQ and SIDR_REP, and checks no ICRC.
"""

import ipaddress
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_frame import EXTENDED, every_mad, every_opcode
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from hil.capture.bulk import Batch, scan
from hil.capture.pcapng import PcapngWriter
from hil.capture.reader import open_capture
from hil.roce.frames import dissect
from hil.roce.layers.cm import CMREQ, CmAttribute, ip_cm_header
from hil.roce.layers.mad import MAD
from hil.roce.layers.transport import GRH
from hil.roce.opcodes import CNP_OPCODE, LAYOUTS, OPCODE_NAMES, Header, Operation, Transport

RECORDED = sorted((Path(__file__).parent / "captures").glob("*.pcapng"))
START_NS = 1_700_000_000_123_456_789
BASE = {
    "number": "frame.number",
    "interface": "frame.interface_id",
    "captured": "frame.cap_len",
    "original": "frame.len",
    "udp_sport": "udp.srcport",
    "opcode": "infiniband.bth.opcode",
    "solicited": "infiniband.bth.se",
    "migreq": "infiniband.bth.m",
    "padcount": "infiniband.bth.padcnt",
    "transport_version": "infiniband.bth.tver",
    "pkey": "infiniband.bth.p_key",
    "dest_qp": "infiniband.bth.destqp",
    "ackreq": "infiniband.bth.a",
    "psn": "infiniband.bth.psn",
}
EXTENSIONS = {
    "syndrome": "infiniband.aeth.syndrome",
    "msn": "infiniband.aeth.msn",
    "va": "infiniband.reth.va",
    "rkey": "infiniband.reth.r_key",
    "length": "infiniband.reth.dmalen",
    "qkey": "infiniband.deth.q_key",
    "srcqp": "infiniband.deth.srcqp",
    "immdt": "infiniband.immdt",
    "ieth": "infiniband.ieth",
}
# Fields of scapy's layers that the bulk path has no column for.
OF_LAYERS = {
    ("RDETH", "ee"): "infiniband.rdeth.eecnxt",
    ("AtomicETH", "swap"): "infiniband.atomiceth.swapdt",
    ("AtomicETH", "compare"): "infiniband.atomiceth.cmpdt",
    ("AtomicAckETH", "original"): "infiniband.atomicacketh.origremdt",
    ("BTH", "icrc"): "infiniband.invariant.crc",
}
OF_GRH = {
    ("GRH", "tclass"): "infiniband.grh.tclass",
    ("GRH", "flowlabel"): "infiniband.grh.flowlabel",
    ("GRH", "paylen"): "infiniband.grh.paylen",
    ("GRH", "nexthdr"): "infiniband.grh.nxthdr",
    ("GRH", "hoplmt"): "infiniband.grh.hoplmt",
}
MAD_FIELDS = {
    "base_version": "baseversion",
    "mgmt_class": "mgmtclass",
    "class_version": "classversion",
    "method": "method",
    "status": "status",
    "class_specific": "classspecific",
    "transaction_id": "transactionid",
    "attribute_id": "attributeid",
    "attribute_modifier": "attributemodifier",
}
PATH = {
    "local_lid": "locallid",
    "remote_lid": "remotelid",
    "local_gid": "localgid",
    "remote_gid": "remotegid",
    "traffic_class": "tfcclass",
    "hop_limit": "hoplim",
    "sl": "sl",
    "subnet_local": "subnetlocal",
    "local_ack_timeout": "localacktout",
}
CM_FIELDS: dict[CmAttribute, dict[str, str]] = {
    CmAttribute.REQ: {
        "local_comm_id": "req",
        "service_id": "req.serviceid",
        "local_ca_guid": "req.localcaguid",
        "local_qkey": "req.localqkey",
        "local_qpn": "req.localqpn",
        "responder_resources": "req.responderres",
        "local_eecn": "req.localeecn",
        "initiator_depth": "req.initdepth",
        "remote_eecn": "req.remoteeecn",
        "remote_cm_response_timeout": "req.remoteresptout",
        "transport_service_type": "req.transpsvctype",
        "end_to_end_flow_control": "req.e2eflowctrl",
        "starting_psn": "req.startpsn",
        "local_cm_response_timeout": "req.localresptout",
        "retry_count": "req.retrcount",
        "pkey": "req.pkey",
        "path_packet_payload_mtu": "req.pppmtu",
        "rdc_exists": "req.rdcexist",
        "rnr_retry_count": "req.rnrretrcount",
        "max_cm_retries": "req.maxcmretr",
        "srq": "req.srq",
        "extended_transport_type": "req.ext_transport",
        "private_data": "req.private",
        "primary_flow_label": "req.prim_flowlabel",
        "alternate_flow_label": "req.alt_flowlabel",
        **{f"primary_{ours}": f"req.prim_{theirs}" for ours, theirs in PATH.items()},
        **{f"alternate_{ours}": f"req.alt_{theirs}" for ours, theirs in PATH.items()},
    },
    CmAttribute.REP: {
        "local_comm_id": "rep",
        "remote_comm_id": "rep.remotecommid",
        "local_qkey": "rep.localqkey",
        "local_qpn": "rep.localqpn",
        "local_eecn": "rep.localeecn",
        "starting_psn": "rep.startpsn",
        "responder_resources": "rep.respres",
        "initiator_depth": "rep.initdepth",
        "target_ack_delay": "rep.tgtackdelay",
        "failover_accepted": "rep.failoveracc",
        "end_to_end_flow_control": "rep.e2eflowctrl",
        "rnr_retry_count": "rep.rnrretrcount",
        "srq": "rep.srq",
        "local_ca_guid": "rep.localcaguid",
        "private_data": "rep.private",
    },
    CmAttribute.RTU: {
        "local_comm_id": "rtu.localcommid",
        "remote_comm_id": "rtu.remotecommid",
        "private_data": "rtu.private",
    },
    CmAttribute.REJ: {
        "local_comm_id": "rej.localcommid",
        "remote_comm_id": "rej.remotecommid",
        "message_rejected": "rej.msgrej",
        "reject_info_length": "rej.rejinfolen",
        "reason": "rej.reason",
        "additional_reject_info": "rej.ari",
        "private_data": "rej.private",
    },
    CmAttribute.DREQ: {
        "local_comm_id": "dreq.localcommid",
        "remote_comm_id": "dreq.remotecommid",
        "remote_qpn": "req.remoteqpneecn",
        "private_data": "dreq.private",
    },
    CmAttribute.DREP: {
        "local_comm_id": "drsp.localcommid",
        "remote_comm_id": "drsp.remotecommid",
        "private_data": "drsp.private",
    },
}
IP_CM_FIELDS = {
    "major_version": "majv",
    "minor_version": "minv",
    "ip_version": "ipv",
    "source_port": "sport",
    "source_address": ("sip4", "sip6"),
    "destination_address": ("dip4", "dip6"),
    "consumer_private_data": "private",
}
ADDRESSES = {"src": ("ip.src", "ipv6.src", "infiniband.grh.sgid"), "dst": ("ip.dst", "ipv6.dst", "infiniband.grh.dgid")}
ECN = ("ip.dsfield.ecn", "ipv6.tclass.ecn")
VLAN = ("ieee8021ad.id", "vlan.id")
GUESSES = ("rpcordma", "smc", "smb_direct", "nvme-rdma", "lnet", "iser", "infiniband.eoib", "infiniband_sdp", "fcoib")
IPV6_MAPPED = 0xFFFF << 32


def ask_tshark(path: Path, fields: list[str]) -> list[dict[str, str]]:
    """The fields of each frame as tshark prints them; the first where a frame has several."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=f"]
    # Payloads are random here: what they happen to look like is not asked.
    command += [part for name in GUESSES for part in ("--disable-protocol", name)]
    command += [part for name in fields for part in ("-e", name)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [dict(zip(fields, line.split("\t"), strict=True)) for line in run.stdout.splitlines()]


def number(text: str, absent: int = -1) -> int:
    """A number in tshark's output, which is decimal, hexadecimal or bytes."""
    if not text:
        return absent
    return int(text.replace(":", ""), 16) if ":" in text else int(text, 0)


def write(path: Path, frames: list[bytes]) -> Path:
    with path.open("wb") as out:
        writer = PcapngWriter(out, ["side-a", "side-b"])
        for index, frame in enumerate(frames):
            writer.write(index % 2, START_NS + index * 1001, frame)
    return path


def the_batch(path: Path, chunk_bytes: int = 1 << 20) -> Batch:
    with open_capture(path, chunk_bytes=chunk_bytes) as capture:
        (chunk,) = capture
    return scan(chunk)


def roce_rows(batch: Batch, answers: list[dict[str, str]]) -> Iterator[tuple[int, dict[str, str]]]:
    for row in range(len(batch)):
        yield row, answers[int(batch.number[row]) - 1]


def same(batch: Batch, row: int, answer: dict[str, str], columns: dict[str, str]) -> None:
    for column, field in columns.items():
        ours, text = int(getattr(batch, column)[row]), answer[field]
        if column in ("immdt", "ieth") and text:
            text = hex(int(text.replace(":", ""), 16))
        absent = 2**64 - 1 if column == "va" else -1
        assert ours == number(text, absent), f"{column} of frame {batch.number[row]}, {describe(batch, row)}"


def describe(batch: Batch, row: int) -> str:
    return OPCODE_NAMES.get(int(batch.opcode[row]), hex(int(batch.opcode[row])))


def same_network(batch: Batch, row: int, answer: dict[str, str]) -> None:
    for side, names in ADDRESSES.items():
        text = next(answer[name] for name in names if answer[name])
        address = ipaddress.ip_address(text)
        wanted = int(address) | (IPV6_MAPPED if address.version == 4 else 0)
        ours = int(getattr(batch, f"{side}_hi")[row]) << 64 | int(getattr(batch, f"{side}_lo")[row])
        assert ours == wanted, f"{side} of frame {batch.number[row]}"
    assert int(batch.vlan[row]) == number(next((answer[name] for name in VLAN if answer[name]), ""))
    assert int(batch.version[row]) == (1 if answer["infiniband.grh.sgid"] else 2)
    seconds, nanoseconds = answer["frame.time_epoch"].split(".")
    assert int(batch.time_ns[row]) == int(seconds) * 10**9 + int(nanoseconds.ljust(9, "0")), f"frame {row}"
    if ecn := next((answer[name] for name in ECN if answer[name]), ""):
        assert int(batch.ecn[row]) == number(ecn)
    elif answer["infiniband.grh.tclass"]:
        assert int(batch.ecn[row]) == number(answer["infiniband.grh.tclass"]) & 3


NETWORK = [name for names in (*ADDRESSES.values(), ECN, VLAN) for name in names]
NETWORK += ["frame.time_epoch"]


def shown(frame: bytes) -> bytes:
    """``frame``, changed so that tshark can read its headers behind the base header."""
    packet = dissect(frame)
    assert packet is not None
    base = packet["BTH"]
    inner = bytearray(bytes(base))
    transport, operation = base.opcode & 0xE0, base.opcode & 0x1F
    if transport == Transport.RD:
        inner[12:12] = bytes(4 if operation == Operation.ACKNOWLEDGE else 8)
    elif transport == Transport.XRC:
        inner[0] = operation
        if LAYOUTS[base.opcode][:1] == (Header.XRCETH,):
            del inner[12:16]
    if operation == Operation.ATOMIC_WRITE:
        inner[0] = inner[0] & 0xE0 | Operation.RDMA_WRITE_ONLY
    below = base.underlayer
    below.remove_payload()
    for layer, length in ((IP, "len"), (IPv6, "plen"), (UDP, "len"), (GRH, "paylen")):
        if packet.haslayer(layer):
            packet[layer].delfieldval(length)
    return bytes(packet / Raw(bytes(inner)))


def of_layers(packet: Packet, answer: dict[str, str], fields: dict[tuple[str, str], str]) -> None:
    rd_acknowledge = packet["BTH"].opcode == Transport.RD | Operation.ACKNOWLEDGE
    for (layer, name), field in fields.items():
        if packet.haslayer(layer) and not (rd_acknowledge and layer == "RDETH"):
            assert packet[layer].getfieldval(name) == number(answer[field]), f"{layer}.{name} of {packet.summary()}"


def test_headers_of_every_opcode_in_every_encapsulation(tmp_path: Path) -> None:
    """tshark reads the same network header, base header and extended headers of every opcode."""
    frames = [frame for name, frame in every_opcode()]
    batch = the_batch(write(tmp_path / "c.pcapng", frames))
    answers = ask_tshark(tmp_path / "c.pcapng", [*BASE.values(), *NETWORK, *OF_GRH.values()])
    assert len(batch) == len(answers) == len(frames)
    for row, answer in roce_rows(batch, answers):
        same(batch, row, answer, BASE)
        of_layers(dissect(frames[row]), answer, OF_GRH)
        same_network(batch, row, answer)


def test_extended_headers_of_every_opcode(tmp_path: Path) -> None:
    """tshark reads the same extended headers from frames that are changed as tshark expects them."""
    frames = [frame for name, frame in every_opcode()]
    batch = the_batch(write(tmp_path / "c.pcapng", frames))
    answers = ask_tshark(
        write(tmp_path / "shown.pcapng", [shown(frame) for frame in frames]),
        [*EXTENSIONS.values(), *OF_LAYERS.values(), "data.len"],
    )
    compared = 0
    for row, answer in roce_rows(batch, answers):
        if not is_base_only(int(batch.opcode[row])):
            payload = int(batch.payload[row] + batch.padcount[row])
            assert payload == number(answer["data.len"], 0), f"payload of {describe(batch, row)}"
            same(batch, row, answer, EXTENSIONS)
            of_layers(dissect(frames[row]), answer, OF_LAYERS)
            compared += 1
    assert compared > 600


def is_base_only(opcode: int) -> bool:
    return opcode == CNP_OPCODE or opcode & 0x1F in (Operation.FLUSH, Operation.RESYNC)


def test_every_management_datagram(tmp_path: Path) -> None:
    """tshark reads the same MAD header, CM messages and header of the RDMA IP CM service."""
    frames = [frame for name, frame in every_mad()]
    compare_mads(write(tmp_path / "c.pcapng", frames), frames, len(frames))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_captures(path: Path) -> None:
    """tshark finds the same packets with the same fields in the recorded captures."""
    batch = the_batch(path)
    answers = ask_tshark(path, [*BASE.values(), *EXTENSIONS.values(), *NETWORK, *OF_GRH.values()])
    roce = [answer for answer in answers if answer["infiniband.bth.opcode"]]
    assert [number(answer["frame.number"]) for answer in roce] == batch.number.tolist()
    for row, answer in roce_rows(batch, answers):
        same(batch, row, answer, BASE | EXTENSIONS)
        same_network(batch, row, answer)
    frames = [batch.frame(row) for row in range(len(batch))]
    compare_mads(path, frames, 1, batch.number.tolist())


def compare_mads(path: Path, frames: list[bytes], at_least: int, numbers: list[int] | None = None) -> None:
    fields = [f"infiniband.mad.{name}" for name in MAD_FIELDS.values()]
    fields += [f"infiniband.cm.{name}" for names in CM_FIELDS.values() for name in names.values()]
    fields += [f"infiniband.cm.req.{name}" for name in ("prim_localgid_ipv4", "prim_remotegid_ipv4")]
    for names in IP_CM_FIELDS.values():
        fields += [f"infiniband.cm.req.ip_cm.{name}" for name in ([names] if isinstance(names, str) else names)]
    answers = ask_tshark(path, fields)
    compared = 0
    for index, frame in enumerate(frames):
        packet = dissect(frame)
        assert packet is not None
        if packet.haslayer(MAD):
            same_mad(packet[MAD], answers[numbers[index] - 1 if numbers else index])
            compared += 1
    assert compared >= at_least


def same_mad(mad: Packet, answer: dict[str, str]) -> None:
    for ours, theirs in MAD_FIELDS.items():
        assert mad.getfieldval(ours) == number(answer[f"infiniband.mad.{theirs}"]), f"{ours} of {mad.summary()}"
    attribute = mad.attribute_id if mad.mgmt_class == 7 else 0
    for ours, theirs in CM_FIELDS.get(attribute, {}).items():
        if ours == "private_data" and ip_cm_header(mad.payload):
            continue
        value, text = mad.payload.getfieldval(ours), answer[f"infiniband.cm.{theirs}"]
        if ours.endswith("flow_label"):
            value >>= 8
        text = text or answer.get(f"infiniband.cm.{theirs}_ipv4", "")
        assert same_value(value, text), f"{ours} of {mad.payload.name}: {value!r}, tshark {text!r}"
    if isinstance(mad.payload, CMREQ) and (header := ip_cm_header(mad.payload)):
        same_ip_cm(header, answer)


def same_ip_cm(header: Any, answer: dict[str, str]) -> None:
    for ours, theirs in IP_CM_FIELDS.items():
        name = theirs if isinstance(theirs, str) else theirs[header.ip_version == 6]
        value, text = header.getfieldval(ours), answer[f"infiniband.cm.req.ip_cm.{name}"]
        assert same_value(value, text), f"{ours} of the IP CM header: {value!r}, tshark {text!r}"


def same_value(ours: int | bytes, text: str) -> bool:
    if isinstance(ours, int):
        return ours == number(text)
    if "." in text or "::" in text or text.count(":") == 7:
        packed = ipaddress.ip_address(text).packed
        return ours[-len(packed) :] == packed
    return ours == bytes.fromhex(text.replace(":", ""))


def test_names_of_opcodes() -> None:
    """Every opcode that tshark names has the same transport and operation here."""
    run = subprocess.run(["tshark", "-G", "values"], capture_output=True, text=True, errors="replace", check=True)
    rows = [line.split("\t") for line in run.stdout.splitlines() if line.startswith("V\tinfiniband.bth.opcode\t")]
    theirs = {int(code, 0): text for _, _, code, text in rows if "(" in text and "Reserved" not in text}
    assert len(theirs) > 80
    for code, text in theirs.items():
        transport, operation = text.partition("(")[2].split(") - ")
        operation = operation.replace("CmpSwap", "Compare Swap").replace("FetchAdd", "Fetch Add").replace(" ", "_")
        assert OPCODE_NAMES[code] == f"{transport}_{operation}".upper()


def test_the_bulk_scan_is_independent_of_chunk_borders(tmp_path: Path) -> None:
    """The columns are equal for any size of chunks."""
    path = write(tmp_path / "c.pcapng", [frame for name, frame in every_opcode()])
    whole = the_batch(path)
    with open_capture(path, chunk_bytes=333) as capture:
        parts = [scan(chunk) for chunk in capture]
    assert len(parts) > 100
    for column in (*BASE, *EXTENSIONS, "time_ns", "src_lo", "payload"):
        joined = np.concatenate([getattr(part, column) for part in parts])
        assert (joined == getattr(whole, column)).all(), column


def test_the_compared_frames_hold_rare_kinds() -> None:
    """The compared frames include kinds that are easily left out."""
    names = {name.partition(" ")[2] for name, frame in every_opcode()}
    assert set(EXTENDED) <= names and "double VLAN" in names and "RoCE v1 in a VLAN" in names
