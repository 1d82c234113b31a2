"""RDMA netlink against a real kernel, with verbs objects open, and iproute2's rdma as the second opinion."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hil.errors import RemoteError
from hil.evidence.journal import chosen
from hil.labs.soft.pair import PLACES, SoftPair
from hil.testing.endpoint import FD_CONNECT, Endpoint

TRANSPORTS = ("link", "socket")
PROGRAMS = {"ibv_srq_pingpong": 18515, "ibv_ud_pingpong": 18516}
Facts = dict[str, Any]


def shell(pair: SoftPair, script: str) -> str:
    """The output of a script on node a."""
    done = pair.nodes["a"].system("run", command=["sh", "-c", script])
    assert done["status"] == 0, done["stderr"]
    return str(done["stdout"])


def rdma(pair: SoftPair, *arguments: str) -> list[Facts]:
    """The output of ``rdma -j -d`` on node a."""
    found: list[Facts] = json.loads(shell(pair, f"rdma -j -d {' '.join(arguments)}"))
    return found


def netlink(pair: SoftPair, method: str, **arguments: Any) -> Any:
    return pair.nodes["a"].system("netlink", method=method, **arguments)


def device(pair: SoftPair, transport: str = "link") -> Facts:
    (found,) = pair.nodes["a"].system("survey", transport=transport)["devices"]
    return dict(found)


def wait(pair: SoftPair, kind: str, count: int) -> list[Any]:
    """The journal entries of a kind on node a, once there are ``count``."""
    end_ns = time.monotonic_ns() + 10 * 10**9
    while len(found := chosen(pair.journal("a"), kind)) < count:
        assert time.monotonic_ns() < end_ns, f"{len(found)} of {count} {kind} entries came: {found}"
        time.sleep(0.02)
    return found


@pytest.fixture
def opened(pair: SoftPair) -> Iterator[SoftPair]:
    """Node a with a connection, a listener, and two programs: one with a shared receive queue, one with a UD QP."""
    a, b = (Endpoint(pair.nodes[place.name], place.ipv4) for place in PLACES)
    listener, socket = b.listen(5000), a.socket(6000, FD_CONNECT)
    a.connect(socket, b.ip, 5000)
    b.accept(listener)
    a.connected(socket)
    a.listen(5009)
    pids = [shell(pair, f"{p} -d rxe0 -g 1 -p {n} > /tmp/{p} 2>&1 & echo $!") for p, n in PROGRAMS.items()]
    end_ns = time.monotonic_ns() + 20 * 10**9
    # They wait for a peer after they have opened all resources.
    while not all(f":{n:04X} " in shell(pair, "cat /proc/net/tcp* | grep ' 0A '; true") for n in PROGRAMS.values()):
        assert time.monotonic_ns() < end_ns, shell(pair, "head /tmp/ibv_*")
        time.sleep(0.1)
    yield pair
    shell(pair, "kill " + " ".join(pid.strip() for pid in pids))
    a.end()
    b.end()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_object_equals_the_output_of_rdma(opened: SoftPair, transport: str) -> None:
    """Device, port, counters and each kind of resource, with owners, equal the output of iproute2's rdma."""
    found = device(opened, transport)
    (theirs,) = rdma(opened, "dev")
    assert (found["index"], found["name"]) == (theirs["ifindex"], theirs["ifname"])
    assert (found["node_type"].lower(), found["protocol"]) == (theirs["node_type"], theirs["protocol"])
    assert (found["node_guid"], found["system_guid"]) == (theirs["node_guid"], theirs["sys_image_guid"])
    assert (found["moderation"], found.get("firmware")) == (theirs["adaptive-moderation"], theirs.get("fw"))
    (port,), (link,) = found["ports"], rdma(opened, "link")
    assert (port["number"], port["state"], port["physical_state"]) == (1, link["state"], link["physical_state"])
    assert (port["netdev"], port["netdev_index"]) == (link["netdev"], link["netdev_index"])
    (statistics,) = rdma(opened, "statistic", "show")
    assert port["counters"] | {"ifname": "rxe0", "port": 1} == statistics
    (summary,) = rdma(opened, "res")
    assert found["summary"] | {"ifname": "rxe0", "ifindex": 0} == summary
    for kind, (listed, names) in RESOURCES.items():
        entries = rdma(opened, "res", "show", listed)
        assert entries, f"no {listed} is open, so the comparison would show nothing"
        ours = [as_shown(entry, names) for entry in found[kind]]
        wanted = [without(entry, "ifindex", "ifname") for entry in entries]
        assert sorted(ours, key=repr) == sorted(map(by_name, wanted), key=repr), kind


