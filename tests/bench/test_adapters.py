"""Adapters on a real kernel: found with all their facts, provisioned as asked, and restored."""

import difflib
import json
import re
import time
from typing import Any

import pytest

from hil.adapters.find import choose, gid_of
from hil.errors import RemoteError
from hil.labs.kinds import told_adapters
from hil.labs.soft.pair import PLACES, SoftPair

Facts = dict[str, Any]
# The first journal has the pair's own provisioning.
JOURNAL, OTHER_JOURNAL = "/run/hil/changes.jsonl", "/run/hil/other.jsonl"
WANTED: Facts = {
    "netdev": "eth0",
    "mac": PLACES[0].mac,
    "addresses": ["10.77.0.1/24", "fd77::1/64"],
    "mtu": 1400,
    "device": "rxe0",
}
# Netdevs of User-Mode Linux take no larger MTU than their first.
LARGER = pytest.param(1450, 1600, marks=pytest.mark.needs("clones"))
# Counters, and addr_assign_type, which shows for ever that an address was once set.
PASSING = re.compile(
    r"statistics|carrier_(changes|up_count|down_count)|addr_assign_type|/queues/.*(timeout|hang|byte_queue_limits)"
)
SHOWN = (
    ["ip", "-j", "-d", "address"],
    ["ip", "-j", "maddress"],
    ["ip", "-j", "route", "show", "table", "all"],
    ["ip", "-j", "-6", "route", "show", "table", "all"],
    ["rdma", "-j", "dev"],
    ["rdma", "-j", "link"],
    ["rdma", "system"],
    ["find", "/sys/class/infiniband", "/sys/class/net"],
    ["find", "/run", "-path", "/run/netns/*"],
    ["sh", "-c", "grep -rs . /sys/class/net/eth0/ /sys/class/net/eth1/; true"],
)


def run(pair: SoftPair, *command: str) -> str:
    """The output of a program on node a."""
    done = pair.nodes["a"].system("run", command=list(command))
    assert done["status"] == 0, f"{command}: {done['stderr']}"
    return str(done["stdout"])


def groups_of(link: dict[str, Any]) -> list[dict[str, Any]]:
    """A netdev's groups, without the link layer's filters for IPv6 groups: their reports keep those for a while."""
    return [group for group in link["maddr"] if not str(group.get("link", "")).startswith("33:33:")]


def state(pair: SoftPair) -> dict[str, str]:
    """The state of node a as text: the output of ip and rdma, and sysfs."""
    shown = {" ".join(command): run(pair, *command) for command in SHOWN}
    assert '"ifname":"eth0"' in shown["ip -j -d address"], "ip shows nothing to compare"
    files = shown.popitem()[1].splitlines()
    # After a move, a netdev's routes come after others', and its groups are in another order.
    for what in (name for name in shown if "route" in name):
        shown[what] = "\n".join(map(str, sorted(json.loads(shown[what]), key=lambda route: str(route["dev"]))))
    groups = {link["ifname"]: sorted(map(str, groups_of(link))) for link in json.loads(shown["ip -j maddress"])}
    shown["ip -j maddress"] = str(groups)
    return shown | {"sysfs": "\n".join(line for line in files if not PASSING.search(line.split(":")[0]))}


def settled(pair: SoftPair, wanted: dict[str, str] | None = None) -> dict[str, str]:
    """``state`` when it equals ``wanted``, or no longer changes: the kernel removes some objects a moment later.

    An IPv6 address stays tentative, without its route, for longer than two readings take.
    """
    end_ns = time.monotonic_ns() + 40 * 10**9
    last: dict[str, str] = {}
    while time.monotonic_ns() < end_ns:
        now = state(pair)
        done = now == last and '"tentative":true' not in now["ip -j -d address"] if wanted is None else now == wanted
        if done:
            return now
        last = now
        time.sleep(0.1)
    assert wanted is not None, "the node does not come to rest"
    return now


