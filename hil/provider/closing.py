"""WSPCloseSocket: always a hard close (CLOSE-06)."""

import contextlib
import threading
import time
from collections import deque
from functools import partial

from hil.provider.core import Refused
from hil.provider.data import WAIT_S, Data, wait_readable
from hil.provider.sockets import Outcome, SanSocket, State
from hil.verbs.connection import Connection
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import LpErrno

FLUSH_TIMEOUT_S = 2.0


class Closing(Data):
    """The steps of a close, in order: stop, reset, flush, release memory, complete, close the handle, free."""

    def WSPCloseSocket(self, s: int, lpErrno: LpErrno) -> int:
        """Always a hard close. WSAENETDOWN when the network is down; this end is closed all the same (CLOSE-03)."""
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._close_socket(s))

    def _close_socket(self, descriptor: int) -> int:
        with self._lock:
            known = self._started and isinstance(descriptor, int)
            socket = self._sockets.pop(descriptor, None) if known else None
            if socket is None:
                raise Refused(Code.WSAENOTSOCK)
            self._leave(socket)
        self._tear_down(socket)
        self._check_network()
        return 0

    def _tear_down(self, socket: SanSocket) -> None:
        with socket.lock:
            socket.closing = True
            socket.event, socket.selected = None, 0
            connection = socket.connection
            requests, socket.queue = list(socket.queue), deque()
        for request in requests:
            self._refuse(request.new_id)
        if connection is not None:
            self._step(self._unwatch, connection)
            self._step(connection.to_error)
            self._step(self._send_reset, socket)
            self._step(self._flush, socket, connection)
            self._step(self._release_memory, socket)
        if not self._leave_to_deliverer(socket, connection):
            self._end_close(socket, connection)

    def _leave_to_deliverer(self, socket: SanSocket, connection: Connection | None) -> bool:
        """Whether the thread that makes an up-call of ``socket`` does the rest of the close.

        A close from inside an up-call must not wait for another up-call, because a close in that one may wait for this.
        """
        with socket.lock:
            other = socket.deliverer is not None and socket.deliverer != threading.get_ident()
            if other and self._inside.depth:
                socket.rest = partial(self._end_close, socket, connection)
            return socket.rest is not None

    def _end_close(self, socket: SanSocket, connection: Connection | None) -> None:
        self._deliver(socket, wait=True)
        self._upcalls.lpWPUCloseSocketHandle(socket.handle, LpErrno())
        if connection is not None:
            self._step(self._detach, socket, connection)
        self._step(self._release_cm_id, socket)
        with self._changed:
            self._tearing.discard(socket)
            self._changed.notify_all()
        if connection is not None and connection.device.removed:
            self._close_unused_devices()

    def _close_unused_devices(self) -> None:
        # The kernel removes a device only when no process has it open.
        with self._lock:
            sockets = (*self._sockets.values(), *self._tearing)
            # A close in another thread may clear socket.connection, so each is read once.
            connections = [s.connection for s in sockets]
            used = {c.device.name for c in connections if c is not None}
            for name in [name for name in self._devices if name not in used]:
                self._step(self._devices.pop(name).close)

    def _detach(self, socket: SanSocket, connection: Connection) -> None:
        # Another thread may be about to poll this socket's CQ; from here on it finds no connection.
        with socket.lock:
            socket.connection = None
            self._free(connection)

    def _free(self, connection: Connection) -> None:
        connection.close()

    def _unwatch(self, connection: Connection) -> None:
        with self._lock:
            if self._by_fd.pop(connection.fd, None) is not None:
                self._epoll.unregister(connection.fd)

    def _send_reset(self, socket: SanSocket) -> None:
        # The QP is in ERR already, so no packet of the connection can follow the DREQ (CLOSE-36).
        with socket.lock:
            if self._is_joined(socket) and socket.cm_id is not None:
                self._linger(socket)

    def _is_joined(self, socket: SanSocket) -> bool:
        """Whether the peer must be sent a DREQ: a connection that broke at this end may be intact at the other."""
        broke = socket.state is State.DISCONNECTED and socket.error is Code.WSAECONNABORTED
        return socket.state is State.CONNECTED or (broke and not socket.disconnected)

    def _linger(self, socket: SanSocket) -> None:
        """Disconnect the socket's CM id and let the id linger; the caller holds the lock.

        Destroying the id would stop the retransmission of a lost DREQ, so the id lingers until its DISCONNECTED event.
        From here on its events do not reach the socket.
        """
        cm_id, socket.cm_id = socket.cm_id, None
        assert cm_id is not None
        with self._lock:
            self._by_cm.pop(cm_id.key, None)
            self._lingering[cm_id.key] = cm_id
        key = cm_id.key
        try:
            cm_id.disconnect()
        except OSError as error:
            self._observe("cm", handle=socket.handle, event="rdma_disconnect failed", status=error.errno)
            self._end_lingering(key)

    def _flush(self, socket: SanSocket, connection: Connection) -> None:
        """Wait for the completions of all posted requests, then end the requests that the adapter did not flush."""
        end_ns = time.monotonic_ns() + int(FLUSH_TIMEOUT_S * 1e9)
        self._collect(socket)
        with socket.lock:
            self._fail_waiting(socket)
        while socket.pending and time.monotonic_ns() < end_ns:
            if wait_readable(connection.fd, WAIT_S):
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

    def _release_cm_id(self, socket: SanSocket) -> None:
        with socket.lock, self._lock:
            cm_id, socket.cm_id = socket.cm_id, None
            if cm_id is None:
                return
            self._by_cm.pop(cm_id.key, None)
        cm_id.destroy()

    def _answer_reset(self, socket: SanSocket) -> None:
        if socket.cm_id is not None:
            with contextlib.suppress(OSError):
                socket.cm_id.disconnect()

    def _end_lingering(self, key: int) -> None:
        with self._lock:
            cm_id = self._lingering.pop(key, None)
        if cm_id is None:
            return
        # When DREQs crossed, this sends the DREP for the peer's. After a DREP it fails, which is harmless.
        with contextlib.suppress(OSError):
            cm_id.disconnect()
        self._step(cm_id.destroy)
        with self._changed:
            self._changed.notify_all()
