"""Transport headers of RoCE for scapy (InfiniBand volume 1, 9.2 and 9.3; annexes A14 XRC, A16 and A17 RoCE, A19 FLUSH).

``hil.roce.opcodes`` alone defines the order of headers. scapy's own BTH, AETH and GRH are the base classes, so
``packet[scapy.contrib.roce.BTH]`` finds the layer of this module.
"""

from typing import Any

from scapy.contrib import roce
from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    FCSField,
    ShortField,
    XBitField,
    XByteField,
    XIntField,
    XLongField,
)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw, bind_layers, split_layers

from hil.roce.icrc import ICRC_SIZE, icrc
from hil.roce.layers.mad import MAD, is_mad
from hil.roce.opcodes import LAYOUTS, OPCODE_NAMES, Header

ROCE_PORT, ROCE_ETHERTYPE, IBA_NEXT_HEADER = 4791, 0x8915, 0x1B
BTH_SIZE = 12


class _Chained(Packet):
    """A transport header; the BTH's opcode decides which header follows it."""

    match_subclass = True

    def guess_payload_class(self, payload: bytes) -> Any:
        base: Any = self
        behind = 0
        while not isinstance(base, BTH):
            if base is None:
                return Raw
            base, behind = base.underlayer, behind + 1
        layout = LAYOUTS.get(base.opcode, ())
        if behind < len(layout):
            following = layout[behind]
            return CLASSES[following] if len(payload) >= following.size else Raw
        return MAD if Header.DETH in layout and is_mad(base.dqpn, payload) else Raw


class _IcrcField(FCSField):
    """The last four bytes of the packet; absent where the capture or the packet is cut."""

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, Any]:
        return super().getfield(pkt, s) if self._is_whole(pkt.underlayer, len(s)) else (s, None)

    @staticmethod
    def _is_whole(below: Packet | None, left: int) -> bool:
        if isinstance(below, UDP) and below.len is not None:
            return left >= ICRC_SIZE and bool(below.len == left + BTH_SIZE + 8)
        if isinstance(below, GRH) and below.paylen is not None:
            return left >= ICRC_SIZE and bool(below.paylen == left + BTH_SIZE)
        return left >= ICRC_SIZE


class BTH(_Chained, roce.BTH):
    """Base transport header with the names of all opcodes; the ICRC is computed over IPv4, IPv6 and GRH.

    Over IPv6 with extension headers the ICRC is zero, because no rule exists.
    """

    name = "BTH"
    fields_desc = [
        ByteEnumField("opcode", 0, OPCODE_NAMES),
        *roce.BTH.fields_desc[1:-1],
        _IcrcField("icrc", None, fmt="!I"),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes = b"", *args: Any, **fields: Any) -> Any:
        return Raw if _pkt and len(_pkt) < BTH_SIZE else cls

    def compute_icrc(self, p: bytes) -> bytes:
        """The ICRC of ``p``: this layer and its payload, with four bytes in the place of the ICRC."""
        frame = _frame_below(self, p)
        try:
            return icrc(frame, len(frame) - ICRC_SIZE).to_bytes(ICRC_SIZE, "little")
        except ValueError:
            return bytes(ICRC_SIZE)


def _frame_below(bth: Packet, built: bytes) -> bytes:
    """An Ethernet frame with the network headers of ``bth`` in front of ``built``; empty when there are none."""
    network: Any = bth.underlayer
    while network is not None and not isinstance(network, IP | IPv6 | GRH):
        network = network.underlayer
    if network is None:
        return b""
    shell: Any = network.copy()
    lowest: Any = shell
    while not isinstance(lowest.payload, roce.BTH):
        lowest = lowest.payload
    lowest.remove_payload()
    lowest.add_payload(Raw(built))
    ethertype = {IP: b"\x08\x00", IPv6: b"\x86\xdd"}.get(type(network), b"\x89\x15")
    return bytes(12) + ethertype + bytes(shell)


