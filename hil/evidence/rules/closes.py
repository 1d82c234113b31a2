"""Which close is judged."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HardClose:
    """Which close is judged: the closer's and the peer's node, socket descriptor and switch handle.

    ``killed``: the closer's process was killed, so it closed nothing itself. ``both``: both ends closed at once.
    """

    closer: str
    closer_socket: int
    closer_handle: int
    peer: str
    peer_socket: int
    peer_handle: int
    killed: bool = False
    both: bool = False

    def other_way(self) -> "HardClose":
        """The same connection with the ends exchanged."""
        ends = (self.peer, self.peer_socket, self.peer_handle, self.closer, self.closer_socket, self.closer_handle)
        return HardClose(*ends, self.killed, self.both)
