"""A package adds kinds of labs, nodes, capture points and power control, and lab files name them as the bench's own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.cli.lab import described
from hil.errors import LabFileError, NodeError, Unsupported
from hil.labs.file import read_lab_file
from hil.labs.hosts.file import HostsFile
from hil.labs.hosts.host import Host
from hil.labs.hosts.kinds import CAPTURES, NODES, POWERS
from hil.labs.hosts.lab import HostLab, HostPair
from hil.labs.kinds import LABS, kind_of
from hil.labs.needs import Need
from hil.labs.schema import Name
from hil.labs.soft.kinds import GUESTS
from hil.seams import Seam

SEAMS: tuple[Seam[object], ...] = (LABS, GUESTS, NODES, CAPTURES, POWERS)  # type: ignore[assignment]
GROUPS = {"labs": "hil.labs", "nodes": "hil.nodes", "captures": "hil.captures", "power": "hil.power"}
PACKAGE = """
import attrs
from hil.labs.hosts.file import CaptureSection, HostsFile, NodeSection, PowerSection
from hil.labs.hosts.kind import HostsKind
from hil.labs.schema import Name, TcpPort
from hil.wire.point import NothingRecorded

@attrs.frozen(kw_only=True)
class BoxNode(NodeSection):
    image: Name

class Box:
    schema, carrier, here = BoxNode, "box", True
    def command(self, section, agent, folder, control):
        return ["/usr/bin/env", "BOX=" + section.image, *agent]
    def called(self, section):
        return "box " + section.image
    where = called
    def machine(self, section):
        return (section.image,)
    def examine(self, section):
        return iter(())

@attrs.frozen(kw_only=True)
class Socket(PowerSection):
    outlet: TcpPort

class Strip:
    schema = Socket
    def connect(self, section, node, folder):
        return Plug(section.outlet)

class Plug:
    def __init__(self, outlet):
        self.outlet, self.done = outlet, []
    def halt(self):
        self.done.append("halt")
    def cut(self):
        self.done.append("cut")
    def resume(self):
        self.done.append("resume")

@attrs.frozen(kw_only=True)
class TapSection(CaptureSection):
    port: TcpPort = TcpPort(9)

class Tap:
    schema = TapSection
    def mistakes(self, section, lab, written):
        if section.port == 0:
            yield "[capture.port] a tap has no port 0"
    def lacks(self, section, lab):
        return ""
    def guarantee(self, section, lab):
        return "the tap counts"
    def node(self, section):
        return ""
    def examine(self, section, lab, facts):
        return []
    def open(self, section, scene):
        return NothingRecorded(scene.path)

class Rack(HostsKind):
    def described(self, lab):
        return ["  a rack of " + " and ".join(lab.nodes)]
