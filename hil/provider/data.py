"""Overlapped operations: posting them, their completions, and the up-calls to the switch."""

import ctypes
import select
import threading
from collections.abc import Callable

from hil.provider.core import Refused
from hil.provider.descriptor import DESCRIPTOR
from hil.provider.memory import Memory
from hil.provider.sockets import Kind, Operation, Outcome, SanSocket, State
from hil.verbs import connection as verbs
from hil.verbs.connection import Completion, Connection
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, WSABUFEX, WSAOVERLAPPED, LpErrno

MAX_MESSAGE = 1 << 20
MAX_RDMA = 8 << 20
RDMA_THRESHOLD = 4096
WAIT_S = 0.02
# The access that the local memory of an operation must permit (MEM-14).
_NEED = {Kind.SEND: w.MEM_READ, Kind.RECV: w.MEM_WRITE, Kind.WRITE: w.MEM_READ, Kind.READ: w.MEM_WRITE}
_TO_ADAPTER = {
    verbs.WC_SUCCESS: Code.OK,
    verbs.WC_LOC_LEN_ERR: Code.WSAEMSGSIZE,
    verbs.WC_LOC_PROT_ERR: Code.WSAEFAULT,
}


def wait_readable(fd: int, timeout_s: float) -> bool:
    """Whether ``fd`` became readable in time. Unlike select, this works for descriptors above 1023."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


class Data(Memory):
    """WSPSend, WSPRecv, WSPRdmaWrite, WSPRdmaRead, WSPGetOverlappedResult, and the handling of completions."""

    # --- posting -----------------------------------------------------------------------------------------------------

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
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._post(self._find(s), Kind.SEND, parts, lpOverlapped))

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
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._post(self._find(s), Kind.RECV, parts, lpOverlapped))

    def WSPRdmaWrite(
        self,
        s: int,
        lpBuffers: list[WSABUFEX],
        dwBufferCount: int,
        lpTargetBufferDescriptor: bytes,
        dwTargetDescriptorLength: int,
        dwTargetBufferOffset: int,
        lpdwNumberOfBytesWritten: list[int],
        dwFlags: int,
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: object,
        lpThreadId: object,
        lpErrno: LpErrno,
    ) -> int:
        """Write ``lpBuffers`` in order to the peer's buffer, from ``dwTargetBufferOffset`` bytes on (RDMA-01)."""
        target = bytes(lpTargetBufferDescriptor[: max(dwTargetDescriptorLength, 0)])
        parts = lpBuffers[:dwBufferCount]
        return self._answer(
            lpErrno,
            w.SOCKET_ERROR,
            lambda: self._rdma(self._find(s), Kind.WRITE, parts, target, dwTargetBufferOffset, dwFlags, lpOverlapped),
        )

    def WSPRdmaRead(
        self,
        s: int,
        lpBuffers: list[WSABUFEX],
        dwBufferCount: int,
        lpTargetBufferDescriptor: bytes,
        dwTargetDescriptorLength: int,
        dwTargetBufferOffset: int,
        lpdwNumberOfBytesRead: list[int],
        dwFlags: int,
        lpOverlapped: WSAOVERLAPPED,
        lpCompletionRoutine: object,
        lpThreadId: object,
        lpErrno: LpErrno,
    ) -> int:
        """Read the peer's buffer, from ``dwTargetBufferOffset`` bytes on, into ``lpBuffers`` in order (RDMA-02)."""
        target = bytes(lpTargetBufferDescriptor[: max(dwTargetDescriptorLength, 0)])
        parts = lpBuffers[:dwBufferCount]
        return self._answer(
            lpErrno,
            w.SOCKET_ERROR,
            lambda: self._rdma(self._find(s), Kind.READ, parts, target, dwTargetBufferOffset, dwFlags, lpOverlapped),
        )

    def _rdma(
        self,
        socket: SanSocket,
        kind: Kind,
        buffers: list[WSABUFEX],
        target: bytes,
        offset: int,
        flags: int,
        overlapped: WSAOVERLAPPED,
    ) -> int:
        if flags:
            raise Refused(Code.WSAEOPNOTSUPP)
        with socket.lock:
            connection = self._connected(socket)
            if len(target) != DESCRIPTOR.size:
                raise Refused(Code.WSAEINVAL)
            rkey, address, room = DESCRIPTOR.unpack(target)
            length = sum(buffer.len for buffer in buffers)
            if offset < 0 or offset + length > room:
                raise Refused(Code.WSAEINVAL)
            if length > self._max_rdma(connection):
                raise Refused(Code.WSAEMSGSIZE)
            known = {registration.handle: registration for registration in socket.registrations}
            if any(buffer.handle not in known for buffer in buffers):
                raise Refused(Code.WSAEINVAL)
            registrations = [known[buffer.handle] for buffer in buffers]
            for buffer, registration in zip(buffers, registrations, strict=True):
                if not registration.covers(buffer.buf, buffer.len) or not registration.flags & _NEED[kind]:
                    raise Refused(Code.WSAEFAULT)
            parts = [WSABUF(buffer.len, buffer.buf) for buffer in buffers]
            remote = (rkey, (address + offset) % (1 << 64))
            operation = Operation(next(self._wr_ids), kind, overlapped, length, parts, registrations, remote)
            return self._start(socket, operation)

    def _max_rdma(self, connection: Connection | None) -> int:
        return min(MAX_RDMA, connection.device.max_message) if connection is not None else MAX_RDMA

    def _max_message(self, connection: Connection | None) -> int:
        return min(MAX_MESSAGE, connection.device.max_message) if connection is not None else MAX_MESSAGE

    def _post(self, socket: SanSocket, kind: Kind, buffers: list[WSABUF], overlapped: WSAOVERLAPPED) -> int:
        with socket.lock:
            # Messages that arrived before the connection ended can still be received (RECV-14).
            left = kind is Kind.RECV and socket.early.arrived and socket.state is State.DISCONNECTED
            connection = socket.connection if left and not socket.closing else self._connected(socket)
            length = sum(buffer.len for buffer in buffers)
            if kind is Kind.SEND and length > self._max_message(connection):
                raise Refused(Code.WSAEMSGSIZE)
            # The buffer array is copied, because it may change after the call has returned (Q7).
            parts = [WSABUF(buffer.len, buffer.buf) for buffer in buffers]
            registrations = [self._registration(socket, buffer, _NEED[kind]) for buffer in parts]
            operation = Operation(next(self._wr_ids), kind, overlapped, length, parts, registrations)
            return self._start(socket, operation)

    def _start(self, socket: SanSocket, operation: Operation) -> int:
        """Begin ``operation``. It always pends (Q2). The caller holds the lock."""
        if len(operation.buffers) > verbs.MAX_SGE:
            raise Refused(Code.WSAENOBUFS)
        self._begin(socket, operation)
        if operation.kind is Kind.RECV and socket.early.unclaimed:
            socket.early.unclaimed -= 1
            socket.early.waiting.append(operation)
            self._match_early(socket)
        else:
            socket.waiting.append(operation)
            try:
                self._feed(socket)
            except Exception as error:
                if operation not in socket.waiting:
                    raise
                socket.waiting.remove(operation)
                self._finish(socket, operation)
                raise Refused(Code.WSAENOBUFS) from error
        raise Refused(Code.WSA_IO_PENDING)

    def _begin(self, socket: SanSocket, operation: Operation) -> None:
        operation.overlapped.Internal = w.WSS_OPERATION_IN_PROGRESS
        socket.pending[operation.wr_id] = operation
        for registration in operation.registrations:
            registration.in_use += 1

    def _feed(self, socket: SanSocket) -> None:
        """Give the adapter the waiting operations, in order, as far as its queues have room (SEND-11)."""
        if socket.connection is None or socket.state is not State.CONNECTED or socket.closing:
            return
        held: set[bool] = set()
        for operation in list(socket.waiting):
            is_receive = operation.kind is Kind.RECV
            room = socket.recv_room if is_receive else socket.send_room
            if is_receive in held or not room:
                held.add(is_receive)
                continue
            self._give(socket, socket.connection, operation)
            socket.waiting.remove(operation)

    def _feed_rest(self, socket: SanSocket) -> None:
        try:
            self._feed(socket)
        except Exception as error:
            # The adapter refused an operation although its queues have room, so it would refuse it again. No later
            # operation may overtake it, so the connection ends.
            self._observe("feed failed", handle=socket.handle, error=repr(error))
            self._connection_broke(socket)

    def _give(self, socket: SanSocket, connection: Connection, operation: Operation) -> None:
        parts = operation.parts()
        # A later message must not overtake an RDMA read (SEND-14).
        fence = socket.reads > 0
        if operation.kind is Kind.RECV:
            connection.post_recv(operation.wr_id, parts)
            socket.recv_room -= 1
        else:
            if operation.kind is Kind.SEND:
                connection.post_send(operation.wr_id, parts, fence=fence)
            elif operation.kind is Kind.WRITE:
                connection.post_rdma_write(operation.wr_id, parts, *operation.remote, fence=fence)
            else:
                connection.post_rdma_read(operation.wr_id, parts, *operation.remote)
                socket.reads += 1
            socket.send_room -= 1
        operation.posted = True

    # --- early messages ----------------------------------------------------------------------------------------------

    def _post_early(self, socket: SanSocket, connection: Connection) -> None:
        """Post the private receives of a new connection, before any message can arrive (NEG-03)."""
        early, count = socket.early, self._settings.early_messages
        if not count:
            return
        early.size = RDMA_THRESHOLD
        early.memory = ctypes.create_string_buffer(count * early.size)
        base = ctypes.addressof(early.memory)
        early.mr = connection.register(base, count * early.size, verbs.LOCAL_WRITE)
        self._observe_region(socket, early.mr.lkey, count * early.size)
        for address in range(base, base + count * early.size, early.size):
            wr_id = next(self._wr_ids)
            early.slots[wr_id] = address
            connection.post_recv(wr_id, [(address, early.size, early.mr.lkey)])
        # A socket that was handed over with unread messages has unclaimed ones already (DUP-14).
        early.unclaimed += count

    def _early_arrived(self, socket: SanSocket, completion: Completion) -> None:
        address = socket.early.slots.pop(completion.wr_id)
        if completion.status == verbs.WC_SUCCESS:
            socket.early.arrived.append(ctypes.string_at(address, completion.length))
            self._match_early(socket)
        elif completion.status != verbs.WC_WR_FLUSH_ERR:
            self._completion_code(socket, completion)
        elif socket.parked is not None:
            socket.early.flushed.append(address)

    def _match_early(self, socket: SanSocket) -> None:
        early = socket.early
        while early.arrived and early.waiting:
            message, operation = early.arrived.popleft(), early.waiting.popleft()
            fits = len(message) <= operation.length
            if fits:
                self._scatter(message, operation.buffers)
            self._finish(socket, operation)
            code = Code.OK if fits else Code.WSAEMSGSIZE
            socket.outcomes.append(Outcome(operation, code, len(message) if fits else 0))
            self._kick(socket)

    def _scatter(self, message: bytes, buffers: list[WSABUF]) -> None:
        offset = 0
        for buffer in buffers:
            part = message[offset : offset + buffer.len]
            ctypes.memmove(buffer.buf, part, len(part))
            offset += len(part)

    # --- completions -------------------------------------------------------------------------------------------------

    def _collect(self, socket: SanSocket) -> None:
        with socket.lock:
            if socket.connection is None:
                return
            for completion in socket.connection.poll():
                self._take(socket, completion)
            if socket.waiting:
                self._feed_rest(socket)
            # The adapter reports no completion for operations that it never got.
            if socket.state is State.DISCONNECTED and not socket.closing:
                self._fail_waiting(socket)
            socket.lock.notify_all()

    def _take(self, socket: SanSocket, completion: Completion) -> None:
        self._observe("wc", handle=socket.handle, status=completion.status, wr_id=completion.wr_id)
        if completion.wr_id in socket.early.slots:
            self._early_arrived(socket, completion)
            return
        operation = socket.pending.get(completion.wr_id)
        if operation is None or not operation.posted:
            return
        if operation.kind is Kind.RECV:
            socket.recv_room += 1
        else:
            socket.send_room += 1
            socket.reads -= operation.kind is Kind.READ
        if socket.parked is not None and completion.status == verbs.WC_WR_FLUSH_ERR:
            operation.posted = False
            socket.parked.append(operation)
            return
        self._finish(socket, operation)
        code = self._completion_code(socket, completion)
        if operation.kind is Kind.RECV and completion.status == verbs.WC_LOC_QP_OP_ERR and not socket.closing:
            # Soft-RoCE reports a message that is longer than its receive in this way (RECV-07).
            code = Code.WSAEMSGSIZE
        done = completion.length if operation.kind is Kind.RECV else operation.length
        socket.outcomes.append(Outcome(operation, code, 0 if code else done))

    def _completion_code(self, socket: SanSocket, completion: Completion) -> Code:
        if completion.status == verbs.WC_SUCCESS:
            return Code.OK
        if completion.status == verbs.WC_WR_FLUSH_ERR:
            return self._flush_code(socket)
        self._connection_broke(socket)
        # An operation that fails during a close is reported to the switch as cancelled (CLOSE-13).
        return self._flush_code(socket) if socket.closing else _TO_ADAPTER.get(completion.status, Code.WSAECONNABORTED)

    def _connection_broke(self, socket: SanSocket) -> None:
        if socket.state is State.CONNECTED and not socket.closing:
            socket.state, socket.error = State.DISCONNECTED, Code.WSAECONNABORTED
            assert socket.connection is not None
            self._step(socket.connection.to_error)

    def _flush_code(self, socket: SanSocket) -> Code:
        if socket.closing:
            return Code.WSA_OPERATION_ABORTED
        return socket.error if socket.state is State.DISCONNECTED else Code.WSAECONNABORTED

    def _finish(self, socket: SanSocket, operation: Operation) -> None:
        if socket.pending.pop(operation.wr_id, None) is not None:
            for registration in operation.registrations:
                registration.in_use -= 1

    def _fail_waiting(self, socket: SanSocket) -> None:
        """End the operations that the adapter does not have. The caller holds the lock."""
        for operation in [o for o in socket.pending.values() if not o.posted]:
            self._finish(socket, operation)
            socket.outcomes.append(Outcome(operation, self._flush_code(socket), 0))
        socket.waiting.clear()
        socket.early.waiting.clear()

    # --- telling the switch ------------------------------------------------------------------------------------------

    def _deliver(self, socket: SanSocket, *, wait: bool = False) -> None:
        """Make the up-calls of the outcomes in order, one thread at a time, without holding the lock.

        ``wait``: wait for another thread's up-call. A close from inside an up-call delivers the remaining outcomes
        itself, before WPUCloseSocketHandle.
        """
        me, rest = threading.get_ident(), None
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
                    # Once a close has begun, only the close delivers: it releases memory first (CLOSE-17).
                    if not socket.outcomes or (socket.closing and not wait):
                        rest = self._deliver_no_more(socket, me if again else None)
                        return
                    outcome = socket.outcomes.popleft()
                self._complete(socket, outcome)
        except BaseException:
            with socket.lock:
                rest = self._deliver_no_more(socket, None)
            raise
        finally:
            if rest is not None:
                rest()

    def _deliver_no_more(self, socket: SanSocket, deliverer: int | None) -> Callable[[], None] | None:
        """Let a waiting thread make the up-calls; returns the rest of a close that was left to this thread."""
        rest, socket.rest = socket.rest, None
        socket.deliverer = deliverer
        socket.lock.notify_all()
        return rest

    def _complete(self, socket: SanSocket, outcome: Outcome) -> None:
        overlapped = outcome.operation.overlapped
        overlapped.Offset, overlapped.OffsetHigh = 0, int(outcome.code)
        if overlapped.hEvent & 1:
            overlapped.InternalHigh = outcome.transferred
            overlapped.Internal = 0
            return
        upcall: Callable[..., int] = self._upcalls.lpWPUCompleteOverlappedRequest
        self._inside.depth += 1
        try:
            upcall(socket.handle, overlapped, outcome.code, outcome.transferred, LpErrno())
        finally:
            self._inside.depth -= 1

    # --- results -----------------------------------------------------------------------------------------------------

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
        self._check_open(socket)
        if not 0 <= overlapped.hEvent < w.INVALID_HANDLE_VALUE:
            raise Refused(Code.WSA_INVALID_HANDLE)
        # The completions are collected first, so the answer is right even if no other thread ran (OVL-16).
        self._progress_of(socket)
        while wait and overlapped.Internal == w.WSS_OPERATION_IN_PROGRESS and not socket.closing:
            self._wait_a_little(socket)
            self._progress_of(socket)
        if overlapped.Internal == w.WSS_OPERATION_IN_PROGRESS:
            raise Refused(Code.WSAENOTSOCK if socket.closing else Code.WSA_IO_INCOMPLETE)
        transferred[:], flags[:] = [overlapped.InternalHigh], [overlapped.Offset]
        if overlapped.OffsetHigh:
            raise Refused(Code(overlapped.OffsetHigh))
        return True

    def _progress_of(self, socket: SanSocket) -> None:
        self._collect(socket)
        self._deliver(socket)

    def _wait_a_little(self, socket: SanSocket) -> None:
        with socket.lock:
            fd = socket.connection.fd if socket.connection is not None else None
        if fd is None:
            with socket.lock:
                socket.lock.wait(WAIT_S)
            return
        # When a close in another thread closes the descriptor, this returns at once.
        wait_readable(fd, WAIT_S)
