"""Reads messages of the connection manager from captured frames, which may be cut (InfiniBand volume 1, 12.6)."""

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hil.roce.layers.cm import CmAttribute, RejectReason
from hil.roce.layers.mad import ManagementClass

_BTH_AND_DETH, _MAD_HEADER = 12 + 8, 24
MTU_OF_CODE = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
# The code of a REJ or MRA that refers to a REP (12.6.6, 12.6.7).
REP_ANSWERED = 1
# The only transport service type without acknowledgements (12.6.5).
UNRELIABLE_CONNECTED = 1
# CM times are 4.096 us times a power of two (12.7.34).
CM_TIME_UNIT_NS = 4096


# The time-out exponent of Linux's RDMA CM, for captures without the REQ: 4.3 s.
USUAL_TIMEOUT = 20


def patience_ns(exponent: int) -> int:
    """How long the CM waits for an answer, in ns. ``exponent``: the time-out in the REQ, or -1 when unknown."""
    return CM_TIME_UNIT_NS << (exponent if exponent > 0 else USUAL_TIMEOUT)


def least_patience_ns(exponent: int) -> int:
    """The shortest time that the CM waits for an answer, in ns: nine tenths, because timers are coarse."""
    return patience_ns(exponent) * 9 // 10


def reason_name(reason: int) -> str:
    """The reason of a REJ as NAME (number)."""
    try:
        return f"{RejectReason(reason).name} ({reason})"
    except ValueError:
        return f"unknown reason ({reason})"


def address_of(gid: int) -> str:
    """The IP address of a GID (annex A17: IPv4 is mapped into IPv6)."""
    address = ipaddress.IPv6Address(gid)
    return str(address.ipv4_mapped or address)


@dataclass(frozen=True, slots=True)
class CmMessage:
    """A CM message. Values that are absent or cut away are -1.

    ``qpn``: the sender's QP in REQ and REP, the receiver's in DREQ. ``gids``: of the REQ's primary path. ``answered``:
    the message that an MRA or REJ refers to, 0 REQ, 1 REP, 2 other. ``rnr_retry_count``: for the receiver of the REQ or
    REP. ``max_cm_retries``, ``retry_count``, ``transport`` and the time-outs, in powers of two of 4.096 us, are in the
    REQ only.
    """

    attribute: CmAttribute
    number: int
    time_ns: int
    local_comm_id: int = -1
    remote_comm_id: int = -1
    transaction_id: int = -1
    qpn: int = -1
    psn: int = -1
    gids: tuple[int, int] = (-1, -1)
    mtu: int = -1
    retry_count: int = -1
    rnr_retry_count: int = -1
    transport: int = -1
    ack_timeout: int = -1
    max_cm_retries: int = -1
    local_timeout: int = -1
    remote_timeout: int = -1
    answered: int = -1
    reason: int = -1

    @property
    def cut(self) -> bool:
        """Whether a REQ is cut in front of its retry counts."""
        return min(self.max_cm_retries, self.retry_count) < 0


def read_message(packet: bytes, number: int, time_ns: int) -> CmMessage | None:
    """The CM message in a RoCE packet to QP 1; None for another kind of MAD, or when its comm ids are cut off.

    ``packet``: its captured bytes from the base transport header on.
    """
    mad = packet[_BTH_AND_DETH:]
    if len(mad) < _MAD_HEADER + 8 or mad[1] != ManagementClass.COMMUNICATION:
        return None
    transaction_id, attribute = struct.unpack_from("!QH", mad, 8)
    if attribute not in _READERS:
        return None
    body = mad[_MAD_HEADER:]
    local, remote = struct.unpack_from("!II", body)
    remote = -1 if attribute == CmAttribute.REQ else remote
    fields = _READERS[attribute](body)
    return CmMessage(CmAttribute(attribute), number, time_ns, local, remote, transaction_id, **fields)


def _at(body: bytes, offset: int, size: int) -> int:
    """A big-endian field of ``size`` bytes, or -1 when it is cut."""
    return int.from_bytes(body[offset : offset + size], "big") if len(body) >= offset + size else -1


def _bits(body: bytes, offset: int, shift: int, width: int) -> int:
    return body[offset] >> shift & (1 << width) - 1 if len(body) > offset else -1


def _request(body: bytes) -> dict[str, Any]:
    return {
        "qpn": _at(body, 32, 3),
        "psn": _at(body, 44, 3),
        "gids": (_at(body, 56, 16), _at(body, 72, 16)),
        "mtu": MTU_OF_CODE.get(_bits(body, 50, 4, 4), -1),
        "retry_count": _bits(body, 47, 0, 3),
        "rnr_retry_count": _bits(body, 50, 0, 3),
        "transport": _bits(body, 43, 1, 2),
        "ack_timeout": _bits(body, 95, 3, 5),
        "max_cm_retries": _bits(body, 51, 4, 4),
        "local_timeout": _bits(body, 47, 3, 5),
        "remote_timeout": _bits(body, 43, 3, 5),
    }


_READERS: dict[int, Callable[[bytes], dict[str, Any]]] = {
    CmAttribute.REQ: _request,
    CmAttribute.MRA: lambda body: {"answered": _bits(body, 8, 6, 2)},
    CmAttribute.REJ: lambda body: {"answered": _bits(body, 8, 6, 2), "reason": _at(body, 10, 2)},
    CmAttribute.REP: lambda body: {
        # In XRC the QP is in the field of the end-to-end context (annex A14).
        "qpn": _at(body, 12, 3) or _at(body, 16, 3),
        "psn": _at(body, 20, 3),
        "rnr_retry_count": _bits(body, 27, 5, 3),
    },
    CmAttribute.RTU: lambda body: {},
    CmAttribute.DREQ: lambda body: {"qpn": _at(body, 8, 3)},
    CmAttribute.DREP: lambda body: {},
}
