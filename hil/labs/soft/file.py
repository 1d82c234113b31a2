"""Lab files of soft labs: the sections and keys of a pair, and of many guests on a bridge."""

# RUF009: the defaults are a NewType and a frozen section, and neither can change.
# ruff: noqa: RUF009

import re
from pathlib import Path
from typing import Any, Literal, NewType

import attrs

from hil.labs.schema import LabSection, MemoryMib, Mtu, NodeCount, ProviderSection, value_of

KernelSource = NewType("KernelSource", str)
"""SUITE/PACKAGE, or the path of a kernel tree."""
KERNEL_PACKAGE = re.compile(r"[a-z]+(-[a-z]+)*/linux-source(-\d+\.\d+)?")
Suite = Literal["trixie", "bookworm"]


@attrs.frozen
class Guest:
    """``[guest]``: the guests that are the nodes of a soft lab. ``memory_mib`` is the memory of each node.

    The schema of a kind of guest from another package is this class, or a subclass with more keys.

    ``kind``: ``clone`` is a QEMU machine made from a snapshot, on the suite's own kernel; ``uml`` is a User-Mode Linux
    process on a ``kernel`` built for it. Each of ``kernel`` is SUITE/PACKAGE with Debian's kernel source, or the path
    of a kernel tree, relative to the lab file's folder. The first available one is used. ``accelerator`` applies to
    clones only.
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
    """``[link]``: the soft wire between the adapters. ``mtu`` is in bytes; IPv6 needs 1280."""

    mtu: Mtu = Mtu(1500)


@attrs.frozen
class SoftPairFile:
    """Two guests and the inline wire. Every section and key has a default. ``guest_b`` is for a node b that differs."""

    lab: LabSection = LabSection()
    guest: Guest = Guest()
    guest_b: Guest | None = None
    link: Link = Link()
    provider: ProviderSection = ProviderSection()


@attrs.frozen
class BridgeSection:
    """``[bridge]``: the number of guests on the bridge."""

    nodes: NodeCount = NodeCount(16)


@attrs.frozen
class SoftBridgeFile:
    """Many guests on one bridge, which records every frame. The nodes are called n1, n2 and so on."""

    lab: LabSection
    guest: Guest = Guest()
    bridge: BridgeSection = BridgeSection()
    link: Link = Link()
    provider: ProviderSection = ProviderSection()


SoftFile = SoftPairFile | SoftBridgeFile


def guests_of(lab: SoftFile) -> tuple[Guest, ...]:
    """The guest sections of node a and node b, or the one section of all nodes."""
    return (lab.guest, lab.guest_b or lab.guest) if isinstance(lab, SoftPairFile) else (lab.guest,)


def node_count(lab: SoftFile) -> int:
    """The number of nodes in the lab."""
    return 2 if isinstance(lab, SoftPairFile) else lab.bridge.nodes


def guest_placed(guest: Guest, folder: Path) -> Guest:
    """The guest with absolute paths of kernel trees. In the file, the paths are relative to ``folder``."""
    kernel = (source if KERNEL_PACKAGE.fullmatch(source) else str(folder / source) for source in guest.kernel)
    return attrs.evolve(guest, kernel=tuple(map(KernelSource, kernel)))


def _kernel_source(value: Any) -> KernelSource:
    if not isinstance(value, str) or not value.isprintable() or "/" not in value or not value.strip():
        raise ValueError(
            f"{value!r} is no kernel source: write SUITE/PACKAGE, or the path of a kernel tree with a slash in it"
        )
    return KernelSource(value)


def _kernel_sources(value: Any, _: Any) -> tuple[KernelSource, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is not a list of at least one kernel source")
    return tuple(_kernel_source(source) for source in value)


value_of(tuple[KernelSource, ...], _kernel_sources)
