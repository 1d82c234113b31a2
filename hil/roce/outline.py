"""What a fault of the wire must know of a frame: where its headers are, and the fields it may be picked by.

The wire's process reads every frame with this while faults are set, so nothing here needs more than the standard
library. Never raises on what a node sent.
"""

import struct
from dataclasses import dataclass

from hil.roce.icrc import ICRC_SIZE, network_header
from hil.roce.psn import Psn, psn_of
from hil.roce.qpn import Qpn, qpn_of

_IPV4, _IPV6, _GRH, _UDP = 0x0800, 0x86DD, 0x8915, 17
_GRH_NEXT_HEADER = 0x1B
_ROCE_PORT = 4791
_UD_SEND_ONLY, _CM_CLASS, _REQ, _REP = 0x64, 0x07, 0x10, 0x13
# Where the sender's QP is in a message (12.6.5, 12.6.8).
_QPN_AT = {_REQ: 32, _REP: 12}
_BTH, _MAD, _COMM_IDS = struct.Struct("!BBHII"), struct.Struct("!BBBBHHQHHI"), struct.Struct("!II")
_DETH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Outline:
    """A RoCE frame. ``network``, ``udp`` and ``bth`` are offsets of its headers (``udp`` is -1 in RoCE v1), ``end``
    is where the ICRC begins. ``source`` and ``destination`` are packed IP addresses. -1 is absent.

    ``cm`` is the attribute id of a CM message (InfiniBand volume 1, 12.6), the transaction and comm ids are its own,
    ``qpn`` is the sender's QP in a REQ and a REP.
    """

    network: int
    udp: int
    bth: int
    end: int
    source: bytes
    destination: bytes
    opcode: int
    dest_qp: Qpn
    psn: Psn
    cm: int = -1
    transaction_id: int = -1
    local_comm_id: int = -1
    remote_comm_id: int = -1
    qpn: int = -1

    def covered(self, offset: int) -> int:
        """Where the byte is that lies ``offset`` behind the BTH's first, or, negative, so far back from the ICRC; -1
        outside of these."""
        place = (self.end if offset < 0 else self.bth) + offset
        return place if self.bth <= place < self.end else -1


def outline(frame: bytes) -> Outline | None:
    """The outline of a whole RoCE frame over IPv4, IPv6 or RoCE v1, with any VLAN tags; None for every other."""
    kind, at = network_header(frame)
    places = {_IPV4: _ipv4, _IPV6: _ipv6, _GRH: _grh}.get(kind, _neither)(frame, at)
    if places is None:
        return None
    udp, bth, end, source, destination = places
    if udp >= 0 and frame[udp + 2 : udp + 4] != _ROCE_PORT.to_bytes(2):
        return None
    end -= ICRC_SIZE
    if end < bth + _BTH.size or end + ICRC_SIZE > len(frame):
        return None
    opcode, _, _, qp, psn = _BTH.unpack_from(frame, bth)
    base = (at, udp, bth, end, source, destination, opcode, qpn_of(qp), psn_of(psn))
    return Outline(*base, *_message(frame, bth + _BTH.size + _DETH_SIZE, end) if opcode == _UD_SEND_ONLY else ())


_Places = tuple[int, int, int, bytes, bytes]


def _neither(frame: bytes, at: int) -> _Places | None:
    return None


def _ipv4(frame: bytes, at: int) -> _Places | None:
    if len(frame) < at + 20 or frame[at] >> 4 != 4 or frame[at + 9] != _UDP:
        return None
    size = (frame[at] & 0x0F) * 4
    (length,) = struct.unpack_from("!H", frame, at + 2)
    (fragment,) = struct.unpack_from("!H", frame, at + 6)
    if size < 20 or fragment & 0x3FFF:
        return None
    udp = at + size
    return udp, udp + 8, at + length, frame[at + 12 : at + 16], frame[at + 16 : at + 20]


def _ipv6(frame: bytes, at: int) -> _Places | None:
    if len(frame) < at + 40 or frame[at + 6] != _UDP:
        return None
    (length,) = struct.unpack_from("!H", frame, at + 4)
    return at + 40, at + 48, at + 40 + length, frame[at + 8 : at + 24], frame[at + 24 : at + 40]


def _grh(frame: bytes, at: int) -> _Places | None:
    if len(frame) < at + 40 or frame[at + 6] != _GRH_NEXT_HEADER:
        return None
    (length,) = struct.unpack_from("!H", frame, at + 4)
    return -1, at + 40, at + 40 + length, frame[at + 8 : at + 24], frame[at + 24 : at + 40]


def _message(frame: bytes, at: int, end: int) -> tuple[int, ...]:
    """CM attribute, transaction and comm ids, and QP of the datagram whose payload is at ``at``; empty for another."""
    if end < at + _MAD.size + _COMM_IDS.size:
        return ()
    _, management_class, _, _, _, _, transaction, attribute, _, _ = _MAD.unpack_from(frame, at)
    if management_class != _CM_CLASS:
        return ()
    local, remote = _COMM_IDS.unpack_from(frame, at + _MAD.size)
    told = at + _MAD.size + _QPN_AT.get(attribute, end)
    qpn = int.from_bytes(frame[told : told + 3]) if told + 3 <= end else -1
    return attribute, transaction, local, -1 if attribute == _REQ else remote, qpn
