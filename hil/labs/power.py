"""Power control: the interface that halts a node and cuts its power."""

from typing import Protocol


class Power(Protocol):
    """Power control of one node.

    The node's lab makes it. Tests call it in their own thread, one call at a time. Each call returns within a minute,
    after its action is complete. Every method raises NodeError when its action fails.
    """

    def halt(self) -> None:
        """Stop the node at once. It sends and answers nothing until ``resume``, and keeps its memory."""

    def cut(self) -> None:
        """Cut the node's power. The contents of its memory are lost."""

    def resume(self) -> None:
        """Let a halted node continue. Start a node without power again, if the node can start again.

        Returns once the start is requested; the lab waits until the node answers. Does nothing to a running node.
        """
