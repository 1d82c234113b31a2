"""Labs of clones: a pristine pair for every test, or a pair that earlier tests left unchanged."""

from pathlib import Path
from typing import Any

from hil.labs.soft.clones import Clones
from hil.labs.soft.file import SoftPairFile
from hil.labs.soft.kinds import SoftGuest, soft_guest
from hil.labs.soft.pair import SoftPair

PACKAGES = ("linux-image", "rdma-core", "librdmacm", "libibverbs", "python3-pyverbs", "ibverbs-providers")


# Changes that the check of the nodes does not find must not accumulate without limit.
MOST_USES = 100


class SoftLab:
    """Makes pairs of clones. The guests are built on first use."""

    def __init__(self, lab: SoftPairFile) -> None:
        self.lab = lab
        self._idle: Clones | None = None

    def guests(self) -> tuple[SoftGuest, SoftGuest]:
        """The prepared guests of node a and node b. Raises SetupError or OSError."""
        return soft_guest(self.lab.guest), soft_guest(self.lab.guest_b or self.lab.guest)

    def pair(self, folder: Path, mutant: str = "", *, used: bool = False) -> SoftPair:
        guests = self.guests()
        if not used:
            return SoftPair(guests, folder, self.lab.link.mtu, mutant)
        if self._idle is not None and not self._idle.alive():
            self.close()
        idle, self._idle = self._idle, None
        try:
            return SoftPair(guests, folder, self.lab.link.mtu, mutant, idle, self._take_back)
        except BaseException:
            if idle is not None:
                idle.stop()
            raise

    def _take_back(self, clones: Clones) -> None:
        if self._idle is None and clones.uses + 1 < MOST_USES:
            self._idle = clones
        else:
            clones.stop()

    def provenance(self) -> dict[str, Any]:
        """Facts about the guests, which are the same for every pair."""
        return {name: made_of(guest) for name, guest in zip("ab", self.guests(), strict=True)}

    def close(self) -> None:
        """End the idle nodes."""
        if self._idle is not None:
            self._idle.stop()
            self._idle = None


def made_of(guest: SoftGuest) -> dict[str, Any]:
    """Machine and packages of a guest."""
    known = {n: v for n, v in guest.image.packages.items() if n.startswith(PACKAGES)}
    adapter = {"device": "rxe0", "driver": "rdma_rxe"}
    return {"adapter": adapter, "machine": guest.made_of(), "packages": known}
