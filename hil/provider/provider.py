"""The SAN service provider: Winsock Direct sockets as RC queue pairs.

The dispatch functions keep their documented names and argument order. Each stores its code in ``lpErrno`` and returns
its sentinel. A thread of the provider's own turns CM events and completions into network events and up-calls.
"""

import contextlib
import errno
import ipaddress
import itertools
import os
import select
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from hil.provider.sockets import Operation, Outcome, Registration, SanSocket, State
from hil.verbs import connection as verbs
from hil.verbs.cm import CmChannel, CmEvent, CmEventType, CmId, ConnParam
from hil.verbs.connection import Completion, Connection, Device
from hil.winsock import codes as w
from hil.winsock.codes import Code, Event
from hil.winsock.structures import (
    WSABUF,
    WSAEVENT,
    WSANETWORKEVENTS,
    WSAOVERLAPPED,
    WSAPROTOCOL_INFOW,
    WSPDATA,
    WSPUPCALLTABLEEX,
    LpErrno,
    SockAddr,
)

RESOLVE_TIMEOUT_MS = 3000
FLUSH_TIMEOUT_S = 2.0
LINGER_TIMEOUT_S = 10.0
MAX_BACKLOG = 200
MAX_MESSAGE = 1 << 20
REJ_INVALID_SERVICE_ID = 8
ACK_TIMEOUT_EXPONENT = 16
_ACCESS = {w.MEM_READ: 0, w.MEM_WRITE: verbs.LOCAL_WRITE, w.MEM_READWRITE: verbs.LOCAL_WRITE}
_FAMILIES = {w.AF_INET: 4, w.AF_INET6: 6}

Observer = Callable[..., None]
T = TypeVar("T")


class Refused(Exception):
    """A call that ends with an error code."""

    def __init__(self, code: Code) -> None:
        super().__init__(str(code))
        self.code = code


