"""Labs of hosts: a bad host does not stop the others, and its error names it once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from hil.errors import NodeDied, RemoteError, SetupError
from hil.labs.file import read_lab_file
from hil.labs.hosts import restoring
from hil.labs.hosts.file import Adapter, HostsFile, LocalNode
from hil.labs.hosts.host import Host, explain
from hil.labs.hosts.lab import HostLab, reason, resolved
from hil.labs.schema import Ipv4, Name

ROOT = Path(__file__).parents[2]


def hil(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "hil", *arguments], capture_output=True, text=True, env=environment)


def lab(tmp_path: Path) -> str:
    """Node a has no Python; node b is this machine."""
    sections = ['[lab]\nname = "two"\nkind = "hosts"\n[capture]\nkind = "none"\n']
    for number, (name, python) in enumerate((("a", "/no/such/python"), ("b", sys.executable)), 1):
        sections.append(
            f'[nodes.{name}]\nkind = "local"\npython = "{python}"\n[nodes.{name}.adapter]\ndevice = "none{name}"\n'
            f'netdev = "lo"\nipv4 = "10.99.0.{number}"\n'
        )
    (tmp_path / "lab.toml").write_text("".join(sections))
    return str(tmp_path / "lab.toml")


def test_a_bad_host_does_not_stop_the_others(tmp_path: Path) -> None:
    """adapters and doctor continue with the next node, and name the bad one once. The exit code is 2."""
    file = lab(tmp_path)
    for arguments in (("adapters", f"--lab={file}"), ("doctor", f"--lab={file}")):
        done = hil(*arguments)
        said = done.stdout + done.stderr
        assert done.returncode == 2 and "Traceback" not in said, said
        assert "node a: this machine could not be made a node" in said
        assert "node b: " in said or "b:" in done.stdout.splitlines()[0], said


def test_restore_needs_a_file() -> None:
    """With the default lab it would do nothing, and report success."""
    done = hil("lab", "restore")
    assert done.returncode == 2 and "Missing argument 'FILE'" in done.stderr


def test_an_error_names_its_node_once() -> None:
    """The command adds the node's name. The bench's own refusals have no traceback, other errors have one."""
    assert reason("a", SetupError("node a: gone")) == "gone"
    assert reason("a", NodeDied("node b: gone")) == "node b: gone"
    assert reason("a", RemoteError("AdapterError", "no RDMA", "Traceback")) == "no RDMA"
    assert "Traceback" in reason("a", RemoteError("KeyError", "x", "Traceback"))


class Fake:
    """A host that lacks nothing. ``dead``: it no longer answers."""

    made: list["Fake"]

    def __init__(self, name: str, namespace: str = "") -> None:
        self.name, self.namespace, self.dead = name, namespace, False
        self.calls: list[str] = []
        self.asked: dict[str, Any] = {}
        Fake.made.append(self)

    def alive(self) -> bool:
        return not self.dead

    def wait_ready(self) -> None:
        pass

    def check_alive(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def system(self, call: str, /, **arguments: Any) -> Any:
        if self.dead:
            raise NodeDied(f"node {self.name}: gone")
        self.calls.append(call)
        self.asked[call] = arguments
        if call == "device_of":
            return {"PCI": "nonea"}.get(arguments["wanted"], "")
        return {
            "python": [3, 13],
            "pyverbs": "there",
            "librdmacm": "there",
            "rdma netlink": ["nonea", "noneb"],
            "rdma_cm": True,
            "capabilities": ["CAP_NET_ADMIN", "CAP_NET_RAW"],
            "kernel log": "there",
            "netdevs": ["lo"],
            "adapter": {
                "port": 1,
                "state": 4,
                "carries": ["lo"],
                "lower": [],
                "mac": "02:00:00:00:00:01",
                "missing gids": [],
                "not served": [],
                "link layer": "Ethernet",
            },
        }


@pytest.fixture
def provisioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostLab:
    """A lab whose hosts are provisioned."""
    return made_lab(tmp_path, monkeypatch)


def made_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str = "") -> HostLab:
    """A lab of provisioned hosts that lack nothing. ``keys`` are further keys of each node."""
    Fake.made = []
    monkeypatch.setattr(HostLab, "_connect", lambda self, name, section: Fake(name, section.namespace))
    file = Path(lab(tmp_path))
    text = file.read_text().replace('netdev = "lo"', 'netdev = "lo"\nprovision = true')
    file.write_text(text.replace('kind = "local"\n', f'kind = "local"\n{keys}'))
    known = read_lab_file(file)
    assert isinstance(known, HostsFile)
    return HostLab(known, file, tmp_path / "nodes")


def test_a_lost_host_is_restored_over_a_new_connection(provisioned: HostLab) -> None:
    """Its connection broke, but the host is alive: the lab connects again at the end, and restores it."""
    Fake.made[0].dead = True
    provisioned.close()
    assert [(host.name, host.calls[-1]) for host in Fake.made[1:]] == [("b", "restore"), ("a", "restore")]


def test_a_namespace_that_is_made_is_made_and_unmade_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent outside moves the netdev and takes it back. The node is an agent inside. A lost agent is replaced."""
    lab = made_lab(tmp_path, monkeypatch, 'namespace = "left"\nmake_namespace = true\n')
    outside, inside = [[host for host in Fake.made if host.namespace == name] for name in ("", "left")]
    assert [host.name for host in outside] == [host.name for host in inside] == ["a", "b"]
    assert {host.asked["provision"]["netns"] for host in outside} == {"left"}
    assert "provision" not in inside[0].calls and "inspect" in inside[0].calls
    assert list(lab.nodes.values()) == inside

    inside[0].dead = True
    monkeypatch.setattr("hil.labs.hosts.lab.HostPair", lambda lab, folder: None)
    lab.pair(tmp_path / "again")
    assert [host.namespace for host in Fake.made[4:]] == ["left"] and outside[0].calls.count("provision") == 2
    lab.close()
    assert [host.calls[-1] for host in outside] == ["restore", "restore"]


