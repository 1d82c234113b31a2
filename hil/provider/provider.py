"""The SAN service provider: Winsock Direct sockets as RC queue pairs.

The dispatch functions have their documented names and argument order. A function that fails stores its code in
``lpErrno`` and returns its sentinel. The provider's own thread turns CM events and completions into network events and
up-calls.
"""

import contextlib
import errno
import os
import select
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from hil import jitter
from hil.provider.connecting import connect_code
from hil.provider.core import Refused
from hil.provider.options import OPTIONAL, Options
from hil.provider.sockets import SanSocket, State
from hil.verbs import connection as verbs
from hil.verbs.cm import CmChannel, CmEvent, CmEventType
from hil.verbs.connection import Connection
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSAPROTOCOL_INFOW, WSPDATA, WSPUPCALLTABLEEX, LpErrno

LINGER_TIMEOUT_S = 10.0

_CONNECT_FAILURES = {
    CmEventType.ADDR_ERROR,
    CmEventType.ROUTE_ERROR,
    CmEventType.CONNECT_ERROR,
    CmEventType.UNREACHABLE,
    CmEventType.REJECTED,
}


class Provider(Options):
    """The provider of one process; see ``Core`` for its arguments."""

    # --- start and end -----------------------------------------------------------------------------------------------

    def WSPStartupEx(
        self,
        wVersionRequested: int,
        lpWSPData: WSPDATA | None,
        lpProtocolInfo: WSAPROTOCOL_INFOW,
        lpUpcallTable: WSPUPCALLTABLEEX,
        lpProcTable: dict[str, Callable[..., Any]] | None,
    ) -> int:
        """Start the provider; returns the error code itself (STARTUP-03).

        Fills ``lpProcTable`` with the 17 dispatch functions.
        """
        # The caller's highest version, with the major number in the low byte. A caller of a higher one supports 2.2.
        if (wVersionRequested & 0xFF, wVersionRequested >> 8) < (2, 2):
            return Code.WSAVERNOTSUPPORTED
        if lpWSPData is None or lpProcTable is None:
            return Code.WSAEFAULT
        with self._lock:
            # The last WSPCleanup may still run in another thread.
            if not self._changed.wait_for(lambda: not self._cleaning, LINGER_TIMEOUT_S):
                return Code.WSASYSNOTREADY
            if self._started >= self._settings.max_clients:
                return Code.WSAEPROCLIM
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
        lpProcTable.update({name: getattr(self, name) for name in DISPATCH})
        return Code.OK

    def WSPCleanup(self, lpErrno: LpErrno) -> int:
        """End one WSPStartupEx; the last call closes all sockets and frees everything (CLEAN-03, CLEAN-04).

        WSAENETDOWN when the network is down; the call counts and frees all the same (ERR-04).
        """
        return self._answer(lpErrno, w.SOCKET_ERROR, self._clean_up)

    def _clean_up(self) -> int:
        with self._lock:
            if not self._started:
                raise Refused(Code.WSANOTINITIALISED)
            self._started -= 1
            last = not self._started
            if last:
                self._cleaning = True
                # A socket that another thread is making is closed with the others (CLOSE-24, CLEAN-07).
                self._changed.wait_for(lambda: not self._making, LINGER_TIMEOUT_S)
            left = list(self._sockets.values()) if last else []
            for socket in left:
                self._leave(socket)
            if last:
                self._sockets.clear()
        try:
            for socket in left:
                self._tear_down(socket)
            if last:
                self._close()
        finally:
            with self._changed:
                self._cleaning = self._cleaning and not last
                self._changed.notify_all()
        self._check_network()
        return 0

    def _open(self) -> None:
        if not verbs.device_names():
            raise OSError(errno.ENODEV, "no RDMA device")
        self._channel = CmChannel()
        self._network_down = not self._network.up()
        self._handover_ids = {}
        self._handed = {}
        self._deadlines.clear()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ending = False
        self._epoll = select.epoll()
        for fd in (self._channel.fd, self._wake_read, self._network.fd):
            self._epoll.register(fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._progress, name="provider", daemon=True)
        self._thread.start()

    def _close(self) -> None:
        with self._lock:
            for key in list(self._handed):
                self._abandon(key)
            for cm_id, _ in self._handover_ids.values():
                self._step(cm_id.destroy)
        end_ns = time.monotonic_ns() + int(LINGER_TIMEOUT_S * 1e9)
        with self._changed:
            while (self._lingering or self._tearing) and (left_ns := end_ns - time.monotonic_ns()) > 0:
                self._changed.wait(left_ns / 1e9)
        self._ending = True
        self._wake()
        self._thread.join()
        for cm_id in self._lingering.values():
            self._step(cm_id.destroy)
        self._lingering.clear()
        self._by_cm.clear()
        self._by_fd.clear()
        self._kicked.clear()
        for device in self._devices.values():
            device.close()
        self._devices.clear()
        self._epoll.close()
        with self._lock:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
        self._channel.close()

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
        """A new descriptor, or with a token in ``lpProtocolInfo.dwProviderReserved`` the duplicated socket's."""
        token = lpProtocolInfo.dwProviderReserved if lpProtocolInfo is not None else 0

        def work() -> int:
            if not self._started:
                raise Refused(Code.WSAENETDOWN)
            return self._take_over(token) if token else self._socket(af, type, protocol, g)

        return self._answer(lpErrno, w.INVALID_SOCKET, work)

    # --- progress ----------------------------------------------------------------------------------------------------

    def _progress(self) -> None:
        while not self._ending:
            for fd, _ in self._epoll.poll(self._next_deadline()):
                # A bug in one handler must not stop all sockets. It is recorded, and judged as a fail.
                try:
                    self._on_readable(fd)
                except Exception:
                    self._observe("error", handle=0, traceback=traceback.format_exc())

    def _next_deadline(self) -> float | None:
        waits: list[float | None] = []
        for expire in (self._expire_connects, self._expire_handed):
            self._step(lambda expire=expire: waits.append(expire()))
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _on_readable(self, fd: int) -> None:
        jitter.nap(jitter.PROVIDER_EVENT)
        if fd == self._wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            while self._kicked:
                self._deliver(self._kicked.popleft())
        elif fd == self._channel.fd:
            while (event := self._channel.next_event()) is not None:
                self._on_cm_event(event)
        elif fd == self._network.fd:
            self._network.drain()
            self._network_changed()
        else:
            self._on_completion_event(fd)

    def _on_completion_event(self, fd: int) -> None:
        with self._lock:
            socket = self._by_fd.get(fd)
            if socket is None or socket.connection is None:
                return
            socket.connection.take_events()
        self._progress_of(socket)

    def _on_cm_event(self, event: CmEvent) -> None:
        key = event.listen_key if event.listen_key is not None else event.id_key
        with self._lock:
            socket = self._by_cm.get(key)
        handle = socket.handle if socket else 0
        self._observe("cm", handle=handle, event=event.kind.name, status=event.status, qp_num=event.qp_num)
        if socket is None:
            self._on_stray(event)
            return
        handler = {
            CmEventType.ADDR_RESOLVED: self._on_addr_resolved,
            CmEventType.ROUTE_RESOLVED: self._on_route_resolved,
            CmEventType.CONNECT_REQUEST: self._on_request,
            CmEventType.CONNECT_RESPONSE: self._on_response,
            CmEventType.DISCONNECTED: self._on_disconnected,
            CmEventType.DEVICE_REMOVAL: self._on_device_removal,
        }.get(event.kind)
        if handler is not None:
            handler(socket, event)
        elif event.kind in _CONNECT_FAILURES:
            self._on_failure(socket, event)

    def _on_failure(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            if socket.state is State.CONNECTED:
                # The connector never confirmed the accepted connection.
                self._on_disconnected(socket, event)
            else:
                self._connect_ended(socket, connect_code(event))

    def _on_stray(self, event: CmEvent) -> None:
        if event.new_id is not None:
            if event.listen_key is not None and self._is_handover(event.listen_key):
                self._on_handover_request(event)
            else:
                self._refuse(event.new_id)
        elif event.kind is CmEventType.ESTABLISHED:
            # The socket was closed before the connector's RTU arrived; only now can the DREQ be sent.
            with self._lock:
                cm_id = self._lingering.get(event.id_key)
            if cm_id is not None:
                self._step(cm_id.disconnect)
        elif event.kind in _CONNECT_FAILURES or event.kind in (CmEventType.DISCONNECTED, CmEventType.DEVICE_REMOVAL):
            self._forget_handed(event.id_key)
            self._end_lingering(event.id_key)

    def _forget_handed(self, key: int) -> None:
        with self._lock:
            self._handed.pop(key, None)

    def _on_disconnected(self, socket: SanSocket, event: CmEvent) -> None:
        with socket.lock:
            was, socket.disconnected = socket.state, True
            if was is State.CONNECTED:
                socket.state, socket.error = State.DISCONNECTED, Code.WSAECONNRESET
            self._forget_handed(event.id_key)
            # A close may have let the id linger since the event arrived.
            self._end_lingering(event.id_key)
            if was is not State.CONNECTED or socket.closing:
                self._answer_reset(socket)
                if was is State.HANDED_OVER:
                    self._release_cm_id(socket)
                return
            assert socket.connection is not None
            self._flush_at_peer(socket.connection)
            self._answer_reset(socket)
        self._progress_of(socket)

    def _flush_at_peer(self, connection: Connection) -> None:
        # librdmacm moves only QPs that it made itself. Without this, posted receives would stay pending for ever.
        connection.to_error()

    def _on_device_removal(self, socket: SanSocket, event: CmEvent) -> None:
        """The adapter is being removed: release all its objects now; the descriptor stays (CLOSE-28, PROXY-05)."""
        self._network_changed()
        with socket.lock:
            was, connection = socket.state, socket.connection
            if was is State.CONNECTING:
                self._connect_ended(socket, Code.WSAENETDOWN)
            elif was is not State.HANDED_OVER:
                socket.state, socket.error = State.DISCONNECTED, Code.WSAENETDOWN
            if connection is not None:
                connection.device.removed = True
            # A close that has begun releases everything itself, and must not lose objects that it still uses.
            if connection is not None and not socket.closing:
                self._unwatch(connection)
                self._step(connection.to_error)
                self._step(self._flush, socket, connection)
                self._step(self._give_back_memory, socket)
                self._step(self._detach, socket, connection)
            self._step(self._release_cm_id, socket)
        with self._lock:
            self._listeners.discard(socket)
        self._deliver(socket)
        self._close_unused_devices()


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

__all__ = ["DISPATCH", "OPTIONAL", "Provider"]
