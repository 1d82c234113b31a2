"""The table of allowed imports between the folders ("rooms") of the package, and the functions that check it."""

import ast
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

NODE_LIBRARIES = frozenset({"pyverbs", "pyroute2"})
"""The only packages on a node besides the standard library."""
NODE_TOOLS = ("errors", "jitter")
TOOLS = (
    *NODE_TOOLS,
    "cache",
    "children",
    "files",
    "interrupts",
    "progress",
    "seams",
    "stopwatch",
    "verdict",
    "version",
    "waiting",
)
"""Modules that every room of the controller may import. They import no room."""

NODE_ROOMS: dict[str, tuple[str, ...]] = {
    "winsock": (),
    "verbs": (),
    "netlink": (),
    "provider": ("winsock", "verbs"),
    "switch": ("winsock",),
    "adapters": ("netlink",),
    "mutants.providers": ("winsock", "verbs", "provider"),
    "agent": ("winsock", "provider", "switch", "netlink", "adapters"),
    "mutants.sessions": ("winsock", "switch", "agent"),
}
"""The rooms that run on a node, each with the rooms it may import."""

CONTROLLER_ROOMS: dict[str, tuple[str, ...]] = {
    "mutants.catalogue": ("winsock",),
    "roce": (),
    "capture": ("roce",),
    "wire": ("capture", "roce"),
    "mutants.wires": ("wire", "roce", "mutants.catalogue"),
    "evidence": ("capture", "roce", "winsock"),
    "report": ("evidence", "capture", "roce", "winsock", "mutants.catalogue"),
    "labs": ("evidence", "wire", "capture", "agent", "adapters", "mutants.catalogue"),
    "labs.soft": ("labs", "evidence", "wire", "capture", "agent"),
    "labs.hosts": ("labs", "evidence", "wire", "capture", "agent", "adapters"),
    "suite": (),
    "testing": ("suite", "labs", "report", "evidence", "capture", "roce", "winsock", "provider", "mutants.catalogue"),
    "cli": ("suite", "report", "evidence", "labs", "adapters", "mutants.catalogue"),
    "__main__": ("cli",),
}
"""The rooms that run on the controller. No room may import ``labs.soft`` or ``labs.hosts``: labs are found by name."""

ROOMS = NODE_ROOMS | CONTROLLER_ROOMS

EXCEPTIONS: dict[tuple[str, str], str] = {
    (
        "hil.evidence.journal",
        "hil.switch.journal",
    ): "nodes that write the journal and rules that read it share its kinds",
    ("hil.provider.seam", "hil.adapters.network"): "a factory gets the node's network, whose type is defined there",
    ("hil.wire.matrix", "hil.winsock.codes"): "the fault matrix has the expected code of each cell",
    ("hil.report.grid", "hil.wire.matrix"): "the grid shows the matrix, which is data",
    ("hil.report.adapters", "hil.adapters.find"): "the type of the nodes' adapters is defined there",
    (
        "hil.evidence.rules.processes",
        "hil.adapters.processes",
    ): "nodes and rules must select the same processes",
    ("hil.evidence.resources", "hil.netlink.codes"): "kernel states are numbers of RDMA netlink",
}
"""Exceptions to the table, from module to module, each with its reason."""

STARTERS = frozenset({"subprocess", "multiprocessing", "concurrent"})
"""Modules that start processes. A report starts none."""
ONLY_IN = {"qemu": "labs.soft"}
"""Libraries that only one room may import."""
WORDS_ONLY_IN = {"ssh": "labs.hosts", "qemu-system-x86_64": "labs.soft"}
"""Programs that only one room may name, in a text that is the word or begins with the word and a blank."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import: module ``source`` of the package imports ``target`` in line ``line``."""

    source: str
    target: str
    line: int


