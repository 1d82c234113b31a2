"""Packets of a capture as facts: what the rules over evidence need of each RoCE frame."""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from scapy.contrib.roce import AETH, BTH

from hil.capture.pcapng import CapturedFrame
from hil.roce.frames import CMDREQ, CMREP, CMREQ, MAD, CmAttribute, DataPacket, addresses, dissect, scan
from hil.roce.psn import Psn
from hil.roce.qpn import Qpn, qpn_of
from hil.roce.rkey import Rkey

_NO_QPN, _NO_KEY = Qpn(-1), Rkey(-1)


@dataclass(frozen=True, slots=True)
class RocePacket:
    """One RoCE packet. ``cm`` names a CM message, and the comm ids and QPN are that message's; -1 is absent.

    ``syndrome`` is an acknowledgement's (AETH). ``rkey``, ``address`` and ``length`` are those of an RDMA request
    (RETH). ``reason`` is a REJ's.
    """

    frame: int
    time_ns: int
    source: str
    destination: str
    opcode: int
    dest_qp: Qpn
    psn: Psn
    cm: str = ""
    local_comm_id: int = -1
    remote_comm_id: int = -1
    qpn: Qpn = _NO_QPN
    syndrome: int = -1
    local_gid: str = ""
    remote_gid: str = ""
    reason: int = -1
    rkey: Rkey = _NO_KEY
    address: int = -1
    length: int = -1

    def facts(self) -> dict[str, Any]:
        return {name: value for name in _NAMES if (value := getattr(self, name)) not in ("", -1)}


# A capture holds many packets, and dataclasses.asdict copies every value of every one.
_NAMES = tuple(field.name for field in fields(RocePacket))
_SCANNED = tuple(field.name for field in fields(DataPacket))


def roce_packets(frames: Iterable[CapturedFrame]) -> Iterator[RocePacket]:
    """The RoCE packets among ``frames``, in capture order."""
    for frame in frames:
        if (data := scan(frame.data)) is not None:
            yield RocePacket(frame.number, frame.time_ns, **{name: getattr(data, name) for name in _SCANNED})
            continue
        packet = dissect(frame.data)
        if packet is None:
            continue
        bth, mad = packet[BTH], packet.getlayer(MAD)
        source, destination = addresses(packet)
        base = (frame.number, frame.time_ns, source, destination, bth.opcode, bth.dqpn, bth.psn)
        if mad is None or mad.attribute_id not in set(CmAttribute):
            yield RocePacket(*base, syndrome=packet[AETH].syndrome if packet.haslayer(AETH) else -1)
            continue
        message = mad.payload
        qpn, gids = _NO_QPN, ("", "")
        if isinstance(message, CMREQ):
            gids = ip_of(message.primary_local_gid), ip_of(message.primary_remote_gid)
        if isinstance(message, CMREQ | CMREP):
            qpn = qpn_of(message.local_qpn)
        elif isinstance(message, CMDREQ):
            qpn = qpn_of(message.remote_qpn)
        yield RocePacket(
            *base,
            cm=CmAttribute(mad.attribute_id).name,
            local_comm_id=getattr(message, "local_comm_id", -1),
            remote_comm_id=getattr(message, "remote_comm_id", -1),
            qpn=qpn,
            local_gid=gids[0],
            remote_gid=gids[1],
            reason=getattr(message, "reason", -1),
        )


def ip_of(gid: bytes) -> str:
    """The IP address a RoCE v2 GID stands for (InfiniBand annex A17: IPv4 is mapped into IPv6)."""
    address = ipaddress.IPv6Address(gid)
    return str(address.ipv4_mapped or address)


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection seen in a capture: its REQ and REP, from ``active`` to ``passive``, with both QPNs,
    comm ids, and the GIDs of the REQ's primary path as IP addresses (active, passive)."""

    active: str
    passive: str
    active_qpn: Qpn
    passive_qpn: Qpn
    active_comm_id: int
    passive_comm_id: int
    gids: tuple[str, str] = ("", "")

    def packets(self, packets: Iterable[RocePacket]) -> list[RocePacket]:
        """Data packets and CM messages that belong to this connection, in capture order."""
        return [p for p in packets if self._owns(p)]

    def _owns(self, packet: RocePacket) -> bool:
        ends = {(self.active, self.passive): self.passive_qpn, (self.passive, self.active): self.active_qpn}
        qpn = ends.get((packet.source, packet.destination))
        if qpn is None:
            return False
        if not packet.cm:
            return packet.dest_qp == qpn
        mine, theirs = self.active_comm_id, self.passive_comm_id
        if packet.source != self.active:
            mine, theirs = theirs, mine
        return packet.local_comm_id == mine and packet.remote_comm_id in (theirs, -1)


def connections(packets: Iterable[RocePacket]) -> list[Connection]:
    """Connections whose REQ and REP are both in the capture."""
    requests: dict[tuple[str, str, int], RocePacket] = {}
    found: dict[tuple[str, str, int], Connection] = {}
    for p in packets:
        if p.cm == "REQ":
            requests.setdefault((p.source, p.destination, p.local_comm_id), p)
        elif p.cm == "REP":
            key = (p.destination, p.source, p.remote_comm_id)
            if (request := requests.get(key)) is not None and key not in found:
                found[key] = Connection(
                    request.source,
                    p.source,
                    request.qpn,
                    p.qpn,
                    request.local_comm_id,
                    p.local_comm_id,
                    (request.local_gid, request.remote_gid),
                )
    return list(found.values())
