"""Frames, packets and rules on captures that were recorded on the soft pair."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from scapy.contrib.roce import AETH, BTH

from hil.capture.pcapng import CapturedFrame, read_pcapng
from hil.evidence.disconnect import Finding, broken
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Begin, Call, CmEvent, CmHeard, QueuePairMade
from hil.evidence.packets import connections, ip_of, roce_packets
from hil.evidence.rules.closes import HardClose
from hil.evidence.rules.peer import peer_findings
from hil.evidence.rules.wire import disconnect_findings, wire_findings
from hil.roce.frames import CMREQ, DETH, IPCM, MAD, addresses, dissect, scan
from hil.roce.opcodes import Operation

FOLDER = Path(__file__).parent / "captures"
ALL = sorted(path.name for path in FOLDER.glob("*.pcapng"))
RDMA_REQUESTS = {Operation.RDMA_WRITE_ONLY, Operation.RDMA_READ_REQUEST}
ENDS = {"hard_close_ipv4.pcapng": ("10.77.0.1", "10.77.0.2"), "hard_close_ipv6.pcapng": ("fd77::1", "fd77::2")}


def frames(name: str) -> list[CapturedFrame]:
    return list(read_pcapng(FOLDER / name))


def evidence_of(name: str) -> Evidence:
    return Evidence({}, packets=list(roce_packets(frames(name))))


@pytest.mark.parametrize("name", ALL)
def test_every_roce_frame_survives_dissection_and_building(name: str) -> None:
    """Every RoCE frame is equal after it was dissected and built again."""
    for frame in frames(name):
        packet = dissect(frame.data)
        if packet is not None:
            assert bytes(packet[BTH]) in frame.data


@pytest.mark.parametrize("name", ALL)
def test_the_scan_and_scapy_see_the_same_data_packets(name: str) -> None:
    """The fast scan reads every packet that is no datagram, with the values of scapy's layers."""
    for frame in frames(name):
        packet, data = dissect(frame.data), scan(frame.data)
        assert (data is not None) == (packet is not None and not packet.haslayer(DETH))
        if packet is None or data is None:
            continue
        bth = packet[BTH]
        found = (data.source, data.destination, data.opcode, data.dest_qp, data.psn)
        assert found == (*addresses(packet), bth.opcode, bth.dqpn, bth.psn)
        assert not packet.haslayer(AETH) or data.syndrome == packet[AETH].syndrome


def test_an_rdma_request_holds_its_target() -> None:
    """rping's requests carry 64 bytes: a read of the client's source, a write to its sink, each with its key."""
    requests = [p for p in roce_packets(frames("rping.pcapng")) if p.rkey != -1]
    assert {p.opcode for p in requests} == RDMA_REQUESTS
    assert {p.length for p in requests} == {64}
    assert len({(p.opcode, p.rkey, p.address) for p in requests}) == 2
    assert all(p.length == -1 for p in roce_packets(frames("rping.pcapng")) if p.opcode not in RDMA_REQUESTS)


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_connection_is_found_with_its_ends(name: str) -> None:
    """REQ and REP give one connection whose GIDs are the IP addresses of its packets."""
    (connection,) = evidence_of(name).connections()
    assert (connection.active, connection.passive) == ENDS[name]
    assert connection.gids == ENDS[name]


def test_the_req_carries_the_ip_cm_header() -> None:
    """The REQ is a MAD in a datagram from QP 1, and its private data begin with the RDMA IP CM's header."""
    packet = next(p for f in frames("hard_close_ipv4.pcapng") if (p := dissect(f.data)) and p.haslayer(CMREQ))
    assert (packet[DETH].srcqp, packet[DETH].qkey, packet[MAD].mgmt_class) == (1, 0x80010000, 7)
    header = IPCM(packet[CMREQ].private_data)
    assert header.ip_version == 4
    assert ip_of(b"\0" * 10 + b"\xff\xff" + header.source_address[-4:]) == "10.77.0.1"


def links(name: str, change: "list[int] | None" = None) -> list[str]:
    """The broken findings of the capture's disconnect, without the CM messages at these places."""
    evidence = evidence_of(name)
    (connection,) = connections(evidence.packets)
    removed = [p for p in evidence.packets if p.cm in ("DREQ", "DREP")]
    for place in change or []:
        evidence.packets.remove(removed[place])
    findings = disconnect_findings(evidence, connection, [connection.active], [connection.passive])
    return [f.statement for f in broken(findings)]


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_clean_disconnect_breaks_no_finding(name: str) -> None:
    """Every finding holds for the capture as recorded."""
    assert links(name) == []


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_missing_dreq_and_a_missing_drep_are_named(name: str) -> None:
    """Without the DREQ or the DREP exactly the findings that depend on it break."""
    assert "the closer's DREQ is on the wire, for this connection" in links(name, [0])
    assert links(name, [1]) == ["the peer's DREP follows"]


