"""The emulated Windows Sockets switch: the up-call table, its objects, and the journal of both directions."""

import ctypes
import itertools
import mmap
import threading
import time
from collections.abc import Callable
from typing import Any

from hil.winsock.codes import INVALID_SOCKET, SOCKET_ERROR, WSS_OPERATION_IN_PROGRESS, Code
from hil.winsock.structures import WSAEVENT, WSAOVERLAPPED, WSPUPCALLTABLEEX, LpErrno

Emit = Callable[[dict[str, Any]], None]


class Memory:
    """A page-aligned buffer that stays where it is."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, max(size, 1))
        self.size = size
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]


class Switch:
    """Creates handles, receives completions, journals everything with node times."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Condition()
        self._handles: dict[int, int] = {}
        self._next_handle = itertools.count(0x5001)
        self._numbers = itertools.count(1)
        self.memories: dict[int, Memory] = {}
        self.overlapped: dict[int, WSAOVERLAPPED] = {}
        self.events: dict[int, WSAEVENT] = {}
        self._overlapped_number: dict[int, int] = {}
        self.on_next_completion: Callable[[], object] | None = None
        self._completed: dict[int, tuple[int, int]] = {}

    def table(self) -> WSPUPCALLTABLEEX:
        return WSPUPCALLTABLEEX(
            self._create_socket_handle, self._close_socket_handle, self._query_context, self._complete
        )

    def journal(self, kind: str, **facts: Any) -> None:
        self._emit({"kind": kind, "t_ns": time.monotonic_ns(), "thread": threading.get_native_id()} | facts)

    def handle_of(self, context: int) -> int:
        """The handle created with this context. Raises LookupError."""
        with self._lock:
            return next(handle for handle, known in self._handles.items() if known == context)

    def new_memory(self, size: int) -> dict[str, int]:
        memory, number = Memory(size), next(self._numbers)
        self.memories[number] = memory
        return {"memory": number, "address": memory.address}

    def new_overlapped(self, hEvent: int = 0) -> int:
        overlapped, number = WSAOVERLAPPED(hEvent=hEvent), next(self._numbers)
        self.overlapped[number] = overlapped
        self._overlapped_number[id(overlapped)] = number
        return number

    def new_event(self) -> int:
        number = next(self._numbers)
        self.events[number] = WSAEVENT()
        return number

    def wait_completion(self, overlapped: int, timeout_s: float) -> dict[str, int] | None:
        """How an operation was completed by up-call, or None after ``timeout_s``."""
        with self._lock:
            if not self._lock.wait_for(lambda: overlapped in self._completed, timeout_s):
                return None
            code, transferred = self._completed[overlapped]
            return {"code": code, "transferred": transferred}

    def _create_socket_handle(self, dwCatalogEntryId: int, dwContext: int, lpErrno: LpErrno) -> int:
        with self._lock:
            handle = next(self._next_handle)
            self._handles[handle] = dwContext
        self.journal("upcall", function="WPUCreateSocketHandle", handle=handle, context=dwContext)
        return handle

    def _close_socket_handle(self, s: int, lpErrno: LpErrno) -> int:
        with self._lock:
            known = self._handles.pop(s, None) is not None
        self.journal("upcall", function="WPUCloseSocketHandle", handle=s, known=known)
        if not known:
            lpErrno.value = Code.WSAENOTSOCK
            return SOCKET_ERROR
        return 0

    def _query_context(self, s: int, lpContext: list[int], lpErrno: LpErrno) -> int:
        with self._lock:
            context = self._handles.get(s)
        if context is None:
            lpErrno.value = Code.WSAENOTSOCK
            return SOCKET_ERROR
        lpContext[:] = [context]
        return 0

    def _complete(self, s: int, lpOverlapped: WSAOVERLAPPED, dwError: int, cbTransferred: int, lpErrno: LpErrno) -> int:
        number = self._overlapped_number.get(id(lpOverlapped), 0)
        with self._lock:
            known = s in self._handles
        self.journal(
            "upcall",
            function="WPUCompleteOverlappedRequest",
            handle=s,
            overlapped=number,
            code=int(dwError),
            transferred=cbTransferred,
            known=known,
            was_pending=lpOverlapped.Internal == WSS_OPERATION_IN_PROGRESS,
        )
        if not known:
            lpErrno.value = Code.WSAEINVAL
            return SOCKET_ERROR
        lpOverlapped.InternalHigh = cbTransferred
        lpOverlapped.Internal = 0
        with self._lock:
            self._completed[number] = (int(dwError), cbTransferred)
            work, self.on_next_completion = self.on_next_completion, None
            self._lock.notify_all()
        if work is not None:
            work()
        return 0


def shown(value: Any) -> Any:
    """A result as plain data: INVALID_SOCKET and NULL keep their names."""
    return "INVALID_SOCKET" if value == INVALID_SOCKET else value