class Provider:
    """A provider instance of one process. ``observe(kind, **facts)`` is told of CM events and completions."""

    def __init__(self, observe: Observer, addresses: Callable[[], dict[str, str]]) -> None:
        self._observe = observe
        self._addresses = addresses
        self._lock = threading.RLock()
        self._started = 0
        self._descriptors = itertools.count(0x1001)
        self._wr_ids = itertools.count(1)

    # --- start and end -------------------------------------------------------------------------------------------

    def WSPStartupEx(
        self,
        wVersionRequested: int,
        lpWSPData: WSPDATA | None,
        lpProtocolInfo: WSAPROTOCOL_INFOW,
        lpUpcallTable: WSPUPCALLTABLEEX,
        lpProcTable: dict[str, Callable[..., Any]] | None,
    ) -> int:
        """Returns the error code itself (STARTUP-03)."""
        if wVersionRequested & 0xFF != 2 or wVersionRequested >> 8 < 2:
            return Code.WSAVERNOTSUPPORTED
        if lpWSPData is None or lpProcTable is None:
            return Code.WSAEFAULT
        with self._lock:
            if not self._started:
                try:
                    self._open()
                except OSError:
                    return Code.WSASYSNOTREADY
            self._started += 1
            self._upcalls = lpUpcallTable
            self._catalog_entry = lpProtocolInfo.dwCatalogEntryId
        lpWSPData.wVersion = lpWSPData.wHighVersion = w.WINSOCK_2_2
        lpWSPData.szDescription = "SAN service provider over verbs"
        lpProcTable.update({name: getattr(self, name) for name in DISPATCH if hasattr(self, name)})
        return Code.OK

    def WSPCleanup(self, lpErrno: LpErrno) -> int:
        with self._lock:
            if not self._started:
                lpErrno.value = Code.WSANOTINITIALISED
                return w.SOCKET_ERROR
            self._started -= 1
            if self._started:
                return 0
            left = list(self._sockets.values())
            self._sockets.clear()
        for socket in left:
            self._tear_down(socket)
        self._close()
        return 0

    def _open(self) -> None:
        if not verbs.device_names():
            raise OSError(errno.ENODEV, "no RDMA device")
        self._sockets: dict[int, SanSocket] = {}
        self._by_cm: dict[int, SanSocket] = {}
        self._by_fd: dict[int, SanSocket] = {}
        self._lingering: dict[int, CmId] = {}
        self._linger_changed = threading.Condition(self._lock)
        self._devices: dict[str, Device] = {}
        self._channel = CmChannel()
        self._wake_read, self._wake_write = os.pipe()
        self._epoll = select.epoll()
        self._epoll.register(self._channel.fd, select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._progress, name="provider", daemon=True)
        self._thread.start()

    def _close(self) -> None:
        end_ns = time.monotonic_ns() + int(LINGER_TIMEOUT_S * 1e9)
        with self._linger_changed:
            while self._lingering and (left_ns := end_ns - time.monotonic_ns()) > 0:
                self._linger_changed.wait(left_ns / 1e9)
        os.write(self._wake_write, b"x")
        self._thread.join()
        for cm_id in self._lingering.values():
            cm_id.destroy()
        for device in self._devices.values():
            device.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._channel.close()

    # --- sockets -------------------------------------------------------------------------------------------------

    def WSPSocket(
        self,
        af: int,
        type: int,
        protocol: int,
        lpProtocolInfo: WSAPROTOCOL_INFOW | None,
        g: int,
        dwFlags: int,
        lpErrno: LpErrno,
    ) -> int:
        return self._answer(lpErrno, w.INVALID_SOCKET, lambda: self._socket(af, type, protocol, g))

    def _socket(self, af: int, type: int, protocol: int, group: int) -> int:
        if af not in _FAMILIES:
            raise Refused(Code.WSAEAFNOSUPPORT)
        if type != w.SOCK_STREAM:
            raise Refused(Code.WSAEPROTOTYPE if protocol == w.IPPROTO_TCP and type == 2 else Code.WSAESOCKTNOSUPPORT)
        if protocol not in (0, w.IPPROTO_TCP):
            raise Refused(Code.WSAEPROTONOSUPPORT)
        if group:
            raise Refused(Code.WSAEINVAL)
        return self._new_socket(af).descriptor

    def _new_socket(self, family: int) -> SanSocket:
        descriptor = next(self._descriptors)
        errno_of_upcall = LpErrno()
        handle = self._upcalls.lpWPUCreateSocketHandle(self._catalog_entry, descriptor, errno_of_upcall)
        if handle == w.INVALID_SOCKET:
            raise Refused(errno_of_upcall.value)
        socket = SanSocket(descriptor, handle, family)
        with self._lock:
            self._sockets[descriptor] = socket
        return socket

    def WSPBind(self, s: int, name: SockAddr, namelen: int, lpErrno: LpErrno) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._bind(self._find(s), name, namelen))

    def _bind(self, socket: SanSocket, name: SockAddr, namelen: int) -> int:
        self._check_address(socket, name, namelen)
        with socket.lock:
            self._check_open(socket)
            if socket.state is not State.CREATED:
                raise Refused(Code.WSAEINVAL)
            if not ipaddress.ip_address(name.sin_addr).is_unspecified and name.sin_addr not in self._addresses():
                raise Refused(Code.WSAEADDRNOTAVAIL)
            cm_id = self._channel.create_id()
            try:
                cm_id.bind(name.sin_addr, name.sin_port)
            except OSError as error:
                cm_id.destroy()
                raise Refused(
                    Code.WSAEADDRNOTAVAIL if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV) else Code.WSAENOBUFS
                ) from error
            socket.local = SockAddr(socket.family, *cm_id.local)
            self._adopt(socket, cm_id)
            socket.state = State.BOUND
        return 0

    def _adopt(self, socket: SanSocket, cm_id: CmId) -> None:
        socket.cm_id = cm_id
        with self._lock:
            self._by_cm[cm_id.key or 0] = socket

    def WSPListen(self, s: int, backlog: int, lpErrno: LpErrno) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._listen(self._find(s), backlog))

    def _listen(self, socket: SanSocket, backlog: int) -> int:
        with socket.lock:
            self._check_open(socket)
            if socket.state in (State.CONNECTED, State.CONNECTING, State.DISCONNECTED):
                raise Refused(Code.WSAEISCONN)
            if socket.state is not State.BOUND or socket.cm_id is None:
                raise Refused(Code.WSAEINVAL)
            socket.backlog = MAX_BACKLOG if backlog == w.SOMAXCONN else max(1, min(backlog, MAX_BACKLOG))
            socket.state = State.LISTENING
            try:
                socket.cm_id.listen(MAX_BACKLOG)
            except OSError as error:
                socket.state = State.BOUND
                raise Refused(Code.WSAENOBUFS) from error
        return 0

    # --- events --------------------------------------------------------------------------------------------------

    def WSPEventSelect(self, s: int, hEventObject: WSAEVENT | None, lNetworkEvents: int, lpErrno: LpErrno) -> int:
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._event_select(self._find(s), hEventObject, lNetworkEvents)
        )

    def _event_select(self, socket: SanSocket, event: WSAEVENT | None, mask: int) -> int:
        if mask & ~int(Event.FD_ACCEPT | Event.FD_CONNECT) or (mask and event is None):
            raise Refused(Code.WSAEINVAL)
        with socket.lock:
            self._check_open(socket)
            socket.event, socket.selected = (event, mask) if mask else (None, 0)
            if event is not None and socket.happened & mask:
                event.SetEvent()
        return 0

    def WSPEnumNetworkEvents(
        self, s: int, hEventObject: WSAEVENT | None, lpNetworkEvents: WSANETWORKEVENTS, lpErrno: LpErrno
    ) -> int:
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._enum_events(self._find(s), hEventObject, lpNetworkEvents)
        )

    def _enum_events(self, socket: SanSocket, event: WSAEVENT | None, out: WSANETWORKEVENTS) -> int:
        with socket.lock:
            self._check_open(socket)
            out.lNetworkEvents = socket.happened & socket.selected
            for bit in range(w.FD_MAX_EVENTS):
                if out.lNetworkEvents & (1 << bit):
                    out.iErrorCode[bit] = socket.event_codes[bit]
            socket.happened &= ~out.lNetworkEvents
            if event is not None:
                event.ResetEvent()
        return 0

    def _signal(self, socket: SanSocket, event: Event, bit: int, code: Code) -> None:
        with socket.lock:
            if socket.closing:
                return
            socket.happened |= event
            socket.event_codes[bit] = code
            if socket.event is not None and socket.selected & event:
                socket.event.SetEvent()

    # --- connecting and accepting ----------------------------------------------------------------------------------

    def WSPConnect(
        self,
        s: int,
        name: SockAddr,
        namelen: int,
        lpCallerData: WSABUF | None,
        lpCalleeData: WSABUF | None,
        lpSQOS: object,
        lpGQOS: object,
        lpErrno: LpErrno,
    ) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._connect(self._find(s), name, namelen, lpCallerData))

    def _connect(self, socket: SanSocket, name: SockAddr, namelen: int, caller_data: WSABUF | None) -> int:
        self._check_address(socket, name, namelen)
        if caller_data is not None:
            raise Refused(Code.WSAEPROTONOSUPPORT)
        if ipaddress.ip_address(name.sin_addr).is_unspecified or name.sin_port == 0:
            raise Refused(Code.WSAEADDRNOTAVAIL)
        # A connection to oneself never reaches a wire; TCP/IP serves it (CONN-26).
        if name.sin_addr in self._addresses():
            raise Refused(Code.WSAEADDRNOTAVAIL)
        with socket.lock:
            self._check_open(socket)
            wrong = {
                State.CONNECTING: Code.WSAEALREADY,
                State.CONNECTED: Code.WSAEISCONN,
                State.LISTENING: Code.WSAEINVAL,
                State.DISCONNECTED: Code.WSAEISCONN,
                State.FAILED: Code.WSAEINVAL,
            }
            if socket.state in wrong:
                raise Refused(wrong[socket.state])
            if socket.cm_id is None:
                self._adopt(socket, self._channel.create_id())
            assert socket.cm_id is not None
            socket.remote = name
            socket.state = State.CONNECTING
            try:
                socket.cm_id.resolve_addr(name.sin_addr, name.sin_port, RESOLVE_TIMEOUT_MS)
            except OSError as error:
                socket.state = State.FAILED
                raise Refused(Code.WSAETIMEDOUT) from error
        raise Refused(Code.WSAEWOULDBLOCK)

    def WSPAccept(
        self,
        s: int,
        addr: SockAddr | None,
        addrlen: list[int] | None,
        lpfnCondition: Callable[..., int] | None,
        dwCallbackData: int,
        lpErrno: LpErrno,
    ) -> int:
        return self._answer(
            lpErrno,
            w.INVALID_SOCKET,
            lambda: self._accept(self._find(s), addr, addrlen, lpfnCondition, dwCallbackData),
        )

    def _accept(
        self,
        listener: SanSocket,
        addr: SockAddr | None,
        addrlen: list[int] | None,
        condition: Callable[..., int] | None,
        callback_data: int,
    ) -> int:
        if addr is not None and (addrlen is None or addrlen[0] < 16):
            raise Refused(Code.WSAEFAULT)
        with listener.lock:
            self._check_open(listener)
            if listener.state is not State.LISTENING:
                raise Refused(Code.WSAEINVAL)
            if not listener.queue:
                raise Refused(Code.WSAEWOULDBLOCK)
            request = listener.queue.popleft()
        assert request.new_id is not None
        peer = SockAddr(listener.family, *request.new_id.remote)
        local = SockAddr(listener.family, *request.new_id.local)
        decision = w.CF_ACCEPT
        if condition is not None:
            decision = condition(peer, None, None, None, local, None, [0], callback_data)
        if decision == w.CF_DEFER:
            with listener.lock:
                listener.queue.appendleft(request)
            raise Refused(Code.WSATRY_AGAIN)
        if decision != w.CF_ACCEPT:
            self._refuse(request.new_id)
            raise Refused(Code.WSAECONNREFUSED if decision == w.CF_REJECT else Code.WSAEINVAL)
        socket = self._accept_request(listener, request, peer, local)
        self._after_accept(listener)
        if addr is not None and addrlen is not None:
            addr.sin_family, addr.sin_addr, addr.sin_port = peer.sin_family, peer.sin_addr, peer.sin_port
            addrlen[0] = 16 if listener.family == w.AF_INET else 28
        return socket.descriptor

    def _accept_request(self, listener: SanSocket, request: CmEvent, peer: SockAddr, local: SockAddr) -> SanSocket:
        assert request.new_id is not None
        try:
            socket = self._new_socket(listener.family)
        except Refused:
            self._refuse(request.new_id)
            raise
        try:
            with socket.lock:
                socket.local, socket.remote = local, peer
                self._adopt(socket, request.new_id)
                self._make_connection(socket)
                assert socket.connection is not None
                socket.connection.to_rts()
                socket.state = State.CONNECTED
                request.new_id.accept(self._conn_param(socket.connection))
        except Exception as error:
            self._observe("accept failed", handle=socket.handle, error=repr(error))
            self._drop(socket)
            raise Refused(Code.WSAECONNRESET) from error
        return socket

    def _drop(self, socket: SanSocket) -> None:
        socket.state = State.FAILED
        self.WSPCloseSocket(socket.descriptor, LpErrno())

    def _after_accept(self, listener: SanSocket) -> None:
        with listener.lock:
            if listener.event is not None and not listener.closing:
                listener.event.ResetEvent()
            if listener.queue:
                self._signal(listener, Event.FD_ACCEPT, w.FD_ACCEPT_BIT, Code.OK)

    def _refuse(self, cm_id: CmId) -> None:
        with contextlib.suppress(OSError):
            cm_id.reject()
        with contextlib.suppress(OSError):
            cm_id.destroy()

    def _make_connection(self, socket: SanSocket) -> None:
        assert socket.cm_id is not None
        name = socket.cm_id.device_name()
        with self._lock:
            if name not in self._devices:
                self._devices[name] = Device(name)
        connection = Connection(self._devices[name], socket.cm_id)
        connection.to_init()
        socket.connection = connection
        with self._lock:
            self._by_fd[connection.fd] = socket
        self._epoll.register(connection.fd, select.EPOLLIN)
        self._observe("qp", handle=socket.handle, qp_num=connection.qp_num)

    def _conn_param(self, connection: Connection) -> ConnParam:
        return ConnParam(
            responder_resources=4,
            initiator_depth=4,
            retry_count=7,
            rnr_retry_count=7,
            qp_num=connection.qp_num,
        )

    # --- memory ----------------------------------------------------------------------------------------------------

    def WSPRegisterMemory(
        self, s: int, lpBuffer: int, dwBufferLength: int, dwFlags: int, lpErrno: LpErrno
    ) -> int | None:
        """A handle, or None (NULL)."""
        return self._answer(lpErrno, None, lambda: self._register(self._find(s), lpBuffer, dwBufferLength, dwFlags))

    def _register(self, socket: SanSocket, address: int, length: int, flags: int) -> int:
        if flags not in _ACCESS:
            raise Refused(Code.WSAEINVAL)
        with socket.lock:
            connection = self._connected(socket)
            try:
                mr = connection.register(address, length, _ACCESS[flags])
            except Exception as error:
                raise Refused(_registration_code(error)) from error
            registration = Registration(mr.lkey + 1, address, length, flags, mr)
            socket.registrations.append(registration)
        return registration.handle

    def WSPDeregisterMemory(self, s: int, Handle: int, lpErrno: LpErrno) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._deregister(self._find(s), Handle))

    def _deregister(self, socket: SanSocket, handle: int) -> int:
        with socket.lock:
            self._check_open(socket)
            found = next((r for r in socket.registrations if r.handle == handle), None)
            if found is None or found.in_use:
                raise Refused(Code.WSAEINVAL)
            socket.registrations.remove(found)
            found.mr.close()
        return 0

    # --- data ------------------------------------------------------------------------------------------------------

    def WSPSend(
        self,
        s: int,
        lpBuffers: list[WSABUF],
        dwBufferCount: int,
        lpNumberOfBytesSent: list[int],
        dwFlags: int,
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: object,
        lpThreadId: object,
        lpErrno: LpErrno,
    ) -> int:
        if dwFlags:
            lpErrno.value = Code.WSAEOPNOTSUPP
            return w.SOCKET_ERROR
        parts = lpBuffers[:dwBufferCount]
        return self._answer(
            lpErrno,
            w.SOCKET_ERROR,
            lambda: self._post(self._find(s), "send", parts, lpOverlapped, w.MEM_READ),
        )

    def WSPRecv(
        self,
        s: int,
        lpBuffers: list[WSABUF],
        dwBufferCount: int,
        lpNumberOfBytesRecvd: list[int],
        lpFlags: list[int],
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: object,
        lpThreadId: object,
        lpErrno: LpErrno,
    ) -> int:
        parts = lpBuffers[:dwBufferCount]
        return self._answer(
            lpErrno,
            w.SOCKET_ERROR,
            lambda: self._post(self._find(s), "recv", parts, lpOverlapped, w.MEM_WRITE),
        )

    def _post(self, socket: SanSocket, kind: str, buffers: list[WSABUF], overlapped: WSAOVERLAPPED, need: int) -> int:
        with socket.lock:
            connection = self._connected(socket)
            registrations = [self._registration(socket, buffer, need) for buffer in buffers]
            length = sum(buffer.len for buffer in buffers)
            if length > MAX_MESSAGE:
                raise Refused(Code.WSAEMSGSIZE)
            operation = Operation(next(self._wr_ids), kind, overlapped, length, registrations)
            parts = [(b.buf, b.len, r.mr.lkey) for b, r in zip(buffers, registrations, strict=True)]
            overlapped.Internal = w.WSS_OPERATION_IN_PROGRESS
            socket.pending[operation.wr_id] = operation
            for registration in registrations:
                registration.in_use += 1
            try:
                (connection.post_send if kind == "send" else connection.post_recv)(operation.wr_id, parts)
            except Exception as error:
                self._finish(socket, operation)
                raise Refused(Code.WSAENOBUFS) from error
        raise Refused(Code.WSA_IO_PENDING)

    def _registration(self, socket: SanSocket, buffer: WSABUF, need: int) -> Registration:
        for registration in socket.registrations:
            if registration.covers(buffer.buf, buffer.len) and registration.flags & need:
                return registration
        raise Refused(Code.WSAEFAULT)

    def WSPGetOverlappedResult(
        self,
        s: int,
        lpOverlapped: WSAOVERLAPPED,
        lpcbTransfer: list[int],
        fWait: bool,
        lpdwFlags: list[int],
        lpErrno: LpErrno,
    ) -> bool:
        return bool(
            self._answer(
                lpErrno,
                False,
                lambda: self._result(self._find(s), lpOverlapped, lpcbTransfer, fWait, lpdwFlags),
            )
        )

    def _result(
        self,
        socket: SanSocket,
        overlapped: WSAOVERLAPPED,
        transferred: list[int],
        wait: bool,
        flags: list[int],
    ) -> bool:
        self._collect(socket)
        self._deliver(socket)
        with socket.lock:
            while wait and overlapped.Internal == w.WSS_OPERATION_IN_PROGRESS and not socket.closing:
                socket.lock.wait(0.05)
        if overlapped.Internal == w.WSS_OPERATION_IN_PROGRESS:
            raise Refused(Code.WSA_IO_INCOMPLETE)
        transferred[:], flags[:] = [overlapped.InternalHigh], [overlapped.Offset]
        if overlapped.OffsetHigh:
            raise Refused(Code(overlapped.OffsetHigh))
        return True

    def WSPIoctl(
        self,
        s: int,
        dwIoControlCode: int,
        lpvInBuffer: object,
        cbInBuffer: int,
        lpvOutBuffer: list[Any],
        cbOutBuffer: int,
        lpcbBytesReturned: list[int],
        lpOverlapped: WSAOVERLAPPED | None,
        lpCompletionRoutine: object,
        lpThreadId: object,
        lpErrno: LpErrno,
    ) -> int:
        """The GUID comes as its text in ``lpvInBuffer``; the result is appended to ``lpvOutBuffer``."""
        return self._answer(
            lpErrno,
            w.SOCKET_ERROR,
            lambda: self._ioctl(
                self._find(s), dwIoControlCode, lpvInBuffer, lpvOutBuffer, cbOutBuffer, lpcbBytesReturned
            ),
        )

    def _ioctl(
        self, socket: SanSocket, code: int, given: object, out: list[Any], room: int, returned: list[int]
    ) -> int:
        if code == w.SIO_GET_EXTENSION_FUNCTION_POINTER:
            name = w.EXTENSIONS.get(str(given).strip("{}").upper())
            if name is None:
                raise Refused(Code.WSAEINVAL)
            if not hasattr(self, name):
                raise Refused(Code.WSAEOPNOTSUPP)
            out.append(getattr(self, name))
            returned[:] = [8]
            return 0
        if code == w.SIO_ADDRESS_LIST_QUERY:
            addresses = sorted(
                a for a in self._addresses() if ipaddress.ip_address(a).version == _FAMILIES[socket.family]
            )
            # SOCKET_ADDRESS_LIST: a count, then {pointer, length} and the sockaddr of each (64-bit layout).
            needed = 8 + len(addresses) * (16 + (16 if socket.family == w.AF_INET else 28))
            if room < needed:
                raise Refused(Code.WSAEFAULT)
            out.extend(SockAddr(socket.family, address, 0) for address in addresses)
            returned[:] = [needed]
            return 0
        raise Refused(Code.WSAEOPNOTSUPP)

    # --- closing ---------------------------------------------------------------------------------------------------

    def WSPCloseSocket(self, s: int, lpErrno: LpErrno) -> int:
        """Always a hard close (CLOSE-06): stop, reset, flush, release, complete, close the handle, free."""
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._close_socket(s))

    def _close_socket(self, descriptor: int) -> int:
        with self._lock:
            self._check_started()
            socket = self._sockets.pop(descriptor, None)
        if socket is None:
            raise Refused(Code.WSAENOTSOCK)
        self._tear_down(socket)
        return 0

    def _tear_down(self, socket: SanSocket) -> None:
        with socket.lock:
            socket.closing = True
            socket.event, socket.selected = None, 0
            was, connection = socket.state, socket.connection
            requests, socket.queue = list(socket.queue), type(socket.queue)()
        for request in requests:
            assert request.new_id is not None
            self._refuse(request.new_id)
        if connection is not None:
            self._unwatch(connection)
            self._step(connection.to_error)
            if was is State.CONNECTED:
                self._step(self._send_reset, socket)
            self._step(self._flush, socket, connection)
            self._step(self._release_memory, socket)
        self._deliver(socket, wait=True)
        self._upcalls.lpWPUCloseSocketHandle(socket.handle, LpErrno())
        if connection is not None:
            self._step(self._free, connection)
        self._step(self._release_cm_id, socket)

    def _step(self, work: Callable[..., object], *arguments: object) -> None:
        # One step of a close that fails must not keep the others from being done.
        try:
            work(*arguments)
        except Exception:
            self._observe("error", handle=0, traceback=traceback.format_exc())

    def _unwatch(self, connection: Connection) -> None:
        with self._lock:
            if self._by_fd.pop(connection.fd, None) is not None:
                self._epoll.unregister(connection.fd)

    def _send_reset(self, socket: SanSocket) -> None:
        cm_id = socket.cm_id
        assert cm_id is not None and cm_id.key is not None
        # Destroying the id would also stop the retransmission of a lost DREQ: it lingers until its DISCONNECTED
        # event, and from here on that event is not the socket's any more.
        with socket.lock, self._lock:
            if socket.state is not State.CONNECTED:
                return
            self._by_cm.pop(cm_id.key, None)
            self._lingering[cm_id.key] = cm_id
            socket.cm_id = None
        # The QP is in ERR already, so nothing of the connection can follow the DREQ (CLOSE-36).
        try:
            cm_id.disconnect()
        except OSError as error:
            self._observe("cm", handle=socket.handle, event="rdma_disconnect failed", status=error.errno)
            self._end_lingering(cm_id.key)

    def _flush(self, socket: SanSocket, connection: Connection) -> None:
        """Wait for every posted request's completion, then end without one what the adapter did not flush."""
        end_ns = time.monotonic_ns() + int(FLUSH_TIMEOUT_S * 1e9)
        self._collect(socket)
        while socket.pending and (left_ns := end_ns - time.monotonic_ns()) > 0:
            readable, _, _ = select.select([connection.fd], [], [], min(left_ns / 1e9, 0.02))
            if readable:
                connection.take_events()
            self._collect(socket)
        with socket.lock:
            left = list(socket.pending.values())
            if left:
                self._observe("flush incomplete", handle=socket.handle, count=len(left))
                connection.close_qp()
            for operation in left:
                self._finish(socket, operation)
                socket.outcomes.append(Outcome(operation, self._flush_code(socket), 0))

    def _release_memory(self, socket: SanSocket) -> None:
        with socket.lock:
            for registration in socket.registrations:
                registration.mr.close()
                self._observe("mr", handle=socket.handle, event="released", registration=registration.handle)
            socket.registrations.clear()

    def _free(self, connection: Connection) -> None:
        connection.close()

    def _release_cm_id(self, socket: SanSocket) -> None:
        with socket.lock, self._lock:
            cm_id, socket.cm_id = socket.cm_id, None
            if cm_id is None or cm_id.key is None:
                return
            self._by_cm.pop(cm_id.key, None)
        cm_id.destroy()

    def _end_lingering(self, key: int) -> None:
        with self._linger_changed:
            cm_id = self._lingering.pop(key, None)
            if cm_id is None:
                return
            # Crossed DREQs: this answers the peer's with the DREP; after a DREP it fails, which is as well.
            with contextlib.suppress(OSError):
                cm_id.disconnect()
            cm_id.destroy()
            self._linger_changed.notify_all()

    # --- progress --------------------------------------------------------------------------------------------------

    def _progress(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake_read:
                    return
                # A bug in one handler must not silence every socket: it is recorded, and judged as a fail.
                try:
                    if fd == self._channel.fd:
                        while (event := self._channel.next_event()) is not None:
                            self._on_cm_event(event)
                    else:
                        self._on_completion_event(fd)
                except Exception:
                    self._observe("error", handle=0, traceback=traceback.format_exc())

    def _on_completion_event(self, fd: int) -> None:
        with self._lock:
            socket = self._by_fd.get(fd)
            if socket is None or socket.connection is None:
                return
            socket.connection.take_events()
        self._collect(socket)
        self._deliver(socket)

    def _on_cm_event(self, event: CmEvent) -> None:
        key = event.listen_key if event.listen_key is not None else event.id_key
        with self._lock:
            socket = self._by_cm.get(key)
        self._observe(
            "cm",
            handle=socket.handle if socket else 0,
            event=event.kind.name,
            status=event.status,
            qp_num=event.qp_num,
        )
        if socket is None:
            self._on_stray(event)
            return
        handler = {
            CmEventType.ADDR_RESOLVED: self._on_addr_resolved,
            CmEventType.ROUTE_RESOLVED: self._on_route_resolved,
            CmEventType.CONNECT_REQUEST: self._on_request,
            CmEventType.CONNECT_RESPONSE: self._on_response,
            CmEventType.DISCONNECTED: self._on_disconnected,
        }.get(event.kind)
        if handler is not None:
            handler(socket, event)
        elif event.kind in _CONNECT_FAILURES:
            self._connect_ended(socket, _connect_code(event))

    def _on_stray(self, event: CmEvent) -> None:
        if event.new_id is not None:
            self._refuse(event.new_id)
            return
        if event.kind is CmEventType.DISCONNECTED:
            self._end_lingering(event.id_key)

    def _on_addr_resolved(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            if socket.state is not State.CONNECTING or socket.closing or socket.cm_id is None:
                return
            try:
                socket.cm_id.set_ack_timeout(ACK_TIMEOUT_EXPONENT)
                socket.cm_id.resolve_route(RESOLVE_TIMEOUT_MS)
            except OSError:
                self._connect_ended(socket, Code.WSAETIMEDOUT)

    def _on_route_resolved(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            if socket.state is not State.CONNECTING or socket.closing or socket.cm_id is None:
                return
            try:
                self._make_connection(socket)
                assert socket.connection is not None
                socket.cm_id.connect(self._conn_param(socket.connection))
            except Exception as error:
                self._observe("connect failed", handle=socket.handle, error=repr(error))
                self._connect_ended(socket, Code.WSAENOBUFS)

    def _on_response(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            if socket.state is not State.CONNECTING or socket.closing:
                return
            assert socket.cm_id is not None and socket.connection is not None
            try:
                socket.connection.to_rts()
                socket.cm_id.establish()
            except Exception as error:
                self._observe("connect failed", handle=socket.handle, error=repr(error))
                self._connect_ended(socket, Code.WSAENOBUFS)
                return
            socket.state = State.CONNECTED
            self._signal(socket, Event.FD_CONNECT, w.FD_CONNECT_BIT, Code.OK)

    def _connect_ended(self, socket: SanSocket, code: Code) -> None:
        with socket.lock:
            if socket.state is State.CONNECTING:
                socket.state = State.FAILED
                self._signal(socket, Event.FD_CONNECT, w.FD_CONNECT_BIT, code)

    def _on_request(self, listener: SanSocket, event: CmEvent) -> None:
        assert event.new_id is not None
        with listener.lock:
            full = listener.closing or len(listener.queue) >= listener.backlog
            if not full:
                listener.queue.append(event)
                self._signal(listener, Event.FD_ACCEPT, w.FD_ACCEPT_BIT, Code.OK)
        if full:
            self._refuse(event.new_id)

    def _on_disconnected(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            was = socket.state
            if was is State.CONNECTED:
                socket.state, socket.error = State.DISCONNECTED, Code.WSAECONNRESET
            # The close may have let the id linger between the event's arrival and here.
            self._end_lingering(event.id_key)
            if was is not State.CONNECTED or socket.closing:
                self._answer_reset(socket)
                return
            assert socket.connection is not None
            self._flush_at_peer(socket.connection)
            self._answer_reset(socket)
        self._collect(socket)
        self._deliver(socket)

    def _flush_at_peer(self, connection: Connection) -> None:
        # librdmacm moves only QPs that it made itself; until this, posted receives stay pending for ever.
        connection.to_error()

    def _answer_reset(self, socket: SanSocket) -> None:
        if socket.cm_id is not None:
            with contextlib.suppress(OSError):
                socket.cm_id.disconnect()

    # --- completions -------------------------------------------------------------------------------------------------

    def _collect(self, socket: SanSocket) -> None:
        with socket.lock:
            if socket.connection is None:
                return
            for completion in socket.connection.poll():
                operation = socket.pending.get(completion.wr_id)
                self._observe("wc", handle=socket.handle, status=completion.status, wr_id=completion.wr_id)
                if operation is None:
                    continue
                self._finish(socket, operation)
                code = self._completion_code(socket, completion)
                done = operation.length if operation.kind == "send" else completion.length
                socket.outcomes.append(Outcome(operation, code, 0 if code else done))

    def _completion_code(self, socket: SanSocket, completion: Completion) -> Code:
        if completion.status == verbs.WC_SUCCESS:
            return Code.OK
        if completion.status == verbs.WC_WR_FLUSH_ERR:
            return self._flush_code(socket)
        code = Code.WSAEMSGSIZE if completion.status == verbs.WC_LOC_LEN_ERR else Code.WSAECONNABORTED
        if socket.state is State.CONNECTED and not socket.closing:
            socket.state, socket.error = State.DISCONNECTED, Code.WSAECONNABORTED
            assert socket.connection is not None
            socket.connection.to_error()
        return code

    def _flush_code(self, socket: SanSocket) -> Code:
        if socket.closing:
            return Code.WSA_OPERATION_ABORTED
        return socket.error if socket.state is State.DISCONNECTED else Code.WSAECONNABORTED

    def _finish(self, socket: SanSocket, operation: Operation) -> None:
        socket.pending.pop(operation.wr_id, None)
        for registration in operation.registrations:
            registration.in_use -= 1

    def _deliver(self, socket: SanSocket, *, wait: bool = False) -> None:
        """Make the up-calls of outcomes in order, one thread at a time, without the lock.

        A close from inside an up-call drains what is left itself, before WPUCloseSocketHandle.
        """
        me = threading.get_ident()
        with socket.lock:
            again = socket.deliverer == me
            if again and not wait:
                return
            while not again and wait and socket.deliverer is not None:
                socket.lock.wait()
            if not again and socket.deliverer is not None:
                return
            socket.deliverer = me
        try:
            while True:
                with socket.lock:
                    # From the moment a close began the outcomes are its own: memory goes before completions (CLOSE-17).
                    if not socket.outcomes or (socket.closing and not wait):
                        socket.deliverer = me if again else None
                        socket.lock.notify_all()
                        return
                    outcome = socket.outcomes.popleft()
                self._complete(socket, outcome)
        except BaseException:
            with socket.lock:
                socket.deliverer = None
                socket.lock.notify_all()
            raise

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        overlapped = outcome.operation.overlapped
        overlapped.Offset, overlapped.OffsetHigh = 0, int(outcome.code)
        if overlapped.hEvent & 1:
            overlapped.InternalHigh = outcome.transferred
            overlapped.Internal = 0
            return
        self._upcalls.lpWPUCompleteOverlappedRequest(
            socket.handle, overlapped, outcome.code, outcome.transferred, LpErrno()
        )

    # --- checks ------------------------------------------------------------------------------------------------------

    def _answer(self, lpErrno: LpErrno, sentinel: T, work: Callable[[], T]) -> T:
        try:
            return work()
        except Refused as refused:
            lpErrno.value = refused.code
            return sentinel

    def _check_started(self) -> None:
        if not self._started:
            raise Refused(Code.WSAENOTSOCK)

    def _find(self, descriptor: int) -> SanSocket:
        with self._lock:
            self._check_started()
            socket = self._sockets.get(descriptor)
        if socket is None:
            raise Refused(Code.WSAENOTSOCK)
        return socket

    def _check_open(self, socket: SanSocket) -> None:
        if socket.closing:
            raise Refused(Code.WSAENOTSOCK)

    def _connected(self, socket: SanSocket) -> Connection:
        self._check_open(socket)
        if socket.state is State.DISCONNECTED:
            raise Refused(socket.error)
        if socket.state is not State.CONNECTED or socket.connection is None:
            raise Refused(Code.WSAENOTCONN)
        return socket.connection

    def _check_address(self, socket: SanSocket, name: SockAddr, namelen: int) -> None:
        try:
            version = ipaddress.ip_address(name.sin_addr).version
        except (ValueError, AttributeError) as error:
            raise Refused(Code.WSAEFAULT) from error
        if namelen < (16 if version == 4 else 28) or version != _FAMILIES[socket.family]:
            raise Refused(Code.WSAEFAULT)


_CONNECT_FAILURES = {
    CmEventType.ADDR_ERROR,
    CmEventType.ROUTE_ERROR,
    CmEventType.CONNECT_ERROR,
    CmEventType.UNREACHABLE,
    CmEventType.REJECTED,
}


def _connect_code(event: CmEvent) -> Code:
    if event.kind is CmEventType.REJECTED:
        return Code.WSAECONNRESET if event.status == REJ_INVALID_SERVICE_ID else Code.WSAECONNREFUSED
    # Address resolution is ARP or ND: when that fails, TCP/IP fails too (Q6).
    return Code.WSAEHOSTUNREACH if event.kind is CmEventType.ADDR_ERROR else Code.WSAETIMEDOUT


def _registration_code(error: Exception) -> Code:
    number = getattr(error, "error_code", None) or getattr(error, "errno", None)
    return Code.WSAEFAULT if number in (errno.EFAULT, errno.EINVAL) else Code.WSAENOBUFS


DISPATCH = (
    "WSPAccept",
    "WSPBind",
    "WSPCleanup",
    "WSPCloseSocket",
    "WSPConnect",
    "WSPDuplicateSocket",
    "WSPEnumNetworkEvents",
    "WSPEventSelect",
    "WSPGetOverlappedResult",
    "WSPGetQOSByName",
    "WSPGetSockOpt",
    "WSPIoctl",
    "WSPListen",
    "WSPRecv",
    "WSPSend",
    "WSPSetSockOpt",
    "WSPSocket",
)
