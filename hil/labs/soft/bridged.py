"""Many provisioned clones on one bridge, which records every frame."""

from pathlib import Path

from hil.labs.pair import Pair
from hil.labs.place import Place
from hil.labs.soft.kinds import SoftGuest, start
from hil.labs.soft.node import SoftNode
from hil.labs.soft.pair import provision_all
from hil.wire.bridge import Bridge


def places(count: int) -> tuple[Place, ...]:
    """Places n1, n2 and so on, on one network."""
    return tuple(
        Place(f"n{n}", f"52:54:00:00:03:{n:02x}", f"10.77.1.{n}", f"fd77:1::{n:x}") for n in range(1, count + 1)
    )


class BridgedNodes(Pair):
    """Nodes ``n1`` to ``n<count>`` on a bridge. Evidence is written to ``folder``. Use as a context manager."""

    def __init__(self, guest: SoftGuest, folder: Path, count: int, mtu: int = 1500) -> None:
        super().__init__(folder, places(count))
        self.clones: dict[str, SoftNode] = {}
        try:
            for place in self.places:
                clone = start(place.name, guest, folder / f"console-{place.name}", self._record, mtu)
                self._open.append(clone)
                self.clones[place.name] = clone
            for clone in self.clones.values():
                clone.wait_ready()
            self.nodes = self.clones
            self.wire = Bridge({name: clone.frames for name, clone in self.clones.items()}, folder / "wire.pcapng")
            self._open.append(self.wire)
            provision_all(self.nodes, self.places, mtu)
            self._begin()
        except BaseException:
            self.close()
            raise
