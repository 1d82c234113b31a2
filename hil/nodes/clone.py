"""A node made from a snapshot in a tenth of a second."""

import socket
from pathlib import Path
from typing import Any

from hil.errors import NodeDied
from hil.nodes.channel import Channel
from hil.nodes.machine import Machine
from hil.nodes.node import AgentNode, Record
from hil.nodes.snapshot import Snapshot, wait_for_migration

# What only looks: whatever else is asked of the system role, another test may find its traces.
# fmt: off
LOOKS = frozenset((
    "adapters", "counters", "general_services", "inspect", "kernel_log", "pending_changes", "port_counters",
    "processes", "provenance", "resources", "standing", "survey", "versions", "wait_ready",
))
# fmt: on


class Clone(AgentNode):
    """A running clone with its agent. ``frames`` is the socket the wire joins. Use as a context manager.

    ``joined``: the clone's own end of a socket to another clone, instead of a wire. ``ssh_port``: of this machine's
    loopback, where its ssh server is reached; 0 for none. ``changed``: whether it was asked for more than to look.
    """

    def __init__(
        self,
        name: str,
        snapshot: Snapshot,
        console: Path,
        on_event: Record,
        ssh_port: int = 0,
        joined: socket.socket | None = None,
    ) -> None:
        super().__init__()
        self.name, self.console, self.changed = name, console, False
        self.machine = Machine(
            snapshot.hardware, snapshot.ram, console, share=False, incoming=True, ssh_port=ssh_port, frames=joined
        )
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

    def system(self, call: str, /, **arguments: Any) -> Any:
        self.changed |= call not in LOOKS
        return super().system(call, **arguments)

    def move_console(self, console: Path) -> None:
        """Let the machine's console go on in another file. Raises NodeError."""
        backend = {"type": "file", "data": {"out": str(console), "append": True}}
        self.machine.monitor("chardev-change", id="console", backend=backend)
        self.console = self.machine.console = console

    def end_workers(self, timeout_s: float) -> list[int]:
        """End every worker but the one that serves ``system``; the exit status of each. Raises NodeError."""
        running = [worker for worker in self.channel.workers() if worker != self._system]
        for worker in running:
            self.channel.kill(worker)
        return [self.channel.wait_exit(worker, timeout_s) for worker in running]

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
