"""The nodes of a soft lab: what they share, and clones, which are made from a snapshot in a tenth of a second."""

import socket
from pathlib import Path
from typing import Any, Protocol, Self

from hil.errors import NodeDied
from hil.labs.channel import Channel
from hil.labs.node import AgentNode, Record
from hil.labs.soft.machine import Machine, Sockets
from hil.labs.soft.snapshot import Snapshot, wait_for_migration

# Any other call of the system role may leave traces, so that the clone is not reused.
# fmt: off
READ_ONLY_CALLS = frozenset((
    "adapters", "counters", "general_services", "inspect", "kernel_log", "pending_changes", "port_counters",
    "processes", "provenance", "resources", "standing", "survey", "versions", "wait_ready",
))
# fmt: on


class SoftMachine(Protocol):
    """The machine of a node in a soft lab, made for it and ended with it."""

    console: Path
    sockets: Sockets

    @property
    def pid(self) -> int: ...
    def alive(self) -> bool: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def move_console(self, console: Path) -> None: ...
    def memory_kib(self) -> dict[str, int]: ...
    def last_words(self) -> str: ...
    def stop(self) -> None: ...


class SoftNode(AgentNode):
    """A node whose machine is the bench's own. ``frames`` is the socket the wire joins. Use as a context manager.

    ``changed``: the calls that were not read-only. ``window``: see Channel. A subclass starts the machine.
    """

    def __init__(self, name: str, machine: SoftMachine, on_event: Record, window: int = 0) -> None:
        super().__init__()
        self.name, self.console = name, machine.console
        self.changed: list[str] = []
        self.machine, self.frames = machine, machine.sockets.frames
        self.channel = Channel(
            machine.sockets.agent,
            f"node {name}",
            lambda worker, event: on_event(name, worker, event),
            machine.last_words,
            window,
        )

    def wait_ready(self) -> None:
        """Wait until calls can be made. Raises NodeError."""

    def system(self, call: str, /, **arguments: Any) -> Any:
        if call not in READ_ONLY_CALLS:
            self.changed.append(call if call != "run" else f"run {arguments['command'][0]}")
        return super().system(call, **arguments)

    def move_console(self, console: Path) -> None:
        """Let the machine's console go on in another file. Raises NodeError."""
        self.machine.move_console(console)
        self.console = console

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Clone(SoftNode):
    """A running clone with its agent, whose ``machine`` is QEMU.

    ``joined``: the clone's own end of a socket to another clone, instead of a wire. ``ssh_port``: of this machine's
    loopback, where its ssh server is reached; 0 for none.
    """

    machine: Machine

    def __init__(
        self,
        name: str,
        snapshot: Snapshot,
        console: Path,
        on_event: Record,
        ssh_port: int = 0,
        joined: socket.socket | None = None,
    ) -> None:
        machine = Machine(
            snapshot.hardware, snapshot.ram, console, share=False, incoming=True, ssh_port=ssh_port, frames=joined
        )
        try:
            capability = {"capability": "x-ignore-shared", "state": True}
            machine.monitor("migrate-set-capabilities", capabilities=[capability])
            # A restored QEMU would announce its old MAC address on the wire.
            machine.monitor("migrate-set-parameters", **{"announce-rounds": 0})
            machine.monitor("migrate-incoming", uri=f"exec:cat '{snapshot.state}'")
            wait_for_migration(machine)
            machine.monitor("cont")
        except BaseException:
            machine.stop()
            raise
        super().__init__(name, machine, on_event)
