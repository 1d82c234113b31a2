"""Headers of the RoCE packets of a chunk of frames, as columns."""

from dataclasses import dataclass

import numpy as np

from hil.capture import bulk_icrc
from hil.capture.chunk import Chunk, Integers, Unsigned
from hil.capture.ethernet import Passed
from hil.capture.network import GRH, Small, find
from hil.capture.transport_headers import Malformed, TransportHeaders

__all__ = ["Batch", "Malformed", "Passed", "scan"]

_OF_FRAME = ("number", "time_ns", "interface", "captured", "original")
_OF_NETWORK = (
    "index",
    "header",
    "transport",
    "end",
    "vlan",
    "tags",
    "src_hi",
    "src_lo",
    "dst_hi",
    "dst_lo",
    "udp_sport",
    "ecn",
)


@dataclass(frozen=True, slots=True)
class Batch:
    """One row for each RoCE packet of a chunk, in file order; absent values are -1, for ``va`` 2**64 - 1.

    - ``index``: the frame's index in ``chunk``. ``passed`` counts the chunk's other frames.
    - ``header``, ``transport``, ``end``: offsets in the chunk's data of the network header, of the base transport
      header, and of the first byte behind the packet.
    - ``number``: the frame's number in the file, from 1. ``time_ns``: since the epoch. ``interface``: an index into the
      capture's interfaces. ``captured``, ``original``: frame lengths in bytes.
    - ``vlan``: the outer VLAN's id. ``tags``: all VLAN ids (``hil.capture.ethernet.vlans_of``), 0 without a VLAN.
    - ``src_hi`` to ``dst_lo``: halves of the GIDs; IPv4 addresses are mapped (::ffff:a.b.c.d).
    - ``version``: RoCE's, 1 or 2. ``ecn``: of the network header.
    - ``payload``: bytes without padding, as the packet had them before any snap length.
    - ``icrc``: 1 right, 0 wrong, -1 unchecked.
    - ``malformed``: a ``Malformed``; columns of the headers in front of the damage are valid.

    The other columns have their names in the InfiniBand specification (volume 1, 9.2 and 9.3).
    """

    chunk: Chunk
    passed: Passed
    index: Integers
    header: Integers
    transport: Integers
    end: Integers
    number: Integers
    time_ns: Integers
    interface: Integers
    captured: Integers
    original: Integers
    vlan: Integers
    tags: Integers
    src_hi: Unsigned
    src_lo: Unsigned
    dst_hi: Unsigned
    dst_lo: Unsigned
    version: Small
    udp_sport: Integers
    ecn: Integers
    opcode: Small
    solicited: Small
    migreq: Small
    padcount: Small
    transport_version: Small
    pkey: Small
    fecn: Small
    becn: Small
    dest_qp: Small
    ackreq: Small
    psn: Small
    syndrome: Small
    msn: Small
    va: Unsigned
    rkey: Integers
    length: Integers
    qkey: Integers
    srcqp: Small
    immdt: Integers
    ieth: Integers
    xrcsrq: Small
    payload: Integers
    icrc: Small
    malformed: Small

    def __len__(self) -> int:
        return len(self.number)

    def frame(self, row: int) -> bytes:
        """The captured bytes of the frame of ``row``."""
        return self.chunk.frame(int(self.index[row]))

    def packet(self, row: int) -> tuple[int, bytes]:
        """The IPv4 identification of the packet in ``row`` (-1 without one), and its captured bytes.

        The bytes begin at the base transport header.
        """
        index, data = int(self.index[row]), self.chunk.data
        header, transport = int(self.header[row]), int(self.transport[row])
        end = min(int(self.end[row]), int(self.chunk.offset[index] + self.chunk.captured[index]))
        numbered = data[header] >> 4 == 4
        identification = int.from_bytes(data[header + 4 : header + 6].tobytes()) if numbered else -1
        return identification, data[transport:end].tobytes()


def scan(chunk: Chunk, *, check_icrc: bool = False) -> Batch:
    """The RoCE packets of ``chunk``; ``check_icrc`` checks their ICRC. No content of a frame raises an error."""
    packets, passed = find(chunk)
    transport = TransportHeaders(chunk, packets)
    icrc = np.full(len(packets), -1, np.int32)
    if check_icrc:
        rows = np.flatnonzero(transport.whole & bulk_icrc.checkable(packets))
        icrc[rows] = bulk_icrc.right(chunk.data, packets.only(rows))
    index = packets.index
    of_frame = {name: getattr(chunk, name)[index] for name in _OF_FRAME}
    of_network = {name: getattr(packets, name) for name in _OF_NETWORK}
    version = np.where(packets.kind == GRH, 1, 2).astype(np.int32)
    return Batch(chunk, passed, version=version, icrc=icrc, **of_frame, **of_network, **transport.columns())
