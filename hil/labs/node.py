"""The interface of nodes, and the calls that all nodes with an agent share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hil.agent.protocol import Message
from hil.labs.channel import Channel, ClockRelation

SYSTEM_TIMEOUT_S = 60.0

Record = Callable[[str, int, Message], None]
"""Receives the events that workers send: the node's name, the worker's number, the event."""


class Node(Protocol):
    """A machine where code runs: a clone, an SSH host, this machine.

    ``console`` is the file with the output of the machine's console, or of the program that carries the connection.
    """

    name: str
    channel: Channel
    console: Path

    def system(self, call: str, /, **arguments: Any) -> Any:
        """Call the node's ``system`` role. Raises NodeError."""

    def clock(self) -> ClockRelation:
        """The relation of the node's clock to the controller's. Raises NodeError."""

    def check_alive(self) -> None:
        """Raises NodeDied unless the node's agent answers."""

    def stop(self) -> None:
        """End all processes that were started for the node. Safe to call twice."""


class AgentNode:
    """A node whose calls go through the agent's channel. A subclass opens the channel."""

    name: str
    channel: Channel

    def __init__(self) -> None:
        self._system: int | None = None

    def system(self, call: str, /, **arguments: Any) -> Any:
        """Call the node's ``system`` role: provisioning, resources, counters, programs."""
        if self._system is None:
            self._system, _ = self.channel.spawn("system")
        return self.channel.call(self._system, call, SYSTEM_TIMEOUT_S, "system call", **arguments)

    def clock(self) -> ClockRelation:
        return self.channel.clock()
