"""A node made from a snapshot in a tenth of a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hil.errors import NodeDied
from hil.nodes.channel import Channel, ClockRelation
from hil.nodes.machine import Machine
from hil.nodes.protocol import Message
from hil.nodes.snapshot import Snapshot, wait_for_migration

SYSTEM_TIMEOUT_S = 60.0


class Clone:
    """A running clone with its agent. ``frames`` is the socket the wire joins. Use as a context manager."""

    def __init__(
        self, name: str, snapshot: Snapshot, console: Path, on_event: Callable[[str, int, Message], None]
    ) -> None:
        self.name = name
        self.machine = Machine(snapshot.hardware, snapshot.ram, console, share=False, incoming=True)
        self.frames = self.machine.sockets.frames
        try:
            capability = {"capability": "x-ignore-shared", "state": True}
            self.machine.monitor("migrate-set-capabilities", capabilities=[capability])
            # A restored QEMU would announce its old MAC address on the wire.
            self.machine.monitor("migrate-set-parameters", **{"announce-rounds": 0})
            self.machine.monitor("migrate-incoming", uri=f"exec:cat '{snapshot.state}'")
            wait_for_migration(self.machine)
            self.machine.monitor("cont")
        except BaseException:
            self.machine.stop()
            raise
        self.channel = Channel(
            self.machine.sockets.agent,
            f"node {name}",
            lambda worker, event: on_event(name, worker, event),
            self.machine.last_words,
        )
        self._system: int | None = None

    def system(self, call: str, /, **arguments: Any) -> Any:
        """A call of the node's ``system`` role: provisioning, resources, counters, programs."""
        if self._system is None:
            self._system, _ = self.channel.spawn("system")
        return self.channel.call(self._system, call, SYSTEM_TIMEOUT_S, "system call", **arguments)

    def clock(self) -> ClockRelation:
        return self.channel.clock()

    def check_alive(self) -> None:
        """Raises NodeDied unless the agent answers."""
        if not self.machine.alive():
            raise NodeDied(f"node {self.name}: {self.machine.last_words()}")
        self.channel.clock()

    def stop(self) -> None:
        self.machine.stop()
        self.channel.close()

    def __enter__(self) -> "Clone":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
