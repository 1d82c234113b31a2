"""The operations of a reliable connection: their names, and the parts of a message that they are."""

from hil.roce.opcodes import Operation

# Bits of a packet: the first or last packet of a message, and the kinds of requests with answer packets of their own.
FIRST, LAST, READ, ATOMIC, LIKE_READ = 1, 2, 4, 8, 16
FATAL_NAKS = frozenset({1, 2, 3, 4})
NAK_NAMES = {
    0: "PSN sequence error",
    1: "invalid request",
    2: "remote access error",
    3: "remote operational error",
    4: "invalid RD request",
}

_O = Operation
_PARTS = {
    _O.SEND_FIRST: FIRST,
    _O.RDMA_WRITE_FIRST: FIRST,
    _O.SEND_LAST: LAST,
    _O.SEND_LAST_WITH_IMMEDIATE: LAST,
    _O.SEND_LAST_WITH_INVALIDATE: LAST,
    _O.RDMA_WRITE_LAST: LAST,
    _O.RDMA_WRITE_LAST_WITH_IMMEDIATE: LAST,
    _O.SEND_MIDDLE: 0,
    _O.RDMA_WRITE_MIDDLE: 0,
    _O.RDMA_READ_REQUEST: FIRST | LAST | READ,
    _O.COMPARE_SWAP: FIRST | LAST | ATOMIC,
    _O.FETCH_ADD: FIRST | LAST | ATOMIC,
    # The answer is an RDMA READ response of one packet without data (annex A19).
    _O.FLUSH: FIRST | LAST | LIKE_READ,
    _O.ATOMIC_WRITE: FIRST | LAST | LIKE_READ,
}
PARTS = [_PARTS.get(Operation(n), FIRST | LAST) if n in set(Operation) else 0 for n in range(32)]


def _name(operation: int) -> str:
    if operation == Operation.RDMA_READ_REQUEST:
        return "RDMA READ"
    parts = [part for part in Operation(operation).name.split("_") if part not in _PLACES]
    return " ".join("with" if part == "WITH" else part for part in parts)


_PLACES = frozenset({"FIRST", "MIDDLE", "LAST", "ONLY"})
NAMES = {int(operation): _name(operation) for operation in Operation}

ANSWERS_FIRST = frozenset({_O.RDMA_READ_RESPONSE_FIRST, _O.RDMA_READ_RESPONSE_ONLY, _O.ATOMIC_ACKNOWLEDGE})
ANSWERS_LAST = frozenset({_O.RDMA_READ_RESPONSE_LAST, _O.RDMA_READ_RESPONSE_ONLY, _O.ATOMIC_ACKNOWLEDGE})
FLUSHED = "response"
ANSWER_NAMES = {
    int(_O.RDMA_READ_RESPONSE_LAST): "RDMA READ response",
    int(_O.RDMA_READ_RESPONSE_ONLY): "RDMA READ response",
    int(_O.ATOMIC_ACKNOWLEDGE): "ATOMIC response",
}
