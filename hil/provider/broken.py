"""Providers that break one rule each: the bench must name every one of them."""

from typing import ClassVar

from hil.provider.provider import Provider
from hil.provider.sockets import SanSocket
from hil.verbs.connection import Connection
from hil.winsock.codes import Code
from hil.winsock.structures import LpErrno


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


_ALL = (NoDreq, NoFlush, LeakMr, WrongCode, FalseSuccess, HandleFirst)
BROKEN: dict[str, type[Provider]] = {provider.__name__: provider for provider in _ALL}
