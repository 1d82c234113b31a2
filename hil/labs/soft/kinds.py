"""Kinds of guests, the nodes of soft labs: how each is prepared and started."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from hil.cache import cache_folder
from hil.labs.findings import Finding
from hil.labs.node import Record
from hil.labs.schema import by_kind
from hil.labs.soft.building import only_one
from hil.labs.soft.file import Guest
from hil.labs.soft.image import Image, image_for
from hil.labs.soft.node import SoftNode
from hil.seams import Seam


class SoftGuest(Protocol):
    """A prepared guest, from which nodes of its kind are started."""

    @property
    def kind(self) -> str:
        """The name of the kind of guest."""

    @property
    def image(self) -> Image:
        """The root file system of its nodes."""

    def made_of(self) -> dict[str, object]:
        """JSON-compatible facts about the machine, for provenance."""


class GuestKind(Protocol):
    """A kind of guest. ``[guest] kind`` names it; found at the seam ``hil.nodes``. Holds no state.

    Labs of guests call it in the main thread, and call ``start`` also in a thread that makes a pair. ``guest`` is
    always an instance of its ``schema``.
    """

    @property
    def schema(self) -> type[Guest]:
        """``Guest``, or a subclass with more keys."""

    noun: str
    """The noun for one node, with its article: "a clone"."""
    own_kernel: bool
    """Whether nodes run their distribution's own kernel (Need.CLONES)."""
    waits: bool
    """Whether a test on such nodes is idle for half of its time, so that a core can run two tests."""

    def prepare(self, guest: Guest, image: Image, cache: Path, *, second_net: bool) -> SoftGuest:
        """Build the guest that nodes are started from, or find it in the folder ``cache``.

        No other process builds in ``cache`` at the same time. ``second_net``: nodes can have a second netdev, which is
        reached from this machine's loopback. Raises SetupError or OSError.
        """

    def start(self, name: str, made_from: Any, console: Path, record: Record, mtu: int) -> SoftNode:
        """Begin to start a node from the result of ``prepare``. The caller calls ``wait_ready`` next. Raises NodeError.

        ``console``: the file for the node's console output. ``record`` receives its workers' events, in a thread of the
        node's channel. ``mtu``: the MTU of its link in bytes.
        """

    def examine(self, guest: Guest, count: int) -> Iterator[Finding]:
        """Check the dependencies of ``count`` nodes, for ``hil doctor``; changes nothing, never raises HilError."""

    def made_with(self) -> dict[str, Any]:
        """Versions of the tools that nodes run on, for provenance. A missing tool is left out."""


GUESTS: Seam[GuestKind] = Seam(
    "hil.nodes",
    "kind of guest",
    GuestKind,
    {"clone": "hil.labs.soft.clone:CLONE", "uml": "hil.labs.soft.uml:UML"},
)
by_kind(Guest, GUESTS, default="clone")


@functools.cache
def soft_guest(guest: Guest) -> SoftGuest:
    """The prepared guest, from the cache or built. Raises SetupError or OSError."""
    return _guest(guest, "")


@functools.cache
def host_guest(guest: Guest) -> SoftGuest:
    """The prepared guest with an ssh server, for nodes that stand in for hosts. Raises SetupError or OSError."""
    return _guest(guest, "host")


def _guest(guest: Guest, variant: str) -> SoftGuest:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with only_one(cache):
        image = image_for(guest.suite, cache, variant)
        return GUESTS.load(guest.kind).prepare(guest, image, cache, second_net=variant == "host")


def start(name: str, made_from: SoftGuest, console: Path, on_event: Record, mtu: int = 1500) -> SoftNode:
    """Begin to start a node. Call its ``wait_ready`` before any other method. Raises NodeError.

    ``mtu``: the MTU of its link in bytes. Some kinds of guests need it at the start.
    """
    return GUESTS.load(made_from.kind).start(name, made_from, console, on_event, mtu)
