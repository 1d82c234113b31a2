"""Overlapped operations of a socket: what was posted, how it was completed."""

from collections import Counter
from collections.abc import Iterable

from hil.evidence.evidence import Evidence
from hil.evidence.journal import Call, Completed
from hil.winsock.codes import Code

OVERLAPPED = ("WSPSend", "WSPRecv", "WSPRdmaWrite", "WSPRdmaRead", "WSPIoctl")


def posted(evidence: Evidence, node: str, socket: int) -> list[int | None]:
    """The operations of a socket that pend and whose end an up-call tells."""
    calls = [e for e in evidence.of(node, Call, socket=socket) if e.function in OVERLAPPED]
    return [e.overlapped for e in calls if e.code == Code.WSA_IO_PENDING and not e.polled]


def completions(operations: Iterable[int | None], done: Iterable[Completed]) -> dict[int | None, int]:
    """How many of ``done`` each operation has."""
    counts = Counter(e.overlapped for e in done)
    return {operation: counts[operation] for operation in operations if operation is not None}


def succeeded(evidence: Evidence, node: str, function: str, socket: int) -> int:
    """How many calls of a function on a socket returned no code."""
    return len(evidence.of(node, Call, function=function, socket=socket, code=0))


def code_name(code: int) -> str:
    """A code as NAME (number); a number that is no Windows Sockets error stays one."""
    return str(Code(code)) if code in _CODES else str(code)


_CODES = frozenset(Code)
