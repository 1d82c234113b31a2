"""Provisioning killed at every step and undone, on this machine's kernel, in the test's own network namespace.

As a program, this file runs the steps inside that namespace.
"""

import difflib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hil.adapters.changes import Change, Setting, in_namespace, noted
from hil.adapters.journal import Journal, Owner
from hil.adapters.provision import Wanted, _address_changes, _link_changes, _move_changes, provision
from hil.adapters.restore import elsewhere, pending, restore
from hil.errors import AdapterError, AtWork

ROOT = Path(__file__).parents[2]
APART = ["unshare", "--net", "--mount", "--propagation", "private"]
VETH = ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"]


def can_be_apart() -> bool:
    """Whether this machine allows a network namespace with a pair of netdevs in it."""
    if os.geteuid() or not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run([*APART, *VETH], capture_output=True).returncode == 0


@pytest.mark.skipif("not can_be_apart()", reason="making a network namespace with a veth pair needs root")
@pytest.mark.timeout(330)
@pytest.mark.parametrize(
    "case", ["bare", "in use", "namespace", "routes", "nodes", "small", "asleep", "shared", "lived in", "gone", "full"]
)
def test_killed_at_any_step_all_is_undone(case: str, tmp_path: Path) -> None:
    """A bare netdev, one in use and one moved to a namespace are restored; one that would lose facts is not changed.

    IPv6 addresses that the kernel drops below an MTU of 1280, or when a netdev goes down, are restored.

    If nodes are namespaces of one machine, each restores its own netdevs, and not those with the same names.
    """
    program = [sys.executable, __file__, case, str(tmp_path / "changes.jsonl")]
    done = subprocess.run(
        [*APART, *program], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def state() -> list[str]:
    """The output of ip. After a move, a netdev's routes come after others', and its groups are in another order."""
    routes = [json.loads(ip("-j", *what, "route", "show", "table", "all")) for what in ([], ["-6"])]
    groups = {link["ifname"]: sorted(map(str, link["maddr"])) for link in json.loads(ip("-j", "maddress"))}
    by_netdev = [str(route) for known in routes for route in sorted(known, key=lambda route: str(route["dev"]))]
    return [ip("-j", "-d", "address"), *by_netdev, ip("netns"), str(groups)]


def settled(wanted: list[str]) -> list[str]:
    """``state`` when it equals ``wanted``: the kernel removes some objects a moment later."""
    end_ns = time.monotonic_ns() + 40 * 10**9
    while (now := state()) != wanted and time.monotonic_ns() < end_ns:
        time.sleep(0.05)
    return now


def changes(asked: Wanted) -> Iterator[Change]:
    """The changes of provisioning on a netdev. An RDMA device would need a kernel with RDMA."""
    if asked.netns:
        yield from _move_changes(asked)
    yield from in_namespace(asked.netns, lambda: list(_link_changes(asked)))
    yield from in_namespace(asked.netns, lambda: list(_address_changes(asked)))


def killed(asked: Wanted, journal: Path, at: int) -> bool:
    """Provision in a process that is killed at its step ``at``. Returns whether it was killed."""
    pid = os.fork()
    if pid == 0:
        steps = itertools.count()

        def pause() -> None:
            if next(steps) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        for change in changes(asked):
            pause()
            Journal(journal).note(*noted(change))
            pause()
            change.make()
        pause()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def check(asked: Wanted, journal: Path, steps: int) -> None:
    """Kill provisioning at each of its ``steps``, and not at all. After restoring, the state is as before."""
    before = state()
    for step in itertools.count():
        was_killed = killed(asked, journal, step)
        assert was_killed or len(pending(journal)) == (steps - 1) // 2
        restore(journal)
        after = settled(before)
        assert after == before, f"killed at step {step}:\n" + "\n".join(difflib.ndiff(before, after))
        if not was_killed:
            assert step == steps, f"{step} steps"
            return


def make_netdevs(*, used: bool) -> None:
    """v0 and its peer v1, which have been up before. Only then the kernel gives them a queueing discipline."""
    # This folder has the names of namespaces. This mount makes it private to the test.
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run/netns"], check=True)
    ip(*VETH[1:])
    for command in ("link set lo up", "link set v1 up", "link set v0 up"):
        ip(*command.split())
    if used:
        for command in ("link set v0 mtu 1450", "addr add 10.9.0.7/24 dev v0", "addr add fd09::7/64 dev v0 nodad"):
            ip(*command.split())
    wait_unchanging()
    if not used:
        ip("link", "set", "v0", "down")
        wait_unchanging()


def wait_unchanging() -> None:
    """Wait until no address is tentative and the state no longer changes."""
    last: list[str] = []
    end_ns = time.monotonic_ns() + 15 * 10**9
    while ("tentative" in (now := state())[0] or now != last) and time.monotonic_ns() < end_ns:
        last = now
        time.sleep(0.5)


def restored_in(netns: str, journal: Path) -> list[str]:
    """Restore as a node in that namespace does. Returns the netdevs whose changes were undone."""
    code = (
        "import sys; from hil.adapters.restore import restore\n"
        "print(*(change['facts']['netdev'] for change in restore(sys.argv[1])))"
    )
    return ip("netns", "exec", netns, sys.executable, "-c", code, str(journal)).split()


def note_in(netns: str, change: str, journal: Path) -> None:
    """Note a change in the journal, as a program in that namespace would."""
    code = (
        "import sys; from pathlib import Path; from hil.adapters.changes import LinkSetting, noted\n"
        f"from hil.adapters.journal import Journal\nJournal(Path(sys.argv[1])).note(*noted({change}))"
    )
    ip("netns", "exec", netns, sys.executable, "-c", code, str(journal))


def check_nodes_of_one_machine(journal: Path) -> None:
    """Two nodes in namespaces of this machine share the journal. Restoring one does not touch the other's changes."""
    for name in ("left", "right"):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        note_in(name, "LinkSetting('lo', 'state', 'down', 'up')", journal)
    assert restored_in("left", journal) == ["lo"]
    ups = {n: "UP" in json.loads(ip("-n", n, "-j", "link", "show", "lo"))[0]["flags"] for n in ("left", "right")}
    assert ups == {"left": False, "right": True}
    assert journal.exists() and restored_in("left", journal) == []
    assert restored_in("right", journal) == ["lo"] and not journal.exists()


def check_a_namespace_that_is_gone(journal: Path) -> None:
    """Changes in a deleted namespace stay noted, and are reported."""
    ip("netns", "add", "gone")
    note_in("gone", "LinkSetting('lo', 'mtu', 1500, 1400)", journal)
    ip("netns", "delete", "gone")
    assert restore(journal) == [] and journal.exists()
    (left,) = elsewhere(journal)
    assert (left["kind"], left["facts"]["netdev"], left["facts"]["was"]) == ("LinkSetting", "lo", 1500), left


def check_no_room(journal: Path) -> None:
    """All changes are undone even if the disk is too full to note it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16384", "none", str(journal.parent)], check=True)
    names = ("rp_filter", "log_martians", "arp_ignore", "arp_announce")
    paths = [Path(f"/proc/sys/net/ipv4/conf/all/{name}") for name in names]
    before = [path.read_text() for path in paths]
    for path, was in zip(paths, before, strict=True):
        made = Setting(str(path), was.strip(), "1" if was.strip() == "0" else "0")
        Journal(journal).note(*noted(made))
        made.make()
    assert not any(path.read_text() == was for path, was in zip(paths, before, strict=True))
    with journal.open("ab") as file:
        # The journal's last page has no room either.
        file.write(b"\n" * (4096 - journal.stat().st_size % 4096))
    with suppress(OSError):
        (journal.parent / "others").write_bytes(bytes(1 << 20))
    for _ in range(2):
        try:
            restore(journal)
        except AdapterError as error:
            assert "cannot be written: No space left on device" in str(error), error
        else:
            raise AssertionError("there was room to note the undone changes")
        assert [path.read_text() for path in paths] == before
    (journal.parent / "others").unlink()
    assert len(restore(journal)) == 4 and not journal.exists()


def main(case: str, journal: Path) -> None:
    make_netdevs(used=case != "bare")
    if case == "asleep":
        # The netdev got its addresses while it was down.
        ip("link", "set", "v0", "down")
        ip("addr", "add", "fd09::7/64", "dev", "v0", "nodad")
        wait_unchanging()
    if case == "bare":
        wanted = Wanted("v0", ["10.9.0.1/24", "fd09::1/64"], mac="52:54:00:00:09:01", mtu=1400)
        check(wanted, journal, 11)
    elif case == "in use":
        check(Wanted("v0", ["10.9.0.7/24", "fd09::1/64"], mtu=1400), journal, 5)
    elif case == "namespace":
        check(Wanted("v0", ["10.9.0.1/24", "fd09::1/64"], mtu=1300, netns="hil-a"), journal, 13)
    elif case == "small":
        check(Wanted("v0", ["10.9.0.7/24"], mtu=1000), journal, 3)
    elif case == "asleep":
        check(Wanted("v0", ["10.9.0.7/24"], mtu=1000), journal, 5)
    elif case == "lived in":
        check_lived_in(journal)
    elif case == "nodes":
        check_nodes_of_one_machine(journal)
    elif case == "gone":
        check_a_namespace_that_is_gone(journal)
    elif case == "full":
        check_no_room(journal)
    elif case == "shared":
        check_a_namespace_of_two(journal)
    else:
        check_losses()


LOSSES = {
    "1 routes": "ip route add default via 10.9.0.254 table 100",
    "the label of 10.9.0.8": "ip address add 10.9.0.8/24 dev v0 label v0:1",
    "how 10.9.0.8 makes no route": "ip address add 10.9.0.8/24 dev v0 noprefixroute",
    "the peer 10.8.0.2": "ip address add 10.8.0.1 peer 10.8.0.2/32 dev v0",
    "its place in a bridge": "ip link add br0 type bridge; ip link set v0 master br0",
    "the neighbour 10.9.0.9": "ip neighbour add 10.9.0.9 lladdr 52:54:00:00:09:09 dev v0",
    "the queueing discipline clsact": "tc qdisc add dev v0 clsact",
    "2 routes": "ip route add 10.7.0.0/16 nexthop via 10.9.0.9 dev v0 nexthop via 10.9.0.8 dev v0;"
    " ip route add 10.9.0.0/24 dev v0 proto kernel scope link src 10.9.0.7 metric 100",
    "that fd09::9 is deprecated": "ip address add fd09::9/64 dev v0 nodad preferred_lft 0",
    "the flags of fd09::9": "ip address add fd09::9/64 dev v0 nodad home",
    "the IPv6 token ::5": "ip token set ::5 dev v0",
    "m0, which is on top of it": "ip link add link v0 name m0 type macvlan",
    "m1 in namespace hil-c, which is on top": "ip netns add hil-c; ip link add link v0 m1 netns hil-c type macvlan",
    "vx5, which is on top of it": "ip link add vx5 type vxlan id 5 dev v0 dstport 4789",
    "the forwarding entry 02:00:00:00:00:05": "bridge fdb add 02:00:00:00:00:05 dev v0 self",
    "ipv6.mtu = 1400": "echo 1400 > /proc/sys/net/ipv6/conf/v0/mtu",
    "ipv4.arp_ignore = 1": "echo 1 > /proc/sys/net/ipv4/conf/v0/arp_ignore",
}


WITHOUT_IPV6 = {
    "how fd09::8 makes no route, or one with a metric": "ip address add fd09::8/64 dev v0 nodad metric 50",
    "the leased address fd09::8/64": "ip address add fd09::8/64 dev v0 nodad valid_lft 900 preferred_lft 900",
    "1 routes": "ip -6 route add fd99::/64 via fd09::9 dev v0 table 100",
}


BRIDGED = "ip link add br1 type bridge; ip link set v0 master br1; ip link add link br1 name mv0 type macvlan"
ELSEWHERE = {
    "link add link v0 name m0 netns hil-c type macvlan mode bridge": Wanted("v0", mtu=1400),
}


def check_losses() -> None:
    """A netdev that would lose facts by the change is not changed, and the error names them."""
    for lost, command in LOSSES.items():
        refused(lost, command, "move to another namespace", Wanted("v0", netns="hil-a"))
    for lost, command in WITHOUT_IPV6.items():
        refused(lost, command, "have MTU 1000", Wanted("v0", mtu=1000))
        if "route" not in command:
            # A netdev that is down has no routes.
            refused(lost, f"ip link set v0 down; {command}", "go up, and down again in the end", Wanted("v0"))
    for command, asked in ELSEWHERE.items():
        ip("link", "delete", "v0")
        make_netdevs(used=True)
        ip("netns", "add", "hil-c")
        ip(*command.split())
        cannot(asked, f"v0 cannot have MTU {asked.mtu}: it would change m0 in namespace hil-c")
    # An MTU that is small enough does not change.
    ip("-n", "hil-c", "link", "set", "m0", "mtu", "1300")
    list(itertools.islice(changes(Wanted("v0", mtu=1300)), 1))
    # A bridge's MTU is that of its smallest port. It is restored, but netdevs on top of the bridge are not.
    ip("link", "delete", "v0")
    make_netdevs(used=True)
    subprocess.run(["sh", "-ec", BRIDGED], check=True)
    cannot(Wanted("v0", mtu=1400), "v0 cannot have MTU 1400: it would change mv0 on br1")
    ip("link", "set", "mv0", "mtu", "1400")
    list(itertools.islice(changes(Wanted("v0", mtu=1400)), 1))
    ip("link", "delete", "br1")
    # IPv4 facts are not lost with IPv6.
    ip("link", "delete", "v0")
    make_netdevs(used=True)
    ip("address", "add", "10.9.0.8/24", "dev", "v0", "metric", "50")
    list(itertools.islice(changes(Wanted("v0", mtu=1000)), 1))


def refused(lost: str, command: str, what: str, asked: Wanted) -> None:
    """Assert that a netdev after ``command`` refuses the ``asked`` change, because of the facts it would lose."""
    # Each has its own netdev with the same facts.
    ip("link", "delete", "v0")
    make_netdevs(used=True)
    subprocess.run(["sh", "-ec", command], check=True)
    cannot(asked, f"v0 cannot {what}: it would lose", lost)


def cannot(asked: Wanted, *said: str) -> None:
    """Assert that provisioning refuses the ``asked`` change with a message that contains all the texts."""
    try:
        list(itertools.islice(changes(asked), 2))
    except AdapterError as error:
        assert all(part in str(error) for part in said), error
    else:
        raise AssertionError(f"{asked} is not refused: {said}")


LIVED_IN = (
    "addr add 10.9.1.7/24 brd + dev v0",
    "addr add 10.9.2.7/24 brd 10.9.2.255 scope link dev v0",
    "addr add fd09::8/64 dev v0 nodad",
    "addr add fe80::77/64 dev v0 nodad",
    "maddr add 01:80:c2:00:00:0e dev v0",
)


def check_lived_in(journal: Path) -> None:
    """Broadcasts, scopes, link-local addresses, the order of IPv6 addresses, IPv6's own MTU, MACVLANs on top and other
    programs' changes in the meantime: all are as they would have been."""
    for command in LIVED_IN:
        ip(*command.split())
    wait_unchanging()
    check(Wanted("v0", ["10.9.0.1/24"], mtu=1300, netns="hil-a"), journal, 11)
    ip("link", "add", "link", "v0", "name", "m0", "type", "macvlan")
    ip("link", "set", "m0", "up")
    for name, mtu in (("v0", "1400"), ("m0", "1390")):
        Path(f"/proc/sys/net/ipv6/conf/{name}/mtu").write_text(mtu)
    wait_unchanging()
    for mtu in (1410, 1000):
        check(Wanted("v0", ["10.9.3.1/24"], mtu=mtu), journal, 11)
        kept = [Path(f"/proc/sys/net/ipv6/conf/{name}/mtu").read_text() for name in ("v0", "m0")]
        assert kept == ["1400\n", "1390\n"]

    # Another program added addresses to a network whose first address is ours.
    promoting = Path("/proc/sys/net/ipv4/conf/v0/promote_secondaries")
    promoting.write_text("0")
    provide(Wanted("v0", ["10.9.3.1/24"]), journal)
    for command in (
        "addr add 10.9.3.2/24 brd + dev v0 valid_lft 900 preferred_lft 800 noprefixroute",
        "addr add 10.9.3.3/24 dev v0 label v0:x",
        "route add default via 10.9.3.254 proto dhcp src 10.9.3.2 metric 100",
    ):
        ip(*command.split())
    restore(journal)
    left = [a for a in json.loads(ip("-j", "address", "show", "v0"))[0]["addr_info"] if "10.9.3" in a["local"]]
    assert [a["local"] for a in left] == ["10.9.3.2", "10.9.3.3"], left
    assert left[0]["broadcast"] == "10.9.3.255" and left[0]["valid_life_time"] <= 900 and left[0]["noprefixroute"], left
    assert left[1]["label"] == "v0:x" and "src 10.9.3.2" in ip("route", "show", "default")
    assert promoting.read_text() == "0\n"

    # The netdev with a new name is still restored.
    provide(Wanted("v0", ["10.9.4.1/24"], mtu=1200), journal)
    ip("link", "set", "v0", "name", "w0")
    try:
        restore(journal)
    except AdapterError as error:
        assert "v0 is called w0 now" in str(error) and str(journal) in str(error), error
    else:
        raise AssertionError("the renamed netdev was treated as restored")
    ip("link", "set", "w0", "name", "v0")
    assert {change["kind"] for change in restore(journal)} == {"Address", "LinkSetting"}
    assert Path("/proc/sys/net/ipv6/conf/v0/mtu").read_text() == "1400\n"
    assert "10.9.4.1" not in ip("address", "show", "v0") and not journal.exists()

    # The namespace was removed, and its virtual netdev with it.
    ip("link", "delete", "v0")
    make_netdevs(used=True)
    provide(Wanted("v0", ["10.9.4.1/24"], netns="hil-b"), journal)
    ip("netns", "delete", "hil-b")
    while subprocess.run(["ip", "link", "show", "v1"], capture_output=True).returncode == 0:
        time.sleep(0.05)
    try:
        restore(journal)
    except AdapterError as error:
        assert "netdev v0 is gone, perhaps with namespace hil-b: make it again" in str(error), error
    else:
        raise AssertionError("a netdev that is gone was taken for given back")
    ip(*VETH[1:])
    restore(journal)
    held = [address["local"] for address in json.loads(ip("-j", "address", "show", "v0"))[0]["addr_info"]]
    assert {"10.9.0.7", "fd09::7"} <= set(held) and not journal.exists(), held


def provide(asked: Wanted, journal: Path) -> None:
    """Provision as far as a kernel without RDMA can."""
    for change in changes(asked):
        Journal(journal).note(*noted(change))
        change.make()


def check_a_namespace_of_two(journal: Path) -> None:
    """Another bench is at work in the namespace, so the namespace is kept, and so are the netdevs in it."""
    wanted = {"netdev": "v0", "netns": "hil-a", "wait": False}
    provision(journal=journal, owner=Owner.through("one", os.getpid()), **wanted)
    try:
        provision(journal=journal, owner=Owner.through("two", os.getpid()), **wanted | {"netdev": "v1"})
    except AtWork as error:
        assert "works in hil-a" in str(error)
    else:
        raise AssertionError("two benches share a namespace")
    ip("link", "set", "v1", "netns", "hil-a")
    try:
        restore(journal=journal, bench="one")
    except AdapterError as error:
        assert "namespace hil-a still holds v1" in str(error)
    else:
        raise AssertionError("the namespace was removed with another user's netdev in it")
    ip("-n", "hil-a", "link", "set", "v1", "netns", str(os.getpid()))
    restore(journal=journal)
    assert "hil-a" not in ip("netns") and {"v0", "v1"} <= {link["ifname"] for link in json.loads(ip("-j", "link"))}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