def differences(before: dict[str, str], now: dict[str, str]) -> str:
    """The lines of a state that have changed."""
    both = [(before[what].splitlines(), now[what].splitlines()) for what in before]
    return "\n".join(line for was, is_now in both for line in difflib.unified_diff(was, is_now, n=0, lineterm=""))


def pending(pair: SoftPair, journal: str = JOURNAL) -> list[Facts]:
    return list(pair.nodes["a"].system("pending_changes", journal=journal))


def restore(pair: SoftPair, journal: str = JOURNAL) -> list[Facts]:
    return list(pair.nodes["a"].system("restore", journal=journal))


def killed_at_every_step(pair: SoftPair, call: str, **arguments: Any) -> int:
    """Kill the call at its first step, restore, kill it at the second, and so on. Returns the number of steps.

    After each, the node is as it was before.
    """
    before, step = settled(pair), 0
    while pair.nodes["a"].system("killed", call=call, at=step, journal=OTHER_JOURNAL, **arguments):
        restore(pair, OTHER_JOURNAL)
        assert not (left := differences(before, settled(pair, before))), f"killed at step {step}:\n{left}"
        assert pending(pair, OTHER_JOURNAL) == []
        step += 1
    restore(pair, OTHER_JOURNAL)
    assert not (left := differences(before, settled(pair, before))), f"not killed at all:\n{left}"
    return step


@pytest.mark.needs("clones")
def test_an_adapter_is_found_with_all_its_facts(pair: SoftPair) -> None:
    """Two devices on one node: names, driver, GUID, PCI address, netdev, MTU, addresses, GIDs with type and index."""
    node = pair.nodes["a"]
    run(pair, "ip", "link", "add", "link", "eth0", "name", "eth1", "type", "macvlan", "mode", "bridge")
    node.system("provision", netdev="eth1", addresses=["10.78.0.1/24"], mtu=1400, device="rxe1")
    first, second = told_adapters(node.system("adapters"))
    (port,) = first.ports
    assert (first.name, first.driver, first.protocol) == ("rxe0", "rxe", "roce")
    assert first.node_guid == run(pair, "cat", "/sys/class/infiniband/rxe0/node_guid").strip()
    assert first.pci_address in run(pair, "readlink", "-f", "/sys/class/net/eth0/device")
    assert (port.number, port.state, port.physical_state, port.link_layer) == (1, "ACTIVE", "LINK_UP", "Ethernet")
    assert (port.netdev, port.mac, port.mtu, port.up) == ("eth0", PLACES[0].mac, 1500, True)
    assert {"10.77.0.1/24", "fd77::1/64"} < set(port.addresses)
    gids = {gid.gid: gid for gid in port.gids}
    folder = "/sys/class/infiniband/rxe0/ports/1"
    for gid in gids.values():
        places = [f"{folder}/{place}/{gid.index}" for place in ("gids", "gid_attrs/types", "gid_attrs/ndevs")]
        assert (
            run(pair, "cat", *places).splitlines()
            == [gid.gid, "RoCE v2", gid.netdev]
            == [gid.gid, gid.type, gid.netdev]
        )
    # eth1 is on eth0, whose port has GIDs for eth1's addresses too.
    assert {gid.netdev for gid in gids.values()} == {"eth0", "eth1"}
    assert "0000:0000:0000:0000:0000:ffff:0a4d:0001" in gids
    for wanted in ("rxe1", "rxe1/1", "eth1", "10.78.0.1", second.node_guid, second.node_guid.replace(":", "")):
        assert choose([first, second], wanted) == (second, second.ports[0])
    assert choose([first, second], first.pci_address) == (first, port)


# eth1 is down, and so are its VLANs, one of them on top of another.
VLANS = (
    "link add link eth0 name eth1 type macvlan mode bridge",
    "link add link eth1 name eth1.7 type vlan id 7",
    "link add link eth1.7 name eth1.7.9 type vlan id 9",
    "link add link eth1 name eth1.8 type vlan id 8 loose_binding on",
    "link set eth1 up",
    "link set eth1.8 up",
    "link set eth1.7.9 mtu 1420",
    "link set eth1 down",
    "address add 10.78.7.1/24 dev eth1.7",
    "address add fd78:7::1/64 dev eth1.7 nodad",
    "address add fd78:7::2/64 dev eth1.7 nodad",
    "address add fd78:9::1/64 dev eth1.7.9 nodad",
    "address add fd78:8::1/64 dev eth1.8 nodad",
)


