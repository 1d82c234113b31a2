"""Soft labs as kinds of labs: a pair on the inline wire, and many guests on a bridge."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from hil.cache import cache_folder
from hil.errors import Unsupported
from hil.files import passing_folder
from hil.labs.findings import Finding, Level, program, rdma_here
from hil.labs.kinds import Lab, LabKind, Restored, Told, told_adapters
from hil.labs.needs import MANY, Need
from hil.labs.pair import Pair
from hil.labs.soft.bridged import BridgedNodes
from hil.labs.soft.doctor import memory, room
from hil.labs.soft.figures import measure
from hil.labs.soft.file import SoftBridgeFile, SoftFile, SoftPairFile, guest_placed, guests_of, node_count
from hil.labs.soft.kinds import GUESTS, soft_guest
from hil.labs.soft.lab import SoftLab

NO_PAIR = "contract tests run between two nodes on a wire; take a lab of kind soft-pair or hosts"


class _SoftKind:
    """The common part of both kinds: the nodes are guests, made for each test and ended with it."""

    lasting = False

    def mistakes(self, lab: SoftFile, written: dict[str, Any]) -> list[str]:
        return []

    def lacks(self, lab: SoftFile) -> Mapping[Need, str]:
        others = sorted({guest.kind for guest in guests_of(lab) if not GUESTS.load(guest.kind).own_kernel})
        return {Need.CLONES: f"[guest] kind is {', '.join(others)}"} if others else {}

    def guarantee(self, lab: SoftFile) -> str:
        return "each node's frames are counted against its adapter's counters"

    def doubts(self, lab: SoftFile) -> list[str]:
        return []

    def parallel(self, lab: SoftFile) -> bool:
        return True

    def jobs(self, lab: SoftFile) -> int:
        cores = len(os.sched_getaffinity(0))
        return 2 * cores + 1 if GUESTS.load(lab.guest.kind).waits else cores

    def made_with(self, lab: SoftFile) -> dict[str, Any]:
        facts: dict[str, Any] = {"cabling": "the bench's own wire in user space"}
        for guest in guests_of(lab):
            facts |= GUESTS.load(guest.kind).made_with()
        return facts

    def prepare(self, lab: SoftFile) -> str:
        for guest in guests_of(lab):
            soft_guest(guest)
        return f"({', '.join(dict.fromkeys(guest.suite for guest in guests_of(lab)))}) is ready"

    def examine(self, lab: SoftFile, base: Path) -> Iterator[Finding]:
        yield program("mmdebstrap", "mmdebstrap", "guest images cannot be built")
        yield program("zstd", "zstd", "the kernels of some suites cannot be unpacked", Level.WARNING)
        for guest in dict.fromkeys(guests_of(lab)):
            yield from GUESTS.load(guest.kind).examine(guest, node_count(lab))
        yield room(cache_folder())
        yield memory(node_count(lab), lab.guest.memory_mib)
        yield rdma_here(needed=False)

    def restore(self, lab: SoftFile, base: Path, *, force: bool) -> Restored:
        """Nothing to undo: guests end with their run."""
        return Restored()


def _adapters_of(pair: Pair) -> Told:
    with pair:
        return Told({name: told_adapters(node.system("adapters")) for name, node in pair.nodes.items()})


class SoftPairKind(_SoftKind):
    """Two guests and the inline wire."""

    schema = SoftPairFile

    def placed(self, lab: SoftPairFile, folder: Path) -> SoftPairFile:
        other = lab.guest_b and guest_placed(lab.guest_b, folder)
        return attrs.evolve(lab, guest=guest_placed(lab.guest, folder), guest_b=other)

    def described(self, lab: SoftPairFile) -> list[str]:
        nodes = zip("ab", guests_of(lab), strict=True)
        return [f"  node {name}: {GUESTS.load(guest.kind).noun}, {guest.suite}" for name, guest in nodes]

    def open(self, lab: SoftPairFile, file: Path, folder: Path) -> Lab:
        return SoftLab(lab)

    def many(self, lab: SoftPairFile, folder: Path) -> Pair:
        """Start more guests of node a's kind on a bridge."""
        return BridgedNodes(soft_guest(lab.guest), folder, MANY, lab.link.mtu)

    def adapters_of(self, lab: SoftPairFile, base: Path) -> Told:
        with passing_folder("hil-") as folder:
            return _adapters_of(SoftLab(lab).pair(folder))

    def measure(self, lab: SoftPairFile, count: int) -> Iterator[str]:
        return measure(soft_guest(lab.guest), count, lab.link.mtu)


class SoftBridgeKind(_SoftKind):
    """Many guests on one bridge."""

    schema = SoftBridgeFile

    def placed(self, lab: SoftBridgeFile, folder: Path) -> SoftBridgeFile:
        return attrs.evolve(lab, guest=guest_placed(lab.guest, folder))

    def lacks(self, lab: SoftFile) -> Mapping[Need, str]:
        found = {**super().lacks(lab), Need.PAIR: NO_PAIR}
        found[Need.INLINE_WIRE] = "the bridge carries every frame and changes none"
        if node_count(lab) < MANY:
            found[Need.MANY_NODES] = f"[bridge] nodes is {node_count(lab)}, {MANY} are needed"
        return found

    def described(self, lab: SoftBridgeFile) -> list[str]:
        noun = GUESTS.load(lab.guest.kind).noun
        return [f"  nodes n1 to n{lab.bridge.nodes}: each {noun}, {lab.guest.suite}"]

    def open(self, lab: SoftBridgeFile, file: Path, folder: Path) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported(f"a lab of kind {lab.lab.kind} runs only during a test: {NO_PAIR}")

    def many(self, lab: SoftBridgeFile, folder: Path) -> Pair:
        return BridgedNodes(soft_guest(lab.guest), folder, lab.bridge.nodes, lab.link.mtu)

    def adapters_of(self, lab: SoftBridgeFile, base: Path) -> Told:
        with passing_folder("hil-") as folder:
            return _adapters_of(self.many(lab, folder))

    def measure(self, lab: SoftBridgeFile, count: int) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("only a soft pair can be measured")


PAIR: LabKind[SoftPairFile] = SoftPairKind()
BRIDGE: LabKind[SoftBridgeFile] = SoftBridgeKind()