class GRH(roce.GRH):
    """Global route header of RoCE v1; its length field is computed."""

    name = "GRH"
    match_subclass = True
    fields_desc = [
        BitField("ipver", 6, 4),
        BitField("tclass", 0, 8),
        BitField("flowlabel", 0, 20),
        ShortField("paylen", None),
        XByteField("nexthdr", IBA_NEXT_HEADER),
        ByteField("hoplmt", 64),
        XBitField("sgid", 0, 128),
        XBitField("dgid", 0, 128),
    ]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        if self.paylen is None:
            pkt = pkt[:4] + len(pay).to_bytes(2, "big") + pkt[6:]
        return pkt + pay

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return s[: self.paylen], s[self.paylen :]

    def guess_payload_class(self, payload: bytes) -> Any:
        return BTH if self.nexthdr == IBA_NEXT_HEADER and len(payload) >= BTH_SIZE else Raw


class RDETH(_Chained):
    """Reliable datagram extended transport header."""

    name = "RDETH"
    fields_desc = [ByteField("reserved", 0), BitField("ee", 0, 24)]


class DETH(_Chained):
    """Datagram extended transport header."""

    name = "DETH"
    fields_desc = [XIntField("qkey", 0x80010000), ByteField("reserved", 0), BitField("srcqp", 1, 24)]


class XRCETH(_Chained):
    """XRC extended transport header."""

    name = "XRCETH"
    fields_desc = [ByteField("reserved", 0), BitField("xrcsrq", 0, 24)]


class FETH(_Chained):
    """FLUSH extended transport header: selectivity level and placement type."""

    name = "FETH"
    fields_desc = [BitField("reserved", 0, 26), BitField("sel", 0, 2), BitField("plt", 0, 4)]


class RETH(_Chained):
    """RDMA extended transport header."""

    name = "RETH"
    fields_desc = [XLongField("va", 0), XIntField("rkey", 0), XIntField("dmalen", 0)]


class AtomicETH(_Chained):
    """Atomic extended transport header; in a FETCH_ADD ``swap`` is the value to add."""

    name = "AtomicETH"
    fields_desc = [XLongField("va", 0), XIntField("rkey", 0), XLongField("swap", 0), XLongField("compare", 0)]


class AETH(_Chained, roce.AETH):
    """ACK extended transport header."""

    name = "AETH"
    fields_desc = roce.AETH.fields_desc


class AtomicAckETH(_Chained):
    """Atomic ACK extended transport header: the value before the operation."""

    name = "AtomicAckETH"
    fields_desc = [XLongField("original", 0)]


class ImmDt(_Chained):
    """Immediate data."""

    name = "ImmDt"
    fields_desc = [XIntField("data", 0)]


class IETH(_Chained):
    """Invalidate extended transport header: the R_Key that the peer must invalidate."""

    name = "IETH"
    fields_desc = [XIntField("rkey", 0)]


CLASSES: dict[Header, type[Packet]] = {
    Header.RDETH: RDETH,
    Header.DETH: DETH,
    Header.XRCETH: XRCETH,
    Header.FETH: FETH,
    Header.RETH: RETH,
    Header.ATOMIC_ETH: AtomicETH,
    Header.AETH: AETH,
    Header.ATOMIC_ACK_ETH: AtomicAckETH,
    Header.IMMDT: ImmDt,
    Header.IETH: IETH,
    Header.CNP: roce.CNPPadding,
}

split_layers(UDP, roce.BTH, dport=ROCE_PORT)
split_layers(Ether, roce.GRH, type=ROCE_ETHERTYPE)
split_layers(roce.GRH, roce.BTH)
bind_layers(UDP, BTH, dport=ROCE_PORT)
for _lower in (Ether, Dot1Q, Dot1AD):
    bind_layers(_lower, GRH, type=ROCE_ETHERTYPE)
bind_layers(GRH, BTH, nexthdr=IBA_NEXT_HEADER)