@pytest.mark.timeout(300)
def test_vlans_that_go_up_and_down_with_a_netdev_are_restored(pair: SoftPair) -> None:
    """The kernel takes a netdev's VLANs up and down with it, and removes their IPv6 addresses. They are restored, also
    with VLANs in VLANs, after a kill at every step. A VLAN with loose binding does not change."""
    for command in VLANS:
        run(pair, "ip", *command.split())
    for name, mtu in (("eth1.7", 1390), ("eth1.7.9", 1380)):
        run(pair, "sh", "-c", f"echo {mtu} > /proc/sys/net/ipv6/conf/{name}/mtu")
    wanted = {"netdev": "eth1", "mtu": 1400, "addresses": ["10.78.0.1/24"], "device": "rxe1"}
    assert killed_at_every_step(pair, "provision", **wanted) == 27
    kept = [run(pair, "cat", f"/proc/sys/net/ipv6/conf/{name}/mtu").strip() for name in ("eth1.7", "eth1.7.9")]
    assert kept == ["1390", "1380"]
    pair.nodes["a"].system("provision", journal=OTHER_JOURNAL, **wanted)
    links = json.loads(run(pair, "ip", "-j", "link"))
    up = {link["ifname"] for link in links if "UP" in link["flags"]}
    assert {"eth1", "eth1.7", "eth1.7.9", "eth1.8"} <= up
    restore(pair, OTHER_JOURNAL)
    run(pair, "ip", "address", "add", "fd78:9::2/64", "dev", "eth1.7.9", "nodad", "metric", "50")
    with pytest.raises(RemoteError, match=r"eth1.7.9 cannot go up and down with eth1: it would lose how fd78:9::2"):
        pair.nodes["a"].system("provision", journal=OTHER_JOURNAL, **wanted)
    run(pair, "ip", "link", "set", "eth1.8", "type", "vlan", "loose_binding", "off")
    run(pair, "ip", "link", "delete", "eth1.7")
    with pytest.raises(RemoteError, match=r"eth1 cannot go up, and down again in the end: eth1.8, which is up, would"):
        pair.nodes["a"].system("provision", journal=OTHER_JOURNAL, **wanted)
    assert pending(pair, OTHER_JOURNAL) == []


def test_a_netdev_with_a_vlan_in_another_namespace_is_not_changed(pair: SoftPair) -> None:
    """A container's VLAN goes up and down with the netdev and gets its MTU. Both changes are refused."""
    run(pair, "mkdir", "-p", "/var")
    run(pair, "ln", "-s", "/run", "/var/run")
    for command in (
        "netns add box",
        "link add link eth0 name eth1 type macvlan mode bridge",
        "link add link eth1 name eth1.7 netns box type vlan id 7",
        "link add link eth0 name eth0.7 netns box type vlan id 7",
        "-n box link set eth0.7 mtu 1300",
    ):
        run(pair, "ip", *command.split())
    node = pair.nodes["a"]
    with pytest.raises(RemoteError, match=r"eth1 cannot go up, .*: it would change eth1.7 in namespace box"):
        node.system("provision", journal=OTHER_JOURNAL, netdev="eth1", addresses=["10.78.0.1/24"], device="rxe1")
    with pytest.raises(RemoteError, match=r"eth0 cannot have MTU 1290: it would change eth0.7 in namespace box"):
        node.system("provision", journal=OTHER_JOURNAL, netdev="eth0", mtu=1290, device="rxe0")
    assert pending(pair, OTHER_JOURNAL) == []
    # Another VLAN is on top of it, whose MTU would change.
    run(pair, "ip", "link", "delete", "eth1")
    assert killed_at_every_step(pair, "provision", netdev="eth0", mtu=1300, device="rxe0") == 3


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("own", "mtu"), [(1450, 1300), (1450, 1450), LARGER, (1500, 1400)])
def test_an_ipvlan_has_its_own_mtu_again(pair: SoftPair, own: int, mtu: int) -> None:
    """The kernel gives IPVLANs each MTU of the netdev below, even a larger one, and does not notify IPv6 each time."""
    for command in (
        f"link add link eth0 name ipv0 mtu {own} type ipvlan mode l2",
        "link set ipv0 up",
        "address add fd79::1/64 dev ipv0 nodad",
    ):
        run(pair, "ip", *command.split())
    assert killed_at_every_step(pair, "provision", netdev="eth0", mtu=mtu, device="rxe0") == 7
    assert run(pair, "cat", "/proc/sys/net/ipv6/conf/ipv0/mtu").strip() == str(own)


