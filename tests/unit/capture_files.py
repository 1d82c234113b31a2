"""Capture files as bytes, of kinds that other programs write and this project's own writer does not."""

import struct

FRAME = bytes(range(60))


def pcap(
    frames: list[tuple[int, int, bytes, int]],
    order: str = "<",
    nanoseconds: bool = False,
    link: int = 1,
    snap: int = 65535,
) -> bytes:
    """A pcap file of frames: seconds, fraction, captured bytes, original length."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap, link)
    for seconds, fraction, data, original in frames:
        out += struct.pack(order + "IIII", seconds, fraction, len(data), original) + data
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    order: str = "<",
    name: str = "",
    resolution: int | None = None,
    offset_s: int | None = None,
    fcs: int | None = None,
    link: int = 1,
    snap: int = 0,
) -> bytes:
    options = option(2, name.encode(), order) if name else b""
    if resolution is not None:
        options += option(9, bytes([resolution]), order)
    if fcs is not None:
        options += option(13, bytes([fcs]), order)
    if offset_s is not None:
        options += option(14, struct.pack(order + "q", offset_s), order)
    return block(1, struct.pack(order + "HHI", link, 0, snap) + options + (bytes(4) if options else b""), order)


def enhanced(
    data: bytes,
    order: str = "<",
    index: int = 0,
    ticks: int = 0,
    original: int = -1,
    comment: str = "",
    dropped: int | None = None,
) -> bytes:
    size = len(data) if original < 0 else original
    head = struct.pack(order + "IIIII", index, ticks >> 32, ticks & 0xFFFFFFFF, len(data), size)
    options = option(1, comment.encode(), order) if comment else b""
    options += option(4, struct.pack(order + "Q", dropped), order) if dropped is not None else b""
    options += bytes(4) if options else b""
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


def obsolete(data: bytes, order: str = "<", index: int = 0, ticks: int = 0) -> bytes:
    head = struct.pack(order + "HHIIII", index, 7, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(2, head + data, order)


def simple(data: bytes, order: str = "<", original: int = -1) -> bytes:
    return block(3, struct.pack(order + "I", len(data) if original < 0 else original) + data, order)


def statistics(order: str = "<", index: int = 0, dropped: int = 0) -> bytes:
    body = struct.pack(order + "III", index, 0, 0) + option(5, struct.pack(order + "Q", dropped), order) + bytes(4)
    return block(5, body, order)
