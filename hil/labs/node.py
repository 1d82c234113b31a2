"""Nodes of every kind, and what nodes with an agent share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hil.agent.protocol import Message
from hil.labs.channel import Channel, ClockRelation

SYSTEM_TIMEOUT_S = 60.0

Record = Callable[[str, int, Message], None]
"""Takes what the workers of a node say unasked: the node's name, the worker's number, the event."""


class Node(Protocol):
    """A machine where code runs: a clone, an SSH host, this machine.

    ``console`` is the file that keeps what the machine, or the way to it, said by itself.
    """

    name: str
    channel: Channel
    console: Path

    def system(self, call: str, /, **arguments: Any) -> Any:
        """A call of the node's ``system`` role. Raises NodeError."""

    def clock(self) -> ClockRelation:
        """How the node's clock stands to the controller's. Raises NodeError."""

    def check_alive(self) -> None:
        """Raises NodeDied unless the node's agent answers."""

    def stop(self) -> None:
        """End everything that was started for the node; safe to call twice."""


class AgentNode:
    """The calls that go through the agent's channel, which a subclass opens."""

    name: str
    channel: Channel

    def __init__(self) -> None:
        self._system: int | None = None

    def system(self, call: str, /, **arguments: Any) -> Any:
        """A call of the node's ``system`` role: provisioning, resources, counters, programs."""
        if self._system is None:
            self._system, _ = self.channel.spawn("system")
        return self.channel.call(self._system, call, SYSTEM_TIMEOUT_S, "system call", **arguments)

    def clock(self) -> ClockRelation:
        return self.channel.clock()
