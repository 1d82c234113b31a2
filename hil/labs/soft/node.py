"""The nodes of a soft lab, whose machines belong to the bench."""

from pathlib import Path
from typing import Any, Protocol, Self

from hil.errors import NodeDied
from hil.labs.channel import Channel
from hil.labs.node import AgentNode, Record
from hil.labs.soft.machine import Sockets

# Any other call of the system role may leave traces, so that the clone is not reused.
# fmt: off
READ_ONLY_CALLS = frozenset((
    "adapters", "counters", "general_services", "inspect", "kernel_log", "pending_changes", "port_counters",
    "processes", "provenance", "resources", "standing", "survey", "versions", "wait_ready",
))
# fmt: on


class SoftMachine(Protocol):
    """The machine of a node in a soft lab. It is made for the node and ends with it."""

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
    """A node whose machine belongs to the bench. The wire joins its socket ``frames``. Use as a context manager.

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
        """Write the further console output to another file. Raises NodeError."""
        self.machine.move_console(console)
        self.console = console

    def end_workers(self, timeout_s: float) -> list[int]:
        """End every worker but the one that serves ``system``. Returns the exit status of each. Raises NodeError."""
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


class MachinePower:
    """Power control of a node whose machine belongs to the bench."""

    def __init__(self, node: SoftNode) -> None:
        self._node = node

    def halt(self) -> None:
        self._node.changed.append("halt")
        self._node.machine.freeze()

    def cut(self) -> None:
        self._node.changed.append("cut")
        self._node.machine.stop()

    def resume(self) -> None:
        """Let a halted machine continue. A machine without power stays off: the next pair has a new machine."""
        if self._node.machine.alive():
            self._node.machine.thaw()
