"""The doctor names each missing thing with the command that repairs it, and reports labs that will not work."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from hil.labs.findings import Finding, Level, report
from hil.labs.hosts.capture_kinds import HostCaptureKind
from hil.labs.hosts.doctor import adapter_findings
from hil.labs.hosts.file import Adapter, HostCapture, HostsFile, LocalNode, NodeSection
from hil.labs.hosts.lab import not_ready
from hil.labs.schema import Ipv4, Ipv4Prefix, Ipv6, LabSection, Name, NetdevName
from hil.labs.soft import doctor

ADAPTER = Adapter(device=Name("rxe0"), netdev=NetdevName("eth0"), ipv4=Ipv4("10.0.0.1"))
READY: dict[str, Any] = {
    "python": [3, 13],
    "pyverbs": "there",
    "librdmacm": "there",
    "rdma netlink": ["rxe0"],
    "rdma_cm": True,
    "capabilities": ["CAP_NET_ADMIN", "CAP_NET_RAW"],
    "kernel log": "there",
    "netdevs": ["lo", "eth0"],
    "soft-roce": True,
    "programs": [],
    "adapter": {
        "port": 1,
        "state": 4,
        "carries": ["eth0"],
        "lower": [],
        "mac": "02:00:00:00:00:01",
        "missing gids": [],
        "not served": [],
        "link layer": "Ethernet",
    },
}


def test_a_ready_host_has_no_findings() -> None:
    """All needs of a provider are met."""
    assert not_ready(ADAPTER, READY) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": [3, 9]}, "install python3.11"),
        ({"pyverbs": "error: No module named 'pyverbs'"}, "apt-get install python3-pyverbs"),
        ({"librdmacm": "error: no file"}, "apt-get install"),
        ({"rdma netlink": "error: [Errno 93]"}, "load the adapter's own module"),
        ({"rdma_cm": False}, "modprobe rdma_ucm"),
        ({"capabilities": ["CAP_NET_RAW"]}, "CAP_NET_ADMIN is missing"),
        ({"kernel log": "error: [Errno 1] no"}, "the kernel's messages cannot be read (error: [Errno 1] no)"),
        ({"rdma netlink": []}, "rdma link add rxe0 type rxe netdev eth0"),
        ({"adapter": READY["adapter"] | {"state": 1}}, "ip link set eth0 up"),
        ({"adapter": READY["adapter"] | {"missing gids": ["10.0.0.1"]}}, "ip address add 10.0.0.1/24 dev eth0"),
        (
            {"adapter": READY["adapter"] | {"not served": ["10.0.0.1"]}},
            "10.0.0.1 is neither on the netdev of rxe0 nor on",
        ),
        (
            {"adapter": READY["adapter"] | {"link layer": "InfiniBand"}},
            "is an InfiniBand port, and the bench knows RoCE",
        ),
        ({"adapter": {"error": "refused"}}, "could not be asked"),
        ({"netdevs": ["lo"]}, "there is no netdev eth0 (there is: lo)"),
        ({"adapter": READY["adapter"] | {"carries": ["eth1"]}}, "eth0 is no netdev of rxe0, which has eth1"),
    ],
)
def test_each_missing_thing_has_its_repair(changed: dict[str, Any], said: str) -> None:
    """One thing is missing, and one finding names it and the command that repairs it."""
    (problem,) = not_ready(ADAPTER, READY | changed)
    assert said in str(problem)


def test_the_command_for_an_address_has_its_prefix_and_namespace() -> None:
    """IPv4 and IPv6 have different prefix lengths. For an adapter in a namespace the command runs there."""
    adapter = attrs.evolve(ADAPTER, ipv6=Ipv6("fd20::1"), ipv4_prefix=Ipv4Prefix(16))
    lacking = READY | {"adapter": READY["adapter"] | {"missing gids": ["10.0.0.1", "fd20::1"], "state": 1}}
    mends = ["ip link set eth0 up", "ip address add 10.0.0.1/16 dev eth0", "ip address add fd20::1/64 dev eth0"]
    assert [want.mend for want in not_ready(adapter, lacking)] == mends
    there = [f"ip netns exec blue {mend}" for mend in mends]
    assert [want.mend for want in not_ready(adapter, lacking, namespace="blue")] == there


@pytest.mark.parametrize("lower", [["eth1"], []])
def test_a_vlan_on_top_of_the_devices_netdev_is_its_own(lower: list[str]) -> None:
    """eth0 carries VLAN traffic of eth1, or is unrelated to it. An InfiniBand port has no netdev at all."""
    carried = READY["adapter"] | {"carries": ["eth1"], "lower": lower}
    assert bool(not_ready(ADAPTER, READY | {"adapter": carried})) == (not lower)
    assert not not_ready(ADAPTER, READY | {"adapter": carried | {"carries": [], "lower": lower}})


FRESH = READY | {"rdma netlink": [], "adapter": READY["adapter"] | {"state": None, "missing gids": ["10.0.0.1"]}}


@pytest.mark.parametrize(
    ("changed", "level", "seen"),
    [
        ({}, Level.OK, "rxe0 on eth0 will be made for the run, with 10.0.0.1"),
        ({"rdma netlink": ["rxe0"], "adapter": READY["adapter"]}, Level.OK, "rxe0 is ACTIVE with 10.0.0.1"),
        ({"netdevs": ["lo"]}, Level.BAD, "there is no netdev eth0 (there is: lo)"),
        ({"soft-roce": False}, Level.BAD, "its kernel has no soft-RoCE"),
        ({"capabilities": ["CAP_NET_RAW"]}, Level.BAD, "CAP_NET_ADMIN is missing"),
    ],
)
def test_an_adapter_that_provisioning_will_make_is_not_missing(
    changed: dict[str, Any], level: Level, seen: str
) -> None:
    """A fresh host is ok if provisioning can do as the lab file asks, and bad if it cannot."""
    adapter = attrs.evolve(ADAPTER, provision=True, soft_roce=True)
    (finding,) = adapter_findings(adapter, FRESH | changed, "node a")
    assert (finding.level, finding.seen) == (level, seen)


@pytest.mark.parametrize(
    ("method", "interface", "seen"),
    [
        ("packet-socket", "", []),
        ("packet-socket", "rxe0", ["there is no rxe0 to record on"]),
        ("dumpcap", "rxe0", ["dumpcap is missing"]),
        ("dumpcap", "eth7", ["there is no eth7 to record on", "dumpcap is missing"]),
    ],
)
def test_the_recorded_interface_must_exist(method: Any, interface: str, seen: list[str]) -> None:
    """A packet socket needs a netdev. A program can also record on an RDMA device."""
    nodes: dict[Name, NodeSection] = {Name("a"): LocalNode(kind="local", adapter=ADAPTER)}
    capture = HostCapture(kind="host", method=method, interface=interface)
    lab = HostsFile(LabSection(), nodes, capture)
    findings = list(HostCaptureKind().examine(capture, lab, READY))
    assert [finding.level for finding in findings] == [Level.BAD] * len(seen)
    assert all(text in finding.seen for text, finding in zip(seen, findings, strict=True))


def test_a_full_disk_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room for an image and its snapshots is bad, with a command to free some. The folder may be missing."""
    assert doctor.room(tmp_path / "not" / "yet").level is Level.OK
    monkeypatch.setattr(doctor, "ROOM_GIB", 1 << 20)
    finding = doctor.room(tmp_path / "not" / "yet")
    assert finding.level is Level.BAD and "HIL_CACHE" in finding.mend


def test_the_report_says_whether_anything_is_bad() -> None:
    """A lab with warnings works. A lab with one bad finding does not."""
    said: list[str] = []
    warning = Finding(Level.WARNING, "KVM", "slow")
    assert report(iter([warning]), said.append)
    assert not report(iter([warning, Finding(Level.BAD, "QEMU", "missing", "apt-get install qemu")]), said.append)
    assert said[-1] == "1 bad, 1 warnings, 0 ok" and "mend: apt-get install qemu" in said[-2]


def test_a_lab_file_with_mistakes_is_named_by_every_command(tmp_path: Path) -> None:
    """doctor, lab check and lab up first print the mistakes and end with 2."""
    (tmp_path / "lab.toml").write_text('[lab]\nkind = "hots"\nname = "../x"\n')
    lab = str(tmp_path / "lab.toml")
    for command in (["doctor", f"--lab={lab}"], ["lab", "check", lab], ["lab", "up", lab]):
        done = subprocess.run([sys.executable, "-m", "hil", *command], capture_output=True, text=True)
        assert done.returncode == 2, done
        assert "[lab.kind] 'hots' is not one of" in done.stderr and "[lab.name]" in done.stderr
