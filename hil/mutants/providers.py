"""Mutant providers. Each breaks one requirement or a few, and the bench must name it."""

import ctypes
import mmap
import tempfile
import threading
import time
from ctypes import addressof, create_string_buffer, string_at
from dataclasses import replace
from typing import Any, ClassVar

from pyverbs.cq import CompChannel
from pyverbs.pd import PD

from hil.provider.core import Refused
from hil.provider.memory import page_frames
from hil.provider.provider import Provider
from hil.provider.sockets import Early, Kind, Operation, Outcome, Registration, Request, SanSocket, State
from hil.verbs.cm import CmEvent
from hil.verbs.connection import LOCAL_WRITE, REMOTE_READ, REMOTE_WRITE, WC_SUCCESS, Completion, Connection
from hil.winsock.codes import MEM_READWRITE, SOMAXCONN, WSS_OPERATION_IN_PROGRESS, Code
from hil.winsock.structures import WSABUF, WSAEVENT, WSANETWORKEVENTS, WSAOVERLAPPED, LpErrno, SockAddr


class NoDreq(Provider):
    """Sends no DREQ when it closes a socket."""

    def _send_reset(self, socket: SanSocket) -> None:
        return

    def _release_cm_id(self, socket: SanSocket) -> None:
        # The kernel would send the DREQ if the id were destroyed.
        return


class NoFlush(Provider):
    """Leaves the peer's QP in RTS, so its receives never end."""

    def _flush_at_peer(self, connection: Connection) -> None:
        return


class LeakMr(Provider):
    """Does not deregister memory when it closes a socket."""

    _forgotten: ClassVar[list[object]] = []

    def _release_memory(self, socket: SanSocket) -> None:
        # The list keeps the regions. Otherwise Python's garbage collector would close them.
        self._forgotten.extend([socket.registrations, socket.connection])

    def _free(self, connection: Connection) -> None:
        connection.qp.close()


class ClosesAnyway(Provider):
    """Returns 0 from a failed close, although it stores the code."""

    def WSPCloseSocket(self, s: int, lpErrno: LpErrno) -> int:
        super().WSPCloseSocket(s, lpErrno)
        return 0


class WrongCode(Provider):
    """Reports the closer's own operations as reset by the peer."""

    def _flush_code(self, socket: SanSocket) -> Code:
        return Code.WSAECONNRESET


class FalseSuccess(Provider):
    """Reports cancelled operations as successful."""

    def _flush_code(self, socket: SanSocket) -> Code:
        return Code.OK if socket.closing else super()._flush_code(socket)


class HandleFirst(Provider):
    """Closes the switch's handle before it reports the completions."""

    def _flush(self, socket: SanSocket, connection: Connection) -> None:
        self._upcalls.lpWPUCloseSocketHandle(socket.handle, LpErrno())
        super()._flush(socket, connection)


class Lingers(Provider):
    """Gives pending operations time before the reset."""

    def _send_reset(self, socket: SanSocket) -> None:
        time.sleep(1.5)
        super()._send_reset(socket)


class LateDreq(Provider):
    """Returns from the close before it resets the connection."""

    def _send_reset(self, socket: SanSocket) -> None:
        threading.Timer(0.8, super()._send_reset, (socket,)).start()

    def _release_cm_id(self, socket: SanSocket) -> None:
        threading.Timer(1.2, super()._release_cm_id, (socket,)).start()


class LeakExtra(Provider):
    """Leaks a PD for every operation."""

    _kept: ClassVar[list[object]] = []

    def _start(self, socket: SanSocket, *arguments: Any) -> int:
        self._kept.extend(PD(device.context) for device in self._devices.values())
        return super()._start(socket, *arguments)


class LeakContext(Provider):
    """Leaves the device and its completion channels open after WSPCleanup."""

    _kept: ClassVar[list[object]] = []

    def _make_connection(self, socket: SanSocket) -> Connection:
        connection = super()._make_connection(socket)
        self._kept.append(CompChannel(self._devices[connection.device.name].context))
        return connection

    def _close(self) -> None:
        self._kept.extend(self._devices.values())
        self._devices = {}
        super()._close()


