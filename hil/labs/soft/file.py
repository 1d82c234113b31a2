"""Lab files of soft labs: the sections and keys of a pair, and of many guests on a bridge."""

# A NewType, and a frozen section: neither is a default that could change.
# ruff: noqa: RUF009

import re
from pathlib import Path
from typing import Any, Literal, NewType

import attrs

from hil.labs.schema import LabSection, MemoryMib, Mtu, NodeCount, ProviderSection, value_of

KernelSource = NewType("KernelSource", str)
"""SUITE/PACKAGE, or the path of a tree."""
KERNEL_PACKAGE = re.compile(r"[a-z]+(-[a-z]+)*/linux-source(-\d+\.\d+)?")
Suite = Literal["trixie", "bookworm"]


@attrs.frozen
class Guest:
    """``[guest]``: what the nodes of a soft lab run. ``memory_mib`` is of each node.

    A kind of guest that comes from a package has a subclass of this with more keys as its schema, or this.

    ``kind``: ``clone`` is QEMU's, made from a snapshot, on the suite's own kernel; ``uml`` is a User-Mode Linux process
    on a ``kernel`` built for it. Each of ``kernel`` is SUITE/PACKAGE with Debian's kernel source, or the path of a
    kernel tree, relative to the lab file's folder; the first that can be had is taken. ``accelerator`` is for clones.
    """

    kind: str = "clone"
    suite: Suite = "trixie"
    memory_mib: MemoryMib = MemoryMib(640)
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    kernel: tuple[KernelSource, ...] = (
        KernelSource("trixie-backports/linux-source-7.2"),
        KernelSource("trixie-backports/linux-source"),
    )


@attrs.frozen
class Link:
    """``[link]``: what joins the adapters. ``mtu`` in bytes; IPv6 needs 1280."""

    mtu: Mtu = Mtu(1500)


@attrs.frozen
class SoftPairFile:
    """Two guests and the inline wire; every section and key has a default. ``guest_b`` is node b's, if it differs."""

    lab: LabSection = LabSection()
    guest: Guest = Guest()
    guest_b: Guest | None = None
    link: Link = Link()
    provider: ProviderSection = ProviderSection()


@attrs.frozen
class BridgeSection:
    """``[bridge]``: how many guests are joined by it."""

    nodes: NodeCount = NodeCount(16)


@attrs.frozen
class SoftBridgeFile:
    """Many guests on one bridge, which records every frame; nodes are called n1, n2 and so on."""

    lab: LabSection
    guest: Guest = Guest()
    bridge: BridgeSection = BridgeSection()
    link: Link = Link()
    provider: ProviderSection = ProviderSection()


SoftFile = SoftPairFile | SoftBridgeFile


def guests_of(lab: SoftFile) -> tuple[Guest, ...]:
    """What the nodes run: node a's and node b's, or one for all."""
    return (lab.guest, lab.guest_b or lab.guest) if isinstance(lab, SoftPairFile) else (lab.guest,)


def node_count(lab: SoftFile) -> int:
    """How many nodes the lab has."""
    return 2 if isinstance(lab, SoftPairFile) else lab.bridge.nodes


def guest_placed(guest: Guest, folder: Path) -> Guest:
    """The guest with its kernel trees' paths made absolute: they are relative to ``folder``."""
    kernel = (source if KERNEL_PACKAGE.fullmatch(source) else str(folder / source) for source in guest.kernel)
    return attrs.evolve(guest, kernel=tuple(map(KernelSource, kernel)))


def _kernel_source(value: Any) -> KernelSource:
    if not isinstance(value, str) or not value.isprintable() or "/" not in value or not value.strip():
        raise ValueError(
            f"{value!r} is no kernel source: SUITE/PACKAGE, or the path of a kernel tree with a slash in it"
        )
    return KernelSource(value)


def _kernel_sources(value: Any, _: Any) -> tuple[KernelSource, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is not a list of kernel sources with one at least")
    return tuple(_kernel_source(source) for source in value)


value_of(tuple[KernelSource, ...], _kernel_sources)
