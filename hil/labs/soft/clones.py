"""The two clones of a soft pair. Several pairs may use them one after another."""

import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from hil.agent.protocol import Message
from hil.errors import NodeError
from hil.evidence.resources import kernel_log_of
from hil.evidence.rules.kernel_log import complaints, starved
from hil.labs.node import Record
from hil.labs.soft.kinds import SoftGuest, start
from hil.labs.soft.node import SoftNode

END_TIMEOUT_S = 10.0
Facts = dict[str, Any]


class Clones:
    """Nodes a and b. ``folder`` holds their consoles, and ``record`` receives the events of their workers. Both belong
    to the pair that uses the nodes now.

    ``uses``: how many pairs used the nodes before.
    """

    def __init__(self, guests: tuple[SoftGuest, SoftGuest], folder: Path, record: Record, mtu: int) -> None:
        self.nodes: dict[str, SoftNode] = {}
        self.uses = 0
        self._record: Record | None = record
        self._standing: dict[str, Facts] = {}
        try:
            for name, made_from in zip("ab", guests, strict=True):
                self.nodes[name] = start(name, made_from, console_of(folder, name), self._take, mtu)
            for node in self.nodes.values():
                node.wait_ready()
        except BaseException:
            self.stop()
            raise

    def _take(self, node: str, worker: int, event: Message) -> None:
        # Another thread may set it to None at any time.
        record = self._record
        if record is not None:
            record(node, worker, event)

    def note_standing(self) -> None:
        """Record the state of the provisioned nodes, which every test must leave unchanged. Raises NodeError."""
        self._standing = {name: _look(node) for name, node in self.nodes.items()}
        for node in self.nodes.values():
            node.changed.clear()

    def hand_to(self, folder: Path, record: Record) -> None:
        """Hand the nodes to the next pair. Raises NodeError."""
        self.uses += 1
        self._record = record
        for name, node in self.nodes.items():
            node.move_console(console_of(folder, name))
            # Frames that came between two recordings are no evidence.
            drain(node.frames)

    def spoiled(self) -> str:
        """End every worker. Returns why the nodes differ from their provisioned state, or "". Raises NodeError."""
        if changed := [call for node in self.nodes.values() for call in node.changed]:
            return f"changed by {changed[0]}"
        ended = [status for node in self.nodes.values() for status in node.end_workers(END_TIMEOUT_S)]
        self._record = None
        if set(ended) - {-signal.SIGKILL}:
            return "a worker ended by itself"
        logs = [kernel_log_of(node.system("kernel_log"), "the kernel log") for node in self.nodes.values()]
        if any(complaints(log) or starved(log) for log in logs):
            return "a kernel complained"
        different = (self._different(_look(node), self._standing[name]) for name, node in self.nodes.items())
        return next((f"other {fact}" for facts in different for fact in facts), "")

    def _different(self, now: Facts, before: Facts) -> list[str]:
        """The names of the facts that have changed."""
        strange = set(now.pop("neighbours")) - set(before["neighbours"]) - self._addresses()
        return ["neighbours"] * bool(strange) + [fact for fact, value in now.items() if value != before[fact]]

    def _addresses(self) -> set[str]:
        """The nodes' own addresses. After traffic, each node has the other as a neighbour."""
        netdevs = [netdev for looked in self._standing.values() for netdev in looked["netdevs"].values()]
        return {address.partition("/")[0] for netdev in netdevs for address in netdev["addresses"]}

    def alive(self) -> bool:
        """Whether both machines run and their agents answer."""
        try:
            for node in self.nodes.values():
                node.check_alive()
        except NodeError:
            return False
        return True

    def stop(self) -> None:
        """End both nodes. Safe to call twice."""
        for node in self.nodes.values():
            node.stop()


def _look(node: SoftNode) -> Facts:
    """The state of a node that a test must leave unchanged."""
    return {"objects": node.system("resources", contexts=True), **node.system("standing")}


def drain(frames: socket.socket) -> None:
    """Drop the frames that are queued in a socket."""
    with suppress(BlockingIOError):
        while True:
            frames.recv(1, socket.MSG_DONTWAIT)


def console_of(folder: Path, name: str) -> Path:
    """The file in a pair's folder with the output of a node's console."""
    return folder / f"console-{name}"
