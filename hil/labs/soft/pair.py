"""A pair of soft nodes, joined by the inline wire."""

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from hil import stopwatch
from hil.errors import HilError
from hil.evidence.bundle import Judged
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Exit
from hil.labs.node import Node
from hil.labs.pair import Pair
from hil.labs.place import Place
from hil.labs.power import Power
from hil.labs.soft.clones import Clones
from hil.labs.soft.kinds import SoftGuest
from hil.labs.soft.node import MachinePower
from hil.stopwatch import Phase
from hil.wire.wire import Wire

PLACES = (
    Place("a", "52:54:00:00:01:01", "10.77.0.1", "fd77::1"),
    Place("b", "52:54:00:00:01:02", "10.77.0.2", "fd77::2"),
)


class SoftPair(Pair):
    """Two soft nodes joined by the inline wire, each made from a guest.

    ``mutant`` names a wire that is wrong on purpose (hil.mutants.wires). ``used``: clones of an earlier pair to use
    instead of new ones. ``give_back`` receives this pair's clones at the end, if the test passed and left them
    unchanged. ``parts_s``: the time of each part of the set-up in seconds.
    """

    def __init__(
        self,
        guests: tuple[SoftGuest, SoftGuest],
        folder: Path,
        mtu: int = 1500,
        mutant: str = "",
        used: Clones | None = None,
        give_back: Callable[[Clones], None] | None = None,
    ) -> None:
        super().__init__(folder, PLACES)
        self._give_back = give_back
        self.parts_s: dict[str, float] = {}
        begun_ns = time.monotonic_ns()

        def part(name: str) -> None:
            nonlocal begun_ns
            now_ns = time.monotonic_ns()
            self.parts_s[name], begun_ns = (now_ns - begun_ns) / 1e9, now_ns

        if used is not None:
            self._open.append(used)
        try:
            if used is None:
                self._clones = Clones(guests, folder, self._record, mtu)
                self._open.append(self._clones)
            else:
                self._clones = used
                used.hand_to(folder, self._record)
            part("nodes that answer")
            self.nodes = self.clones = self._clones.nodes
            frames = self.clones["a"].frames, self.clones["b"].frames
            self.wire = self.inline = Wire(*frames, folder / "wire.pcapng", mutant)
            self._open.append(self.wire)
            for pid in (*(node.machine.pid for node in self.clones.values()), self.inline.pid):
                stopwatch.watch(stopwatch.ProcessorTime(pid), new=used is None or pid == self.inline.pid)
            part("wire")
            if used is None:
                provision_all(self.nodes, self.places, mtu)
                part("provisioning")
                if give_back is not None:
                    self._clones.note_standing()
            self._begin()
            part("first look")
        except BaseException:
            self.close()
            raise

    def power(self, name: str) -> Power:
        """Power control of the node's machine. A machine without power does not start again."""
        return MachinePower(self.clones[name])

    @stopwatch.phase(Phase.WRITING)
    def write(self, evidence: Evidence, judged: Judged | None = None) -> None:
        self.made_with = self.made_with | {"tests before on the same nodes": self._clones.uses}
        super().write(evidence, judged)

    def close(self) -> None:
        """Stop the wire. Stop both nodes too, unless another pair may use them."""
        give_back, self._give_back = self._give_back, None
        try:
            if give_back is not None:
                spoiled = self._spoiled()
                stopwatch.note(f"a pair is not used again: {spoiled}" if spoiled else "a pair may be used again")
                if not spoiled:
                    self.inline.stop()
                    self._open.clear()
                    give_back(self._clones)
        finally:
            super().close()

    def _spoiled(self) -> str:
        """Why no other test may use the nodes, or an empty text."""
        if not self.passed:
            return "its test did not pass"
        # A process that a test killed has not crashed. The check of the nodes finds kernel objects that it left.
        ended = {entry.status for entry in self._entries if isinstance(entry, Exit)}
        if ended - {0, -signal.SIGKILL}:
            return "a process crashed"
        try:
            return self._clones.spoiled()
        except HilError:
            return "a node does not answer"


def provision_all(nodes: Mapping[str, Node], places: tuple[Place, ...], mtu: int) -> None:
    """Give every clone its addresses and soft-RoCE, all at the same time. Raises the first clone's error."""
    failures: list[BaseException] = []

    def one(place: Place) -> None:
        try:
            nodes[place.name].system(
                "provision",
                netdev=place.netdev,
                mac=place.mac,
                addresses=[f"{place.ipv4}/24", f"{place.ipv6}/64"],
                mtu=mtu,
                device=place.device,
            )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
