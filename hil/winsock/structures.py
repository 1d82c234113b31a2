"""Structures of the contract, with their documented member names."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from hil.winsock.codes import FD_MAX_EVENTS, Code

NULL_GUID = UUID(int=0)


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


@dataclass(slots=True)
class WSABUFEX:
    """A WSABUF with the ``handle`` that WSPRegisterMemory gave for its memory."""

    len: int
    buf: int
    handle: int


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


@dataclass(slots=True)
class WSAPROTOCOL_INFOW:
    """A protocol: the switch passes it to WSPStartupEx and WSPSocket, and WSPDuplicateSocket fills it.

    ``dwProviderReserved``: 0, or the token of a duplicated socket.
    """

    iAddressFamily: int
    iSocketType: int
    iProtocol: int
    dwCatalogEntryId: int = 1001
    dwProviderReserved: int = 0
    dwServiceFlags1: int = 0
    dwProviderFlags: int = 0
    ProviderId: UUID = NULL_GUID


class WSAEVENT:
    """An event object with the contract's SetEvent and ResetEvent. ``set_count``: how often it was set."""

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


def _unused(*_: object) -> int:
    raise NotImplementedError("this up-call is not part of the SAN model")


@dataclass(frozen=True, slots=True)
class WSPUPCALLTABLEEX:
    """The extended up-call table, in the order of ws2san.h. A SAN provider uses four of its sixteen entries."""

    lpWPUCloseEvent: Callable[..., int] = _unused
    lpWPUCloseSocketHandle: Callable[[int, LpErrno], int] = _unused
    lpWPUCreateEvent: Callable[..., int] = _unused
    lpWPUCreateSocketHandle: Callable[[int, int, LpErrno], int] = _unused
    lpWPUFDIsSet: Callable[..., int] = _unused
    lpWPUGetProviderPath: Callable[..., int] = _unused
    lpWPUModifyIFSHandle: Callable[..., int] = _unused
    lpWPUPostMessage: Callable[..., int] = _unused
    lpWPUQueryBlockingCallback: Callable[..., int] = _unused
    lpWPUQuerySocketHandleContext: Callable[[int, list[int], LpErrno], int] = _unused
    lpWPUQueueApc: Callable[..., int] = _unused
    lpWPUResetEvent: Callable[..., int] = _unused
    lpWPUSetEvent: Callable[..., int] = _unused
    lpWPUOpenCurrentThread: Callable[..., int] = _unused
    lpWPUCloseThread: Callable[..., int] = _unused
    lpWPUCompleteOverlappedRequest: Callable[[int, WSAOVERLAPPED, int, int, LpErrno], int] = _unused
