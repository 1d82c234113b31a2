"""The emulated Windows Sockets switch: its up-call table, its objects, and the journal of calls and up-calls."""

import ctypes
import itertools
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from hil import jitter
from hil.switch.obligations import Obligations
from hil.winsock import codes as w
from hil.winsock.codes import INVALID_SOCKET, SOCKET_ERROR, Code, shown
from hil.winsock.structures import WSAEVENT, WSAOVERLAPPED, WSPUPCALLTABLEEX, LpErrno, SockAddr

Emit = Callable[[dict[str, Any]], None]
_UNUSED = (
    "WPUCloseEvent",
    "WPUCreateEvent",
    "WPUFDIsSet",
    "WPUGetProviderPath",
    "WPUModifyIFSHandle",
    "WPUPostMessage",
    "WPUQueryBlockingCallback",
    "WPUQueueApc",
    "WPUResetEvent",
    "WPUSetEvent",
    "WPUOpenCurrentThread",
    "WPUCloseThread",
)
# The first argument of these functions is no descriptor.
_NOT_OF_A_SOCKET = ("WSPSocket", "WSPMemoryRegistrationCacheCallback")
_PROT_RW, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED = 3, 0x02, 0x20, 0x10
_MAP_FAILED = (1 << 64) - 1
# Every fourth completion becomes visible late, by up to this many seconds (UP-05).
LATE_UPDATE_S = 0.003

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_uint64
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Memory:
    """Page-aligned memory of the application. It keeps its address until ``free``."""

    def __init__(self, size: int) -> None:
        self.size = (max(size, 1) + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        self.address = self._map(None, 0)

    def _map(self, address: int | None, flags: int, length: int = 0) -> int:
        flags |= _MAP_PRIVATE | _MAP_ANONYMOUS
        found = int(_libc.mmap(address, length or self.size, _PROT_RW, flags, -1, 0))
        if found == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        return found

    def write(self, offset: int, data: bytes) -> None:
        self._check(offset, len(data))
        ctypes.memmove(self.address + offset, data, len(data))

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return ctypes.string_at(self.address + offset, length)

    def remap(self, offset: int = 0, length: int = 0) -> None:
        """Replace pages by new, zeroed ones at the same address, in one step, so that no other mapping takes it.

        ``length`` 0 replaces all pages.
        """
        self._check(offset, length)
        self._map(self.address + offset, _MAP_FIXED, length)

    def free(self) -> None:
        _libc.munmap(self.address, self.size)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not inside a buffer of {self.size}")


class Switch:
    """Creates handles, makes down-calls, receives completions, and journals all of them with node times.

    ``seed`` decides which completions become visible late. With ``late`` false none does.
    """

    def __init__(self, emit: Emit, *, seed: int = 1, late: bool = True) -> None:
        self._emit = emit
        self._lock = threading.Condition()
        self._random = random.Random(seed)
        self._late = late
        # Seconds by which every completion becomes visible late. 0 leaves it to chance.
        self.late_by_s = 0.0
        # No other process of the node uses these numbers, so two providers' journals cannot be mixed up.
        own = os.getpid() << 20
        self._handles: dict[int, int] = {}
        self._next_handle = itertools.count(own + 0x5001)
        self._numbers = itertools.count(own + 1)
        self.functions: dict[str, Callable[..., Any]] = {}
        self.memories: dict[int, Memory] = {}
        self.overlapped: dict[int, WSAOVERLAPPED] = {}
        self.events: dict[int, WSAEVENT] = {}
        self._overlapped_number: dict[int, int] = {}
        self._expected: set[int] = set()
        self._failures: dict[str, list[int]] = {}
        # Actions inside the next up-call of a function.
        self.on_next: dict[str, Callable[[], object]] = {}
        self.on_completion: dict[int, Callable[[int, int], object]] = {}
        self._completed: dict[int, tuple[int, int]] = {}
        self._deliberate: frozenset[str] = frozenset()
        self._checking = threading.Lock()
        self.obligations = Obligations(self._misbehaves)

    def table(self) -> WSPUPCALLTABLEEX:
        unused = {f"lp{name}": self._not_of_the_model(name) for name in _UNUSED}
        return WSPUPCALLTABLEEX(
            lpWPUCreateSocketHandle=self._create_socket_handle,
            lpWPUCloseSocketHandle=self._close_socket_handle,
            lpWPUQuerySocketHandleContext=self._query_context,
            lpWPUCompleteOverlappedRequest=self._complete,
            **unused,
        )

    def set_late(self, chance: random.Random, *, late: bool) -> None:
        """From now on let ``chance`` decide which completions become visible late. With ``late`` false none does."""
        self._random, self._late = chance, late

    def journal(self, kind: str, **facts: Any) -> None:
        place = {"thread": threading.get_native_id(), "pid": os.getpid()}
        self._emit({"kind": kind, "t_ns": time.monotonic_ns()} | place | facts)

    # --- down-calls --------------------------------------------------------------------------------------------------

    def call(
        self, function: str, *arguments: Any, overlapped: int | None = None, deliberately: Collection[str] = ()
    ) -> dict[str, Any]:
        """Call a function of the provider and journal it. ``deliberately``: obligations that the call may break."""
        code, begun_ns = LpErrno(), time.monotonic_ns()
        of_a_socket = arguments and isinstance(arguments[0], int) and function not in _NOT_OF_A_SOCKET
        socket = arguments[0] if of_a_socket else None
        facts: dict[str, Any] = {"function": function, "socket": socket}
        if overlapped is not None:
            facts |= {"overlapped": overlapped, "polled": bool(self.overlapped[overlapped].hEvent & 1)}
        self._check_before(function, arguments, deliberately)
        starts = overlapped is not None and function != "WSPGetOverlappedResult"
        if starts and overlapped is not None:
            self._expected.add(overlapped)
        self.journal("begin", **facts)
        jitter.nap(jitter.PROVIDER_CALL)
        result = self.functions[function](*arguments, code)
        jitter.nap(jitter.PROVIDER_CALL)
        if starts and code.value != Code.WSA_IO_PENDING:
            self._expected.discard(overlapped or 0)
        with self._checking:
            self.obligations.after(function, arguments, result, int(code.value))
        self.journal("call", begun_ns=begun_ns, result=shown(result), code=int(code.value), **facts)
        if function == "WSPSocket" and result != INVALID_SOCKET:
            self.fetch_extensions(result)
        return {"result": shown(result), "code": int(code.value)}

    def _check_before(self, function: str, arguments: tuple[Any, ...], deliberately: Collection[str]) -> None:
        with self._checking:
            self._deliberate = frozenset(deliberately)
            self.obligations.before(function, arguments)

    def _misbehaves(self, requirement: str, seen: str) -> None:
        deliberate = requirement in self._deliberate
        self.journal("misbehaves", requirement=requirement, seen=seen, deliberate=deliberate)

    def misbehaves(self, requirement: str, seen: str) -> None:
        """Journal an obligation that a part of the switch has broken."""
        self.journal("misbehaves", requirement=requirement, seen=seen, deliberate=False)

    def fetch_extensions(self, s: int) -> None:
        """Query each unknown extension function by its GUID (STARTUP-13)."""
        for guid, name in w.EXTENSIONS.items():
            if name not in self.functions:
                out: list[Any] = []
                code = w.SIO_GET_EXTENSION_FUNCTION_POINTER
                arguments = (s, code, guid, len(guid), out, 8, [0], None, None, None)
                if self.call("WSPIoctl", *arguments)["result"] == 0:
                    self.functions[name] = out[0]

    def close_socket(self, s: int, deliberately: Collection[str] = ()) -> dict[str, Any]:
        """WSPCloseSocket as the switch calls it: idle memory is deregistered first (SWITCH-10)."""
        for handle in [] if self.obligations.was_duplicated(s) else self.obligations.begin_close(s):
            self.call("WSPDeregisterMemory", s, handle)
        for descriptor in self.obligations.exposed(s):
            self.call("WSPDeregisterRdmaMemory", s, descriptor, len(descriptor))
        return self.call("WSPCloseSocket", s, deliberately=deliberately)

    # --- objects -----------------------------------------------------------------------------------------------------

    def handle_of(self, context: int) -> int:
        """The handle created with this context. Raises LookupError."""
        with self._lock:
            return next(handle for handle, known in self._handles.items() if known == context)

    def knows(self, handle: int) -> bool:
        """Whether ``handle`` was created and is not closed."""
        with self._lock:
            return handle in self._handles

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
        """An operation's completion by up-call, or None after ``timeout_s``."""
        with self._lock:
            if not self._lock.wait_for(lambda: overlapped in self._completed, timeout_s):
                return None
            code, transferred = self._completed[overlapped]
            return {"code": code, "transferred": transferred}

    def forget(self, overlapped: int) -> None:
        """Free an operation's structure."""
        with self._lock:
            made = self.overlapped.pop(overlapped)
            self._overlapped_number.pop(id(made), None)
            self._completed.pop(overlapped, None)
            self.on_completion.pop(overlapped, None)

    def fail_next(self, function: str, code: int, times: int = 1) -> None:
        """Let the next up-calls of ``function`` fail with ``code``."""
        with self._lock:
            self._failures[function] = [code] * times

    # --- up-calls ----------------------------------------------------------------------------------------------------

    def _failure(self, function: str) -> int:
        with self._lock:
            left = self._failures.get(function)
            return left.pop() if left else 0

    def _not_of_the_model(self, name: str) -> Callable[..., int]:
        def upcall(*arguments: Any) -> int:
            self.journal("upcall", function=name, handle=0, known=False)
            return SOCKET_ERROR

        return upcall

    def _create_socket_handle(self, dwCatalogEntryId: int, dwContext: int, lpErrno: LpErrno) -> int:
        if code := self._failure("WPUCreateSocketHandle"):
            self.journal("upcall", function="WPUCreateSocketHandle", handle=0, context=dwContext, failed=code)
            lpErrno.value = Code(code)
            return INVALID_SOCKET
        with self._lock:
            handle = next(self._next_handle)
            self._handles[handle] = dwContext
            work = self.on_next.pop("WPUCreateSocketHandle", None)
        self.journal("upcall", function="WPUCreateSocketHandle", handle=handle, context=dwContext)
        if work is not None:
            work()
        return handle

    def _close_socket_handle(self, s: int, lpErrno: LpErrno) -> int:
        with self._lock:
            known = self._handles.pop(s, None) is not None
            work = self.on_next.pop("WPUCloseSocketHandle", None)
        self.journal("upcall", function="WPUCloseSocketHandle", handle=s, known=known)
        if work is not None:
            work()
        if not known or self._failure("WPUCloseSocketHandle"):
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
        jitter.nap(jitter.UPCALL)
        number = self._overlapped_number.get(id(lpOverlapped), 0)
        with self._lock:
            known = s in self._handles
            was_pending = number in self._expected
            self._expected.discard(number)
            work = self.on_next.pop("WPUCompleteOverlappedRequest", None)
        self.journal(
            "upcall",
            function="WPUCompleteOverlappedRequest",
            handle=s,
            overlapped=number,
            code=int(dwError),
            transferred=cbTransferred,
            known=known,
            was_pending=was_pending,
        )
        if not known:
            lpErrno.value = Code.WSAEINVAL
            return SOCKET_ERROR
        self._make_visible(number, lpOverlapped, int(dwError), cbTransferred)
        if work is not None:
            work()
        if code := self._failure("WPUCompleteOverlappedRequest"):
            lpErrno.value = Code(code)
            return SOCKET_ERROR
        return 0

    def _make_visible(self, number: int, overlapped: WSAOVERLAPPED, error: int, transferred: int) -> None:
        if self.late_by_s or (self._late and self._random.random() < 0.25):
            delay_s = self.late_by_s or self._random.uniform(0, LATE_UPDATE_S)
            timer = threading.Timer(delay_s, self._update, (number, overlapped, error, transferred))
            timer.daemon = True
            timer.start()
        else:
            self._update(number, overlapped, error, transferred)

    def _update(self, number: int, overlapped: WSAOVERLAPPED, error: int, transferred: int) -> None:
        # In this order: a thread that sees the operation ended must find its byte count (UP-05).
        overlapped.InternalHigh = transferred
        overlapped.Internal = 0
        with self._lock:
            self._completed[number] = (error, transferred)
            call = self.on_completion.pop(number, None)
            self._lock.notify_all()
        if call is not None:
            call(error, transferred)


def name_of(address: str, port: int) -> SockAddr:
    """The sockaddr of an IPv4 or IPv6 address."""
    return SockAddr(w.AF_INET6 if ":" in address else w.AF_INET, address, port)


def length_of(name: SockAddr) -> int:
    """The length of its C structure, in bytes."""
    return 28 if name.sin_family == w.AF_INET6 else 16
