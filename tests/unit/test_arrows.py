"""Imports between the folders of the package run one way. The table of allowed imports is in arrows.py."""

from pathlib import Path

import pytest
from arrows import NODE_ROOMS, ROOMS, cycles, misplaced_words, room, unused_exceptions, wrong

import hil
from hil.agent import parcel

HOUSE = Path(hil.__file__).parent


def test_every_import_is_in_the_table() -> None:
    """No folder imports one above it, the node side imports only itself, and a report starts no process."""
    assert wrong(HOUSE) == []


def test_rooms_import_each_other_in_one_direction() -> None:
    """There is no cycle through other folders either."""
    assert cycles(HOUSE) == []


def test_only_one_room_knows_each_program() -> None:
    """QEMU is started by soft labs, and ssh by labs of hosts."""
    assert misplaced_words(HOUSE) == []


def test_no_exception_outlives_its_import() -> None:
    """An exception that no import needs must be removed from the table."""
    assert unused_exceptions(HOUSE) == []


def test_the_parcel_for_a_node_is_the_node_side() -> None:
    """The parcel has the folders of the node side in the table, and their tools, and no other code."""
    names = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name, _ in parcel.code_files()]
    rooms = {room(name) for name in names} - {"", "errors", "jitter", "mutants"}
    assert rooms == set(NODE_ROOMS)


def test_the_table_has_no_cycle() -> None:
    """Imports that the table allows can never form a cycle."""

    def below(name: str, way: tuple[str, ...] = ()) -> None:
        assert name not in way, f"{' -> '.join((*way, name))}"
        for allowed in ROOMS[name]:
            below(allowed, (*way, name))

    for name in ROOMS:
        below(name)


def house(folder: Path, **files: str) -> Path:
    """A made-up package, each file by its path with two underscores for a slash."""
    for name, text in files.items():
        path = folder / "hil" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "hil"


GOOD = {
    "errors": "",
    "winsock__codes": "import enum\nfrom hil.errors import HilError\n",
    "provider__core": "import pyverbs.qp\nfrom hil.winsock import codes\n",
    "agent__roles__provider": "from hil.provider.core import x\n",
    "labs__kinds": "from hil.agent.roles import provider\n",
    "labs__soft__machine": "import qemu.qmp\nfrom hil.labs.kinds import x\nPROGRAM = 'qemu-system-x86_64'\n",
    "report__grid": "import rich\nfrom hil.evidence import rules\n",
    "evidence__rules": "from hil.winsock.codes import x\n",
}


def test_a_correct_package_has_no_mistakes(tmp_path: Path) -> None:
    """Imports downwards, of the standard library, and of a folder's own libraries are allowed."""
    made = house(tmp_path, **GOOD)
    assert (wrong(made), cycles(made), misplaced_words(made)) == ([], [], [])


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("winsock__more", "from hil.provider.core import x", "winsock may not import provider"),
        ("provider__more", "import hil.switch.session", "provider may not import switch"),
        ("provider__more", "from hil.files import x", "provider may not import files"),
        ("agent__more", "from hil.labs.kinds import x", "agent may not import labs"),
        ("agent__more", "import attrs", "agent runs on nodes, which have no attrs"),
        ("roce__more", "from hil.capture import x", "roce may not import capture"),
        ("capture__more", "from hil.wire.counts import x", "capture may not import wire"),
        ("evidence__more", "from hil.report.grid import x", "evidence may not import report"),
        ("report__more", "def late():\n    from hil.labs.kinds import x", "report may not import labs"),
        ("report__more", "import subprocess", "report starts nothing, and imports subprocess"),
        ("labs__more", "from hil.labs.soft import machine", "labs may not import labs.soft"),
        ("cli__more", "from hil.labs.hosts.host import Host", "cli may not import labs.hosts"),
        ("labs__hosts__more", "import qemu.qmp", "only labs.soft may know qemu"),
        ("labs__hosts__more", "from hil.labs.soft.machine import x", "labs.hosts may not import labs.soft"),
        ("files", "from hil.labs import x", "a tool imports labs"),
        ("attic__more", "from hil.labs import x", "attic is no room of the table"),
    ],
)
def test_an_arrow_the_wrong_way_is_found(tmp_path: Path, file: str, line: str, said: str) -> None:
    """The message has the module and the line, also for an import inside a function."""
    made = house(tmp_path, **GOOD, **{file: f"\n{line}\n"})
    number = 1 + line.count("\n") + 1
    assert wrong(made) == [f"hil.{file.replace('__', '.')}, line {number}: {said}"]


def test_rooms_that_import_each_other_are_found(tmp_path: Path) -> None:
    """The message has the whole cycle."""
    made = house(tmp_path, **GOOD, winsock__more="from hil.agent import roles\n")
    assert cycles(made) == ["agent -> provider -> winsock -> agent"]


@pytest.mark.parametrize(("word", "owner"), [("ssh", "labs.hosts"), ("qemu-system-x86_64", "labs.soft")])
def test_a_program_named_elsewhere_is_found(tmp_path: Path, word: str, owner: str) -> None:
    """A program is found as the first word of a command."""
    made = house(tmp_path, **GOOD, cli__more=f"COMMAND = ['{word}', '-v']\n")
    assert misplaced_words(made) == [f"hil.cli.more, line 1: only {owner} may know {word}"]
