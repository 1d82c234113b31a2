"""The parts of a lab of hosts: kinds of nodes, of capture points and of power control, found by their names."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hil.labs.findings import Finding
from hil.labs.hosts.file import CaptureSection, HostsFile, NodeSection, PowerSection
from hil.labs.node import Node
from hil.labs.place import Place
from hil.labs.power import Power
from hil.labs.schema import by_kind
from hil.seams import Seam
from hil.wire.point import CapturePoint


class NodeKind(Protocol):
    """A kind of node that exists without the bench. ``[nodes.NAME] kind`` names it; found at the seam ``hil.nodes``.

    Holds no state. ``section`` is always an instance of its ``schema``. Called in the thread that makes or examines the
    lab.
    """

    @property
    def schema(self) -> type[NodeSection]:
        """A subclass of NodeSection, frozen and with keywords only."""

    carrier: str
    """The name in messages of the program on this machine that carries the agent's stream: "ssh"."""
    here: bool
    """Whether the node runs on this machine's own kernel."""

    def command(self, section: Any, agent: Sequence[str], folder: Path, control: Path) -> list[str]:
        """The command on this machine that runs ``agent`` on the node, with its own stdin and stdout joined to it.

        Both carry bytes, unchanged and without a terminal; its output to stderr is kept for messages. The command ends
        when its stdin ends, and never prompts the user. ``folder``: paths in the section are relative to it.
        ``control``: a private folder for sockets, which lasts as long as the command. Raises SetupError.
        """

    def called(self, section: Any) -> str:
        """The machine's name for people: its host name, "this machine"; touches nothing."""

    def where(self, section: Any) -> str:
        """How the node is reached, for ``hil lab check``: "ssh nic-a"; touches nothing."""

    def machine(self, section: Any) -> tuple[str, ...]:
        """A key that is equal for two sections of the same machine, as far as the sections show; touches nothing."""

    def examine(self, section: Any) -> Iterator[Finding]:
        """Check the node's needs on this machine, for ``hil doctor``; changes nothing, never raises HilError."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The environment of a new capture point: the running nodes of a lab, the places of a and b, and the file."""

    nodes: Mapping[str, Node]
    places: Sequence[Place]
    soft: bool
    """Whether the adapters are soft-RoCE, so that netdevs see their frames."""
    path: Path
    """The pcapng file to write."""

    def place(self, name: str) -> Place:
        """The place of node ``name``."""
        return next(place for place in self.places if place.name == name)


class HostCapturePoint(CapturePoint, Protocol):
    """A capture point of a lab of hosts."""

    tells_at_end: bool
    """Whether the losses are known only after ``stop``."""


class CaptureKind(Protocol):
    """A kind of capture point. ``[capture] kind`` names it; found at the seam ``hil.captures``. Holds no state.

    ``section`` is always an instance of its ``schema``. ``lab.capture`` may be another, as files with mistakes are
    examined too. All methods but ``open`` touch nothing; ``open`` is called in the test's thread, for each pair.
    """

    @property
    def schema(self) -> type[CaptureSection]:
        """A subclass of CaptureSection, frozen and with keywords only."""

    def mistakes(self, section: Any, lab: HostsFile, written: dict[str, Any]) -> Iterable[str]:
        """Contradictions to the other sections, each as "[place] message"; ``written`` is the TOML file."""

    def lacks(self, section: Any, lab: HostsFile) -> str:
        """Why the capture cannot be complete, or an empty text."""

    def guarantee(self, section: Any, lab: HostsFile) -> str:
        """How the bench notices a missing frame."""

    def node(self, section: Any) -> str:
        """The name of the node that records, or an empty text."""

    def examine(self, section: Any, lab: HostsFile, facts: dict[str, Any]) -> Iterable[Finding]:
        """Check the recording node. ``facts`` are its answer to the system role's ``inspect``."""

    def open(self, section: Any, scene: Scene) -> HostCapturePoint:
        """Start a capture point, which records until its ``stop``.

        Raises Unsupported when the node lacks the program or the right to record, CaptureError and NodeError.
        """


class PowerKind(Protocol):
    """A kind of power control. ``[nodes.NAME.power] kind`` names it; found at the seam ``hil.power``.

    Holds no state. Called in the thread that makes the lab.
    """

    @property
    def schema(self) -> type[PowerSection]:
        """A subclass of PowerSection, frozen and with keywords only: the section's keys."""

    def connect(self, section: Any, node: str, folder: Path) -> Power:
        """Power control of ``node``. ``section`` is an instance of ``schema``; its paths are relative to ``folder``.

        Changes nothing, and may wait some seconds for the power control device. Raises SetupError.
        """


NODES: Seam[NodeKind] = Seam(
    "hil.nodes",
    "kind of node",
    NodeKind,
    {"ssh": "hil.labs.hosts.ssh:SSH", "local": "hil.labs.hosts.local:LOCAL"},
)
CAPTURES: Seam[CaptureKind] = Seam(
    "hil.captures",
    "kind of capture point",
    CaptureKind,
    {
        "host": "hil.labs.hosts.capture_kinds:HOST",
        "mirror": "hil.labs.hosts.capture_kinds:MIRROR",
        "none": "hil.labs.hosts.capture_kinds:NONE",
    },
)
POWERS: Seam[PowerKind] = Seam(
    "hil.power", "kind of power control", PowerKind, {"command": "hil.labs.hosts.power:COMMAND"}
)
by_kind(NodeSection, NODES)
by_kind(CaptureSection, CAPTURES)
by_kind(PowerSection, POWERS)


def node_kind(section: NodeSection) -> NodeKind:
    """The kind that a node's section names. Raises SeamError."""
    return NODES.load(section.kind)


def capture_kind(lab: HostsFile) -> CaptureKind:
    """The kind that a lab's capture section names. Raises SeamError."""
    return CAPTURES.load(lab.capture.kind)
