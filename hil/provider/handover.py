"""Duplicating sockets: handing a connection or a listener over to another process (DUP).

A verbs queue pair cannot be shared between processes, so the new process makes a new connection. It connects to a
listener that every provider keeps for hand-overs, and sends the secret by which the peer's provider knows the
connection. The peer's provider moves its socket to the new connection, keeps registrations and pending receives, and
ends the old connection. Its switch does not notice (DUP-15, DUP-16). Until then the former process keeps the CM id of
the old connection and sends nothing.
"""

import errno
import os
import time
from collections import deque
from typing import Any, TextIO

from hil.provider import tokens
from hil.provider.closing import FLUSH_TIMEOUT_S
from hil.provider.connecting import Connecting, new_id_of
from hil.provider.core import Refused
from hil.provider.data import WAIT_S, wait_readable
from hil.provider.private_data import Peer, hello, parse_take, take
from hil.provider.sockets import Early, Kind, Operation, Outcome, SanSocket, State
from hil.verbs.cm import CmEvent, CmId
from hil.verbs.connection import RECV_DEPTH, SEND_DEPTH, Connection
from hil.winsock import codes as w
from hil.winsock.codes import Code, Event
from hil.winsock.structures import WSAPROTOCOL_INFOW, LpErrno, SockAddr

HANDOVER_BACKLOG = 64
_ANY = {w.AF_INET: "0.0.0.0", w.AF_INET6: "::"}