class LeakThread(Provider):
    """Leaves a thread behind for every operation."""

    def _start(self, socket: SanSocket, *arguments: Any) -> int:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super()._start(socket, *arguments)


class LeakLocked(Provider):
    """Locks a page of memory for every operation and never unlocks it."""

    _kept: ClassVar[list[object]] = []

    def _start(self, socket: SanSocket, *arguments: Any) -> int:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page))), mmap.PAGESIZE)
        self._kept.append(page)
        return super()._start(socket, *arguments)


class LeakDescriptor(Provider):
    """Leaves a descriptor open for every operation."""

    _kept: ClassVar[list[object]] = []

    def _start(self, socket: SanSocket, *arguments: Any) -> int:
        self._kept.append(tempfile.TemporaryFile())  # noqa: SIM115
        return super()._start(socket, *arguments)


class StrayUpcall(Provider):
    """Completes an unknown operation on an unknown handle."""

    def _release_memory(self, socket: SanSocket) -> None:
        super()._release_memory(socket)
        self._upcalls.lpWPUCompleteOverlappedRequest(0x7FFF, WSAOVERLAPPED(), 0, 0, LpErrno())


class MemoryLast(Provider):
    """Releases memory only after the completions, and does not report that."""

    def _release_memory(self, socket: SanSocket) -> None:
        return

    def _free(self, connection: Connection) -> None:
        connection.qp.close()
        connection.pd.close()
        super()._free(connection)


class EarlySuccess(Provider):
    """Completes sends and RDMA writes as soon as the adapter has them."""

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        super()._give(socket, connection, operation)
        if operation.kind in (Kind.SEND, Kind.WRITE):
            self._finish(socket, operation)
            socket.outcomes.append(Outcome(operation, Code.OK, operation.length))
            self._kick(socket)


class Unfenced(Provider):
    """Lets a send overtake an RDMA read."""

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        reads, socket.reads = socket.reads, 0
        super()._give(socket, connection, operation)
        socket.reads += reads


class LateWrites(Provider):
    """Lets sends overtake RDMA writes."""

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
    """Reports a transport failure as a reset by the peer."""

    def _connection_broke(self, socket: SanSocket) -> None:
        super()._connection_broke(socket)
        socket.error = Code.WSAECONNRESET

    def _completion_code(self, socket: SanSocket, completion: Completion) -> Code:
        code = super()._completion_code(socket, completion)
        return Code.WSAECONNRESET if code is Code.WSAECONNABORTED else code


class KeepsListening(Provider):
    """Leaves a closed listener's CM id listening."""

    def _release_cm_id(self, socket: SanSocket) -> None:
        if socket.state is not State.LISTENING:
            super()._release_cm_id(socket)


class ForgetsPolled(Provider):
    """Leaves polled operations in progress for ever when it closes."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        if not (socket.closing and outcome.operation.overlapped.hEvent & 1):
            super()._complete(socket, outcome)


class SignalsClose(Provider):
    """Signals a socket's event object when it closes the socket."""

    def _tear_down(self, socket: SanSocket) -> None:
        if socket.event is not None:
            socket.event.SetEvent()
        super()._tear_down(socket)


class SharedDomain(Provider):
    """Has one protection domain for all its sockets."""

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
    """Lets the peer access all registered memory."""

    def _new_registration(self, socket: SanSocket, address: int, length: int, flags: int, access: int) -> Registration:
        access = LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ
        return super()._new_registration(socket, address, length, flags, access)


class KeepsExposed(Provider):
    """Caches exposed memory, so that the peer can still access it."""

    def _deregister_rdma(self, socket: SanSocket, descriptor: bytes) -> int:
        known = socket.exposed.pop(descriptor, None)
        if known is None:
            return super()._deregister_rdma(socket, descriptor)
        socket.cache.append(known)
        return 0


