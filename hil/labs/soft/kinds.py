"""Kinds of guests, the nodes of soft labs: how each is prepared, and started from what was prepared."""

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
    """What nodes of one kind are started from."""

    @property
    def kind(self) -> str:
        """The name of its kind."""

    @property
    def image(self) -> Image:
        """The root file system of its nodes."""

    def made_of(self) -> dict[str, object]:
        """The machine, for provenance, as JSON has it."""


class GuestKind(Protocol):
    """A kind of guest, which ``[guest] kind`` names; found at the seam ``hil.nodes``. Holds no state.

    Labs of guests call it in the main thread, ``start`` also in a thread that makes a pair. ``guest`` is always of its
    ``schema``.
    """

    @property
    def schema(self) -> type[Guest]:
        """``Guest``, or a subclass with more keys."""

    noun: str
    """What one node is, with its article: "a clone"."""
    own_kernel: bool
    """Whether nodes run their distribution's own kernel (Need.CLONES)."""
    waits: bool
    """Whether a test on them waits for half of its time, so that a core carries two."""

    def prepare(self, guest: Guest, image: Image, cache: Path, *, second_net: bool) -> SoftGuest:
        """Build, or find in the folder ``cache``, what nodes are started from. No other process builds there meanwhile.

        ``second_net``: nodes can have a second netdev, which is reached from this machine's loopback. Raises SetupError
        or OSError.
        """

    def start(self, name: str, made_from: Any, console: Path, record: Record, mtu: int) -> SoftNode:
        """A node that is being started from what ``prepare`` made; its ``wait_ready`` is called next. Raises NodeError.

        ``console``: the file its console goes to. ``record`` gets what its workers say, in a thread of the node's
        channel. ``mtu``: of its link, in bytes.
        """

    def examine(self, guest: Guest, count: int) -> Iterator[Finding]:
        """What ``count`` such nodes depend on, for ``hil doctor``; changes nothing, never raises HilError."""

    def made_with(self) -> dict[str, Any]:
        """Versions of the tools that nodes run on, for provenance; what is missing is left out."""


GUESTS: Seam[GuestKind] = Seam(
    "hil.nodes",
    "kind of guest",
    GuestKind,
    {"clone": "hil.labs.soft.clone:CLONE", "uml": "hil.labs.soft.uml:UML"},
)
by_kind(Guest, GUESTS, default="clone")


@functools.cache
def soft_guest(guest: Guest) -> SoftGuest:
    """What nodes of this kind are made from, out of the cache or built. Raises SetupError or OSError."""
    return _guest(guest, "")


@functools.cache
def host_guest(guest: Guest) -> SoftGuest:
    """The same with an ssh server, for nodes that play hosts that exist without the bench."""
    return _guest(guest, "host")


def _guest(guest: Guest, variant: str) -> SoftGuest:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with only_one(cache):
        image = image_for(guest.suite, cache, variant)
        return GUESTS.load(guest.kind).prepare(guest, image, cache, second_net=variant == "host")


def start(name: str, made_from: SoftGuest, console: Path, on_event: Record, mtu: int = 1500) -> SoftNode:
    """A node that is being started; call its ``wait_ready`` before anything else. Raises NodeError.

    ``mtu``: of its link, in bytes, where the netdev must know it from the start.
    """
    return GUESTS.load(made_from.kind).start(name, made_from, console, on_event, mtu)