def modules(package: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module of a package by its dotted name, including those in linked folders."""
    for folder, folders, files in os.walk(package, followlinks=True):
        # The suite's tests are installed with the package, but are no room of it.
        folders[:] = sorted(set(folders) - {"__pycache__", "tests"})
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder) / file
                parts = (package.name, *path.relative_to(package).with_suffix("").parts)
                yield ".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())


def imports(package: Path) -> Iterator[Import]:
    """Every import in a package, at any depth of the code, including imports of other packages."""
    for name, tree in modules(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(name, alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute here"
                # "from package import name" may name a module of the package.
                for alias in node.names:
                    below = f"{node.module}.{alias.name}"
                    is_module = module_file(package, below) is not None
                    yield Import(name, below if is_module else str(node.module), node.lineno)


def module_file(package: Path, name: str) -> Path | None:
    """The file or folder of a module of the package, or None."""
    if name.split(".")[0] != package.name:
        return None
    path = package.parent.joinpath(*name.split("."))
    return next((found for found in (path.with_suffix(".py"), path) if found.exists()), None)


def room(module: str, package: str = "hil") -> str:
    """The room of a module: the longest name in the table, a tool, or empty for the package itself and others'."""
    parts = module.split(".")
    if parts[0] != package or len(parts) == 1:
        return ""
    return max(
        (name for name in (*ROOMS, *TOOLS) if parts[1 : 1 + name.count(".") + 1] == name.split(".")),
        key=len,
        default=parts[1],
    )


def wrong(package: Path) -> list[str]:
    """Every import that the table forbids, with its place."""
    return [f"{one.source}, line {one.line}: {why}" for one in imports(package) if (why := _why(one, package.name))]


def _why(one: Import, package: str) -> str:
    source, target = room(one.source, package), room(one.target, package)
    if not one.target.startswith(package + ".") and one.target != package:
        return _why_other(source, one.target.split(".")[0])
    if (one.source, one.target) in EXCEPTIONS or source == target or not source:
        return ""
    if not target:
        return f"{source} imports the package itself" if source in NODE_ROOMS and one.target != package else ""
    if source in TOOLS:
        return "" if target in TOOLS else f"a tool imports {target}"
    if source not in ROOMS:
        return f"{source} is no room of the table"
    tools = NODE_TOOLS if source in NODE_ROOMS else TOOLS
    return "" if target in (*ROOMS[source], *tools) else f"{source} may not import {target}"


def _why_other(source: str, library: str) -> str:
    """Why a room may not import another's library, or an empty text."""
    if source in NODE_ROOMS and library not in NODE_LIBRARIES | sys.stdlib_module_names:
        return f"{source} runs on nodes, which have no {library}"
    if source == "report" and library in STARTERS:
        return f"report starts nothing, and imports {library}"
    owner = ONLY_IN.get(library, source)
    return "" if owner == source else f"only {owner} may know {library}"


def misplaced_words(package: Path) -> list[str]:
    """Every place outside its room that names a program of ``WORDS_ONLY_IN``."""
    found = []
    for name, tree in modules(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                word = node.value.split(" ")[0]
                if (owner := WORDS_ONLY_IN.get(word)) is not None and owner != room(name, package.name):
                    found.append(f"{name}, line {node.lineno}: only {owner} may know {word}")
    return found


def cycles(package: Path) -> list[str]:
    """Rooms that import each other, as a chain that ends where it began; exceptions count as well."""
    known: dict[str, set[str]] = {}
    for one in imports(package):
        source, target = room(one.source, package.name), room(one.target, package.name)
        if source and target and source != target:
            known.setdefault(source, set()).add(target)
    found = []
    for start in sorted(known):
        if (chain := _way_back(start, known)) is not None and min(chain) == start:
            found.append(" -> ".join(chain))
    return found


def _way_back(start: str, known: dict[str, set[str]]) -> list[str] | None:
    ways: list[list[str]] = [[start]]
    seen: set[str] = set()
    for way in ways:
        for target in sorted(known.get(way[-1], ())):
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return None


def unused_exceptions(package: Path) -> list[tuple[str, str]]:
    """Exceptions that no import needs."""
    made: Iterable[tuple[str, str]] = {(one.source, one.target) for one in imports(package)}
    return sorted(EXCEPTIONS.keys() - set(made))