class HandOver(Connecting):
    """WSPDuplicateSocket, and WSPSocket with its token."""

    _handover_ids: dict[int, tuple[CmId, int]]
    _handed: dict[int, tuple[float, int]]

    # --- in the process that has the socket --------------------------------------------------------------------------

    def WSPDuplicateSocket(
        self, s: int, dwProcessId: int, lpProtocolInfo: WSAPROTOCOL_INFOW | None, lpErrno: LpErrno
    ) -> int:
        """Store a token for process ``dwProcessId`` in ``lpProtocolInfo.dwProviderReserved``.

        Pending receives complete with success and zero bytes, and their memory is released (DUP-05, DUP-06). Afterwards
        only WSPCloseSocket is allowed. WSAEINVAL for a socket that is neither connected nor listening, for a socket
        with sends or RDMA in progress, for a process that does not exist, and for a peer that takes no hand-overs.
        """
        return self._answer(
            lpErrno, w.SOCKET_ERROR, lambda: self._duplicate(self._find(s), dwProcessId, lpProtocolInfo)
        )

    def _duplicate(self, socket: SanSocket, pid: int, info: WSAPROTOCOL_INFOW | None) -> int:
        if info is None or not _alive(pid):
            raise Refused(Code.WSAEINVAL)
        with socket.lock:
            self._check_open(socket)
            listening = socket.state is State.LISTENING
            if not listening and (socket.state is not State.CONNECTED or not socket.peer.handover_port):
                raise Refused(Code.WSAEINVAL)
            if any(operation.kind is not Kind.RECV for operation in socket.pending.values()):
                raise Refused(Code.WSAEINVAL)
            token, file = _reserved_token()
            with file:
                self._part_with(socket, pid, token, file)
        self._deliver(socket, wait=True)
        self._wake()
        info.iAddressFamily, info.dwProviderReserved = socket.family, token
        return 0

    def _part_with(self, socket: SanSocket, pid: int, token: int, file: TextIO) -> None:
        """Suspend the socket and store its state under ``token``. The caller holds the lock."""
        state = _state_of(socket)
        self._suspend_listener(socket) if socket.state is State.LISTENING else self._suspend(socket)
        state["early"] = [message.hex() for message in socket.early.arrived]
        try:
            tokens.fill(file, pid, state)
        except OSError as error:
            tokens.revoke(token)
            self._give_up(socket)
            raise Refused(Code.WSAENOBUFS) from error
        # The early messages belong to the new process now. A socket that comes back must not find them again.
        socket.early = Early()
        if socket.cm_id is not None:
            with self._lock:
                self._handed[socket.cm_id.key] = (time.monotonic() + self._settings.handover_timeout_s, token)

    def _give_up(self, socket: SanSocket) -> None:
        # The connection can be neither kept nor handed over, and the peer must not wait for ever.
        if socket.cm_id is not None:
            socket.state, socket.error = State.DISCONNECTED, Code.WSAECONNABORTED
            self._answer_reset(socket)

    def _suspend(self, socket: SanSocket) -> None:
        connection = socket.connection
        assert connection is not None
        socket.state = State.HANDED_OVER
        # ERR sends nothing to the peer, and makes the adapter return the receives.
        connection.to_error()
        self._drain(socket, connection)
        for operation in list(socket.pending.values()):
            self._finish(socket, operation)
            socket.outcomes.append(Outcome(operation, Code.OK, 0))
        socket.waiting.clear()
        socket.early.waiting.clear()
        self._unwatch(connection)
        self._release_memory(socket)
        self._detach(socket, connection)

    def _suspend_listener(self, socket: SanSocket) -> None:
        # Two processes cannot listen on one service id, so connectors are refused until the new one listens (DUP-19).
        socket.state = State.HANDED_OVER
        socket.happened &= ~int(Event.FD_ACCEPT)
        for request in list(socket.queue):
            self._refuse(request.new_id)
        socket.queue.clear()
        with self._lock:
            self._listeners.discard(socket)
        self._release_cm_id(socket)

    def _drain(self, socket: SanSocket, connection: Connection) -> None:
        """Wait until the adapter has returned all posted operations. The caller holds the lock."""
        end_ns = time.monotonic_ns() + int(FLUSH_TIMEOUT_S * 1e9)
        self._collect(socket)
        while (socket.early.slots or any(o.posted for o in socket.pending.values())) and time.monotonic_ns() < end_ns:
            if wait_readable(connection.fd, WAIT_S):
                connection.take_events()
            self._collect(socket)

    def _flush_code(self, socket: SanSocket) -> Code:
        if socket.state is State.HANDED_OVER and not socket.closing:
            return Code.OK
        return super()._flush_code(socket)

    def _release_cm_id(self, socket: SanSocket) -> None:
        # Closing a former descriptor leaves the connection alone, also before the new process has it (CLOSE-46).
        with socket.lock, self._lock:
            cm_id = socket.cm_id
            if cm_id is not None and cm_id.key in self._handed:
                socket.cm_id = None
                self._by_cm.pop(cm_id.key, None)
                self._lingering[cm_id.key] = cm_id
                return
        super()._release_cm_id(socket)

    def _expire_handed(self) -> float | None:
        """Reset connections that were handed over and never taken (DUP-22).

        Returns the seconds until the next one is due, or None.
        """
        with self._lock:
            now = time.monotonic()
            due = [key for key, (at, _) in self._handed.items() if at <= now]
            for key in due:
                self._abandon(key)
            first = min((at for at, _ in self._handed.values()), default=None)
        return None if first is None else max(first - now, 0.0)

    def _abandon(self, key: int) -> None:
        _, token = self._handed.pop(key)
        self._step(tokens.revoke, token)
        cm_id = self._lingering.get(key)
        socket = self._by_cm.get(key)
        if cm_id is None and socket is not None:
            cm_id = socket.cm_id
        if cm_id is not None:
            self._step(cm_id.disconnect)

    # --- in the process that takes it --------------------------------------------------------------------------------

    def _take_over(self, token: int) -> int:
        """The descriptor of the socket of ``token``: the former descriptor where this process still has it (DUP-11).

        After a failure the token can be tried again while the connection lives: a token is used up only when it has
        given a socket (DUP-21, DUP-24).
        """
        self._check_network()
        self._check_room(0)
        state = _claimed(token)
        try:
            socket = self._taken(state)
        except BaseException:
            tokens.put_back(token)
            raise
        tokens.settle(token)
        return socket.descriptor

    def _taken(self, state: dict[str, Any]) -> SanSocket:
        known = self._socket_known_by(bytes.fromhex(state["secret"]))
        if known is not None and known.state is not State.HANDED_OVER:
            known = None
        socket = known or self._new_socket(state["family"])
        try:
            self._restore(socket, state)
        except BaseException:
            self._step(self._hand_over_again if known else self._drop, socket)
            raise
        return socket

    def _hand_over_again(self, socket: SanSocket) -> None:
        """Return a former descriptor that could not be taken back to its state HANDED_OVER."""
        with socket.lock:
            connection = socket.connection
            if connection is not None:
                self._unwatch(connection)
                self._release_memory(socket)
                self._detach(socket, connection)
            self._release_cm_id(socket)
            socket.early, socket.state = Early(), State.HANDED_OVER

    def _restore(self, socket: SanSocket, state: dict[str, Any]) -> None:
        with socket.lock:
            # The last WSPCleanup may have closed the socket meanwhile.
            if socket.closing:
                raise Refused(Code.WSAENETDOWN)
            cm_id = None if state["backlog"] else self._new_id()
            self._leave_old(socket)
            with self._lock:
                self._by_secret.pop(socket.secret, None)
                socket.secret = bytes.fromhex(state["secret"])
                self._by_secret[socket.secret] = socket
            socket.peer = Peer(state["peer_port"], bytes.fromhex(state["peer_secret"]))
            socket.options = {int(name): value for name, value in state["options"].items()}
            socket.local = SockAddr(*state["local"])
            socket.state, socket.error = State.CREATED, Code.WSAENOTCONN
            arrived = deque(bytes.fromhex(message) for message in state["early"])
            socket.early = Early(arrived=arrived, unclaimed=len(arrived))
            socket.send_room, socket.recv_room, socket.reads = SEND_DEPTH, RECV_DEPTH, 0
            if cm_id is None:
                self._bind(socket, socket.local, 28)
                self._listen(socket, state["backlog"])
                return
            self._adopt(socket, cm_id)
            socket.taking = True
            try:
                self._connect_anew(socket, cm_id, socket.local, SockAddr(*state["remote"]))
            except (OSError, Refused) as error:
                raise Refused(Code.WSAENOBUFS) from error
            finally:
                socket.taking = False

    def _connect_anew(self, socket: SanSocket, cm_id: CmId, local: SockAddr, remote: SockAddr) -> None:
        """Connect to the peer's provider and wait for it. Raises OSError on a failure. The caller holds the lock."""
        cm_id.bind(local.sin_addr, 0)
        self._begin_connect(socket, SockAddr(socket.family, remote.sin_addr, socket.peer.handover_port))
        end = time.monotonic() + self._settings.connect_timeout_s + 1
        while socket.state is State.CONNECTING and time.monotonic() < end and not socket.closing:
            socket.lock.wait(WAIT_S)
        socket.remote = remote
        if socket.state is not State.CONNECTED:
            raise ConnectionError("the peer's provider did not take the connection")

    def _leave_old(self, socket: SanSocket) -> None:
        """Let the CM id of a former descriptor linger until the peer has ended the old connection."""
        if socket.cm_id is not None:
            with self._lock:
                self._handed.pop(socket.cm_id.key, None)
                self._by_cm.pop(socket.cm_id.key, None)
                self._lingering[socket.cm_id.key] = socket.cm_id
            socket.cm_id = None

    def _request_data(self, socket: SanSocket) -> bytes:
        if socket.taking:
            return take(socket.peer.secret, socket.secret, self._handover_port(socket))
        return super()._request_data(socket)

    # --- at the peer -------------------------------------------------------------------------------------------------

    def _handover_port(self, socket: SanSocket) -> int:
        with self._lock:
            known = self._handover_ids.get(socket.family)
            if known is None:
                cm_id: CmId | None = None
                try:
                    cm_id = self._channel.create_id()
                    cm_id.bind(_ANY[socket.family], 0)
                    cm_id.listen(HANDOVER_BACKLOG)
                except OSError as error:
                    if cm_id is not None:
                        self._step(cm_id.destroy)
                    self._observe("cm", handle=0, event="no hand-over listener", status=error.errno)
                    return 0
                known = self._handover_ids[socket.family] = (cm_id, cm_id.local[1])
            return known[1]

    def _is_handover(self, listen_key: int) -> bool:
        with self._lock:
            return any(cm_id.key == listen_key for cm_id, _ in self._handover_ids.values())

    def _on_handover_request(self, event: CmEvent) -> None:
        wanted = parse_take(event.private_data)
        socket = self._socket_known_by(wanted[0]) if wanted is not None else None
        if socket is None or wanted is None:
            self._refuse(new_id_of(event))
            return
        with socket.lock:
            if socket.state is not State.CONNECTED or socket.closing:
                self._refuse(new_id_of(event))
                return
            try:
                self._resume(socket, event, wanted[1])
            except Exception as error:
                self._observe("handover failed", handle=socket.handle, error=repr(error))
                self._lost(socket)
        self._collect(socket)
        self._deliver(socket)

    def _socket_known_by(self, secret: bytes) -> SanSocket | None:
        with self._lock:
            return self._by_secret.get(secret)

    def _resume(self, socket: SanSocket, event: CmEvent, peer: Peer) -> None:
        connection, new_id = socket.connection, new_id_of(event)
        assert connection is not None
        parked: list[Operation] = []
        socket.parked = parked
        connection.to_error()
        self._drain(socket, connection)
        socket.parked = None
        self._linger(socket)
        self._adopt(socket, new_id)
        connection.replace_qp(new_id)
        connection.to_init()
        self._observe("qp", handle=socket.handle, qp_num=connection.qp_num)
        socket.send_room, socket.recv_room, socket.reads = SEND_DEPTH, RECV_DEPTH, 0
        self._repost_early(socket.early, connection)
        # Parked operations precede those that waited behind them.
        socket.waiting.extendleft(reversed(parked))
        receives = [operation for operation in parked if operation.kind is Kind.RECV]
        for operation in receives:
            self._give(socket, connection, operation)
            socket.waiting.remove(operation)
        connection.to_rts()
        socket.peer = peer
        data = hello(socket.secret, self._handover_port(socket), b"")
        new_id.accept(self._conn_param(connection, data))
        self._feed(socket)
        self._observe("handover", handle=socket.handle, event="resumed", receives=len(receives))

    def _repost_early(self, early: Early, connection: Connection) -> None:
        """Post again the private receives that the old queue pair returned unused or never returned."""
        addresses, early.flushed = [*early.flushed, *early.slots.values()], []
        early.slots.clear()
        for address in addresses:
            wr_id = next(self._wr_ids)
            early.slots[wr_id] = address
            connection.post_recv(wr_id, [(address, early.size, early.mr.lkey)])

    def _lost(self, socket: SanSocket) -> None:
        """End the socket's connection as after a reset, because it could be neither kept nor moved."""
        socket.parked = None
        socket.state, socket.error = State.DISCONNECTED, Code.WSAECONNRESET
        self._fail_waiting(socket)


