"""Kinds of labs: the interface of a kind, and the seam that finds a kind by the name in ``[lab] kind``."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cattrs

from hil.adapters.find import Adapter
from hil.errors import NodeError
from hil.labs.findings import Finding
from hil.labs.needs import Need
from hil.labs.pair import Pair
from hil.labs.schema import LabFile
from hil.seams import Seam

MAX_JOBS = 8
File = TypeVar("File")


class Lab(Protocol):
    """A running lab. It makes pairs, one at a time in each process. Called in the main thread."""

    def pair(self, folder: Path, mutant: str = "", *, used: bool = False) -> Pair:
        """Make a pair whose evidence is written to ``folder``. Raises HilError.

        ``mutant``: the name of a wire that is wrong on purpose (hil.mutants.wires), or empty. ``used``: the pair may
        reuse nodes that earlier tests left unchanged. Otherwise a lab that makes its nodes makes new ones.
        """

    def provenance(self) -> dict[str, Any]:
        """Facts about the machine and software of each node, by node name. Raises HilError."""

    def close(self) -> None:
        """Release all nodes and undo all changes. Safe to call twice.

        Raises SetupError that names each remaining change.
        """


@dataclass(frozen=True, slots=True)
class Told:
    """The adapters of each node by its name, and an error message for each node that gave no list."""

    adapters: dict[str, list[Adapter]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restored:
    """The changes that were undone on each node, each a text, and an error message for each node not restored."""

    undone: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class LabKind(Protocol[File]):
    """A kind of lab, such as two hosts with a cable. Found by name at the seam ``hil.labs``; holds no state.

    ``File`` is its ``schema``. The argument ``lab`` was always read from a lab file. Commands and the pytest plugin
    call a kind in the main thread of their process; with several processes, each calls its own object. Methods that
    "touch nothing" are called for every collected test file, so they must start no process and wait for nothing. Texts
    are for people: half a sentence, without a full stop. Paths in a lab file are relative to its folder.
    """

    schema: type[File]
    """An attrs class: the sections of the lab file, with ``lab: LabSection`` among them."""
    lasting: bool
    """Whether the nodes exist without the bench. Then a killed run may have left changes for ``restore`` to undo."""

    def mistakes(self, lab: File, written: dict[str, Any]) -> Iterable[str]:
        """Contradictions between sections that are valid by themselves, each as "[place] message"; touches nothing.

        ``written`` is the whole TOML file. In ``lab``, invalid sections are missing or have their defaults.
        """

    def placed(self, lab: File, folder: Path) -> File:
        """The lab with its paths made absolute. ``folder`` is the folder of the lab file. Touches nothing."""

    def lacks(self, lab: File) -> Mapping[Need, str]:
        """The needs that the lab does not meet, each with the reason; touches nothing."""

    def guarantee(self, lab: File) -> str:
        """How the bench notices a frame that is missing from the lab's captures; touches nothing."""

    def doubts(self, lab: File) -> list[str]:
        """Likely mistakes in a valid file; touches nothing."""

    def described(self, lab: File) -> list[str]:
        """Lines of text that describe nodes and link, for ``hil lab check``; touches nothing."""

    def parallel(self, lab: File) -> bool:
        """Whether several processes can each have a pair at the same time; touches nothing."""

    def jobs(self, lab: File) -> int:
        """How many tests run at the same time on this machine by default; 1 or more."""

    def made_with(self, lab: File) -> dict[str, Any]:
        """JSON-compatible facts for the provenance of every result: ``cabling``, and the versions of the tools in use.

        Called after ``prepare``. A missing tool is left out.
        """

    def prepare(self, lab: File) -> str:
        """Build the images that nodes are made from, or find them in the cache. May take minutes.

        Returns the end of a sentence about the lab, for the user. Raises SetupError or OSError.
        """

    def open(self, lab: File, file: Path, folder: Path) -> Lab:
        """Start the lab of ``file``. Files that last longer than a test are kept in ``folder``.

        Raises SetupError when its nodes cannot be made, Unsupported when the lab has no pairs.
        """

    def many(self, lab: File, folder: Path) -> Pair:
        """Start all nodes on one link. Evidence is written to ``folder``.

        Raises HilError, and Unsupported when the lab does not meet Need.MANY_NODES.
        """

    def examine(self, lab: File, base: Path) -> Iterator[Finding]:
        """Check the lab's dependencies, for ``hil doctor``. Examines the nodes, changes nothing, never raises HilError.

        ``base``: the folder of the lab file.
        """

    def adapters_of(self, lab: File, base: Path) -> Told:
        """The RDMA adapters of each node, for ``hil adapters``. Nodes that the lab makes are provisioned first.

        Raises HilError.
        """

    def restore(self, lab: File, base: Path, *, force: bool) -> Restored:
        """Undo the changes that provisioning made on the nodes, for ``hil lab restore``.

        Only called on a ``lasting`` kind. ``force``: undo them even where another bench is at work. Raises HilError.
        """

    def measure(self, lab: File, count: int) -> Iterator[str]:
        """Make ``count`` pristine pairs and measure their time and memory, for ``hil figures``. Yields a line a figure.

        Calls ``prepare`` itself. Raises HilError, and Unsupported when the kind cannot be measured.
        """


LABS: Seam[LabKind[Any]] = Seam(
    "hil.labs",
    "kind of lab",
    LabKind,
    {
        "soft-pair": "hil.labs.soft.kind:PAIR",
        "soft-bridge": "hil.labs.soft.kind:BRIDGE",
        "hosts": "hil.labs.hosts.kind:HOSTS",
    },
)


def told_adapters(told: Any) -> list[Adapter]:
    """Convert a node's answer to a list of adapters. Raises NodeError if the answer is not such a list."""
    try:
        return cattrs.structure(told, list[Adapter])
    except Exception as error:
        raise NodeError(f"the node's answer is not a list of adapters: {error}") from error


def kind_of(lab: LabFile) -> LabKind[Any]:
    """The kind that a lab file names. Raises SeamError."""
    return LABS.load(lab.lab.kind)


def open_lab(lab: LabFile, file: Path, folder: Path) -> Lab:
    """Start the lab of ``file``. Files that last longer than a test are kept in ``folder``. Raises as LabKind.open."""
    opened: Lab = kind_of(lab).open(lab, file, folder)
    return opened


def jobs(lab: LabFile, asked: int | None = None) -> int:
    """How many tests run at once on a lab: ``asked``, or the kind's default; 1 if the lab has a single pair."""
    kind = kind_of(lab)
    if not kind.parallel(lab):
        return 1
    return asked or min(kind.jobs(lab), MAX_JOBS)
