"""Mutant sessions. Each breaks one obligation of the switch, and the switch must report it."""

from hil.agent.roles.stream import AddressWatch
from hil.switch.messages import LONGEST_HELLO, Kind
from hil.switch.session import Session
from hil.winsock import codes as w
from hil.winsock.codes import Code


class NegotiatesFirst(Session):
    """Sends its negotiation message before it has posted receives."""

    def _post_receives(self) -> None:
        # An acceptor needs one receive, or the connector could send it no message.
        if not self.connector:
            self._post_receive(0)

    def _say_hello(self) -> None:
        super()._say_hello()
        for slot in range(0 if self.connector else 1, self.options.receives):
            self._post_receive(slot)


class LongHello(Session):
    """Sends a negotiation message longer than 256 bytes."""

    def _say_hello(self) -> None:
        self._transmit(Kind.HELLO, self._hello().encode().ljust(LONGEST_HELLO + 1, b"?"))


class NoCredits(Session):
    """Sends messages even without a posted receive at the peer."""

    def _may_send(self) -> bool:
        return True


class LateRepost(Session):
    """Posts a consumed receive again only after the next message."""

    _kept: int | None = None

    def _repost(self, slot: int) -> None:
        kept, self._kept = self._kept, slot
        if kept is not None:
            super()._repost(kept)


class WrongPath(Session):
    """Sends small data by RDMA and large data by message."""

    def _by_rdma(self, length: int) -> bool:
        return not super()._by_rdma(length)


class SuspendsForEver(Session):
    """Never ends a suspended session."""

    def _suspension_expired(self) -> None:
        return


class EndsInSilence(Session):
    """Sends no message when a transfer by RDMA has ended."""

    def _announce(self, kind: Kind, number: int, code: Code = Code.OK) -> None:
        return


class OtherCode(Session):
    """Ends a send that lacks memory with WSAEFAULT instead of WSAENOBUFS."""

    def _memory_code(self) -> Code:
        return Code.WSAEFAULT


class UrgentFlag(Session):
    """Passes MSG_OOB on to WSPSend."""

    def _send_flags(self) -> int:
        return w.MSG_OOB if self.flow.peer is not None else 0


class Deaf(AddressWatch):
    """Does not query the addresses again when they change."""

    def _on_change(self) -> None:
        return