def _reserved_token() -> tuple[int, TextIO]:
    """Reserve a token before the socket is changed, so that a shortage leaves the connection as it was (DUP-21)."""
    try:
        return tokens.reserve()
    except (OSError, tokens.BadToken) as error:
        raise Refused(_shortage(error)) from error


def _claimed(token: int) -> dict[str, Any]:
    try:
        return tokens.claim(token)
    except tokens.BadToken as error:
        raise Refused(Code.WSAEINVAL) from error
    except OSError as error:
        raise Refused(_shortage(error)) from error


def _shortage(error: Exception) -> Code:
    number = error.errno if isinstance(error, OSError) else 0
    return Code.WSAEMFILE if number in (errno.EMFILE, errno.ENFILE) else Code.WSAENOBUFS


def _state_of(socket: SanSocket) -> dict[str, Any]:
    def plain(address: SockAddr | None) -> tuple[int, str, int]:
        return (address.sin_family, address.sin_addr, address.sin_port) if address else (socket.family, "", 0)

    return {
        "family": socket.family,
        "local": plain(socket.local),
        "remote": plain(socket.remote),
        "secret": socket.secret.hex(),
        "peer_secret": socket.peer.secret.hex(),
        "peer_port": socket.peer.handover_port,
        "options": {str(name): value for name, value in socket.options.items()},
        "backlog": socket.backlog if socket.state is State.LISTENING else 0,
    }


def _alive(pid: int) -> bool:
    if not 0 < pid < 1 << 22:
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
