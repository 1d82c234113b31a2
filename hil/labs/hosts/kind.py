"""Labs of hosts as a kind of lab."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hil.errors import Unsupported
from hil.labs.findings import Finding
from hil.labs.hosts.doctor import examine
from hil.labs.hosts.file import HostsFile
from hil.labs.hosts.kinds import capture_kind, node_kind
from hil.labs.hosts.lab import HostLab, on_each
from hil.labs.hosts.mistakes import mistakes
from hil.labs.hosts.needs import doubts, lacks
from hil.labs.hosts.restoring import restore
from hil.labs.kinds import LabKind, Restored, Told, told_adapters
from hil.labs.needs import Need


class HostsKind:
    """Labs of machines that exist without the bench, and are restored after a run."""

    schema = HostsFile
    lasting = True

    def mistakes(self, lab: HostsFile, written: dict[str, Any]) -> Iterable[str]:
        return mistakes(lab, written)

    def placed(self, lab: HostsFile, folder: Path) -> HostsFile:
        """The lab unchanged: paths are resolved where they are used."""
        return lab

    def lacks(self, lab: HostsFile) -> Mapping[Need, str]:
        return lacks(lab)

    def guarantee(self, lab: HostsFile) -> str:
        return capture_kind(lab).guarantee(lab.capture, lab)

    def doubts(self, lab: HostsFile) -> list[str]:
        return doubts(lab)

    def described(self, lab: HostsFile) -> list[str]:
        lines = []
        for name, section in lab.nodes.items():
            adapter = f", {section.adapter.device} on {section.adapter.netdev}" if section.adapter else ""
            lines.append(f"  node {name}: {node_kind(section).where(section)}{adapter}")
        return [*lines, f"  link: {lab.link.kind}{', ' + lab.link.cabling if lab.link.cabling else ''}"]

    def parallel(self, lab: HostsFile) -> bool:
        """The hosts carry one pair at a time."""
        return False

    def jobs(self, lab: HostsFile) -> int:
        return 1

    def made_with(self, lab: HostsFile) -> dict[str, Any]:
        return {"cabling": f"{lab.link.kind}: {lab.link.cabling or 'not described in the lab file'}"}

    def prepare(self, lab: HostsFile) -> str:
        return "needs no preparation"

    def open(self, lab: HostsFile, file: Path, folder: Path) -> HostLab:
        return HostLab(lab, file, folder)

    def many(self, lab: HostsFile, folder: Path) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported(lacks(lab)[Need.MANY_NODES])

    def examine(self, lab: HostsFile, base: Path) -> Iterator[Finding]:
        return examine(lab, base)

    def adapters_of(self, lab: HostsFile, base: Path) -> Told:
        return Told(*on_each(lab, base, lambda host: told_adapters(host.system("adapters"))))

    def restore(self, lab: HostsFile, base: Path, *, force: bool) -> Restored:
        return restore(lab, base, force=force)

    def measure(self, lab: HostsFile, count: int) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("only a soft pair can be measured")


HOSTS: LabKind[HostsFile] = HostsKind()