def test_a_host_that_is_not_restored_is_reported_with_the_command_for_it(
    provisioned: HostLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a separate error. The command names the lab file, without which it would restore no host."""

    def gone(self: HostLab, name: str, section: object) -> Fake:
        raise SetupError(f"node {name}: far could not be made a node")

    monkeypatch.setattr(HostLab, "_connect", gone)
    Fake.made[0].dead = True
    with pytest.raises(SetupError) as raised:
        provisioned.close()
    said = str(raised.value)
    assert "node a is not restored: far could not be made a node" in said
    assert f"hil lab restore {tmp_path / 'lab.toml'}" in said and Fake.made[1].calls[-1] == "restore"


def test_an_adapter_may_be_named_as_hil_adapters_finds_it() -> None:
    """The node returns the device's own name. An unknown name, or one of a device to be made, is unchanged."""
    Fake.made = []
    host = cast(Host, Fake("a"))
    written = Adapter(Name("PCI"), Name("lo"), Ipv4("10.99.0.1"))
    assert resolved(host, written).device == "nonea"
    unknown = attrs.evolve(written, device=Name("nothing"))
    made = attrs.evolve(written, provision=True, soft_roce=True)
    assert (resolved(host, unknown), resolved(host, made)) == (unknown, made)


class Busy:
    """A host where another bench is at work during the first calls."""

    name = "a"

    def __init__(self, questions: int) -> None:
        self.questions = questions

    def system(self, call: str, *, force: bool = True) -> list[Any]:
        if call == "pending_elsewhere":
            return []
        self.questions -= 1
        if self.questions >= 0 and not force:
            raise RemoteError("AtWork", "a bench is at work here (process 311)", "")
        return [{"kind": "address"}]


def test_a_host_in_use_by_another_bench_is_not_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restoring is refused while another bench is at work, unless forced. A killed bench gets time to end."""
    monkeypatch.setattr(restoring, "AGENTS_END_S", 0.3)
    assert restoring.restored(cast(Host, Busy(2)), False) == ([{"kind": "address"}], False)
    assert restoring.restored(cast(Host, Busy(10**6)), True) == ([{"kind": "address"}], False)
    with pytest.raises(RemoteError, match="process 311"):
        restoring.restored(cast(Host, Busy(10**6)), False)


def test_a_missing_namespace_is_reported_with_the_command_that_makes_it() -> None:
    """iproute2's message ends in "No such file or directory", like messages about a missing program."""
    said = explain(LocalNode(kind="local"), 'Cannot open network namespace "left": No such file or directory')
    assert "ip netns add NAME, or set make_namespace = true" in said and "python" not in said


def test_the_doctor_looks_where_a_namespace_is_made(tmp_path: Path) -> None:
    """The namespace need not exist yet. The doctor looks for the netdev outside of it."""
    file = Path(lab(tmp_path))
    text = file.read_text().replace("/no/such/python", sys.executable)
    text = text.replace('kind = "local"\n', 'kind = "local"\nnamespace = "hil-no-such"\nmake_namespace = true\n')
    file.write_text(text.replace('netdev = "lo"', 'netdev = "lo"\nprovision = true'))
    said = hil("doctor", f"--lab={file}").stdout
    assert "could not be made a node" not in said and "node a: " in said, said