class TrustsAddresses(Provider):
    """Treats the same address as the same memory."""

    def _forget_remapped(self, socket: SanSocket) -> None:
        return


class FreesAtOnce(Provider):
    """Keeps no count of registrations."""

    def _deregister(self, socket: SanSocket, handle: int) -> int:
        for known in socket.registrations:
            known.count = 1
        return super()._deregister(socket, handle)

    def _deregister_rdma(self, socket: SanSocket, descriptor: bytes) -> int:
        for known in socket.exposed.values():
            known.count = 1
        return super()._deregister_rdma(socket, descriptor)


class IgnoresFlags(Provider):
    """Uses registered memory for any operation, against its flags."""

    def _registration(self, socket: SanSocket, buffer: WSABUF, need: int) -> Registration:
        return super()._registration(socket, buffer, MEM_READWRITE)


class NotifiesPolled(Provider):
    """Makes an up-call for polled operations too."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        overlapped = outcome.operation.overlapped
        if overlapped.hEvent & 1:
            arguments = socket.handle, overlapped, outcome.code, outcome.transferred, LpErrno()
            self._upcalls.lpWPUCompleteOverlappedRequest(*arguments)


class LocksUpcalls(Provider):
    """Holds a socket's lock while the switch is in an up-call."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        with socket.lock:
            super()._complete(socket, outcome)


class RefusesFirst(Provider):
    """Refuses the connector before the condition function has answered."""

    def _ask(self, listener: SanSocket, request: Request, *arguments: Any) -> bytes:
        request.new_id.reject()
        return super()._ask(listener, request, *arguments)


class AlwaysCopies(Provider):
    """Goes on receiving into private buffers after the early messages are drained."""

    def _early_arrived(self, socket: SanSocket, completion: Completion) -> None:
        address = socket.early.slots[completion.wr_id]
        super()._early_arrived(socket, completion)
        if completion.status == WC_SUCCESS and socket.connection is not None:
            wr_id, early = next(self._wr_ids), socket.early
            early.slots[wr_id] = address
            early.unclaimed += 1
            socket.connection.post_recv(wr_id, [(address, early.size, early.mr.lkey)])


class LateUpcalls(Provider):
    """Reports operations that WSPCleanup cancelled only after WSPCleanup has returned."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        if self._started:
            super()._complete(socket, outcome)
        else:
            threading.Timer(0.5, super()._complete, (socket, outcome)).start()


class RepeatsUpcalls(Provider):
    """Reports an operation again if the switch has not yet made its end visible."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        if outcome.operation.overlapped.Internal == WSS_OPERATION_IN_PROGRESS:
            super()._complete(socket, outcome)


class LeavesBroken(Provider):
    """Closes a connection that broke at its own end without a reliable reset of the peer."""

    def _is_joined(self, socket: SanSocket) -> bool:
        return socket.state is State.CONNECTED


class IgnoresReset(Provider):
    """Goes on using a connection that its peer has reset, like an attacker."""

    def _on_disconnected(self, socket: SanSocket, event: CmEvent) -> None:
        return

    def _send_reset(self, socket: SanSocket) -> None:
        # The peer's DREQ, if there was one, must still be answered.
        self._answer_reset(socket)


class CleansUpAtOnce(Provider):
    """Does not count its starts."""

    def WSPCleanup(self, lpErrno: LpErrno) -> int:
        self._started = min(self._started, 1)
        return super().WSPCleanup(lpErrno)


class KeepsFailures(Provider):
    """Keeps the record of a socket that got no switch handle."""

    def _new_socket(self, family: int) -> SanSocket:
        try:
            return super()._new_socket(family)
        except Refused:
            self._sockets[next(self._descriptors)] = SanSocket(0, 0, family)
            raise


