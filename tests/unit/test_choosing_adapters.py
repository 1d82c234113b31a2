"""The choice of an adapter by any of its names, and the table of the adapters found."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hil.adapters.find import Adapter, Gid, Port, choose, pci_address
from hil.cli.main import main
from hil.errors import AdapterError, NodeError
from hil.labs.kinds import told_adapters
from hil.report.adapters import chosen, table

GID = Gid(3, "0000:0000:0000:0000:0000:ffff:0a4d:0001", "RoCE v2", "eth4")
PORT = Port(
    1, "ACTIVE", "LINK_UP", "Ethernet", "100 Gb/sec (4X EDR)", "eth4", "", 9000, True, ("10.77.0.1/24",), (GID,)
)
OTHER = replace(PORT, number=2, state="DOWN", netdev="eth5", addresses=("10.77.1.1/24", "fd77::1/64"))
TWO_PORTS = Adapter("mlx5_0", "roce", "mlx5", "28.39.1002", "b859:9f03:0012:3456", "0000:3b:00.0", (PORT, OTHER))
VLAN = Gid(5, "0000:0000:0000:0000:0000:ffff:0a4f:0001", "RoCE v2", "eth0.7")
SOFT_PORT = replace(PORT, netdev="eth0", addresses=(), gids=(VLAN,))
SOFT = Adapter("rxe0", "roce", "rxe", "", "5054:00ff:fe00:0101", "", (SOFT_PORT,))
FOUND = [TWO_PORTS, SOFT]


@pytest.mark.parametrize(
    ("wanted", "adapter", "port"),
    [
        ("mlx5_0", TWO_PORTS, 1),
        ("mlx5_0/2", TWO_PORTS, 2),
        ("eth5", TWO_PORTS, 2),
        ("10.77.1.1", TWO_PORTS, 2),
        ("fd77:0:0::1", TWO_PORTS, 2),
        ("0000:3b:00.0", TWO_PORTS, 1),
        ("3B:00.0", TWO_PORTS, 1),
        ("0xb8599f0300123456", TWO_PORTS, 1),
        ("B859:9F03:0012:3456", TWO_PORTS, 1),
        ("eth0", SOFT, 1),
        ("10.79.0.1", SOFT, 1),
    ],
)
def test_an_adapter_is_chosen_by_any_of_its_names(wanted: str, adapter: Adapter, port: int) -> None:
    """An adapter has these names: device, port, netdev, any spelling of an address, a VLAN's too, PCI address, GUID."""
    assert choose(FOUND, wanted) == (adapter, adapter.ports[port - 1])


@pytest.mark.parametrize("wanted", ["mlx5_1", "mlx5_0/3", "10.77.0.9", "", "/", "0000:3b:00.1", "eth"])
def test_an_unknown_name_is_answered_with_the_known_ones(wanted: str) -> None:
    """The error lists every adapter with the names that choose it."""
    with pytest.raises(AdapterError) as caught:
        choose(FOUND, wanted)
    for name in (repr(wanted), "mlx5_0", "0000:3b:00.0", "eth5", "10.77.1.1/24", "b859:9f03:0012:3456", "rxe0", "eth0"):
        assert name in str(caught.value)


def test_a_name_for_two_adapters_is_refused() -> None:
    """Two functions with one GUID, as some firmware has them, must be chosen by other names."""
    twin = replace(SOFT, name="rxe1")
    with pytest.raises(AdapterError, match="means 2 adapters: choose by device name or netdev"):
        choose([SOFT, twin], SOFT.node_guid)
    with pytest.raises(AdapterError, match="There are no RDMA devices"):
        choose([], "rxe0")


def test_a_pci_address_is_that_of_the_nearest_device(tmp_path: Path) -> None:
    """The last PCI address of the path counts, also behind a bridge and below a virtio device."""
    device = tmp_path / "pci0000:00" / "0000:00:1c.0" / "0000:3b:00.0" / "virtio1"
    device.mkdir(parents=True)
    assert pci_address(device) == "0000:3b:00.0"
    assert pci_address(tmp_path) == ""


def test_the_table_has_a_line_for_each_port() -> None:
    """Columns are aligned, an unknown value is a dash, and GIDs are shown only on request."""
    heading, first, second, soft = table(FOUND)
    assert heading.split()[:3] == ["adapter", "driver", "PCI"]
    assert first.index("ACTIVE") == second.index("DOWN") == heading.index("state")
    assert second.endswith("10.77.1.1/24 fd77::1/64")
    assert soft.split()[2] == "-" and soft.endswith("-")
    assert table(FOUND, gids=True)[2] == f"    GID 3: {GID.gid}, RoCE v2, eth4"
    assert len(table([])) == 1


def test_one_node_of_several_may_have_the_adapter() -> None:
    """The nodes with such an adapter are shown; when no node has it, each lists its adapters."""
    found = {"a": [TWO_PORTS], "b": [SOFT]}
    assert chosen(found, "eth0") == {"b": [SOFT]}
    with pytest.raises(AdapterError, match=r"(?s)node a: .*mlx5_0.*node b: .*rxe0"):
        chosen(found, "eth9")
    with pytest.raises(AdapterError, match="means 2 adapters"):
        chosen({"a": [SOFT, replace(SOFT, name="rxe1")]}, SOFT.node_guid)


def test_a_machine_without_rdma_says_so() -> None:
    """``hil adapters`` lists the adapters, or says in one line that there is no RDMA, and never prints a traceback."""
    done = CliRunner().invoke(main, ["adapters", "--json"])
    if done.exit_code == 0:
        assert list(json.loads(done.stdout)) == ["this machine"]
    else:
        assert (done.exit_code, done.stdout) == (2, "")
        assert re.fullmatch(r"hil: error: this kernel has no RDMA .*modprobe rdma_rxe\n", done.stderr)


def test_the_data_of_a_node_is_checked() -> None:
    """Plain data of adapters becomes adapters again; other data is an error of the node."""
    assert told_adapters([asdict(adapter) for adapter in FOUND]) == FOUND
    for nonsense in (None, 5, [{}], [{"name": "x"}], [asdict(SOFT) | {"ports": 5}]):
        with pytest.raises(NodeError, match="not a list of adapters"):
            told_adapters(nonsense)