def test_data_after_the_dreq_is_named() -> None:
    """A data packet of the closer behind its DREQ breaks that finding and no other finding of the DREQ."""
    evidence = evidence_of("hard_close_ipv4.pcapng")
    (connection,) = evidence.connections()
    data = next(p for p in connection.packets(evidence.packets) if not p.cm and p.source == connection.active)
    evidence.packets.append(replace(data, frame=10_000))
    findings = disconnect_findings(evidence, connection, [connection.active], [connection.passive])
    assert {f.statement for f in broken(findings)} == {
        "no data leaves the closer after its DREQ",
        "nothing of the connection follows the DREP",
    }


def test_a_dreq_for_another_qp_is_named() -> None:
    """A DREQ for a QP that is not the peer's does not count."""
    evidence = evidence_of("hard_close_ipv4.pcapng")
    (connection,) = evidence.connections()
    evidence.packets = [replace(p, qpn=p.qpn + 1) if p.cm == "DREQ" else p for p in evidence.packets]
    findings = disconnect_findings(evidence, connection, [connection.active], [connection.passive])
    assert {f.statement for f in broken(findings)} == {"the closer's DREQ is on the wire, for this connection"}


def heard(*, carried: bool, after_ns: int) -> Finding:
    """The findings about a peer that sees the reset ``after_ns`` after the DREQ, which the wire ``carried``."""
    evidence = evidence_of("hard_close_ipv4.pcapng")
    (connection,) = evidence.connections()
    evidence.addresses = {"a": [connection.active], "b": [connection.passive]}
    evidence.packet_times_ns = {p.frame: p.time_ns for p in evidence.packets}
    evidence.delivered = [p for p in evidence.packets if carried or p.cm != "DREQ"]
    dreq_ns = next(p.time_ns for p in evidence.packets if p.cm == "DREQ")
    evidence.events = [
        QueuePairMade(node="a", at_ns=0, t_ns=0, handle=1, qp_num=connection.active_qpn),
        CmHeard(node="b", at_ns=dreq_ns + after_ns, t_ns=0, handle=2, event=CmEvent.DISCONNECTED, status=0),
    ]
    found = peer_findings(evidence, HardClose("a", 10, 1, "b", 20, 2))
    return next(f for f in found if f.statement == "what the peer's CM hears the wire has carried")


def test_a_peer_that_sees_a_reset_without_its_dreq_is_named() -> None:
    """A peer sees the reset after its DREQ was forwarded; before that, or after a drop, node and wire disagree."""
    assert heard(carried=True, after_ns=1_000_000).held
    assert not heard(carried=True, after_ns=-1_000_000).held
    assert not heard(carried=False, after_ns=1_000_000).held


def reset_by_close(*, after_ns: int, late_ns: int) -> Finding:
    """The findings about a close whose DREQ has a stamp so long after its end, from a recorder that was so late."""
    evidence = evidence_of("hard_close_ipv4.pcapng")
    (connection,) = evidence.connections()
    evidence.addresses = {"a": [connection.active], "b": [connection.passive]}
    evidence.packet_times_ns = {p.frame: p.time_ns for p in evidence.packets}
    dreq = next(p for p in evidence.packets if p.cm == "DREQ")
    evidence.late_frames = {dreq.frame: late_ns} if late_ns else {}
    begun_ns, ended_ns, name = dreq.time_ns - after_ns - 2_000_000, dreq.time_ns - after_ns, "WSPCloseSocket"
    evidence.events = [
        QueuePairMade(node="a", at_ns=0, t_ns=0, handle=1, qp_num=connection.active_qpn),
        Begin(node="a", at_ns=begun_ns, t_ns=0, function=name, socket=10),
        Call(node="a", at_ns=ended_ns, t_ns=0, begun_ns=0, function=name, socket=10, result=0, code=0),
    ]
    found = wire_findings(evidence, HardClose("a", 10, 1, "b", 20, 2))
    return next(f for f in found if f.statement == "the DREQ comes while WSPCloseSocket runs, at once")


def test_a_dreq_that_was_stamped_late_is_no_proof_of_a_late_reset() -> None:
    """A reset in time holds, a late one breaks, and one within the stamp's own error is unknown."""
    in_time, late, doubtful, late_all_the_same = (
        reset_by_close(after_ns=after_ns, late_ns=late_ns)
        for after_ns, late_ns in ((0, 0), (219_000_000, 0), (219_000_000, 150_000_000), (800_000_000, 150_000_000))
    )
    assert (in_time.held, in_time.doubt) == (True, "")
    assert not late.held and not late_all_the_same.held
    assert doubtful.doubt == "the recorder stamped it 150.0 ms late" and str(doubtful).startswith("doubt")


@pytest.mark.parametrize("name", ALL)
def test_altered_and_cut_frames_never_raise(name: str) -> None:
    """The analysis passes over bytes that it cannot read; the seed is fixed."""
    rng = random.Random(7)
    damaged = []
    for frame in frames(name):
        data = bytearray(frame.data[: rng.randrange(len(frame.data) + 1)])
        for _ in range(4):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(replace(frame, data=bytes(data)))
    connections(roce_packets(damaged))
