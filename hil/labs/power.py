"""Power control: how a node is halted and cut off at will."""

from typing import Protocol


class Power(Protocol):
    """Power control of one node.

    Its lab makes it. Tests call it in their own thread, one call at a time; each call returns once it is done, within a
    minute. Every method may raise NodeError when it could not be done.
    """

    def halt(self) -> None:
        """Let the node stand still at once: it sends and answers nothing, and keeps what it has, until ``resume``."""

    def cut(self) -> None:
        """Cut the node off, as a plug that is pulled does: what it had in its memory is lost."""

    def resume(self) -> None:
        """Let a halted node go on, and a node that was cut off start anew, where the node can.

        Returns when this was asked for; the lab waits until the node answers. Does nothing to a node that runs.
        """
