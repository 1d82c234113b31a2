"""Providers that break one rule each: the bench must name every one of them."""

import threading
import time
from typing import Any, ClassVar

from pyverbs.pd import PD

from hil.provider.provider import Provider
from hil.provider.sockets import Kind, Operation, Outcome, SanSocket, State
from hil.verbs.connection import Completion, Connection
from hil.winsock.codes import Code
from hil.winsock.structures import WSAOVERLAPPED, LpErrno


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
)
BROKEN: dict[str, type[Provider]] = {provider.__name__: provider for provider in _ALL}