class OwnPort(Provider):
    """Connects from another port than the bound one."""

    def _begin_connect(self, socket: SanSocket, name: SockAddr) -> None:
        self._release_cm_id(socket)
        super()._begin_connect(socket, name)


class LosesWakeUps(Provider):
    """Resets the event object only some time after it reported the events."""

    def _enum_events(self, socket: SanSocket, event: WSAEVENT | None, out: WSANETWORKEVENTS | None) -> int:
        result = super()._enum_events(socket, None, out)
        time.sleep(0.02)
        if event is not None:
            event.ResetEvent()
        return result


class EndlessQueue(Provider):
    """Queues every request, even beyond the backlog."""

    def _listen(self, socket: SanSocket, backlog: int) -> int:
        return super()._listen(socket, SOMAXCONN)


class LooksAway(Provider):
    """Never looks for completions in its own thread, so that only polling finds them."""

    def _on_completion_event(self, fd: int) -> None:
        socket = self._by_fd.get(fd)
        if socket is not None and socket.connection is not None:
            socket.connection.take_events()


class TouchesOld(Provider):
    """Marks operations that it reported long before as aborted when it closes."""

    _told: ClassVar[list[WSAOVERLAPPED]] = []

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        self._told.append(outcome.operation.overlapped)

    def _release_memory(self, socket: SanSocket) -> None:
        super()._release_memory(socket)
        for overlapped in self._told:
            overlapped.OffsetHigh = int(Code.WSA_OPERATION_ABORTED)


class CompletesTwice(Provider):
    """Reports an operation that succeeds during a close as successful and as aborted."""

    def _take(self, socket: SanSocket, completion: Completion) -> None:
        operation = socket.pending.get(completion.wr_id)
        super()._take(socket, completion)
        if socket.closing and operation is not None and completion.status == WC_SUCCESS:
            socket.outcomes.append(Outcome(operation, Code.WSA_OPERATION_ABORTED, 0))


class ForgetsOutcomes(Provider):
    """Forgets completions that it has not reported when a close begins."""

    def _tear_down(self, socket: SanSocket) -> None:
        with socket.lock:
            socket.outcomes.clear()
        super()._tear_down(socket)


class ReleasesInUse(Provider):
    """Deregisters memory that operations still use."""

    def _deregister(self, socket: SanSocket, handle: int) -> int:
        with socket.lock:
            for known in socket.registrations:
                known.in_use = 0
            return super()._deregister(socket, handle)


class TellsOnce(Provider):
    """Does not signal again, after an accept, for further requests in the queue."""

    def _after_accept(self, listener: SanSocket, request: Request) -> None:
        with listener.lock:
            listener.asked.discard(request)
            if listener.event is not None:
                listener.event.ResetEvent()


class WaitsInUpcalls(Provider):
    """Waits for another thread's up-call when it closes inside an up-call."""

    def _leave_to_deliverer(self, socket: SanSocket, connection: Connection | None) -> bool:
        return False


class KeepsOperations(Provider):
    """Keeps a record of every operation for ever; no audit of the kernel shows it."""

    _kept: ClassVar[list[object]] = []

    def _finish(self, socket: SanSocket, operation: Operation) -> None:
        super()._finish(socket, operation)
        self._kept.append(operation)


class ClosesTwice(Provider):
    """Lets two threads close one descriptor."""

    def _close_socket(self, descriptor: int) -> int:
        socket = self._sockets.get(descriptor)
        time.sleep(0.0005)
        result = super()._close_socket(descriptor) if descriptor in self._sockets else 0
        if socket is None:
            raise Refused(Code.WSAENOTSOCK)
        return result


class ResetsOnce(Provider):
    """Destroys its CM id with the reset, so that a lost DREQ is never repeated."""

    def _linger(self, socket: SanSocket) -> None:
        cm_id = socket.cm_id
        super()._linger(socket)
        if cm_id is not None:
            self._end_lingering(cm_id.key)