"""
POINTS = {
    "labs": "rack = rack:Rack",
    "nodes": "box = rack:Box",
    "captures": "tap = rack:Tap",
    "power": "strip = rack:Strip",
}
LAB = """
[lab]
name = "mine"
kind = "rack"
[nodes.a]
kind = "box"
image = "one"
[nodes.a.power]
kind = "strip"
outlet = 1
[nodes.a.adapter]
device = "rxe0"
netdev = "eth0"
ipv4 = "10.0.0.1"
[nodes.b]
kind = "box"
image = "two"
[nodes.b.power]
kind = "strip"
outlet = 2
[nodes.b.adapter]
device = "rxe0"
netdev = "eth0"
ipv4 = "10.0.0.2"
[capture]
kind = "tap"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that installs the package ``rack`` with a text. At the end its modules are unloaded."""

    def made(text: str) -> None:
        (tmp_path / "rack.py").write_text(text)
        folder = tmp_path / "rack-2.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rack\nVersion: 2.0\n")
        lines = [f"[{GROUPS[group]}]\n{point}\n" for group, point in POINTS.items()]
        (folder / "entry_points.txt").write_text("\n".join(lines))

    for seam in SEAMS:
        monkeypatch.setattr(seam, "_loaded", {})
    monkeypatch.syspath_prepend(tmp_path)
    yield made
    sys.modules.pop("rack", None)


def lab_file(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = LAB
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "lab.toml").write_text(text)
    return tmp_path / "lab.toml"


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.noun)
def test_every_kind_of_the_bench_has_the_members_of_its_protocol(seam: Seam[object]) -> None:
    """Each is found by its name, and checked like a kind from a package."""
    assert all(seam.load(name) is not None for name in seam.built_in)


def test_a_packages_kinds_are_named_in_a_lab_file(install: Callable[[str], None], tmp_path: Path) -> None:
    """Their keys are read by their own schemas, and the lab is described and examined by their own code."""
    install(PACKAGE)
    lab = read_lab_file(lab_file(tmp_path))
    assert isinstance(lab, HostsFile)
    node = lab.nodes[Name("a")]
    assert (node.kind, getattr(node, "image", ""), getattr(node.power, "outlet", 0)) == ("box", "one", 1)
    assert described(lab)[:2] == ["lab mine (rack)", "  a rack of a and b"]
    assert kind_of(lab).guarantee(lab) == "the tap counts"
    assert not {Need.POWER, Need.CAPTURE} & kind_of(lab).lacks(lab).keys()


def test_a_host_without_power_control_lacks_it(install: Callable[[str], None], tmp_path: Path) -> None:
    """One tested node without it is enough. The reason names the missing section."""
    install(PACKAGE)
    lab = read_lab_file(lab_file(tmp_path, ('[nodes.b.power]\nkind = "strip"\noutlet = 2\n', "")))
    reason = "[nodes.b] has no section power, which names the commands that halt the host"
    assert kind_of(lab).lacks(lab)[Need.POWER] == reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"rack"', '"rock"'), "[lab.kind] 'rock' is not one of soft-pair, soft-bridge, hosts, rack; a package can"),
        (('kind = "box"', 'kind = "bag"'), "[nodes.a] kind 'bag' is not one of ssh, local, box; a package can add"),
        (('kind = "tap"', 'kind = "tip"'), "[capture] kind 'tip' is not one of host, mirror, none, tap; a package"),
        (('kind = "strip"', 'kind = "off"'), "[nodes.a.power] kind 'off' is not one of command, strip; a package"),
        (("outlet = 1", "outlet = true"), "[nodes.a.power.outlet] True is not an integer"),
        (("outlet = 1", "outlet = 1\nvolts = 3"), "[nodes.a.power] unknown volts; known are kind, outlet"),
        (('kind = "strip"\n', ""), "[nodes.a.power] kind is missing: command, strip; a package can add"),
        (('"tap"', '"tap"\nport = 0'), "[capture.port] a tap has no port 0"),
    ],
)
def test_a_mistake_in_a_packages_section_has_its_place(
    install: Callable[[str], None], tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    """For an unknown kind the message lists the known ones. An unknown key is reported like one of the bench."""
    install(PACKAGE)
    with pytest.raises(LabFileError) as caught:
        read_lab_file(lab_file(tmp_path, change))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise OSError('no rack')", "[lab.kind] kind of lab rack, rack:Rack, of package rack 2.0 cannot be loaded"),
        (PACKAGE.replace("    def connect", "    def plug"), "[nodes.a.power] kind of power control strip, rack:Strip"),
        (PACKAGE.replace("def guarantee", "def promise"), "of package rack 2.0 is none: it lacks guarantee"),
        (PACKAGE + "\nBox = None\n", "[nodes.a] kind of node box, rack:Box, of package rack 2.0 is none: it lacks"),
    ],
)
def test_a_package_that_is_broken_is_named(
    install: Callable[[str], None], tmp_path: Path, text: str, said: str
) -> None:
    """The message has the place in the lab file that names it."""
    install(text)
    with pytest.raises(LabFileError) as caught:
        read_lab_file(lab_file(tmp_path))
    assert said in str(caught.value)


def test_a_packages_node_runs_the_agent(install: Callable[[str], None], tmp_path: Path) -> None:
    """The node starts it by the command of its kind."""
    install(PACKAGE)
    lab = read_lab_file(lab_file(tmp_path, ('image = "one"', f'image = "one"\npython = "{sys.executable}"')))
    assert isinstance(lab, HostsFile)
    host = Host("a", lab.nodes[Name("a")], tmp_path, tmp_path / "console", lambda node, worker, event: None)
    try:
        host.wait_ready()
        done = host.system("run", command=["/bin/sh", "-c", "echo $BOX"])
    finally:
        host.stop()
    assert done["stdout"] == "one\n"


def bare_lab(lab: HostsFile, file: Path) -> HostLab:
    """A lab whose hosts are not connected."""
    made = HostLab.__new__(HostLab)
    made.lab, made._file = lab, file
    return made


def test_a_lab_hands_out_its_power_control(install: Callable[[str], None], tmp_path: Path) -> None:
    """Each node has its own. Without a section in the file it is unsupported."""
    install(PACKAGE)
    file = lab_file(tmp_path, ('[nodes.b.power]\nkind = "strip"\noutlet = 2\n', ""))
    lab = read_lab_file(file)
    assert isinstance(lab, HostsFile)
    power = bare_lab(lab, file).power("a")
    power.cut()
    assert (getattr(power, "outlet", 0), getattr(power, "done", [])) == (1, ["cut"])
    with pytest.raises(Unsupported, match=r"\[nodes\.b\] has no section power"):
        bare_lab(lab, file).power("b")


def test_a_node_that_a_test_cut_off_gets_its_power_back(install: Callable[[str], None], tmp_path: Path) -> None:
    """It is restored when the pair is closed. A node whose power control was not used is left alone."""
    install(PACKAGE)
    file = lab_file(tmp_path)
    lab = read_lab_file(file)
    assert isinstance(lab, HostsFile)
    pair = HostPair.__new__(HostPair)
    pair._lab, pair._powers, pair._open = bare_lab(lab, file), {}, []
    pair._lab.nodes, pair._lab._record = {}, None
    power = pair.power("a")
    power.cut()
    assert pair.power("a") is power
    pair.close()
    assert getattr(power, "done", []) == ["cut", "resume"]


COMMANDS = """[nodes.a.power]
kind = "command"
halt = ["touch", "halted"]
cut = ["sh", "-c", "echo no such outlet >&2; exit 3"]
resume = ["/no/such/program"]
"""


def test_power_control_by_commands(tmp_path: Path) -> None:
    """Each is run in the lab file's folder. A command that fails or is missing is an error that names the node."""
    text = LAB.replace('"rack"', '"hosts"').replace('"box"', '"local"').replace('"tap"', '"none"')
    text = text.replace('image = "one"\n', "").replace('image = "two"\n', "")
    text = text.replace('[nodes.b.power]\nkind = "strip"\noutlet = 2\n', "")
    file = tmp_path / "lab.toml"
    file.write_text(text.replace('[nodes.a.power]\nkind = "strip"\noutlet = 1\n', COMMANDS))
    lab = read_lab_file(file)
    assert isinstance(lab, HostsFile)
    power = bare_lab(lab, file).power("a")
    power.halt()
    assert (tmp_path / "halted").exists()
    with pytest.raises(NodeError, match=r"power control of node a, cut: sh ended with 3: no such outlet"):
        power.cut()
    with pytest.raises(NodeError, match=r"power control of node a, resume: /no/such/program: .*No such file"):
        power.resume()


@pytest.mark.parametrize("halt", ["[]", '""', "[7]", '[""]'])
def test_a_power_command_is_a_program_and_its_arguments(tmp_path: Path, halt: str) -> None:
    """A text for a shell is refused."""
    file = lab_file(tmp_path, ('kind = "rack"', 'kind = "hosts"'))
    text = file.read_text().replace('kind = "strip"\noutlet = 1', f'kind = "command"\nhalt = {halt}')
    file.write_text(text)
    with pytest.raises(LabFileError, match=r"\[nodes\.a\.power\.halt"):
        read_lab_file(file)
