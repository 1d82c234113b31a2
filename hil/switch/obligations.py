"""The switch's obligations to its providers (SWITCH requirements), checked at every down-call.

This is bookkeeping only: it sees each call before it is made and each result, and reports a broken obligation with the
number of the requirement. The session reports obligations of its own protocol (hil.switch.session).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hil.winsock import codes as w
from hil.winsock.codes import Code

Report = Callable[[str, str], None]
_DATA_CALLS = {"WSPSend": 5, "WSPRecv": 5, "WSPRdmaWrite": 8, "WSPRdmaRead": 8}


@dataclass(slots=True)
class _Region:
    handle: int
    address: int
    length: int
    count: int = 1

    def covers(self, address: int, length: int) -> bool:
        return self.address <= address and address + length <= self.address + self.length

    def touches(self, address: int, length: int) -> bool:
        return self.address < address + length and address < self.address + self.length


@dataclass(slots=True)
class _Posted:
    function: str
    overlapped: Any
    buffers: list[tuple[int, int]]

    def pending(self) -> bool:
        return bool(self.overlapped.Internal == w.WSS_OPERATION_IN_PROGRESS)


@dataclass(slots=True)
class _Socket:
    accepted: bool = False
    duplicated: bool = False
    calls: list[str] = field(default_factory=list)
    selected: int = 0
    regions: dict[int, _Region] = field(default_factory=dict)
    exposed: dict[bytes, int] = field(default_factory=dict)
    posted: list[_Posted] = field(default_factory=list)
    # Handles of memory that was in use when the close began.
    left: set[int] = field(default_factory=set)
    # The provider's values of SO_MAX_MSG_SIZE and SO_MAX_RDMA_SIZE, by option.
    reported: dict[int, int] = field(default_factory=dict)

    def pending(self) -> list[_Posted]:
        self.posted = [operation for operation in self.posted if operation.pending()]
        return self.posted

    def in_use(self, region: _Region) -> bool:
        return any(region.touches(address, length) for p in self.pending() for length, address in p.buffers)


class Obligations:
    """Checks calls, and calls ``report(requirement, what)`` for each obligation that a call breaks."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sockets: dict[int, _Socket] = {}

    def begin_close(self, s: int) -> list[int]:
        """Handles of idle registered memory of ``s``, once for each registration. The switch must deregister them now.

        Memory that a pending operation uses now may stay registered, even if it becomes idle before the close.
        """
        known = self._sockets.get(s, _Socket())
        known.left = {r.handle for r in known.regions.values() if known.in_use(r)}
        return [r.handle for r in known.regions.values() if r.handle not in known.left for _ in range(r.count)]

    def was_duplicated(self, s: int) -> bool:
        """Whether ``s`` was handed over, so that only WSPCloseSocket may follow (DUP-07)."""
        return self._sockets.get(s, _Socket()).duplicated

    def exposed(self, s: int) -> list[bytes]:
        """Descriptors of ``s`` for the peer's RDMA, once for each registration."""
        known = self._sockets.get(s, _Socket())
        return [descriptor for descriptor, count in known.exposed.items() for _ in range(count)]

    def open_sockets(self) -> list[int]:
        return list(self._sockets)

    def before(self, function: str, arguments: tuple[Any, ...]) -> None:
        """Check a call before it is made. ``arguments`` are without lpErrno."""
        known = self._sockets.get(arguments[0]) if arguments and isinstance(arguments[0], int) else None
        if function == "WSPSocket":
            if not arguments[5] & w.WSA_FLAG_OVERLAPPED:
                self._report("SWITCH-01", "WSPSocket without WSA_FLAG_OVERLAPPED")
            return
        if function == "WSPCleanup" and self._sockets:
            self._report("SWITCH-14", f"WSPCleanup with sockets {sorted(self._sockets)} not closed")
        if known is None:
            return
        if known.duplicated and function != "WSPCloseSocket":
            self._report("SWITCH-15", f"{function} on a descriptor that was handed over")
        if function in _DATA_CALLS:
            self._data_call(known, function, arguments)
        check = getattr(self, f"_{function}", None)
        if check is not None:
            check(known, arguments)

    def after(self, function: str, arguments: tuple[Any, ...], result: Any, code: int) -> None:
        """Note the effect of a call."""
        if function == "WSPSocket" and result != w.INVALID_SOCKET:
            info = arguments[3]
            taken = bool(info is not None and info.dwProviderReserved)
            self._sockets[result] = _Socket(accepted=taken, selected=0)
            return
        known = self._sockets.get(arguments[0]) if arguments and isinstance(arguments[0], int) else None
        if known is None:
            return
        known.calls.append(function)
        if function == "WSPCloseSocket" and code != Code.WSAENOTSOCK:
            del self._sockets[arguments[0]]
        elif function == "WSPAccept" and result != w.INVALID_SOCKET:
            self._sockets[result] = _Socket(accepted=True)
        elif function in _DATA_CALLS and code == Code.WSA_IO_PENDING:
            place = 5 if function in ("WSPSend", "WSPRecv") else 8
            buffers = [(b.len, b.buf) for b in arguments[1][: arguments[2]]]
            known.posted.append(_Posted(function, arguments[place], buffers))
        elif code == Code.OK:
            self._note(known, function, arguments, result)

    def _note(self, known: _Socket, function: str, arguments: tuple[Any, ...], result: Any) -> None:
        if function == "WSPEventSelect":
            known.selected = arguments[2]
        elif function == "WSPGetSockOpt" and arguments[2] in (w.SO_MAX_MSG_SIZE, w.SO_MAX_RDMA_SIZE):
            known.reported[arguments[2]] = int.from_bytes(arguments[3][:4], "little")
        elif function == "WSPDuplicateSocket":
            known.duplicated = True
        elif function == "WSPRegisterMemory" and result:
            region = known.regions.setdefault(result, _Region(result, arguments[1], arguments[2], 0))
            region.count += 1
        elif function == "WSPDeregisterMemory" and arguments[1] in known.regions:
            region = known.regions[arguments[1]]
            region.count -= 1
            if not region.count:
                del known.regions[arguments[1]]
        elif function == "WSPRegisterRdmaMemory":
            descriptor = bytes(arguments[4])[: arguments[5][0]]
            known.exposed[descriptor] = known.exposed.get(descriptor, 0) + 1
        elif function == "WSPDeregisterRdmaMemory":
            descriptor = bytes(arguments[1])
            known.exposed[descriptor] = known.exposed.get(descriptor, 1) - 1
            if not known.exposed[descriptor]:
                del known.exposed[descriptor]

    # --- one function each -------------------------------------------------------------------------------------------

    def _data_call(self, known: _Socket, function: str, arguments: tuple[Any, ...]) -> None:
        rdma = function.startswith("WSPRdma")
        overlapped, routine = arguments[8 if rdma else 5], arguments[9 if rdma else 6]
        if overlapped is None or routine is not None:
            self._report("SWITCH-01", f"{function} without WSAOVERLAPPED or with a completion routine")
        buffers = arguments[1][: arguments[2]]
        if any(not any(r.covers(b.buf, b.len) for r in known.regions.values()) for b in buffers):
            self._report("SWITCH-02", f"{function} with memory that is not registered for the socket")
        length = sum(b.len for b in buffers)
        most = known.reported.get(w.SO_MAX_RDMA_SIZE if rdma else w.SO_MAX_MSG_SIZE, length)
        if length > most and function != "WSPRecv":
            self._report("SWITCH-03", f"{function} of {length} bytes, {most} is the most")
        if not rdma and function == "WSPSend" and arguments[4]:
            self._report("SHUT-04", "WSPSend with flags")

    def _WSPBind(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        if any(call != "WSPIoctl" for call in known.calls):
            self._report("SWITCH-04", f"WSPBind after {known.calls}")

    def _WSPConnect(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        self._ready(known, "WSPConnect", 0x10)

    def _WSPListen(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        self._ready(known, "WSPListen", 0x08)

    def _WSPAccept(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        if not known.selected & 0x08:
            self._report("SWITCH-05", "WSPAccept without FD_ACCEPT selected")

    def _ready(self, known: _Socket, function: str, event: int) -> None:
        if "WSPBind" not in known.calls:
            self._report("SWITCH-04", f"{function} before WSPBind")
        if not known.selected & event:
            self._report("SWITCH-05", f"{function} without its event selected")

    def _WSPSetSockOpt(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        if arguments[2] not in (w.SO_DEBUG, w.SO_GROUP_PRIORITY):
            self._report("OPT-06", f"option {arguments[2]:#x} is never set")
        # The application may set options of a socket in use at any time (SOCK-12).
        begun = known.accepted or {"WSPConnect", "WSPListen"} & set(known.calls)
        if "WSPEventSelect" in known.calls and not begun:
            self._report("SWITCH-04", "WSPSetSockOpt between WSPEventSelect and WSPConnect or WSPListen")

    def _WSPDeregisterMemory(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        region = known.regions.get(arguments[1])
        if region is not None and region.count == 1 and known.in_use(region):
            self._report("SWITCH-10", "WSPDeregisterMemory of memory in use")

    def _WSPGetOverlappedResult(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        overlapped = arguments[1]
        if not overlapped.hEvent & 1 and overlapped.Internal == w.WSS_OPERATION_IN_PROGRESS:
            self._report("SWITCH-12", "polling an operation that was to be notified")

    def _WSPCloseSocket(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        idle = [r.handle for r in known.regions.values() if r.handle not in known.left and not known.in_use(r)]
        if (idle or known.exposed) and not known.duplicated:
            self._report(
                "SWITCH-10", f"WSPCloseSocket with idle memory registered: {idle}, {len(known.exposed)} exposed"
            )

    def _WSPDuplicateSocket(self, known: _Socket, arguments: tuple[Any, ...]) -> None:
        busy = [p.function for p in known.pending() if p.function != "WSPRecv"]
        receives = {(length, address) for p in known.pending() for length, address in p.buffers}
        idle = [r for r in known.regions.values() if not any(r.touches(a, n) for n, a in receives)]
        if busy or idle or known.exposed:
            self._report("SWITCH-15", f"WSPDuplicateSocket with {busy} in progress, {len(idle)} idle regions")
