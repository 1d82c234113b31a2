"""The ``provider`` role of a worker: the controller's calls to a switch and its provider."""

import ctypes
import hashlib
import os
import queue
import random
import resource
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hil.adapters.network import Network
from hil.agent.loading import bring, load
from hil.provider.library import PROTOCOL_INFO, Library, install
from hil.provider.seam import settings_of
from hil.switch.switch import Switch, length_of, name_of
from hil.winsock import codes as w
from hil.winsock.catalogue import Catalogue
from hil.winsock.structures import (
    WSABUF,
    WSABUFEX,
    WSANETWORKEVENTS,
    WSAPROTOCOL_INFOW,
    WSPDATA,
    LpErrno,
    SockAddr,
)

TCP = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP)
COMPLETE = "WPUCompleteOverlappedRequest"
SETTLE_S = 0.05
# An invalid WSATHREADID. A provider that uses it fails.
_NO_THREAD = "no thread"


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    service = Service(Switch(emit))
    return {name: getattr(service, name) for name in dir(service) if not name.startswith("_")}


def pattern(seed: int, length: int) -> bytes:
    """``length`` bytes that depend on ``seed`` and do not repeat."""
    return random.Random(seed).randbytes(length)


class Service:
    """Each method is a remote call. Each WSP function is journalled with its times, result and code.

    ``deliberately`` names the switch's obligations that a call may break. Any other broken one makes the test fail.
    """

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._network: Network | None = None
        self._library: Library | None = None
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._fillers: list[int] = []

    # --- start and end -----------------------------------------------------------------------------------------------

    def start(
        self,
        provider: str,
        code: bytes = b"",
        version: int = w.WINSOCK_2_2,
        settings: Mapping[str, Any] | None = None,
        missing: str = "",
    ) -> int:
        """Load the provider and call WSPStartupEx.

        ``provider`` is the factory as ``MODULE:NAME``. ``code`` is a zip archive with it, for a node without it.
        ``settings`` are the provider's. ``missing`` is an argument to leave out.
        """
        bring(code)
        factory = load(provider)
        self._network = self._network or Network()
        self._provider = factory(self._switch.journal, self._network, settings_of(factory, settings or {}))
        self._info = getattr(factory, "protocol_info", PROTOCOL_INFO)
        self._catalogue = Catalogue()
        install(self._catalogue, self._info)
        self._libraries = {self._info.ProviderId: Library(self._provider)}
        self._library = self._libraries[self._catalogue.san_provider().ProviderId]
        return self.start_again(version, missing)

    def start_again(self, version: int = w.WINSOCK_2_2, missing: str = "", own_info: bool = False) -> int:
        """Call WSPStartupEx of the loaded provider again. ``own_info``: with its own protocol info, not TCP/IP's."""
        assert self._library is not None
        data, begun_ns = WSPDATA(), time.monotonic_ns()
        info = self._info if own_info else TCP
        code = self._library.WSPStartupEx(
            version,
            None if missing == "lpWSPData" else data,
            info,
            self._switch.table(),
            None if missing == "lpProcTable" else self._switch.functions,
        )
        facts = {"function": "WSPStartupEx", "begun_ns": begun_ns, "result": int(code), "code": int(code)}
        self._switch.journal("call", version=data.wVersion, **facts)
        return int(code)

    def catalogue(self) -> dict[str, Any]:
        """The installation's results: the entry that the switch loads, the registry, and the applications' view."""
        entry = self._catalogue.san_provider()
        return {
            "dwProviderFlags": entry.dwProviderFlags,
            "dwServiceFlags1": entry.dwServiceFlags1,
            "ProviderId": str(entry.ProviderId),
            "registry": self._catalogue.registry,
            "visible": len(self._catalogue.visible()),
            "loaded": self._libraries[entry.ProviderId] is self._library,
        }

    def surface(self) -> dict[str, list[str]]:
        """The loaded provider's exports, and the names in its dispatch table."""
        exported = [name for name in dir(self._library) if not name.startswith("_")]
        return {"exports": exported, "table": sorted(self._switch.functions)}

    def end(self) -> list[dict[str, Any]]:
        """Close every open socket, as the switch must (SWITCH-14), and call WSPCleanup. Returns all answers."""
        answers = [self._switch.close_socket(s) for s in self._switch.obligations.open_sockets()]
        return [*answers, self.WSPCleanup()]

    def process(self) -> dict[str, int]:
        """This process's numbers of open descriptors and threads, and its resident and pinned memory in bytes."""
        status = dict(
            line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
        )
        kib = {name: int(status.get(name, "0 kB").split()[0]) for name in ("VmRSS", "VmPin", "VmLck")}
        return {
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "threads": threading.active_count(),
            "resident": kib["VmRSS"] << 10,
            "pinned": (kib["VmPin"] + kib["VmLck"]) << 10,
        }

    def exhaust_descriptors(self, spare: int = 0) -> None:
        """Let this process open only ``spare`` more descriptors."""
        used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for _ in range(2):
            # Free descriptors below the limit count as well.
            with suppress(OSError):
                while True:
                    self._fillers.append(os.dup(0))
            # Another thread may close a descriptor that it had open for a moment.
            time.sleep(SETTLE_S)
        for _ in range(spare):
            os.close(self._fillers.pop())

    def free_descriptors(self) -> None:
        """Undo ``exhaust_descriptors``."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        while self._fillers:
            os.close(self._fillers.pop())

    def full_cm(self, call: str, arguments: Mapping[str, Any]) -> Any:
        """Make a call of this service while the kernel's connection manager has no room.

        /dev/full replaces the provider's channel, so every request gives ENOSPC. No other call may run meanwhile.
        """
        channel = self._provider.cm_fd
        kept, full = os.dup(channel), os.open("/dev/full", os.O_RDWR)
        os.dup2(full, channel, inheritable=False)
        try:
            return getattr(self, call)(**arguments)
        finally:
            os.dup2(kept, channel, inheritable=False)
            os.close(kept)
            os.close(full)

    def drop_rights(self) -> None:
        """Give up root and every capability, so that this process is an ordinary user's."""
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    def lock_limit(self, length: int) -> None:
        """Let this process lock at most ``length`` bytes of memory. It takes effect without CAP_IPC_LOCK (MEM-05)."""
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (length, length))

    # --- the switch's objects ----------------------------------------------------------------------------------------

    def memory(self, size: int, data: bytes = b"") -> dict[str, int]:
        made = self._switch.new_memory(size)
        if data:
            self._switch.memories[made["memory"]].write(0, data)
        return made

    def write_memory(self, memory: int, offset: int, data: bytes) -> None:
        self._switch.memories[memory].write(offset, data)

    def read_memory(self, memory: int, offset: int, length: int) -> bytes:
        return self._switch.memories[memory].read(offset, length)

    def fill_memory(self, memory: int, offset: int, length: int, seed: int) -> str:
        """Fill with ``pattern``. Returns its SHA-256, so that large contents stay on the node."""
        data = pattern(seed, length)
        self._switch.memories[memory].write(offset, data)
        return hashlib.sha256(data).hexdigest()

    def digest_memory(self, memory: int, offset: int, length: int) -> str:
        """The SHA-256 of a part of a memory."""
        return hashlib.sha256(self._switch.memories[memory].read(offset, length)).hexdigest()

    def remap_memory(self, memory: int, offset: int = 0, length: int = 0) -> None:
        """Replace a memory's pages, or ``length`` bytes of them, by new, zeroed ones at the same address."""
        self._switch.memories[memory].remap(offset, length)

    def free_memory(self, memory: int) -> None:
        self._switch.memories.pop(memory).free()

    def handle_of(self, s: int) -> int:
        """The switch handle of a descriptor."""
        return self._switch.handle_of(s)

    def query_context(self, handle: int) -> dict[str, int]:
        """Call WPUQuerySocketHandleContext, as a provider may."""
        context, code = [0], LpErrno()
        result = self._switch.table().lpWPUQuerySocketHandleContext(handle, context, code)
        return {"result": result, "context": context[0], "code": int(code.value)}

    def upcall(self, function: str, handle: int, overlapped: int = 0, error: int = 0) -> dict[str, int]:
        """Make one of the up-calls with a switch handle, as a provider would."""
        code, table = LpErrno(), self._switch.table()
        if function == "WPUCloseSocketHandle":
            result = table.lpWPUCloseSocketHandle(handle, code)
        elif function == "WPUCreateSocketHandle":
            result = table.lpWPUCreateSocketHandle(0, handle, code)
        else:
            structure = self._switch.overlapped[overlapped]
            result = table.lpWPUCompleteOverlappedRequest(handle, structure, error, 0, code)
        return {"result": result if result != w.INVALID_SOCKET else -1, "code": int(code.value)}

    def overlapped(self, hEvent: int = 0) -> int:
        return self._switch.new_overlapped(hEvent)

    def overlapped_state(self, overlapped: int) -> dict[str, int]:
        o = self._switch.overlapped[overlapped]
        return {n: int(getattr(o, n)) for n in ("Internal", "InternalHigh", "Offset", "OffsetHigh", "hEvent")}

    def event(self) -> int:
        return self._switch.new_event()

    def event_state(self, event: int) -> dict[str, int]:
        e = self._switch.events[event]
        return {"set": int(e.is_set()), "set_count": e.set_count}

    def wait_event(self, event: int, timeout_s: float) -> bool:
        return self._switch.events[event].wait(timeout_s)

    def set_event(self, event: int) -> None:
        self._switch.events[event].SetEvent()

    def in_next_completion(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Make a call of this service inside the next completion up-call. ``answer_in_completion`` gives its result."""
        self._switch.on_next[COMPLETE] = lambda: self._answers.put(getattr(self, call)(**arguments))

    def answer_in_completion(self, timeout_s: float = 10.0) -> Any:
        """The result of the call by ``in_next_completion``. Raises queue.Empty."""
        return self._answers.get(timeout=timeout_s)

    def in_a_row(self, calls: list[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Make calls of this service one right after the other. Returns their results."""
        return [getattr(self, call)(**arguments) for call, arguments in calls]

    def pause(self, seconds: float) -> None:
        """Give the adapter time to work, between other calls ``in_a_row``."""
        time.sleep(seconds)

    def hold_next(self, function: str, timeout_s: float = 25.0) -> dict[str, int]:
        """Hold the next up-call of ``function``. It sets event ``reached`` and returns when ``release`` is set."""
        reached, release = self._switch.new_event(), self._switch.new_event()

        def work() -> None:
            self._switch.events[reached].SetEvent()
            self._switch.events[release].wait(timeout_s)

        self._switch.on_next[function] = work
        return {"reached": reached, "release": release}

    def wait_completion(self, overlapped: int, timeout_s: float) -> dict[str, int] | None:
        return self._switch.wait_completion(overlapped, timeout_s)

    def wait_completions(self, overlapped: list[int], timeout_s: float) -> list[dict[str, int] | None]:
        """``wait_completion`` of each operation, within ``timeout_s`` for all together."""
        end = time.monotonic() + timeout_s
        return [self._switch.wait_completion(number, max(end - time.monotonic(), 0.0)) for number in overlapped]

    def late_by(self, seconds: float) -> None:
        """Let every completion become visible ``seconds`` after its up-call has returned. 0 leaves it to chance."""
        self._switch.late_by_s = seconds

    def fail_next(self, function: str, code: int, times: int = 1) -> None:
        """Let the next up-calls of ``function`` fail with ``code``."""
        self._switch.fail_next(function, code, times)

    # --- sockets -----------------------------------------------------------------------------------------------------

    def WSPSocket(
        self,
        af: int = w.AF_INET,
        type: int = w.SOCK_STREAM,
        protocol: int = w.IPPROTO_TCP,
        g: int = 0,
        flags: int = w.WSA_FLAG_OVERLAPPED,
        token: int = 0,
        deliberately: Collection[str] = (),
    ) -> Any:
        """Call WSPSocket. ``token``: dwProviderReserved of a duplicated socket."""
        info = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP, dwProviderReserved=token)
        return self._switch.call("WSPSocket", af, type, protocol, info, g, flags, deliberately=deliberately)

    def WSPBind(
        self, s: int, address: str, port: int, namelen: int = 0, null: bool = False, deliberately: Collection[str] = ()
    ) -> Any:
        name = name_of(address, port)
        pointer = None if null else name
        return self._switch.call("WSPBind", s, pointer, namelen or length_of(name), deliberately=deliberately)

    def WSPListen(self, s: int, backlog: int, deliberately: Collection[str] = ()) -> Any:
        return self._switch.call("WSPListen", s, backlog, deliberately=deliberately)

    def WSPEventSelect(self, s: int, event: int, mask: int) -> Any:
        """Call WSPEventSelect. ``event`` 0 is NULL."""
        return self._switch.call("WSPEventSelect", s, self._switch.events.get(event), mask)

    def WSPEnumNetworkEvents(self, s: int, event: int, null: bool = False, fill: int = 0) -> Any:
        """Call WSPEnumNetworkEvents. ``null``: pass no buffer for the answer. ``fill``: iErrorCode's content before."""
        out = WSANETWORKEVENTS(iErrorCode=[fill] * w.FD_MAX_EVENTS)
        place = None if null else out
        answer = self._switch.call("WSPEnumNetworkEvents", s, self._switch.events.get(event), place)
        return answer | {"events": out.lNetworkEvents, "codes": out.iErrorCode}

    def WSPConnect(
        self,
        s: int,
        address: str,
        port: int,
        caller_data: bytes = b"",
        callee_memory: int = 0,
        callee_room: int = 0,
        qos: bool = False,
        namelen: int = 0,
        deliberately: Collection[str] = (),
    ) -> Any:
        """Call WSPConnect. ``callee_memory`` takes the acceptor's data; read it after the connect has ended."""
        name = name_of(address, port)
        self._caller = ctypes.create_string_buffer(caller_data, max(len(caller_data), 1))
        caller = WSABUF(len(caller_data), ctypes.addressof(self._caller)) if caller_data else None
        callee = WSABUF(callee_room, self._switch.memories[callee_memory].address) if callee_memory else None
        arguments = (s, name, namelen or length_of(name), caller, callee, object() if qos else None, None)
        answer = self._switch.call("WSPConnect", *arguments, deliberately=deliberately)
        self._callee = callee
        return answer

    def callee_length(self) -> int:
        """The length of the acceptor's data, in bytes, of the last WSPConnect with ``callee_memory``."""
        return self._callee.len if self._callee is not None else -1

    def WSPAccept(
        self,
        s: int,
        decision: int = w.CF_ACCEPT,
        condition: str = "function",
        delay_s: float = 0.0,
        group: int = 0,
        callee_data: bytes = b"",
        callback_data: int = 7,
        room: int = 28,
        deliberately: Collection[str] = (),
    ) -> Any:
        """Call WSPAccept with a condition function that waits ``delay_s`` and answers ``decision``.

        ``condition``: "function", "none", or "junk" for an invalid pointer. The answer has the function's arguments.
        """
        addr, length = SockAddr(0, "", 0), [room]
        seen: dict[str, Any] = {}

        def function(
            caller_id: SockAddr, caller: WSABUF | None, sqos: Any, gqos: Any, callee_id: SockAddr, callee: WSABUF,
            groups: list[int], data: int,
        ) -> int:  # fmt: skip
            seen["thread"] = threading.get_native_id()
            seen["caller_id"] = [caller_id.sin_addr, caller_id.sin_port]
            seen["callee_id"] = [callee_id.sin_addr, callee_id.sin_port]
            seen["caller_data"] = ctypes.string_at(caller.buf, caller.len) if caller is not None else None
            seen["callback_data"] = data
            self._switch.journal("condition", socket=s, event="begins")
            time.sleep(delay_s)
            if callee_data:
                ctypes.memmove(callee.buf, callee_data, len(callee_data))
                callee.len = len(callee_data)
            groups[0] = group
            self._switch.journal("condition", socket=s, event="answers", decision=decision)
            return decision

        chosen: Any = {"function": function, "none": None, "junk": 0x1234}[condition]
        answer = self._switch.call("WSPAccept", s, addr, length, chosen, callback_data, deliberately=deliberately)
        facts = {"address": addr.sin_addr, "port": addr.sin_port, "addrlen": length[0], "asked": seen}
        return answer | facts | {"thread": threading.get_native_id()}

    # --- memory ------------------------------------------------------------------------------------------------------

    def WSPRegisterMemory(self, s: int, address: int, length: int, flags: int) -> Any:
        return self._switch.call("WSPRegisterMemory", s, address, length, flags)

    def WSPDeregisterMemory(self, s: int, handle: int, deliberately: Collection[str] = ()) -> Any:
        return self._switch.call("WSPDeregisterMemory", s, handle, deliberately=deliberately)

    def WSPRegisterRdmaMemory(self, s: int, address: int, length: int, flags: int, room: int = 64) -> Any:
        """Call WSPRegisterRdmaMemory. ``room``: the space for the descriptor, in bytes."""
        space, size = bytearray(room), [room]
        answer = self._switch.call("WSPRegisterRdmaMemory", s, address, length, flags, space, size)
        return answer | {"descriptor": bytes(space[: size[0]]), "descriptor_length": size[0]}

    def WSPDeregisterRdmaMemory(self, s: int, descriptor: bytes) -> Any:
        return self._switch.call("WSPDeregisterRdmaMemory", s, descriptor, len(descriptor))

    def WSPMemoryRegistrationCacheCallback(self, address: int, size: int) -> Any:
        return self._switch.call("WSPMemoryRegistrationCacheCallback", address, size)

    # --- data --------------------------------------------------------------------------------------------------------

    def WSPSend(
        self,
        s: int,
        buffers: list[list[int]],
        overlapped: int,
        flags: int = 0,
        routine: bool = False,
        deliberately: Collection[str] = (),
    ) -> Any:
        """Call WSPSend. ``buffers``: [length, address] each. ``routine``: pass a completion routine and a thread id."""
        parts, o = [WSABUF(*b) for b in buffers], self._switch.overlapped[overlapped]
        arguments = (s, parts, len(parts), [0], flags, o, *self._junk(routine))
        return self._captured(parts, "WSPSend", *arguments, overlapped=overlapped, deliberately=deliberately)

    def WSPRecv(
        self,
        s: int,
        buffers: list[list[int]],
        overlapped: int,
        routine: bool = False,
        deliberately: Collection[str] = (),
    ) -> Any:
        parts, o = [WSABUF(*b) for b in buffers], self._switch.overlapped[overlapped]
        arguments = (s, parts, len(parts), [0], [0], o, *self._junk(routine))
        return self._captured(parts, "WSPRecv", *arguments, overlapped=overlapped, deliberately=deliberately)

    def post_each(self, function: str, s: int, address: int, lengths: list[int]) -> list[list[int]]:
        """Call WSPSend or WSPRecv for each of ``lengths``, one behind the other from ``address`` on, without a pause.

        Returns the number of each WSAOVERLAPPED, and the code.
        """
        answers = []
        for length in lengths:
            overlapped = self.overlapped()
            answers.append([overlapped, getattr(self, function)(s, [[length, address]], overlapped)["code"]])
            address += length
        return answers

    def WSPRdmaWrite(self, s: int, buffers: list[list[int]], descriptor: bytes, overlapped: int, **more: Any) -> Any:
        """``buffers``: [length, address, handle] each."""
        return self._rdma("WSPRdmaWrite", s, buffers, descriptor, overlapped, **more)

    def WSPRdmaRead(self, s: int, buffers: list[list[int]], descriptor: bytes, overlapped: int, **more: Any) -> Any:
        """``buffers``: [length, address, handle] each."""
        return self._rdma("WSPRdmaRead", s, buffers, descriptor, overlapped, **more)

    def _rdma(
        self,
        function: str,
        s: int,
        buffers: list[list[int]],
        descriptor: bytes,
        overlapped: int,
        offset: int = 0,
        flags: int = 0,
        routine: bool = False,
        deliberately: Collection[str] = (),
    ) -> Any:
        parts, o = [WSABUFEX(*b) for b in buffers], self._switch.overlapped[overlapped]
        arguments = (s, parts, len(parts), descriptor, len(descriptor), offset, [0], flags, o, *self._junk(routine))
        return self._captured(parts, function, *arguments, overlapped=overlapped, deliberately=deliberately)

    def _captured(self, parts: list[Any], function: str, *arguments: Any, **more: Any) -> Any:
        """Call, and then overwrite the WSABUFs, so that a provider that kept the array transfers wrong data (Q7)."""
        answer = self._switch.call(function, *arguments, **more)
        for part in parts:
            part.len, part.buf = 1, 1
        parts.clear()
        return answer

    def _junk(self, routine: bool) -> tuple[object, object]:
        """A completion routine and a thread id that a provider must not use, or NULL twice."""
        return (self._never, _NO_THREAD) if routine else (None, None)

    def _never(self, *arguments: object) -> None:
        self._switch.journal("error", handle=0, traceback="a completion routine was called (OVL-06)")

    def WSPGetOverlappedResult(
        self, s: int, overlapped: int, wait: bool = False, fill: int = 0, deliberately: Collection[str] = ()
    ) -> Any:
        """Call WSPGetOverlappedResult. ``fill``: the content of byte count and flags before the call."""
        count, flags = [fill], [fill]
        o = self._switch.overlapped[overlapped]
        arguments = (s, o, count, wait, flags)
        answer = self._switch.call(
            "WSPGetOverlappedResult", *arguments, overlapped=overlapped, deliberately=deliberately
        )
        return answer | {"transferred": count[0], "flags": flags[0]}

    # --- options and control -----------------------------------------------------------------------------------------

    def WSPGetSockOpt(self, s: int, level: int, name: int, room: int = 4, null: bool = False) -> Any:
        value, length = bytearray(room), [room]
        answer = self._switch.call("WSPGetSockOpt", s, level, name, None if null else value, length)
        return answer | {"value": int.from_bytes(value[:4], "little"), "length": length[0]}

    def WSPSetSockOpt(
        self,
        s: int,
        level: int,
        name: int,
        value: int = 0,
        length: int = 4,
        null: bool = False,
        deliberately: Collection[str] = (),
    ) -> Any:
        given = None if null else value.to_bytes(4, "little")
        return self._switch.call("WSPSetSockOpt", s, level, name, given, length, deliberately=deliberately)

    def WSPIoctl(
        self, s: int, code: int, given: str = "", room: int = 4096, overlapped: int = 0, routine: bool = False
    ) -> Any:
        """Call WSPIoctl. ``given``: a GUID's text. ``overlapped`` 0 is NULL."""
        out: list[Any] = []
        count = [0]
        o = self._switch.overlapped[overlapped] if overlapped else None
        arguments = (s, code, given, len(given), out, room, count, o, *self._junk(routine))
        answer = self._switch.call("WSPIoctl", *arguments, overlapped=overlapped or None)
        found = [x.sin_addr if isinstance(x, SockAddr) else getattr(x, "__name__", "?") for x in out]
        return answer | {"out": found, "returned": count[0]}

    def WSPGetQOSByName(self, s: int) -> Any:
        return self._switch.call("WSPGetQOSByName", s, None, None)

    # --- hand-over and closing ---------------------------------------------------------------------------------------

    def WSPDuplicateSocket(self, s: int, pid: int, null: bool = False, deliberately: Collection[str] = ()) -> Any:
        """Call WSPDuplicateSocket. The answer's ``token`` is dwProviderReserved."""
        info = WSAPROTOCOL_INFOW(0, w.SOCK_STREAM, w.IPPROTO_TCP)
        answer = self._switch.call("WSPDuplicateSocket", s, pid, None if null else info, deliberately=deliberately)
        return answer | {"token": info.dwProviderReserved}

    def WSPCloseSocket(self, s: int, deliberately: Collection[str] = ()) -> Any:
        return self._switch.call("WSPCloseSocket", s, deliberately=deliberately)

    def close(self, s: int) -> Any:
        """Deregister idle memory and call WSPCloseSocket, as the switch does."""
        return self._switch.close_socket(s)

    def close_in_next_completion(self, s: int) -> None:
        """Call WSPCloseSocket inside the next completion up-call."""
        self._switch.on_next[COMPLETE] = lambda: self._switch.close_socket(s)

    def recv_in_next_completion(self, s: int, buffers: list[list[int]], overlapped: int) -> None:
        """Call WSPRecv inside the next completion up-call."""
        self._switch.on_next[COMPLETE] = lambda: self.WSPRecv(s, buffers, overlapped)

    def WSPCleanup(self, deliberately: Collection[str] = ()) -> Any:
        return self._switch.call("WSPCleanup", deliberately=deliberately)