# Our name for each of rdma's names, by kind. It must be complete, so that no output of rdma is missed.
OWNER = {"thread": "pid"}
RESOURCES: dict[str, tuple[str, dict[str, str]]] = {
    "QueuePair": (
        "qp",
        {"number": "lqpn", "port": "port", "remote": "rqpn", "type": "type", "state": "state", "receive_psn": "rq-psn"}
        | {"send_psn": "sq-psn", "migration": "path-mig-state", "domain": "pdn"},
    ),
    "CompletionQueue": (
        "cq",
        {"number": "cqn", "entries": "cqe", "users": "users", "polled": "poll-ctx", "context": "ctxn"}
        | {"moderation": "adaptive-moderation"},
    ),
    "MemoryRegion": (
        "mr",
        {"number": "mrn", "remote_key": "rkey", "local_key": "lkey", "length": "mrlen", "domain": "pdn"},
    ),
    "ProtectionDomain": ("pd", {"number": "pdn", "local_key": "local_dma_lkey", "users": "users", "context": "ctxn"}),
    "CmId": (
        "cm_id",
        {"number": "cm-idn", "port": "port", "queue_pair": "lqpn", "type": "qp-type", "state": "state", "space": "ps"}
        | {"source": "src-addr", "destination": "dst-addr"},
    ),
    "SharedReceiveQueue": ("srq", {"number": "srqn", "type": "type", "queue_pairs": "lqpn", "domain": "pdn"}),
    "Context": ("ctx", {"number": "ctxn"}),
}
HEXADECIMAL = ("rkey", "lkey", "local_dma_lkey")


# iproute2 6 still has the order of before Linux 5.8. (ib_core polls its own queue for MADs in the unbound work queue.)
BY_RDMA = {"SOFTIRQ": "DIRECT", "WORKQUEUE": "SOFTIRQ", "UNBOUND_WORKQUEUE": "WORKQUEUE", "DIRECT": "UNBOUND_WORKQUEUE"}


def as_shown(entry: Facts, names: dict[str, str]) -> Facts:
    """One of our entries with rdma's names. A field without a name there keeps ours, and so differs."""
    found = {(names | OWNER).get(ours, ours): value for ours, value in entry.items()}
    for name in ("src-addr", "dst-addr"):
        if name in found:
            found[name] = ":".join(map(str, found[name]))
    if "poll-ctx" in found:
        found["poll-ctx"] = BY_RDMA[found["poll-ctx"]]
    if "kernel" in found:
        found["comm"] = found.pop("kernel")
    return by_name(found)


def by_name(entry: Facts) -> Facts:
    """An entry in one order, keys as numbers, the queue pairs of a shared queue one by one, owners without comm."""
    found = {n: int(v, 16) if n in HEXADECIMAL and isinstance(v, str) else v for n, v in entry.items()}
    if isinstance(found.get("lqpn"), list):
        found["lqpn"] = [number for part in found["lqpn"] for number in numbers(str(part))]
    if "pid" in found:
        found.pop("comm", None)
    return dict(sorted(found.items()))


