"""Structures of the contract, with their documented member names."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from hil.winsock.codes import FD_MAX_EVENTS, Code


class LpErrno:
    """The caller's ``lpErrno``: a place for one error code. Prints as NAME (number)."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = Code.OK

    def __repr__(self) -> str:
        return str(self.value)


@dataclass(slots=True)
class SockAddr:
    """A sockaddr_in, or sockaddr_in6 (family AF_INET6)."""

    sin_family: int
    sin_addr: str
    sin_port: int


@dataclass(slots=True)
class WSABUF:
    """``len`` bytes at virtual address ``buf``."""

    len: int
    buf: int


@dataclass(slots=True, eq=False)
class WSAOVERLAPPED:
    """One overlapped operation. ``hEvent`` bit 0 set: polled only, never notified (OVL-03)."""

    Internal: int = 0
    InternalHigh: int = 0
    Offset: int = 0
    OffsetHigh: int = 0
    hEvent: int = 0


@dataclass(slots=True)
class WSANETWORKEVENTS:
    """``lNetworkEvents`` is a mask; ``iErrorCode`` is indexed by an event's bit."""

    lNetworkEvents: int = 0
    iErrorCode: list[int] = field(default_factory=lambda: [0] * FD_MAX_EVENTS)


@dataclass(slots=True)
class WSPDATA:
    """Filled by WSPStartupEx."""

    wVersion: int = 0
    wHighVersion: int = 0
    szDescription: str = ""


@dataclass(frozen=True, slots=True)
class WSAPROTOCOL_INFOW:
    """What the switch tells WSPStartupEx and WSPSocket of a protocol."""

    iAddressFamily: int
    iSocketType: int
    iProtocol: int
    dwCatalogEntryId: int = 1001
    dwProviderReserved: int = 0


class WSAEVENT:
    """An event object: SetEvent and ResetEvent in the words of the contract. Counts how often it was set."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set_count = 0

    def SetEvent(self) -> None:
        self.set_count += 1
        self._event.set()

    def ResetEvent(self) -> None:
        self._event.clear()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)


@dataclass(frozen=True, slots=True)
class WSPUPCALLTABLEEX:
    """The up-calls a SAN provider uses (the table's other twelve entries are not part of the SAN model)."""

    lpWPUCreateSocketHandle: Callable[[int, int, LpErrno], int]
    lpWPUCloseSocketHandle: Callable[[int, LpErrno], int]
    lpWPUQuerySocketHandleContext: Callable[[int, list[int], LpErrno], int]
    lpWPUCompleteOverlappedRequest: Callable[[int, WSAOVERLAPPED, int, int, LpErrno], int]
