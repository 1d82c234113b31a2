"""The kinds of nodes in soft labs: how each is prepared, and made from what was prepared."""

import functools
from pathlib import Path

from hil.cache import cache_folder
from hil.labs.file import Guest
from hil.labs.node import Record
from hil.labs.soft.clone import Clone, SoftNode
from hil.labs.soft.image import image_for
from hil.labs.soft.snapshot import Snapshot, only_one, snapshot_for
from hil.labs.soft.uml import UmlGuest, UmlNode, uml_guest_for
from hil.labs.soft.umlkernel import kernel_for

SoftGuest = Snapshot | UmlGuest
"""What nodes are made from."""


@functools.cache
def soft_guest(guest: Guest) -> SoftGuest:
    """What nodes of this kind are made from, out of the cache or built. Raises SetupError or OSError."""
    return _guest(guest, "")


@functools.cache
def host_guest(guest: Guest) -> SoftGuest:
    """The same with an ssh server, for nodes that play hosts of somebody else's (``hil.testing.foreign``)."""
    return _guest(guest, "host")


def _guest(guest: Guest, variant: str) -> SoftGuest:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with only_one(cache):
        image = image_for(guest.suite, cache, variant)
        if guest.kind == "uml":
            return uml_guest_for(image, kernel_for(guest.kernel, cache), cache, guest.memory_mib)
        return snapshot_for(image, cache, guest.memory_mib, guest.accelerator, user_net=variant == "host")


def start(name: str, made_from: SoftGuest, console: Path, on_event: Record, mtu: int = 1500) -> SoftNode:
    """A node that is being started; call its ``wait_ready`` before anything else. Raises NodeError.

    ``mtu``: of its link, in bytes, where the netdev must know it from the start.
    """
    if isinstance(made_from, UmlGuest):
        return UmlNode(name, made_from, console, on_event, mtu)
    return Clone(name, made_from, console, on_event)
