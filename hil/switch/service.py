"""The ``provider`` role of a worker: the calls by which the controller drives a switch and its provider."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pyroute2 import IPRoute

from hil.netlink.link import RdmaLink
from hil.provider.broken import BROKEN
from hil.provider.provider import Provider
from hil.switch.switch import Switch, shown
from hil.winsock import codes as w
from hil.winsock.structures import WSABUF, WSANETWORKEVENTS, WSAPROTOCOL_INFOW, WSPDATA, LpErrno, SockAddr

TCP = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP)


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    service = Service(Switch(emit))
    return {name: getattr(service, name) for name in dir(service) if not name.startswith("_")}


def san_addresses() -> dict[str, str]:
    """IP addresses of the netdevs below RDMA devices, each with its device (ADDR-01, ADDR-02)."""
    with RdmaLink() as link:
        netdevs = {
            port["NDEV_INDEX"]: device["DEV_NAME"]
            for device in link.devices()
            for port in link.ports(device["DEV_INDEX"])
            if "NDEV_INDEX" in port
        }
    with IPRoute() as ip:
        return {
            message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"): netdevs[message["index"]]
            for message in ip.get_addr()
            if message["index"] in netdevs
        }


class Service:
    """One method a remote call; journals each WSP function with its times, result and code."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._table: dict[str, Callable[..., Any]] = {}

    def start(self, provider: str = "", version: int = w.WINSOCK_2_2) -> int:
        """WSPStartupEx; ``provider`` names a broken one."""
        maker = BROKEN[provider] if provider else Provider
        self._provider = maker(self._switch.journal, san_addresses)
        data, begun_ns = WSPDATA(), time.monotonic_ns()
        code = self._provider.WSPStartupEx(version, data, TCP, self._switch.table(), self._table)
        for name in w.EXTENSIONS.values():
            if hasattr(self._provider, name):
                self._table[name] = getattr(self._provider, name)
        self._switch.journal("call", function="WSPStartupEx", begun_ns=begun_ns, result=int(code), code=int(code))
        return int(code)

    def memory(self, size: int, data: bytes = b"") -> dict[str, int]:
        made = self._switch.new_memory(size)
        if data:
            self._switch.memories[made["memory"]].write(0, data)
        return made

    def write_memory(self, memory: int, offset: int, data: bytes) -> None:
        self._switch.memories[memory].write(offset, data)

    def handle_of(self, s: int) -> int:
        """The switch handle that was made for a descriptor."""
        return self._switch.handle_of(s)

    def read_memory(self, memory: int, offset: int, length: int) -> bytes:
        return self._switch.memories[memory].read(offset, length)

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

    def wait_completion(self, overlapped: int, timeout_s: float) -> dict[str, int] | None:
        return self._switch.wait_completion(overlapped, timeout_s)

    def WSPSocket(
        self, af: int = w.AF_INET, type: int = w.SOCK_STREAM, protocol: int = w.IPPROTO_TCP, g: int = 0
    ) -> Any:
        return self._call("WSPSocket", af, type, protocol, TCP, g, w.WSA_FLAG_OVERLAPPED)

    def WSPBind(self, s: int, address: str, port: int) -> Any:
        name = _name(address, port)
        return self._call("WSPBind", s, name, _length(name))

    def WSPListen(self, s: int, backlog: int) -> Any:
        return self._call("WSPListen", s, backlog)

    def WSPEventSelect(self, s: int, event: int, mask: int) -> Any:
        return self._call("WSPEventSelect", s, self._switch.events[event], mask)

    def WSPEnumNetworkEvents(self, s: int, event: int) -> Any:
        out = WSANETWORKEVENTS()
        answer = self._call("WSPEnumNetworkEvents", s, self._switch.events[event], out)
        return answer | {"events": out.lNetworkEvents, "codes": out.iErrorCode}

    def WSPConnect(self, s: int, address: str, port: int) -> Any:
        name = _name(address, port)
        return self._call("WSPConnect", s, name, _length(name), None, None, None, None)

    def WSPAccept(self, s: int) -> Any:
        addr, seen = SockAddr(0, "", 0), []

        def condition(*arguments: Any) -> int:
            seen.append(arguments[0])
            return w.CF_ACCEPT

        answer = self._call("WSPAccept", s, addr, [28], condition, 7)
        return answer | {"address": addr.sin_addr, "port": addr.sin_port, "asked": len(seen)}

    def WSPRegisterMemory(self, s: int, address: int, length: int, flags: int) -> Any:
        return self._call("WSPRegisterMemory", s, address, length, flags)

    def WSPDeregisterMemory(self, s: int, handle: int) -> Any:
        return self._call("WSPDeregisterMemory", s, handle)

    def WSPSend(self, s: int, buffers: list[list[int]], overlapped: int) -> Any:
        parts, o = [WSABUF(*b) for b in buffers], self._switch.overlapped[overlapped]
        return self._call("WSPSend", s, parts, len(parts), [0], 0, o, None, None, overlapped=overlapped)

    def WSPRecv(self, s: int, buffers: list[list[int]], overlapped: int) -> Any:
        parts, o = [WSABUF(*b) for b in buffers], self._switch.overlapped[overlapped]
        return self._call("WSPRecv", s, parts, len(parts), [0], [0], o, None, None, overlapped=overlapped)

    def WSPGetOverlappedResult(self, s: int, overlapped: int, wait: bool = False) -> Any:
        count, flags = [0], [0]
        o = self._switch.overlapped[overlapped]
        answer = self._call("WSPGetOverlappedResult", s, o, count, wait, flags, overlapped=overlapped)
        return answer | {"transferred": count[0], "flags": flags[0]}

    def WSPIoctl(self, s: int, code: int, given: str = "", room: int = 4096) -> Any:
        out: list[Any] = []
        answer = self._call("WSPIoctl", s, code, given, len(given), out, room, [0], None, None, None)
        return answer | {"out": [o.sin_addr if isinstance(o, SockAddr) else getattr(o, "__name__", "?") for o in out]}

    def WSPCloseSocket(self, s: int) -> Any:
        return self._call("WSPCloseSocket", s)

    def close_in_next_completion(self, s: int) -> None:
        """Call WSPCloseSocket from inside the next completion up-call."""
        self._switch.on_next_completion = lambda: self._call("WSPCloseSocket", s)

    def WSPCleanup(self) -> Any:
        return self._call("WSPCleanup")

    def _call(self, function: str, *arguments: Any, overlapped: int | None = None) -> dict[str, Any]:
        errno, begun_ns = LpErrno(), time.monotonic_ns()
        socket = arguments[0] if arguments and isinstance(arguments[0], int) and function != "WSPSocket" else None
        facts: dict[str, Any] = {"function": function, "socket": socket}
        if overlapped is not None:
            facts["overlapped"] = overlapped
        self._switch.journal("begin", **facts)
        result = shown(self._table[function](*arguments, errno))
        self._switch.journal("call", begun_ns=begun_ns, result=result, code=int(errno.value), **facts)
        return {"result": result, "code": int(errno.value)}


def _name(address: str, port: int) -> SockAddr:
    return SockAddr(w.AF_INET6 if ":" in address else w.AF_INET, address, port)


def _length(name: SockAddr) -> int:
    return 28 if name.sin_family == w.AF_INET6 else 16
