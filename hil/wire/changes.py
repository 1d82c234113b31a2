"""Frames that a fault changed: corrupted, truncated, marked. Pure functions of the frame's bytes."""

import struct

from hil.roce.icrc import icrc
from hil.roce.outline import Outline
from hil.wire.faults import Action, Corrupt, MarkEcn, Truncate


def change(frame: bytes, action: Action, at: Outline | None) -> bytes:
    """The frame after ``action``, unchanged if the action does not apply. ``at`` is None unless it is a RoCE frame."""
    if isinstance(action, Truncate):
        return truncate(frame, action, at)
    if at is None:
        return frame
    if isinstance(action, Corrupt):
        return corrupt(frame, action, at)
    return mark_ecn(frame, action, at) if isinstance(action, MarkEcn) else frame


def corrupt(frame: bytes, action: Corrupt, at: Outline) -> bytes:
    """Change one byte between BTH and ICRC. A UDP checksum is corrected, so that only the ICRC can show the change."""
    place = at.covered(action.offset)
    if place < 0:
        return frame
    changed = bytearray(frame)
    changed[place] ^= action.mask
    if action.repaired:
        struct.pack_into("<I", changed, at.end, icrc(bytes(changed), at.end))
    return _with_udp_checksum(changed, at)


def truncate(frame: bytes, action: Truncate, at: Outline | None) -> bytes:
    """The frame's first bytes. On request the IP and UDP lengths are corrected, if both headers are complete."""
    if action.keep >= len(frame):
        return frame
    cut = bytearray(frame[: action.keep])
    if action.lengths_repaired and at is not None and at.udp >= 0 and len(cut) >= at.bth:
        struct.pack_into("!H", cut, at.udp + 4, len(cut) - at.udp)
        if frame[at.network] >> 4 == 4:
            struct.pack_into("!H", cut, at.network + 2, len(cut) - at.network)
            _repair_ipv4(cut, at)
        else:
            struct.pack_into("!H", cut, at.network + 4, len(cut) - at.udp)
        return _with_udp_checksum(cut, at)
    return bytes(cut)


def mark_ecn(frame: bytes, action: MarkEcn, at: Outline) -> bytes:
    """Set the ECN field (RFC 3168, 5) and correct the IPv4 header's checksum. The ICRC does not cover the field."""
    marked = bytearray(frame)
    if frame[at.network] >> 4 == 4:
        marked[at.network + 1] = marked[at.network + 1] & 0xFC | action.codepoint
        _repair_ipv4(marked, at)
    else:
        # Version, traffic class, flow label: the ECN field is the class's last two bits.
        marked[at.network + 1] = marked[at.network + 1] & 0xCF | action.codepoint << 4
    return bytes(marked)


def _repair_ipv4(frame: bytearray, at: Outline) -> None:
    header_end = at.network + (frame[at.network] & 0x0F) * 4
    struct.pack_into("!H", frame, at.network + 10, 0)
    struct.pack_into("!H", frame, at.network + 10, checksum(frame[at.network : header_end]))


def _with_udp_checksum(frame: bytearray, at: Outline) -> bytes:
    # Zero means no checksum. Most RoCE v2 senders send zero (annex A17.9.2 allows both).
    if at.udp >= 0 and frame[at.udp + 6 : at.udp + 8] != b"\0\0":
        struct.pack_into("!H", frame, at.udp + 6, 0)
        (length,) = struct.unpack_from("!H", frame, at.udp + 4)
        pseudo = at.source + at.destination + struct.pack("!II", length, 17)
        struct.pack_into("!H", frame, at.udp + 6, checksum(pseudo + frame[at.udp : at.udp + length]) or 0xFFFF)
    return bytes(frame)


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = bytes(data) + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