def test_no_soft_roce_is_made_on_a_vlan(pair: SoftPair) -> None:
    """The kernel refuses it without a reason. The bench refuses it before any change, and names the netdev below."""
    run(pair, "ip", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
    run(pair, "ip", "link", "add", "link", "eth0.5", "name", "eth0.5.6", "type", "vlan", "id", "6")
    refused = pair.nodes["a"].system("run", command=["rdma", "link", "add", "x", "type", "rxe", "netdev", "eth0.5"])
    assert refused["status"] and "Operation not permitted" in refused["stderr"]
    for netdev, netns in (("eth0.5", ""), ("eth0.5.6", ""), ("eth0.5", "hil-a")):
        wanted = {"netdev": netdev, "addresses": ["10.5.0.1/24"], "device": "rxe5", "netns": netns}
        why = f"{netdev}, which is a VLAN: make it on eth0; it serves addresses of {netdev} too"
        foreseen = pair.nodes["a"].system("foresee", journal=OTHER_JOURNAL, **wanted)
        assert foreseen[0] == f"no soft-RoCE can be made on {why}"
        with pytest.raises(RemoteError, match=why):
            pair.nodes["a"].system("provision", journal=OTHER_JOURNAL, **wanted)
        assert pending(pair, OTHER_JOURNAL) == []
        assert len(foreseen) == 1 or netns


def test_changes_are_undone(pair: SoftPair) -> None:
    """A pair's node is restored to a bare netdev. Provisioned and restored again, it is equal byte for byte."""
    undone = [change["kind"] for change in restore(pair)]
    assert undone == ["SoftDevice", "Address", "Address", "LinkSetting", "LinkSetting"]
    assert restore(pair) == []
    before = settled(pair)
    assert json.loads(before["rdma -j dev"]) == []
    assert "10.77" not in before["ip -j -d address"]
    ready = pair.nodes["a"].system("provision", **WANTED)
    assert ready["device"] == "rxe0" and len(ready["gids"]) == 2
    assert [change["kind"] for change in pending(pair)] == ["SoftDevice", *["Address"] * 2, *["LinkSetting"] * 3]
    restore(pair)
    assert settled(pair, before) == before


@pytest.mark.timeout(240)
def test_killed_at_any_step_of_provisioning_all_is_undone(pair: SoftPair) -> None:
    """After kill -9 before and after each write to the journal and each change, the node is equal byte for byte."""
    restore(pair)
    assert killed_at_every_step(pair, "provision", **WANTED) == 13


def test_restoring_that_was_killed_at_any_step_continues(pair: SoftPair) -> None:
    """Restoring that is killed again and again ends in the same state as restoring that is not."""
    restore(pair)
    before = settled(pair)
    pair.nodes["a"].system("provision", **WANTED)
    step = 0
    # Each try begins with the remaining changes, so its later steps are new.
    while pair.nodes["a"].system("killed", call="restore", at=1 + step % 2):
        step += 1
    assert step >= 6
    assert pending(pair) == []
    assert settled(pair, before) == before


def test_a_device_is_found_by_its_netdev_address_or_guid(pair: SoftPair) -> None:
    """A netdev, an address or a GUID of the device finds it; an unknown one finds none. Its port is its netdev's."""
    node = pair.nodes["a"]
    guid = run(pair, "cat", "/sys/class/infiniband/rxe0/node_guid").strip()
    for wanted, device in (("eth0", "rxe0"), ("10.77.0.1", "rxe0"), (guid, "rxe0"), ("10.77.0.9", ""), ("eth9", "")):
        assert node.system("device_of", wanted=wanted) == device, wanted
    adapter = node.system("inspect", device="rxe0", netdev="eth0", addresses=["10.77.0.1", "10.77.0.9"])["adapter"]
    assert (adapter["port"], adapter["carries"], adapter["lower"]) == (1, ["eth0"], [])
    assert (adapter["state"], adapter["link layer"], adapter["missing gids"]) == (4, "Ethernet", ["10.77.0.9"])


def test_an_address_that_no_provider_serves_is_reported(pair: SoftPair) -> None:
    """The port has GIDs of the addresses of VLANs and of a MACVLAN. Only frames to the VLANs reach the device."""
    addresses = {"eth0": "10.77.0.1", "eth0.5": "10.5.0.1", "eth0.5.6": "10.56.0.1", "eth1": "10.79.0.1"}
    run(pair, "ip", "link", "add", "link", "eth0", "name", "eth1", "type", "macvlan", "mode", "bridge")
    run(pair, "ip", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
    run(pair, "ip", "link", "add", "link", "eth0.5", "name", "eth0.5.6", "type", "vlan", "id", "6")
    for netdev in ("eth1", "eth0.5", "eth0.5.6"):
        run(pair, "ip", "link", "set", netdev, "up")
        run(pair, "ip", "address", "add", f"{addresses[netdev]}/24", "dev", netdev)
    for netdev, address in addresses.items():
        adapter = pair.nodes["a"].system("inspect", device="rxe0", netdev=netdev, addresses=[address])["adapter"]
        not_served = ["10.79.0.1"] if netdev == "eth1" else []
        assert "eth0" in [netdev, *adapter["lower"]]
        assert (adapter["missing gids"], adapter["not served"]) == ([], not_served), netdev


def test_existing_settings_of_a_host_are_left_alone(pair: SoftPair) -> None:
    """Existing addresses, MTU and soft-RoCE are not changed, not noted, and still there afterwards."""
    restore(pair)
    run(pair, "ip", "link", "set", "eth0", "mtu", "1450", "up")
    run(pair, "ip", "address", "add", "10.77.0.1/24", "dev", "eth0")
    run(pair, "rdma", "link", "add", "theirs", "type", "rxe", "netdev", "eth0")
    before = settled(pair)
    node = pair.nodes["a"]
    node.system("provision", netdev="eth0", addresses=["10.77.0.1/24"])
    assert pending(pair) == []
    node.system("provision", netdev="eth0", addresses=["10.77.0.1/24", "10.77.9.1/24"], mtu=1400, device="theirs")
    assert [change["kind"] for change in pending(pair)] == ["Address", "LinkSetting"]
    restore(pair)
    assert settled(pair, before) == before


def test_impossible_provisioning_is_refused_before_any_change(pair: SoftPair) -> None:
    """No such netdev, a device name that is taken, a second device on a netdev: each error lists the existing ones."""
    node, before = pair.nodes["a"], pending(pair)
    for wanted, message in (
        ({"netdev": "eth9"}, "there is no netdev 'eth9'; there are: eth0, lo"),
        ({"netdev": "lo", "device": "rxe0"}, "rxe0 exists already, on eth0: name another device"),
        ({"netdev": "eth0", "device": "rxe9"}, "eth0 carries the RDMA device rxe0 already"),
        ({"netdev": "lo"}, "lo belongs to no RDMA device"),
        ({"netdev": "eth0", "flow_control": [3]}, "eth0 has no PFC to set: its driver has no DCB"),
        ({"netdev": "eth0", "flow_control": [8]}, "priorities are 0 to 7"),
        ({"netdev": "eth0", "settings": {"/etc/passwd": "x"}}, "/etc/passwd is no setting of the network"),
        ({"netdev": "eth0", "settings": {"/proc/sys/net/../x": "x"}}, "is no setting of the network"),
        (
            {"netdev": "eth0", "mtu": 1300, "addresses": ["10.0.0.900/24"]},
            "'10.0.0.900/24' is no address with its prefix",
        ),
        ({"netdev": "eth0", "settings": {"/proc/sys/net/nix": "x"}}, "/proc/sys/net/nix is not there"),
    ):
        with pytest.raises(RemoteError, match=message):
            node.system("provision", **wanted)
    assert pending(pair) == before


def test_a_port_that_does_not_become_ready_is_named(pair: SoftPair) -> None:
    """No GID in time: the error names the port's state, its GIDs and the missing GIDs."""
    with pytest.raises(
        RemoteError, match=r"rxe0 port 1: ACTIVE \(4\), GIDs .* wanted ACTIVE with .*0a4d:0909"
    ) as caught:
        pair.nodes["a"].system("wait_ready", device="rxe0", addresses=["10.77.9.9"], timeout_s=0.3)
    assert caught.value.kind == "NotReady"


@pytest.mark.timeout(240)
def test_settings_for_congestion_are_made_where_asked_and_undone(pair: SoftPair) -> None:
    """ECN for TCP and the traffic class of RDMA connections are restored after a kill at every step."""
    run(pair, "mkdir", "-p", "/sys/kernel/config")
    run(pair, "mount", "-t", "configfs", "none", "/sys/kernel/config")
    wanted = {"netdev": "eth0", "traffic_class": 106, "settings": {"/proc/sys/net/ipv4/tcp_ecn": "1"}}
    folder = "/sys/kernel/config/rdma_cm/rxe0/ports/1/default_roce_tos"
    pair.nodes["a"].system("provision", journal=OTHER_JOURNAL, **wanted)
    assert run(pair, "cat", folder, "/proc/sys/net/ipv4/tcp_ecn").split() == ["106", "1"]
    pair.nodes["a"].system("restore", journal=OTHER_JOURNAL)
    assert run(pair, "cat", "/proc/sys/net/ipv4/tcp_ecn").strip() == "2"
    assert "rxe0" not in run(pair, "ls", "/sys/kernel/config/rdma_cm")


@pytest.mark.timeout(240)
def test_a_netdev_in_a_namespace_is_restored(pair: SoftPair) -> None:
    """A move loses the netdev's addresses, and it gets others. It is restored after a kill at every step."""
    # Guests have no /var, but ip keeps the names of namespaces there.
    run(pair, "mkdir", "-p", "/var")
    run(pair, "ln", "-s", "/run", "/var/run")
    run(pair, "ip", "link", "add", "link", "eth0", "name", "eth1", "type", "macvlan", "mode", "bridge")
    run(pair, "ip", "link", "set", "eth1", "up")
    run(pair, "ip", "address", "add", "10.78.0.9/24", "dev", "eth1")
    run(pair, "ip", "address", "add", "fd78::9/64", "dev", "eth1", "nodad")
    wanted = {"netdev": "eth1", "netns": "hil-a", "addresses": ["10.78.0.1/24"], "device": "rxe1"}
    assert killed_at_every_step(pair, "provision", **wanted) == 11
    before = settled(pair)
    ready = pair.nodes["a"].system("provision", journal=OTHER_JOURNAL, **wanted)
    assert ready["device"] == "rxe1" and list(ready["gids"]) == [gid_of("10.78.0.1")]
    assert "10.78.0.1/24" in run(pair, "ip", "-n", "hil-a", "address")
    assert '"ifname":"eth1"' not in run(pair, "ip", "-j", "address")
    restore(pair, OTHER_JOURNAL)
    assert settled(pair, before) == before
