"""This machine as a node of a lab."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hil.labs.findings import Finding
from hil.labs.hosts.file import LocalNode
from hil.labs.hosts.kinds import NodeKind


class LocalKind:
    """The kind of node that is this machine."""

    schema = LocalNode
    carrier = "Python"
    here = True

    def command(self, section: LocalNode, agent: Sequence[str], folder: Path, control: Path) -> list[str]:
        return list(agent)

    def called(self, section: LocalNode) -> str:
        return "this machine"

    def where(self, section: LocalNode) -> str:
        return "this machine"

    def machine(self, section: LocalNode) -> tuple[str, ...]:
        return ("",)

    def examine(self, section: LocalNode) -> Iterator[Finding]:
        yield from ()


LOCAL: NodeKind = LocalKind()
