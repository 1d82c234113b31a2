"""Golden bundles: recorded evidence of closes, as it was written, and with one fact altered."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hil.evidence.bundle import Bundle, read_bundle
from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Entry, chosen
from hil.evidence.judgement import judge
from hil.evidence.packets import RocePacket
from hil.evidence.rules.closes import HardClose

BUNDLES = Path(__file__).parent / "bundles"
PASSES = ("pass_data", "pass_closer_pending", "pass_peer_pending", "pass_both")


def bundle(name: str) -> Bundle:
    """A bundle as it was recorded, read anew."""
    return read_bundle(BUNDLES / name)


def copied(name: str, target: Path) -> Path:
    """A copy of a bundle's folder that a test may alter."""
    return Path(shutil.copytree(BUNDLES / name, target / name))


class Altered:
    """Evidence of a bundle in which facts are altered; ``close`` is the one it judged."""

    def __init__(self, name: str) -> None:
        read = bundle(name)
        assert read.judged is not None
        self.evidence: Evidence = read.evidence
        self.close: HardClose = read.judged.closes[0]

    def entries(self, kind: Any, /, **facts: Any) -> list[Any]:
        """Journal entries of any node, in order."""
        return chosen(self.evidence.events, kind, **facts)

    def change(self, old: Entry, **facts: Any) -> None:
        """One entry with other facts."""
        self.evidence.events = [replace(e, **facts) if e is old else e for e in self.evidence.events]

    def drop(self, *old: Entry) -> None:
        """The same without some entries."""
        self.evidence.events = [e for e in self.evidence.events if not any(e is one for one in old)]

    def add(self, entry: Entry) -> None:
        """The same with one entry more."""
        self.evidence.events.append(entry)

    def packet(self, cm: str) -> RocePacket:
        """The first message of the connection manager with that name."""
        return next(p for p in self.evidence.packets if p.cm == cm)

    def change_packet(self, old: RocePacket, **facts: Any) -> None:
        """One packet with other facts, sent and delivered."""
        for packets in (self.evidence.packets, self.evidence.delivered):
            packets[:] = [replace(p, **facts) if p.frame == old.frame else p for p in packets]

    def drop_packet(self, old: RocePacket) -> None:
        """The same without one packet."""
        for packets in (self.evidence.packets, self.evidence.delivered):
            packets[:] = [p for p in packets if p.frame != old.frame]

    def add_packet(self, packet: RocePacket) -> None:
        """The same with one packet more, at the end."""
        self.evidence.packets.append(packet)
        self.evidence.packet_times_ns[packet.frame] = max(self.evidence.packet_times_ns.values()) + 1

    def findings(self) -> list[Finding]:
        """What the rules say of it now."""
        judgement = judge(self.evidence, [self.close])
        assert not judgement.problems
        return list(judgement.findings)


Alter = Callable[[Altered], object]
