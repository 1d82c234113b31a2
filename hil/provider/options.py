"""Socket options, control codes and quality of service."""

import ipaddress
import struct
from collections.abc import Callable
from typing import Any

from hil.provider.core import FAMILIES, Refused
from hil.provider.data import RDMA_THRESHOLD
from hil.provider.handover import HandOver
from hil.provider.sockets import Kind, Operation, Outcome, SanSocket, State
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, WSAOVERLAPPED, LpErrno, SockAddr

_OPTION = struct.Struct("=I")
# All options are of the level SOL_SOCKET, and their values are 32-bit unsigned integers (OPT-14).
_READABLE = {w.SO_MAX_MSG_SIZE, w.SO_MAX_RDMA_SIZE, w.SO_RDMA_THRESHOLD_SIZE, w.SO_DEBUG}
_SETTABLE = {w.SO_DEBUG: (0, 1)}
_QOS_CODES = {w.SIO_GET_QOS, w.SIO_GET_GROUP_QOS, w.SIO_SET_QOS, w.SIO_SET_GROUP_QOS}
OPTIONAL = {"WSPRdmaRead": "rdma_read", "WSPMemoryRegistrationCacheCallback": "cache"}


class Options(HandOver):
    """WSPGetSockOpt, WSPSetSockOpt, WSPIoctl, WSPGetQOSByName."""

    def WSPGetSockOpt(
        self,
        s: int,
        level: int,
        optname: int,
        optval: bytearray | None,
        optlen: list[int] | None,
        lpErrno: LpErrno,
    ) -> int:
        """Store the value in ``optval`` and its length in ``optlen[0]``, in any state of the socket (OPT-10)."""
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._get_option(self._find(s), level, optname, optval, optlen)
        )

    def _get_option(
        self, socket: SanSocket, level: int, name: int, value: bytearray | None, length: list[int] | None
    ) -> int:
        _check_option(level, name, _READABLE)
        if value is None or length is None or min(length[0], len(value)) < _OPTION.size:
            raise Refused(Code.WSAEFAULT)
        with socket.lock:
            self._check_open(socket)
            known = {
                w.SO_MAX_MSG_SIZE: self._max_message(socket.connection),
                w.SO_MAX_RDMA_SIZE: self._max_rdma(socket.connection),
                w.SO_RDMA_THRESHOLD_SIZE: RDMA_THRESHOLD,
                w.SO_DEBUG: socket.options.get(w.SO_DEBUG, 0),
            }
        value[: _OPTION.size] = _OPTION.pack(known[name])
        length[0] = _OPTION.size
        return 0

    def WSPSetSockOpt(
        self, s: int, level: int, optname: int, optval: bytes | None, optlen: int, lpErrno: LpErrno
    ) -> int:
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._set_option(self._find(s), level, optname, optval, optlen)
        )

    def _set_option(self, socket: SanSocket, level: int, name: int, value: bytes | None, length: int) -> int:
        _check_option(level, name, _SETTABLE.keys())
        if value is None or min(length, len(value)) < _OPTION.size:
            raise Refused(Code.WSAEFAULT)
        (number,) = _OPTION.unpack_from(value)
        if number not in _SETTABLE[name]:
            raise Refused(Code.WSAEINVAL)
        with socket.lock:
            self._check_open(socket)
            if socket.state is State.DISCONNECTED:
                raise Refused(Code.WSAENOTCONN)
            socket.options[name] = number
        return 0

    # --- control codes -----------------------------------------------------------------------------------------------

    def WSPIoctl(
        self,
        s: int,
        dwIoControlCode: int,
        lpvInBuffer: object,
        cbInBuffer: int,
        lpvOutBuffer: list[Any] | None,
        cbOutBuffer: int,
        lpcbBytesReturned: list[int],
        lpOverlapped: WSAOVERLAPPED | None,
        lpCompletionRoutine: object,
        lpThreadId: object,
        lpErrno: LpErrno,
    ) -> int:
        """``lpvInBuffer`` holds a GUID as text. The result is appended to ``lpvOutBuffer``.

        With ``lpOverlapped`` the result is in place when the operation completes.
        """

        def work() -> int:
            socket = self._find(s)
            out, count = lpvOutBuffer, lpcbBytesReturned
            if lpOverlapped is None:
                return self._ioctl(socket, dwIoControlCode, lpvInBuffer, out, cbOutBuffer, count)
            return self._ioctl_overlapped(
                socket,
                lpOverlapped,
                lambda: self._ioctl(socket, dwIoControlCode, lpvInBuffer, out, cbOutBuffer, count),
                count,
            )

        return self._answer(lpErrno, w.SOCKET_ERROR, work)

    def _ioctl_overlapped(
        self, socket: SanSocket, overlapped: WSAOVERLAPPED, work: Callable[[], int], count: list[int]
    ) -> int:
        work()
        with socket.lock:
            self._check_open(socket)
            operation = Operation(next(self._wr_ids), Kind.IOCTL, overlapped, count[0])
            self._begin(socket, operation)
            self._finish(socket, operation)
            socket.outcomes.append(Outcome(operation, Code.OK, count[0]))
        self._kick(socket)
        raise Refused(Code.WSA_IO_PENDING)

    def _ioctl(
        self,
        socket: SanSocket,
        code: int,
        given: object,
        out: list[Any] | None,
        room: int,
        returned: list[int],
    ) -> int:
        self._check_open(socket)
        if code == w.SIO_GET_EXTENSION_FUNCTION_POINTER:
            return self._extension(given, out, room, returned)
        if code == w.SIO_ADDRESS_LIST_QUERY:
            return self._address_list(socket, out, room, returned)
        raise Refused(Code.WSAENOPROTOOPT if code in _QOS_CODES else Code.WSAEOPNOTSUPP)

    def _extension(self, given: object, out: list[Any] | None, room: int, returned: list[int]) -> int:
        name = w.EXTENSIONS.get(str(given).strip("{}").upper())
        if name is None:
            raise Refused(Code.WSAEINVAL)
        if name in OPTIONAL and not getattr(self._settings, OPTIONAL[name]):
            raise Refused(Code.WSAEOPNOTSUPP)
        if out is None or room < 8:
            raise Refused(Code.WSAEFAULT)
        out.append(getattr(self, name))
        returned[:] = [8]
        return 0

    def _address_list(self, socket: SanSocket, out: list[Any] | None, room: int, returned: list[int]) -> int:
        version = FAMILIES[socket.family]
        # The switch asks after TCP/IP has reported a change.
        known = self._network.addresses(afresh=True)
        addresses = sorted(a for a in known if ipaddress.ip_address(a).version == version)
        # SOCKET_ADDRESS_LIST: a count, then {pointer, length} and the sockaddr of each (64-bit layout).
        needed = 8 + len(addresses) * (16 + (16 if socket.family == w.AF_INET else 28))
        if out is None or room < needed:
            raise Refused(Code.WSAEFAULT)
        out.extend(SockAddr(socket.family, address, 0) for address in addresses)
        returned[:] = [needed]
        return 0

    def WSPGetQOSByName(self, s: int, lpQOSName: WSABUF | None, lpQOS: object, lpErrno: LpErrno) -> bool:
        """Always FALSE with WSAEOPNOTSUPP: this provider has no quality of service (QOS-01)."""

        def work() -> bool:
            self._find(s)
            raise Refused(Code.WSAEOPNOTSUPP)

        return self._answer(lpErrno, False, work)


def _check_option(level: int, name: int, known: Any) -> None:
    if level not in (w.SOL_SOCKET, w.IPPROTO_TCP):
        raise Refused(Code.WSAEINVAL)
    if level != w.SOL_SOCKET or name not in known:
        raise Refused(Code.WSAENOPROTOOPT)
