"""The invariant CRC of RoCE (InfiniBand volume 1, 7.8.1; annex A16.5 for RoCE v1, annex A17.3 for RoCE v2)."""

import struct
import zlib

ICRC_SIZE = 4
# The CRC of eight bytes of ones, which replace the local route header that Ethernet frames lack.
SEED = zlib.crc32(b"\xff" * 8)
_IPV4, _IPV6, _GRH = 0x0800, 0x86DD, 0x8915
_VLANS = frozenset({0x8100, 0x88A8, 0x9100})
_IPV6_HEADER, _UDP_HEADER, _BTH_RESERVED = 40, 8, 4
_NEXT_HEADER, _UDP = 6, 17


def network_header(frame: bytes) -> tuple[int, int]:
    """The ethertype behind any VLAN tags, and the offset of the network header; (0, 0) when the frame is too short."""
    at = 12
    while len(frame) >= at + 2:
        (kind,) = struct.unpack_from("!H", frame, at)
        if kind not in _VLANS:
            return kind, at + 2
        at += 4
    return 0, 0


def icrc(frame: bytes, end: int) -> int:
    """The ICRC of a complete RoCE frame; the frame holds it at ``end`` as a little-endian integer.

    ``end`` is the offset behind the last covered byte; Ethernet's padding and trailers are not covered. Raises
    ValueError for a frame that is not RoCE over IPv4 or IPv6 or RoCE v1, and for IPv6 extension headers, which the
    rules do not cover.
    """
    kind, at = network_header(frame)
    if kind == _IPV4 and end >= at + 20:
        bth = at + (frame[at] & 0x0F) * 4 + _UDP_HEADER
        masked, variable = bytearray(frame[at:bth]), (1, 8, 10, 11, len(frame[at:bth]) - 2, len(frame[at:bth]) - 1)
    elif kind in (_IPV6, _GRH) and end >= at + _IPV6_HEADER:
        if kind == _IPV6 and frame[at + _NEXT_HEADER] != _UDP:
            raise ValueError("UDP does not follow the IPv6 header at once")
        bth = at + _IPV6_HEADER + (_UDP_HEADER if kind == _IPV6 else 0)
        masked, variable = (
            bytearray(frame[at:bth]),
            (1, 2, 3, 7, *((bth - at - 2, bth - at - 1) if kind == _IPV6 else ())),
        )
    else:
        raise ValueError("no RoCE frame: neither IPv4, IPv6 nor a GRH is there")
    if end < bth + 12 or end > len(frame):
        raise ValueError(f"the frame holds no base transport header that ends before byte {end}")
    for offset in variable:
        masked[offset] = 0xFF
    if kind != _IPV4:
        # Masks the upper bits of the traffic class; the version is covered.
        masked[0] |= 0x0F
    crc = zlib.crc32(masked, SEED)
    crc = zlib.crc32(frame[bth : bth + _BTH_RESERVED], crc)
    crc = zlib.crc32(b"\xff", crc)
    return zlib.crc32(memoryview(frame)[bth + _BTH_RESERVED + 1 : end], crc)
