"""Opcodes of the base transport header, and the extended headers of each.

Sources: InfiniBand volume 1, 9.2.1 and 9.3; annex A14 for XRC, annex A17.9.3 for CNP, annex A19 for FLUSH and ATOMIC
WRITE.
"""

from enum import Enum, IntEnum


class Transport(IntEnum):
    """The upper three bits of an opcode."""

    RC = 0x00
    UC = 0x20
    RD = 0x40
    UD = 0x60
    XRC = 0xA0


class Operation(IntEnum):
    """The lower five bits of an opcode."""

    SEND_FIRST = 0x00
    SEND_MIDDLE = 0x01
    SEND_LAST = 0x02
    SEND_LAST_WITH_IMMEDIATE = 0x03
    SEND_ONLY = 0x04
    SEND_ONLY_WITH_IMMEDIATE = 0x05
    RDMA_WRITE_FIRST = 0x06
    RDMA_WRITE_MIDDLE = 0x07
    RDMA_WRITE_LAST = 0x08
    RDMA_WRITE_LAST_WITH_IMMEDIATE = 0x09
    RDMA_WRITE_ONLY = 0x0A
    RDMA_WRITE_ONLY_WITH_IMMEDIATE = 0x0B
    RDMA_READ_REQUEST = 0x0C
    RDMA_READ_RESPONSE_FIRST = 0x0D
    RDMA_READ_RESPONSE_MIDDLE = 0x0E
    RDMA_READ_RESPONSE_LAST = 0x0F
    RDMA_READ_RESPONSE_ONLY = 0x10
    ACKNOWLEDGE = 0x11
    ATOMIC_ACKNOWLEDGE = 0x12
    COMPARE_SWAP = 0x13
    FETCH_ADD = 0x14
    RESYNC = 0x15
    SEND_LAST_WITH_INVALIDATE = 0x16
    SEND_ONLY_WITH_INVALIDATE = 0x17
    FLUSH = 0x1C
    ATOMIC_WRITE = 0x1D


class Header(Enum):
    """Extended transport headers; the value is the name and the size in bytes."""

    RDETH = ("RDETH", 4)
    DETH = ("DETH", 8)
    XRCETH = ("XRCETH", 4)
    FETH = ("FETH", 4)
    RETH = ("RETH", 16)
    ATOMIC_ETH = ("AtomicETH", 28)
    AETH = ("AETH", 4)
    ATOMIC_ACK_ETH = ("AtomicAckETH", 8)
    IMMDT = ("ImmDt", 4)
    IETH = ("IETH", 4)
    CNP = ("CNP", 16)

    @property
    def size(self) -> int:
        return self.value[1]


CNP_OPCODE = 0x81
MESSAGE_ENDS = frozenset(
    Transport.RC | operation
    for operation in (
        Operation.SEND_LAST,
        Operation.SEND_LAST_WITH_IMMEDIATE,
        Operation.SEND_ONLY,
        Operation.SEND_ONLY_WITH_IMMEDIATE,
        Operation.SEND_LAST_WITH_INVALIDATE,
        Operation.SEND_ONLY_WITH_INVALIDATE,
    )
)
"""RC opcodes of the last packet of a SEND, which consumes a receive (9.2)."""
UD_SEND_ONLY = Transport.UD | Operation.SEND_ONLY

_H, _O = Header, Operation
_OPERATIONS: dict[Operation, tuple[Header, ...]] = {
    _O.SEND_FIRST: (),
    _O.SEND_MIDDLE: (),
    _O.SEND_LAST: (),
    _O.SEND_LAST_WITH_IMMEDIATE: (_H.IMMDT,),
    _O.SEND_ONLY: (),
    _O.SEND_ONLY_WITH_IMMEDIATE: (_H.IMMDT,),
    _O.RDMA_WRITE_FIRST: (_H.RETH,),
    _O.RDMA_WRITE_MIDDLE: (),
    _O.RDMA_WRITE_LAST: (),
    _O.RDMA_WRITE_LAST_WITH_IMMEDIATE: (_H.IMMDT,),
    _O.RDMA_WRITE_ONLY: (_H.RETH,),
    _O.RDMA_WRITE_ONLY_WITH_IMMEDIATE: (_H.RETH, _H.IMMDT),
    _O.RDMA_READ_REQUEST: (_H.RETH,),
    _O.RDMA_READ_RESPONSE_FIRST: (_H.AETH,),
    _O.RDMA_READ_RESPONSE_MIDDLE: (),
    _O.RDMA_READ_RESPONSE_LAST: (_H.AETH,),
    _O.RDMA_READ_RESPONSE_ONLY: (_H.AETH,),
    _O.ACKNOWLEDGE: (_H.AETH,),
    _O.ATOMIC_ACKNOWLEDGE: (_H.AETH, _H.ATOMIC_ACK_ETH),
    _O.COMPARE_SWAP: (_H.ATOMIC_ETH,),
    _O.FETCH_ADD: (_H.ATOMIC_ETH,),
    _O.RESYNC: (),
    _O.SEND_LAST_WITH_INVALIDATE: (_H.IETH,),
    _O.SEND_ONLY_WITH_INVALIDATE: (_H.IETH,),
    _O.FLUSH: (_H.FETH, _H.RETH),
    _O.ATOMIC_WRITE: (_H.RETH,),
}
_RESPONSES = frozenset(range(_O.RDMA_READ_RESPONSE_FIRST, _O.ATOMIC_ACKNOWLEDGE + 1))
_INVALIDATES = frozenset({_O.SEND_LAST_WITH_INVALIDATE, _O.SEND_ONLY_WITH_INVALIDATE})
_OF_TRANSPORT: dict[Transport, frozenset[Operation]] = {
    Transport.RC: frozenset(_O) - {_O.RESYNC},
    Transport.UC: frozenset(operation for operation in _O if operation < _O.RDMA_READ_REQUEST),
    Transport.RD: frozenset(_O) - _INVALIDATES,
    Transport.UD: frozenset({_O.SEND_ONLY, _O.SEND_ONLY_WITH_IMMEDIATE}),
    Transport.XRC: frozenset(_O) - {_O.RESYNC},
}


def _before(transport: Transport, operation: Operation) -> tuple[Header, ...]:
    # The transport's own headers stand between the base header and the operation's headers.
    response = operation in _RESPONSES
    if transport is Transport.RD:
        return (_H.RDETH,) if response else (_H.RDETH, _H.DETH)
    if transport is Transport.UD:
        return (_H.DETH,)
    return (_H.XRCETH,) if transport is Transport.XRC and not response else ()


LAYOUTS: dict[int, tuple[Header, ...]] = {
    transport | operation: _before(transport, operation) + _OPERATIONS[operation]
    for transport, operations in _OF_TRANSPORT.items()
    for operation in sorted(operations)
} | {CNP_OPCODE: (Header.CNP,)}

OPCODE_NAMES: dict[int, str] = {
    transport | operation: f"{transport.name}_{operation.name}"
    for transport, operations in _OF_TRANSPORT.items()
    for operation in sorted(operations)
} | {CNP_OPCODE: "CNP"}