class TrustsFirstPages(Provider):
    """Treats memory as unchanged if its first page is unchanged."""

    def _forget_remapped(self, socket: SanSocket) -> None:
        for known in socket.cache:
            frames = page_frames(known.address, known.length)
            if frames is not None and known.frames is not None and frames[:8] == known.frames[:8]:
                known.frames = frames
        super()._forget_remapped(socket)


class WaitsForVisible(Provider):
    """Does not go on after an up-call until the switch has stored the result."""

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        super()._complete(socket, outcome)
        while outcome.operation.overlapped.Internal == WSS_OPERATION_IN_PROGRESS:
            time.sleep(0.001)


class CopiesForEver(Provider):
    """Posts a large private receive for every receive of the switch, for ever."""

    _SIZE = 16384

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        if operation.kind is not Kind.RECV or not self._settings.early_messages:
            super()._give(socket, connection, operation)
            return
        early, wr_id = Early(size=self._SIZE), next(self._wr_ids)
        early.memory = create_string_buffer(early.size)
        address = addressof(early.memory)
        early.mr = connection.register(address, early.size, LOCAL_WRITE)
        self._private[wr_id] = (early, operation)
        connection.post_recv(wr_id, [(address, early.size, early.mr.lkey)])
        operation.posted = True

    def _take(self, socket: SanSocket, completion: Completion) -> None:
        early, operation = self._private.pop(completion.wr_id, (None, None))
        if early is None or operation is None:
            super()._take(socket, completion)
            return
        if completion.status == WC_SUCCESS:
            self._scatter(string_at(addressof(early.memory), completion.length), operation.buffers)
        early.mr.close()
        super()._take(socket, replace(completion, wr_id=operation.wr_id))

    _private: ClassVar[dict[int, tuple[Early, Operation]]] = {}


class IgnoresReads(Provider):
    """Treats memory that its own RDMA read fills as idle."""

    def _deregister_rdma(self, socket: SanSocket, descriptor: bytes) -> int:
        reads = [o for o in socket.pending.values() if o.kind is Kind.READ]
        for operation in reads:
            operation.kind = Kind.IOCTL
        try:
            return super()._deregister_rdma(socket, descriptor)
        finally:
            for operation in reads:
                operation.kind = Kind.READ


class WaitsForPolledOnly(Provider):
    """Waits for fWait only if the operation is polled."""

    def _result(
        self, socket: SanSocket, overlapped: WSAOVERLAPPED, transferred: list[int], wait: bool, flags: list[int]
    ) -> bool:
        return super()._result(socket, overlapped, transferred, wait and bool(overlapped.hEvent & 1), flags)


class KeepsCache(Provider):
    """Empties the cache only after it has closed the switch's handle."""

    def _release_memory(self, socket: SanSocket) -> None:
        kept, socket.cache = socket.cache, []
        super()._release_memory(socket)
        socket.cache = kept if socket.closing else []

    def _detach(self, socket: SanSocket, connection: Connection) -> None:
        for registration in socket.cache:
            registration.mr.close()
        super()._detach(socket, connection)


class CleansMemoryLast(Provider):
    """Reports operations that WSPCleanup cancelled before it frees their memory, and journals the opposite."""

    def _release_memory(self, socket: SanSocket) -> None:
        if self._started or not socket.closing:
            super()._release_memory(socket)
            return
        for registration in socket.registrations:
            facts = {"registration": registration.handle, "count": registration.count}
            self._observe("mr", handle=socket.handle, event="released", **facts)

    def _detach(self, socket: SanSocket, connection: Connection) -> None:
        if not self._started:
            super()._release_memory(socket)
        super()._detach(socket, connection)


class NeverAbandons(Provider):
    """Waits for ever for the process that should take a socket over."""

    def _expire_handed(self) -> float | None:
        return None


class LosesUnread(Provider):
    """Leaves unread messages in the process that hands a socket over."""

    def _suspend(self, socket: SanSocket) -> None:
        super()._suspend(socket)
        socket.early.arrived.clear()
