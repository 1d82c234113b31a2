"""Providers that break one rule each: the bench must name every one of them."""

import threading
import time
from typing import Any, ClassVar

from pyverbs.pd import PD

from hil.provider.core import Refused
from hil.provider.provider import Provider
from hil.provider.sockets import Kind, Operation, Outcome, Registration, Request, SanSocket, State
from hil.verbs.cm import CmEvent
from hil.verbs.connection import LOCAL_WRITE, REMOTE_READ, REMOTE_WRITE, WC_SUCCESS, Completion, Connection
from hil.winsock.codes import MEM_READWRITE, SOMAXCONN, WSS_OPERATION_IN_PROGRESS, Code
from hil.winsock.structures import WSABUF, WSAEVENT, WSANETWORKEVENTS, WSAOVERLAPPED, LpErrno, SockAddr


class NoDreq(Provider):
    """Never tells the wire: breaks CLOSE-35."""

    def _send_reset(self, socket: SanSocket) -> None:
        return

    def _release_cm_id(self, socket: SanSocket) -> None:
        # Destroying the id would make the kernel send the DREQ.
        return


class NoFlush(Provider):
    """Leaves the peer's QP in RTS, so its receives never end: breaks RECV-13."""

    def _flush_at_peer(self, connection: Connection) -> None:
        return


class LeakMr(Provider):
    """Forgets to deregister: breaks CLOSE-18."""

    _forgotten: ClassVar[list[object]] = []

    def _release_memory(self, socket: SanSocket) -> None:
        # Kept, or Python's garbage collector would close them after all.
        self._forgotten.extend([socket.registrations, socket.connection])

    def _free(self, connection: Connection) -> None:
        connection.qp.close()


class WrongCode(Provider):
    """Reports the closer's own operations as reset by the peer: breaks CLOSE-13."""

    def _flush_code(self, socket: SanSocket) -> Code:
        return Code.WSAECONNRESET


class FalseSuccess(Provider):
    """Tells the switch that what it cancelled was done: breaks CLOSE-11."""

    def _flush_code(self, socket: SanSocket) -> Code:
        return Code.OK if socket.closing else super()._flush_code(socket)


class HandleFirst(Provider):
    """Closes the switch's handle before the completions: breaks CLOSE-23 and CLOSE-26."""

    def _flush(self, socket: SanSocket, connection: Connection) -> None:
        self._upcalls.lpWPUCloseSocketHandle(socket.handle, LpErrno())
        super()._flush(socket, connection)


class Lingers(Provider):
    """Gives pending operations time before the reset: breaks CLOSE-07."""

    def _send_reset(self, socket: SanSocket) -> None:
        time.sleep(1.5)
        super()._send_reset(socket)


class LateDreq(Provider):
    """Returns from the close and resets later: breaks CLOSE-35."""

    def _send_reset(self, socket: SanSocket) -> None:
        threading.Timer(0.8, super()._send_reset, (socket,)).start()

    def _release_cm_id(self, socket: SanSocket) -> None:
        threading.Timer(1.2, super()._release_cm_id, (socket,)).start()


class LeakExtra(Provider):
    """Keeps a PD of its own for every operation: breaks CLOSE-18."""

    _kept: ClassVar[list[object]] = []

    def _start(self, socket: SanSocket, *arguments: Any) -> int:
        self._kept.extend(PD(device.context) for device in self._devices.values())
        return super()._start(socket, *arguments)


class StrayUpcall(Provider):
    """Completes what nobody posted on a handle nobody made: breaks CLOSE-25."""

    def _release_memory(self, socket: SanSocket) -> None:
        super()._release_memory(socket)
        self._upcalls.lpWPUCompleteOverlappedRequest(0x7FFF, WSAOVERLAPPED(), 0, 0, LpErrno())


class MemoryLast(Provider):
    """Releases memory only after the completions, and keeps silent about it: breaks CLOSE-17."""

    def _release_memory(self, socket: SanSocket) -> None:
        return

    def _free(self, connection: Connection) -> None:
        connection.qp.close()
        connection.pd.close()
        super()._free(connection)


class EarlySuccess(Provider):
    """Completes sends and RDMA writes as soon as the adapter has them: breaks SEND-09 and RDMA-11."""

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        super()._give(socket, connection, operation)
        if operation.kind in (Kind.SEND, Kind.WRITE):
            self._finish(socket, operation)
            socket.outcomes.append(Outcome(operation, Code.OK, operation.length))
            self._kick(socket)


class Unfenced(Provider):
    """Lets a send overtake an RDMA read: breaks SEND-14."""

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        reads, socket.reads = socket.reads, 0
        super()._give(socket, connection, operation)
        socket.reads += reads


