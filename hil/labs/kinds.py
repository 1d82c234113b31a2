"""Kinds of labs: what is asked of each, and where the bench finds them by the name in ``[lab] kind``."""

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
    """Makes pairs, one at a time in each process. Called in the main thread."""

    def pair(self, folder: Path, mutant: str = "", *, used: bool = False) -> Pair:
        """A pair whose evidence goes to ``folder``. Raises HilError.

        ``mutant``: the name of a wire that is wrong on purpose (hil.mutants.wires), or empty. ``used``: nodes that
        other tests left as they found them are good enough; where nodes can be made, they are fresh otherwise.
        """

    def provenance(self) -> dict[str, Any]:
        """What each node is made of, by node. Raises HilError."""

    def close(self) -> None:
        """Give everything back; safe to call twice. Raises SetupError that names what could not be given back."""


@dataclass(frozen=True, slots=True)
class Told:
    """What each node of a lab told, by its name, and what is wrong with the nodes that did not."""

    adapters: dict[str, list[Adapter]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restored:
    """The changes undone on each node, each a text, and what is wrong with the nodes that are not restored."""

    undone: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class LabKind(Protocol[File]):
    """A kind of lab, such as two hosts with a cable. Found by name at the seam ``hil.labs``; holds no state.

    ``File`` is its ``schema``, and ``lab`` below is always one that was read from a lab file. Commands and the pytest
    plugin call it in the main thread of their process; with several processes, each calls its own object. What is said
    to "touch nothing" is asked for every test file that is collected: it starts no process and waits for nothing.
    Texts are for people: half a sentence, without a full stop. Paths in a lab file are relative to its folder.
    """

    schema: type[File]
    """An attrs class: the sections of the lab file, with ``lab: LabSection`` among them."""
    lasting: bool
    """Whether the nodes exist without the bench, so that a run that was killed may have left changes to ``restore``."""

    def mistakes(self, lab: File, written: dict[str, Any]) -> Iterable[str]:
        """What is wrong between sections that are good by themselves, each as "[place] what"; touches nothing.

        ``written`` is the whole TOML file. Sections that were wrong are missing in ``lab``, or have their defaults.
        """

    def placed(self, lab: File, folder: Path) -> File:
        """The lab with what must be resolved against ``folder``, where its file lies; touches nothing."""

    def lacks(self, lab: File) -> Mapping[Need, str]:
        """What the lab has not, each with the reason; touches nothing."""

    def guarantee(self, lab: File) -> str:
        """How a frame that is missing in the lab's captures is noticed; touches nothing."""

    def doubts(self, lab: File) -> list[str]:
        """What of a file without mistakes is likely to be one; touches nothing."""

    def described(self, lab: File) -> list[str]:
        """Nodes and link in lines, for ``hil lab check``; touches nothing."""

    def parallel(self, lab: File) -> bool:
        """Whether several processes can have a pair each at the same time; touches nothing."""

    def jobs(self, lab: File) -> int:
        """How many tests run at once on this machine unless the user asks for another number; 1 or more."""

    def made_with(self, lab: File) -> dict[str, Any]:
        """Facts for every result's provenance, as JSON has them: ``cabling``, and versions of the tools it uses.

        Called after the lab was prepared. A tool that is missing is left out.
        """

    def prepare(self, lab: File) -> str:
        """Build what nodes are made from, or find it in the cache; what to say of it. May take minutes.

        Raises SetupError or OSError.
        """

    def open(self, lab: File, file: Path, folder: Path) -> Lab:
        """The running lab of ``file``; what lasts longer than a test is kept in ``folder``.

        Raises SetupError when its nodes cannot be made, Unsupported when it has no pairs.
        """

    def many(self, lab: File, folder: Path) -> Pair:
        """All nodes at once, on one link; evidence goes to ``folder``.

        Raises HilError, Unsupported where Need.MANY_NODES is lacking.
        """

    def examine(self, lab: File, base: Path) -> Iterator[Finding]:
        """What the lab depends on, for ``hil doctor``; looks at the nodes, and changes nothing. Never raises HilError.

        ``base``: the folder of the lab file.
        """

    def adapters_of(self, lab: File, base: Path) -> Told:
        """The RDMA adapters of each node, for ``hil adapters``; where nodes are made, provisioned. Raises HilError."""

    def restore(self, lab: File, base: Path, *, force: bool) -> Restored:
        """Undo what provisioning changed on the nodes, for ``hil lab restore``; only asked of a ``lasting`` kind.

        ``force``: also where another bench is at work. Raises HilError.
        """

    def measure(self, lab: File, count: int) -> Iterator[str]:
        """Make ``count`` pristine pairs and tell what they cost, a line a figure, for ``hil figures``.

        Prepares what they are made from. Raises HilError, Unsupported where there is nothing to measure.
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
    """Adapters as a node told them. Raises NodeError for anything else."""
    try:
        return cattrs.structure(told, list[Adapter])
    except Exception as error:
        raise NodeError(f"the node told something that is no list of adapters: {error}") from error


def kind_of(lab: LabFile) -> LabKind[Any]:
    """The kind that a lab file names. Raises SeamError."""
    return LABS.load(lab.lab.kind)


def open_lab(lab: LabFile, file: Path, folder: Path) -> Lab:
    """The running lab of ``file``; what lasts longer than a test is kept in ``folder``. Raises as LabKind.open."""
    opened: Lab = kind_of(lab).open(lab, file, folder)
    return opened


def jobs(lab: LabFile, asked: int | None = None) -> int:
    """How many tests run at once on a lab: as many as were ``asked`` for, where it can carry them."""
    kind = kind_of(lab)
    if not kind.parallel(lab):
        return 1
    return asked or min(kind.jobs(lab), MAX_JOBS)