def numbers(text: str) -> range:
    """The numbers of "18" or "18-21"."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def without(entry: Facts, *names: str) -> Facts:
    return {name: value for name, value in entry.items() if name not in names}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_refused_dump_raises(pair: SoftPair, transport: str) -> None:
    """A dump of a device that is not there is an error for every kind of resource, never an empty list."""
    for command in ("QP", "CQ", "MR", "PD", "CM_ID", "SRQ", "CTX"):
        with pytest.raises(RemoteError, match=f"RES_{command}_GET: Invalid argument"):
            netlink(pair, "resources", command=f"RES_{command}_GET", device_index=99, transport=transport)
    with pytest.raises(RemoteError, match="there is no RDMA device 'nix'; there are: rxe0"):
        netlink(pair, "device", name="nix", transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_settings_are_made_and_read_back(pair: SoftPair, transport: str) -> None:
    """Moderation, namespace and counter mode, a link's making, name and end: rdma shows each afterwards."""
    netlink(pair, "set_moderation", device_index=0, on=True, transport=transport)
    assert rdma(pair, "dev")[0]["adaptive-moderation"] is True
    for mode, name in ((0, "exclusive"), (1, "shared")):
        netlink(pair, "set_netns_mode", mode=mode, transport=transport)
        assert netlink(pair, "netns_mode", transport=transport) == mode
        assert f"netns {name}" in shell(pair, "rdma system")
    for counting in (1, 0):
        netlink(pair, "count_by", device_index=0, port=1, mask=counting, transport=transport)
        assert netlink(pair, "counter_mode", device_index=0, port=1, transport=transport) == counting
        assert ("auto off" in shell(pair, "rdma statistic qp mode link rxe0/1")) != bool(counting)
    netlink(pair, "add_link", name="second", link_type="rxe", netdev="lo", transport=transport)
    second = netlink(pair, "device", name="second", transport=transport)["DEV_INDEX"]
    netlink(pair, "rename", device_index=second, name="other", transport=transport)
    assert [known["ifname"] for known in rdma(pair, "dev")] == ["rxe0", "other"]
    assert rdma(pair, "link", "show", "other/1")[0]["netdev"] == "lo"
    netlink(pair, "delete_link", device_index=second, transport=transport)
    assert [known["ifname"] for known in rdma(pair, "dev")] == ["rxe0"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_that_a_driver_cannot_do_is_an_error(pair: SoftPair, transport: str) -> None:
    """Soft-RoCE cannot change its namespace, and no counter is bound to a queue pair: an error, and an empty list."""
    assert netlink(pair, "qp_counters", device_index=0, transport=transport) == []
    for call, more in (("bind_counter", {}), ("unbind_counter", {"counter": 5})):
        with pytest.raises(RemoteError, match=r"RDMA netlink, STAT_(SET|DEL): "):
            netlink(pair, call, device_index=0, port=1, qp=77, transport=transport, **more)
    with pytest.raises(RemoteError, match=r"Invalid argument|Operation not supported"):
        netlink(pair, "move", device_index=0, netns_fd=0, transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_character_devices_are_those_of_dev(pair: SoftPair, transport: str) -> None:
    """uverbs, umad and rdma_cm, by the names and numbers that /dev/infiniband shows."""
    places: dict[str, Facts] = {"uverbs": {"device_index": 0}, "umad": {"device_index": 0, "port": 1}, "rdma_cm": {}}
    for kind, place in places.items():
        found = netlink(pair, "character_device", kind=kind, transport=transport, **place)
        number = shell(pair, f"stat -c %t:%T /dev/infiniband/{found['CHARDEV_NAME']}").strip()
        major, minor = (int(part, 16) for part in number.split(":"))
        # The kernel's own encoding of a device number: 20 bits for the minor part, in two pieces.
        assert found["CHARDEV"] == (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def test_device_events_are_recorded(pair: SoftPair) -> None:
    """A link made and deleted gives three events on the timeline. An older kernel gives an error that it has none."""
    if "monitor on" not in shell(pair, "rdma system"):
        with pytest.raises(RemoteError, match=r"tells no RDMA device events: it needs Linux 6\.12"):
            pair.nodes["a"].system("watch_devices")
        return
    pair.nodes["a"].system("watch_devices")
    netlink(pair, "add_link", name="second", link_type="rxe", netdev="lo")
    netlink(pair, "delete_link", device_index=1)
    seen = [(e.event, e.index, e.port, e.netdev) for e in wait(pair, "device", 3)]
    assert seen == [("REGISTER", 1, None, None), ("NETDEV_ATTACH", 1, 1, "lo"), ("UNREGISTER", 1, None, None)]