class LateWrites(Provider):
    """Lets sends overtake RDMA writes: breaks SEND-13 and RDMA-15."""

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        if operation.kind is Kind.WRITE:
            threading.Timer(0.3, self._give_late, (socket, connection, operation)).start()
        else:
            super()._give(socket, connection, operation)

    def _give_late(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        with socket.lock:
            if operation.wr_id in socket.pending:
                super()._give(socket, connection, operation)


class AlwaysReset(Provider):
    """Reports a transport failure as a reset by the peer: breaks RECV-17."""

    def _connection_broke(self, socket: SanSocket) -> None:
        super()._connection_broke(socket)
        socket.error = Code.WSAECONNRESET

    def _completion_code(self, socket: SanSocket, completion: Completion) -> Code:
        code = super()._completion_code(socket, completion)
        return Code.WSAECONNRESET if code is Code.WSAECONNABORTED else code


class KeepsListening(Provider):
    """Leaves a closed listener's CM id listening: breaks CLOSE-38."""

    def _release_cm_id(self, socket: SanSocket) -> None:
        if socket.state is not State.LISTENING:
            super()._release_cm_id(socket)


class ForgetsPolled(Provider):
    """Leaves polled operations in progress for ever when it closes: breaks CLOSE-49."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        if not (socket.closing and outcome.operation.overlapped.hEvent & 1):
            super()._complete(socket, outcome)


class SignalsClose(Provider):
    """Signals the event object of what it closes: breaks CLOSE-21."""

    def _tear_down(self, socket: SanSocket) -> None:
        if socket.event is not None:
            socket.event.SetEvent()
        super()._tear_down(socket)


class SharedDomain(Provider):
    """Has one protection domain for all its sockets: breaks RMEM-06 and RMEM-07."""

    _shared: PD | None = None

    def _make_connection(self, socket: SanSocket) -> Connection:
        connection = super()._make_connection(socket)
        if self._shared is not None and socket.cm_id is not None:
            own, connection.pd = connection.pd, self._shared
            connection.replace_qp(socket.cm_id)
            own.close()
            connection.to_init()
        self._shared = connection.pd
        return connection


class OpensLocal(Provider):
    """Lets the peer reach whatever is registered: breaks MEM-13, RMEM-08 and RMEM-09."""

    def _new_registration(self, socket: SanSocket, address: int, length: int, flags: int, access: int) -> Registration:
        access = LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ
        return super()._new_registration(socket, address, length, flags, access)


class KeepsExposed(Provider):
    """Caches what the peer could reach with its key: breaks RMEM-12 and CACHE-04."""

    def _deregister_rdma(self, socket: SanSocket, descriptor: bytes) -> int:
        known = socket.exposed.pop(descriptor, None)
        if known is None:
            return super()._deregister_rdma(socket, descriptor)
        socket.cache.append(known)
        return 0


class TrustsAddresses(Provider):
    """Takes the same address for the same memory: breaks CACHE-09 and CACHE-11."""

    def _forget_remapped(self, socket: SanSocket) -> None:
        return


class FreesAtOnce(Provider):
    """Keeps no count of registrations: breaks MEM-09, MEM-10 and RMEM-14."""

    def _deregister(self, socket: SanSocket, handle: int) -> int:
        for known in socket.registrations:
            known.count = 1
        return super()._deregister(socket, handle)

    def _deregister_rdma(self, socket: SanSocket, descriptor: bytes) -> int:
        for known in socket.exposed.values():
            known.count = 1
        return super()._deregister_rdma(socket, descriptor)


class IgnoresFlags(Provider):
    """Uses registered memory for whatever the switch asks: breaks MEM-14."""

    def _registration(self, socket: SanSocket, buffer: WSABUF, need: int) -> Registration:
        return super()._registration(socket, buffer, MEM_READWRITE)


class NotifiesPolled(Provider):
    """Makes an up-call for polled operations too: breaks OVL-03."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        overlapped = outcome.operation.overlapped
        if overlapped.hEvent & 1:
            arguments = socket.handle, overlapped, outcome.code, outcome.transferred, LpErrno()
            self._upcalls.lpWPUCompleteOverlappedRequest(*arguments)


class LocksUpcalls(Provider):
    """Holds a socket's lock while the switch is in an up-call: breaks OVL-25."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        with socket.lock:
            super()._complete(socket, outcome)


class RefusesFirst(Provider):
    """Tells the connector "no" while the condition function still thinks: breaks ACC-02."""

    def _ask(self, listener: SanSocket, request: Request, *arguments: Any) -> bytes:
        request.new_id.reject()
        return super()._ask(listener, request, *arguments)


class AlwaysCopies(Provider):
    """Goes on receiving into private buffers when the early messages are drained: breaks NEG-06."""

    def _early_arrived(self, socket: SanSocket, completion: Completion) -> None:
        address = socket.early.slots[completion.wr_id]
        super()._early_arrived(socket, completion)
        if completion.status == WC_SUCCESS and socket.connection is not None:
            wr_id, early = next(self._wr_ids), socket.early
            early.slots[wr_id] = address
            early.unclaimed += 1
            socket.connection.post_recv(wr_id, [(address, early.size, early.mr.lkey)])


class LateUpcalls(Provider):
    """Tells of what WSPCleanup cancelled when that has returned: breaks CLEAN-08."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        if self._started:
            super()._complete(socket, outcome)
        else:
            threading.Timer(0.5, super()._complete, (socket, outcome)).start()


class RepeatsUpcalls(Provider):
    """Tells again of an operation whose end the switch has not made visible yet: breaks UP-06."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        if outcome.operation.overlapped.Internal == WSS_OPERATION_IN_PROGRESS:
            super()._complete(socket, outcome)


class IgnoresReset(Provider):
    """Goes on using a connection that its peer has reset, as an attacker would: breaks CLOSE-31."""

    def _on_disconnected(self, socket: SanSocket, event: CmEvent) -> None:
        return

    def _send_reset(self, socket: SanSocket) -> None:
        # The peer's DREQ, if there was one, is still to be answered.
        self._answer_reset(socket)


class CleansUpAtOnce(Provider):
    """Does not count its starts: breaks STARTUP-12 and CLEAN-03."""

    def WSPCleanup(self, lpErrno: LpErrno) -> int:
        self._started = min(self._started, 1)
        return super().WSPCleanup(lpErrno)


class KeepsFailures(Provider):
    """Keeps the record of a socket that got no switch handle: breaks SOCK-05."""

    def _new_socket(self, family: int) -> SanSocket:
        try:
            return super()._new_socket(family)
        except Refused:
            self._sockets[next(self._descriptors)] = SanSocket(0, 0, family)
            raise


class OwnPort(Provider):
    """Connects from a port of its own choice: breaks BIND-01 and BIND-02."""

    def _begin_connect(self, socket: SanSocket, name: SockAddr) -> None:
        self._release_cm_id(socket)
        super()._begin_connect(socket, name)


class LosesWakeUps(Provider):
    """Resets the event object a moment after it told what happened: breaks EVT-08."""

    def _enum_events(self, socket: SanSocket, event: WSAEVENT | None, out: WSANETWORKEVENTS | None) -> int:
        result = super()._enum_events(socket, None, out)
        time.sleep(0.02)
        if event is not None:
            event.ResetEvent()
        return result


class EndlessQueue(Provider):
    """Queues every request, whatever the backlog: breaks LISTEN-07, LISTEN-08 and LISTEN-09."""

    def _listen(self, socket: SanSocket, backlog: int) -> int:
        return super()._listen(socket, SOMAXCONN)


class LooksAway(Provider):
    """Its thread leaves completions where they are, so that only polling finds them: breaks OVL-04."""

    def _on_completion_event(self, fd: int) -> None:
        socket = self._by_fd.get(fd)
        if socket is not None and socket.connection is not None:
            socket.connection.take_events()


class TouchesOld(Provider):
    """Marks what it told long ago as aborted when it closes: breaks OVL-24."""

    _told: ClassVar[list[WSAOVERLAPPED]] = []

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        self._told.append(outcome.operation.overlapped)

    def _release_memory(self, socket: SanSocket) -> None:
        super()._release_memory(socket)
        for overlapped in self._told:
            overlapped.OffsetHigh = int(Code.WSA_OPERATION_ABORTED)


_ALL = (
    NoDreq,
    NoFlush,
    LeakMr,
    WrongCode,
    FalseSuccess,
    HandleFirst,
    Lingers,
    LateDreq,
    LeakExtra,
    StrayUpcall,
    MemoryLast,
    EarlySuccess,
    Unfenced,
    LateWrites,
    AlwaysReset,
    KeepsListening,
    ForgetsPolled,
    SignalsClose,
    SharedDomain,
    OpensLocal,
    KeepsExposed,
    TrustsAddresses,
    FreesAtOnce,
    IgnoresFlags,
    NotifiesPolled,
    LocksUpcalls,
    RefusesFirst,
    AlwaysCopies,
    LateUpcalls,
    RepeatsUpcalls,
    IgnoresReset,
    CleansUpAtOnce,
    KeepsFailures,
    OwnPort,
    LosesWakeUps,
    EndlessQueue,
    LooksAway,
    TouchesOld,
)
BROKEN: dict[str, type[Provider]] = {provider.__name__: provider for provider in _ALL}
