"""Sockets, binding, network events, connecting, listening and accepting."""

import contextlib
import ctypes
import errno
import ipaddress
import select
import time
from collections.abc import Callable

from hil.provider.closing import Closing
from hil.provider.core import FAMILIES, Refused
from hil.provider.private_data import MAX_USER_DATA, hello, parse_hello
from hil.provider.sockets import Request, SanSocket, State
from hil.verbs.cm import CmEvent, CmEventType, CmId, ConnParam, conn_param
from hil.verbs.connection import Connection, Device
from hil.winsock import codes as w
from hil.winsock.codes import Code, Event
from hil.winsock.structures import WSABUF, WSAEVENT, WSANETWORKEVENTS, LpErrno, SockAddr

RESOLVE_TIMEOUT_MS = 3000
MAX_BACKLOG = 200
KERNEL_BACKLOG = 1024
REJ_INVALID_SERVICE_ID, REJ_CONSUMER_DEFINED = 8, 28
ACK_TIMEOUT_EXPONENT = 16


class Connecting(Closing):
    """WSPSocket to WSPAccept. A CM event ends each connect and begins each accept."""

    # --- sockets -----------------------------------------------------------------------------------------------------

    def _socket(self, af: int, type: int, protocol: int, group: int) -> int:
        self._check_network()
        if af not in FAMILIES:
            raise Refused(Code.WSAEAFNOSUPPORT)
        if type != w.SOCK_STREAM:
            raise Refused(Code.WSAEPROTOTYPE if protocol == w.IPPROTO_TCP and type == 2 else Code.WSAESOCKTNOSUPPORT)
        if protocol not in (0, w.IPPROTO_TCP):
            raise Refused(Code.WSAEPROTONOSUPPORT)
        if group:
            raise Refused(Code.WSAEINVAL)
        return self._new_socket(af).descriptor

    def WSPBind(self, s: int, name: SockAddr, namelen: int, lpErrno: LpErrno) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._bind(self._find(s), name, namelen))

    def _is_local(self, address: str) -> bool:
        return address in self._network.addresses() or address in self._network.addresses(afresh=True)

    def _bind(self, socket: SanSocket, name: SockAddr, namelen: int) -> int:
        self._check_address(socket, name, namelen)
        with socket.lock:
            self._check_open(socket)
            if socket.state is not State.CREATED:
                raise Refused(Code.WSAEINVAL)
            wildcard = ipaddress.ip_address(name.sin_addr).is_unspecified
            if not wildcard and not self._is_local(name.sin_addr):
                raise Refused(Code.WSAEADDRNOTAVAIL)
            if len(self._by_cm) >= self._settings.max_bound:
                raise Refused(Code.WSAENOBUFS)
            cm_id = self._new_id()
            try:
                cm_id.bind(name.sin_addr, name.sin_port)
            except OSError as error:
                cm_id.destroy()
                gone = error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV)
                raise Refused(Code.WSAEADDRNOTAVAIL if gone else Code.WSAENOBUFS) from error
            socket.local = SockAddr(socket.family, *cm_id.local)
            self._adopt(socket, cm_id)
            socket.state = State.BOUND
        return 0

    def WSPListen(self, s: int, backlog: int, lpErrno: LpErrno) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._listen(self._find(s), backlog))

    def _listen(self, socket: SanSocket, backlog: int) -> int:
        with socket.lock:
            self._check_open(socket)
            if socket.state in (State.CONNECTED, State.CONNECTING, State.DISCONNECTED):
                raise Refused(Code.WSAEISCONN)
            if socket.state not in (State.BOUND, State.LISTENING) or socket.cm_id is None:
                raise Refused(Code.WSAEINVAL)
            socket.backlog = MAX_BACKLOG if backlog == w.SOMAXCONN else max(1, min(backlog, MAX_BACKLOG))
            if socket.state is State.LISTENING:
                return 0
            with self._lock:
                if len(self._listeners) >= self._settings.max_listeners:
                    raise Refused(Code.WSAEMFILE)
                self._listeners.add(socket)
            socket.state = State.LISTENING
            try:
                socket.cm_id.listen(KERNEL_BACKLOG)
            except OSError as error:
                socket.state = State.BOUND
                with self._lock:
                    self._listeners.discard(socket)
                # The switch and TCP/IP, not the provider, report an address in use (LISTEN-05).
                raise Refused(Code.WSAENOBUFS) from error
        return 0

    # --- events ------------------------------------------------------------------------------------------------------

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
        self, s: int, hEventObject: WSAEVENT | None, lpNetworkEvents: WSANETWORKEVENTS | None, lpErrno: LpErrno
    ) -> int:
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._enum_events(self._find(s), hEventObject, lpNetworkEvents)
        )

    def _enum_events(self, socket: SanSocket, event: WSAEVENT | None, out: WSANETWORKEVENTS | None) -> int:
        if out is None:
            raise Refused(Code.WSAEINVAL)
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

    # --- connecting --------------------------------------------------------------------------------------------------

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
        """Begin to connect. QoS is ignored (CONN-24).

        ``lpCallerData``: at most MAX_USER_DATA bytes for the acceptor, else WSAEINVAL (CONN-23). ``lpCalleeData``:
        filled when the connect ends.
        """
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._connect(self._find(s), name, namelen, lpCallerData, lpCalleeData)
        )

    def _connect(
        self, socket: SanSocket, name: SockAddr, namelen: int, caller_data: WSABUF | None, callee_data: WSABUF | None
    ) -> int:
        self._check_address(socket, name, namelen)
        if caller_data is not None and caller_data.len > MAX_USER_DATA:
            raise Refused(Code.WSAEINVAL)
        address = ipaddress.ip_address(name.sin_addr)
        if address.is_unspecified or name.sin_port == 0:
            raise Refused(Code.WSAEADDRNOTAVAIL)
        # A connection to an address of this machine never reaches a wire; TCP/IP serves it (CONN-26).
        if address.is_loopback or name.sin_addr in self._network.addresses():
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
            if caller_data is not None:
                socket.caller_data = ctypes.string_at(caller_data.buf, caller_data.len)
            socket.callee_data = callee_data
            self._begin_connect(socket, name)
        raise Refused(Code.WSAEWOULDBLOCK)

    def _begin_connect(self, socket: SanSocket, name: SockAddr) -> None:
        if socket.cm_id is None:
            self._adopt(socket, self._new_id())
        assert socket.cm_id is not None
        socket.remote = name
        socket.state = State.CONNECTING
        try:
            socket.cm_id.resolve_addr(name.sin_addr, name.sin_port, RESOLVE_TIMEOUT_MS)
        except OSError as error:
            socket.state = State.FAILED
            raise Refused(Code.WSAETIMEDOUT) from error
        with self._lock:
            self._deadlines.append((time.monotonic() + self._settings.connect_timeout_s, socket))
        self._wake()

    def _expire_connects(self) -> float | None:
        """End connects that took too long (CONN-25); returns the seconds until the next time-out, or None."""
        now, due, first = time.monotonic(), [], None
        with self._lock:
            # All connects have the same time-out, so the oldest one ends first.
            while self._deadlines and first is None:
                at, socket = self._deadlines[0]
                if at > now and socket.state is State.CONNECTING:
                    first = at
                    continue
                self._deadlines.popleft()
                if at <= now:
                    due.append(socket)
        for socket in due:
            with socket.lock:
                if socket.state is State.CONNECTING and not socket.closing:
                    self._connect_ended(socket, Code.WSAETIMEDOUT)
                    self._step(self._release_cm_id, socket)
        return None if first is None else max(first - now, 0.0)

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
                connection = self._make_connection(socket)
                socket.cm_id.connect(self._conn_param(connection, self._request_data(socket)))
            except Exception as error:
                self._observe("connect failed", handle=socket.handle, error=repr(error))
                self._connect_ended(socket, Code.WSAENOBUFS)

    def _request_data(self, socket: SanSocket) -> bytes:
        return hello(socket.secret, self._handover_port(socket), socket.caller_data)

    def _handover_port(self, socket: SanSocket) -> int:
        """The port where a new process of the peer may take this connection over, or 0."""
        raise NotImplementedError

    def _on_response(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            if socket.state is not State.CONNECTING or socket.closing:
                return
            assert socket.cm_id is not None and socket.connection is not None
            try:
                self._post_early(socket, socket.connection)
                socket.connection.to_rts()
                socket.cm_id.establish()
            except Exception as error:
                self._observe("connect failed", handle=socket.handle, error=repr(error))
                self._connect_ended(socket, Code.WSAENOBUFS)
                return
            socket.peer, data = parse_hello(event.private_data)
            self._give_callee_data(socket, data)
            if socket.local is None or socket.local.sin_port == 0:
                socket.local = SockAddr(socket.family, *socket.cm_id.local)
            socket.state = State.CONNECTED
            self._tell_connect(socket, Code.OK)

    def _give_callee_data(self, socket: SanSocket, data: bytes) -> None:
        # The provider may use the switch's buffer only until the connect has ended (CONN-22).
        place, socket.callee_data = socket.callee_data, None
        if place is not None:
            place.len = min(len(data), place.len)
            ctypes.memmove(place.buf, data, place.len)

    def _tell_connect(self, socket: SanSocket, code: Code) -> None:
        # A hand-over is no connect of the switch: the switch waits for its end in WSPSocket (DUP-14, EVT-04).
        if not socket.taking:
            self._signal(socket, Event.FD_CONNECT, w.FD_CONNECT_BIT, code)
        socket.lock.notify_all()

    def _connect_ended(self, socket: SanSocket, code: Code) -> None:
        with socket.lock:
            if socket.state is State.CONNECTING:
                socket.state, socket.error, socket.callee_data = State.FAILED, code, None
                self._tell_connect(socket, code)

    def _make_connection(self, socket: SanSocket) -> Connection:
        assert socket.cm_id is not None
        name = socket.cm_id.device_name()
        with self._lock:
            if name not in self._devices:
                self._devices[name] = Device(name)
        connection = Connection(self._devices[name], socket.cm_id, self._settings.early_messages)
        try:
            connection.to_init()
        except BaseException:
            connection.close()
            raise
        socket.connection = connection
        self._watch(socket, connection)
        return connection

    def _watch(self, socket: SanSocket, connection: Connection) -> None:
        with self._lock:
            self._by_fd[connection.fd] = socket
        self._epoll.register(connection.fd, select.EPOLLIN)
        self._observe("qp", handle=socket.handle, qp_num=connection.qp_num)

    def _conn_param(self, connection: Connection, private_data: bytes) -> ConnParam:
        return conn_param(connection.qp_num, private_data, rnr_retry_count=self._settings.rnr_retry_count)

    # --- accepting ---------------------------------------------------------------------------------------------------

    def WSPAccept(
        self,
        s: int,
        addr: SockAddr | None,
        addrlen: list[int] | None,
        lpfnCondition: Callable[..., int] | None,
        dwCallbackData: int,
        lpErrno: LpErrno,
    ) -> int:
        """The condition function is called in this thread, before anything is sent to the peer (ACC-01, ACC-02)."""
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
        size = 16 if listener.family == w.AF_INET else 28
        if addr is not None and (addrlen is None or addrlen[0] < size):
            raise Refused(Code.WSAEFAULT)
        if condition is not None and not callable(condition):
            raise Refused(Code.WSAEFAULT)
        request = self._next_request(listener)
        try:
            if request.withdrawn():
                self._refuse(request.new_id)
                raise Refused(Code.WSAECONNRESET)
            peer = SockAddr(listener.family, *request.new_id.remote)
            local = SockAddr(listener.family, *request.new_id.local)
            answer = self._ask(listener, request, condition, peer, local, callback_data)
            socket = self._accept_request(listener, request, peer, local, answer)
        finally:
            # Also after a failure, because other requests may wait.
            self._after_accept(listener, request)
        if addr is not None and addrlen is not None:
            addr.sin_family, addr.sin_addr, addr.sin_port = peer.sin_family, peer.sin_addr, peer.sin_port
            addrlen[0] = size
        return socket.descriptor

    def _next_request(self, listener: SanSocket) -> Request:
        with listener.lock:
            self._check_open(listener)
            if listener.state is not State.LISTENING:
                raise Refused(Code.WSAEINVAL)
            if not listener.queue:
                raise Refused(Code.WSAEWOULDBLOCK)
            self._check_room()
            request = listener.queue.popleft()
            listener.asked.add(request)
            return request

    def _ask(
        self,
        listener: SanSocket,
        request: Request,
        condition: Callable[..., int] | None,
        peer: SockAddr,
        local: SockAddr,
        callback_data: int,
    ) -> bytes:
        """The condition function's data for the connector. Refuses when the function does not accept."""
        if condition is None:
            return b""
        given = parse_hello(request.private_data)[1]
        theirs = ctypes.create_string_buffer(given, max(len(given), 1))
        ours = ctypes.create_string_buffer(MAX_USER_DATA)
        caller_data = WSABUF(len(given), ctypes.addressof(theirs)) if given else None
        callee_data, group = WSABUF(MAX_USER_DATA, ctypes.addressof(ours)), [0]
        callee_data.len = 0
        decision = condition(peer, caller_data, None, None, local, callee_data, group, callback_data)
        if decision == w.CF_DEFER:
            with listener.lock:
                if not listener.closing:
                    listener.queue.appendleft(request)
                    listener.asked.discard(request)
                    raise Refused(Code.WSATRY_AGAIN)
        if decision == w.CF_ACCEPT and group == [0] and not listener.closing:
            return ours.raw[: min(callee_data.len, MAX_USER_DATA)]
        self._refuse(request.new_id)
        if listener.closing:
            raise Refused(Code.WSAENOTSOCK)
        raise Refused(Code.WSAECONNREFUSED if decision == w.CF_REJECT else Code.WSAEINVAL)

    def _accept_request(
        self, listener: SanSocket, request: Request, peer: SockAddr, local: SockAddr, answer: bytes
    ) -> SanSocket:
        try:
            socket = self._new_socket(listener.family)
        except Refused:
            self._refuse(request.new_id)
            raise
        try:
            with socket.lock:
                self._check_open(socket)
                socket.local, socket.remote, socket.options = local, peer, dict(listener.options)
                socket.peer = parse_hello(request.private_data)[0]
                self._adopt(socket, request.new_id)
                connection = self._make_connection(socket)
                self._post_early(socket, connection)
                connection.to_rts()
                socket.state = State.CONNECTED
                data = hello(socket.secret, self._handover_port(socket), answer)
                request.new_id.accept(self._conn_param(connection, data))
        except Exception as error:
            self._observe("accept failed", handle=socket.handle, error=repr(error))
            gone = request.withdrawn()
            if socket.cm_id is None:
                self._refuse(request.new_id)
            self._drop(socket)
            raise Refused(Code.WSAECONNRESET if gone else Code.WSAENOBUFS) from error
        return socket

    def _drop(self, socket: SanSocket) -> None:
        socket.state = State.FAILED
        if socket.cm_id is not None:
            with contextlib.suppress(OSError):
                socket.cm_id.reject()
        self.WSPCloseSocket(socket.descriptor, LpErrno())

    def _after_accept(self, listener: SanSocket, request: Request) -> None:
        with listener.lock:
            listener.asked.discard(request)
            if listener.event is not None and not listener.closing:
                listener.event.ResetEvent()
            # The reset may have cleared the signal of other waiting requests (ACC-07). Ruling: a request that the
            # condition function has just deferred is not signalled, because the switch comes back for it (ACC-16).
            if any(other is not request for other in listener.queue):
                self._signal(listener, Event.FD_ACCEPT, w.FD_ACCEPT_BIT, Code.OK)

    def _on_request(self, listener: SanSocket, event: CmEvent) -> None:
        assert event.new_id is not None
        request = Request(event.new_id, event.private_data)
        with listener.lock:
            if len(listener.queue) + len(listener.asked) >= listener.backlog:
                self._drop_withdrawn(listener)
            waiting = len(listener.queue) + len(listener.asked)
            full = listener.closing or listener.state is not State.LISTENING or waiting >= listener.backlog
            if not full:
                listener.queue.append(request)
                self._signal(listener, Event.FD_ACCEPT, w.FD_ACCEPT_BIT, Code.OK)
        if full:
            self._refuse(event.new_id)

    def _drop_withdrawn(self, listener: SanSocket) -> None:
        # A connector that has given up takes no place in the queue (LISTEN-12).
        for request in [queued for queued in listener.queue if queued.withdrawn()]:
            listener.queue.remove(request)
            self._refuse(request.new_id)


# Any other reason, such as a time-out or a lack of resources, does not prove that TCP/IP would fail too (CONN-08).
_REFUSALS = {REJ_INVALID_SERVICE_ID: Code.WSAECONNRESET, REJ_CONSUMER_DEFINED: Code.WSAECONNREFUSED}


def connect_code(event: CmEvent) -> Code:
    """The error code of a failed connect (CONN-05 to CONN-09)."""
    if event.kind is CmEventType.REJECTED:
        return _REFUSALS.get(event.status, Code.WSAETIMEDOUT)
    # Address resolution is ARP or ND: when it gets no answer, TCP/IP fails too (Q6).
    # When the route has no RDMA device, TCP/IP may still work.
    unanswered = event.status in (-errno.ETIMEDOUT, -errno.EHOSTUNREACH)
    return Code.WSAEHOSTUNREACH if event.kind is CmEventType.ADDR_ERROR and unanswered else Code.WSAETIMEDOUT


def new_id_of(event: CmEvent) -> CmId:
    """The id of a connection request."""
    assert event.new_id is not None
    return event.new_id
