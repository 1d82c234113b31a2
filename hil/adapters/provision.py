"""Gives a netdev its addresses and an RDMA device, and waits until the device is ready; every change can be undone."""

import errno
import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import netns as namespaces
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from hil.adapters.changes import (
    Address,
    Change,
    FlowControl,
    Folder,
    LinkSetting,
    Mode,
    Moved,
    Namespace,
    Setting,
    SoftDevice,
    checked,
    in_namespace,
    noted,
)
from hil.adapters.elsewhere import Elsewhere, stacked_elsewhere
from hil.adapters.find import INFINIBAND, gid_table
from hil.adapters.find import gid_of as gid_of
from hil.adapters.journal import JOURNAL, Entry, Journal, Owner
from hil.adapters.moving import lost_by_a_move, lost_without_ipv6
from hil.adapters.netdev import (
    Netdev,
    below_vlans,
    groups_of,
    ipv6_mtu,
    is_ipv6,
    known_netdev,
    master_of,
    on_top_of,
    stacked_on,
)
from hil.adapters.pfc import PRIORITIES, get_pfc
from hil.adapters.processes import ssh_address
from hil.errors import AdapterError, AtWork
from hil.netlink.codes import NetnsMode, PortState
from hil.netlink.link import RdmaLink

T = TypeVar("T")
RDMA_CM = Path("/sys/kernel/config/rdma_cm")
IPV6_MTU = 1280
"""The smallest MTU for IPv6, in bytes."""
POLL_S = 0.01
GAP = 16
"""How many entries of a GID table may be empty between two used ones.

A whole table can have thousands of entries, and each is a file to read.
"""
SOON_NS = 10**9
"""A GID that is missing for longer is looked for in the whole table, behind any gap."""


class NotReady(AdapterError):
    """The port did not become ACTIVE with its GID in time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The wanted state of a node's adapter. A field that is left out keeps its present state.

    - ``addresses``: with prefix lengths. ``mtu``: in bytes.
    - ``device``: the name of a software device of ``link_type`` ("rxe", "siw") to make on the netdev; without it the
      netdev must have an RDMA device already.
    - ``netns``: the network namespace to move the netdev to; it is made when it does not exist.
    - ``netns_mode``: RDMA's namespace mode, "shared" or "exclusive".
    - ``traffic_class``: for connections that choose none; its two lowest bits are ECN's.
    - ``flow_control``: the priorities (0 to 7) with PFC.
    - ``settings``: texts to write into files below /sys/class/net and /proc/sys/net, such as an adapter's ECN switches.
    """

    netdev: str
    addresses: Sequence[str] = ()
    mac: str = ""
    mtu: int = 0
    device: str = ""
    link_type: str = "rxe"
    netns: str = ""
    netns_mode: str = ""
    traffic_class: int | None = None
    flow_control: Sequence[int] | None = None
    settings: Mapping[str, str] | None = None


def provision(
    timeout_s: float = 20.0,
    journal: str | Path = JOURNAL,
    pause: Callable[[], None] = lambda: None,
    owner: Owner | None = None,
    wait: bool = True,
    **wanted: Any,
) -> dict[str, Any]:
    """Bring an adapter into the ``wanted`` state (the fields of ``Wanted``). Settings that are right are not changed.

    Each change is noted in ``journal`` before it is made; ``hil.adapters.restore`` undoes the changes. ``pause`` is
    called before and after each note. ``owner``: the bench that asks. With ``wait``, waits until the port is ACTIVE and
    has the GIDs of the addresses, and returns the device, its port and the indices of these GIDs. Without ``wait``,
    returns an empty dict: a namespace of its own may be the only place where the port can be seen.

    Raises NotReady after ``timeout_s``, AdapterError for a state that is impossible, OSError or NetlinkError with the
    kernel's answer, AtWork when another running bench has changed the same adapter, because that bench will undo its
    changes at its end. Changes that were made before an error stay noted.
    """
    asked = Wanted(**wanted)
    _check(asked)
    written = Journal(Path(journal), owner=owner)
    # The lock keeps a restore from running between a note and its change: the change would be noted as undone and then
    # made.
    with written.alone():
        _check_others(asked, written.pending(), owner)
        for change in _changes(asked):
            pause()
            written.note(*noted(change))
            pause()
            change.make()
        pause()
    return in_namespace(asked.netns, lambda: _ready(asked, timeout_s)) if wait else {}


def foresee(journal: str | Path = JOURNAL, owner: Owner | None = None, **wanted: Any) -> list[str]:
    """The reasons why ``provision`` would refuse the ``wanted`` state, as far as they show without any change."""
    asked = Wanted(**wanted)
    found: list[str] = []
    parts: list[Callable[[], Any]] = [
        lambda: _check(asked),
        lambda: _check_others(asked, Journal(Path(journal), owner=owner).pending(), owner),
        lambda: list(_move_changes(asked)) if asked.netns else [],
        lambda: list(_link_changes(asked)) if _has(asked.netdev) else [],
        lambda: list(_device_change(asked)) if asked.device and _has(asked.netdev) else [],
        lambda: list(_setting_changes(asked)),
    ]
    for part in parts:
        try:
            part()
        except (AdapterError, AtWork, OSError, NetlinkError) as error:
            if str(error) not in found:
                found.append(str(error))
    return found


def _check(asked: Wanted) -> None:
    """Raises AdapterError for a state that is impossible, as far as that shows before any change."""
    if asked.netns and asked.flow_control is not None:
        raise AdapterError("flow_control is a setting of a port: ask for it without netns")
    for path in asked.settings or {}:
        checked(path)
    for text in asked.addresses:
        try:
            ipaddress.ip_interface(text)
        except ValueError as error:
            raise AdapterError(f"{text!r} is no address with its prefix, such as 10.0.0.1/24: {error}") from error
    if any(priority not in range(PRIORITIES) for priority in asked.flow_control or ()):
        raise AdapterError(f"flow_control {list(asked.flow_control or ())}: priorities are 0 to {PRIORITIES - 1}")
    if not asked.netns:
        known_netdev(asked.netdev)
        if asked.flow_control is not None:
            get_pfc(asked.netdev)
        if not asked.device:
            device_on(asked.netdev)
    if asked.device and _has(asked.netdev):
        _check_soft_roce(asked)


def _check_others(asked: Wanted, pending: Sequence[Entry], owner: Owner | None) -> None:
    """Raises AtWork when a running bench other than ``owner``'s has changed this adapter, or uses its namespace."""
    if owner is None:
        return
    for entry in pending:
        if not entry.of_another(owner.bench):
            continue
        pid = entry.owner.pid if entry.owner else 0
        if entry.facts.get("netdev") == asked.netdev:
            raise AtWork(f"another bench (process {pid}) works with {asked.netdev}: wait for its end, or end it")
        if asked.netns and asked.netns in (entry.facts.get("netns"), entry.facts.get("name")):
            raise AtWork(f"another bench (process {pid}) works in {asked.netns}: name another namespace, or end it")


def _ready(asked: Wanted, timeout_s: float) -> dict[str, Any]:
    device, port = (asked.device, 1) if asked.device else device_on(asked.netdev)
    return wait_ready(device, [str(ipaddress.ip_interface(a).ip) for a in asked.addresses], timeout_s, port)


def _changes(asked: Wanted) -> Iterator[Change]:
    """The necessary changes; each is worked out after the changes before it have been made."""
    if asked.netns_mode:
        yield from _mode_change(NetnsMode[asked.netns_mode.upper()])
    if asked.netns:
        yield from _move_changes(asked)
    yield from in_namespace(asked.netns, lambda: list(_link_changes(asked)))
    yield from in_namespace(asked.netns, lambda: list(_address_changes(asked)))
    if asked.device:
        yield from in_namespace(asked.netns, lambda: list(_device_change(asked)))
    yield from _setting_changes(asked)


def _mode_change(mode: NetnsMode) -> Iterator[Change]:
    with RdmaLink() as link:
        was = link.netns_mode()
    if was != mode:
        yield Mode(int(was), int(mode))


def _move_changes(asked: Wanted) -> Iterator[Change]:
    if asked.netns not in namespaces.listnetns():
        yield Namespace(asked.netns)
    elif in_namespace(asked.netns, lambda: _has(asked.netdev)):
        return
    now = known_netdev(asked.netdev)
    _check_move(asked.netdev, now)
    if not asked.device and _exclusive():
        what = "RDMA's namespace mode is exclusive, and the bench moves netdevs only"
        raise AdapterError(f"{asked.netdev} cannot move without its RDMA device: {what}: rdma system set netns shared")
    yield Moved(asked.netdev, asked.netns, now.up, now.given, groups_of(asked.netdev))


def _has(netdev: str) -> bool:
    with IPRoute() as ip:
        return bool(ip.link_lookup(ifname=netdev))


def _check_move(name: str, now: Netdev) -> None:
    """Raises AdapterError for a netdev that carries this process's ssh, or would lose settings for good by the move."""
    address = ssh_address()
    if address and address in [str(ipaddress.ip_interface(text).ip) for text in now.addresses]:
        raise AdapterError(
            f"{name} cannot move to another namespace: the way to this machine leads over it ({address})"
        )
    if made := _software_devices(name):
        raise AdapterError(f"{name} cannot move to another namespace: {', '.join(made)} on it would end")
    if lost := lost_by_a_move(name, now):
        raise AdapterError(f"{name} cannot move to another namespace: it would lose {', '.join(lost)} for good")


def _if_rdma(work: Callable[[], T], otherwise: T) -> T:
    """The result of ``work``, or ``otherwise`` on a kernel without RDMA. Raises every other error of ``work``."""
    try:
        return work()
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        return otherwise


def _exclusive() -> bool:
    def work() -> bool:
        with RdmaLink() as link:
            return link.netns_mode() == NetnsMode.EXCLUSIVE

    return _if_rdma(work, False)


def _software_devices(netdev: str) -> list[str]:
    """The software RDMA devices on a netdev; the kernel removes them when the netdev leaves its namespace."""

    def work() -> dict[str, list[dict[str, Any]]]:
        with RdmaLink() as link:
            return {device["DEV_NAME"]: link.ports(device["DEV_INDEX"]) for device in link.devices()}

    none: dict[str, list[dict[str, Any]]] = {}
    ports = _if_rdma(work, none)
    on = [name for name, held in ports.items() if any(port.get("NDEV_NAME") == netdev for port in held)]
    return [name for name in on if not (INFINIBAND / name / "device").exists()]


def _check_ipv6(name: str, now: Netdev, what: str) -> None:
    """Raises AdapterError when ``what``, or undoing it, makes a netdev lose IPv6 settings for good."""
    if lost := lost_without_ipv6(name, now):
        raise AdapterError(f"{name} cannot {what}: it would lose {', '.join(lost)} for good")


def _link_changes(asked: Wanted) -> Iterator[Change]:
    now = known_netdev(asked.netdev)
    if asked.mac and asked.mac != now.mac:
        yield LinkSetting(asked.netdev, "address", now.mac, asked.mac, asked.netns, index=now.index)
    changed = bool(asked.mtu) and asked.mtu != now.mtu
    if not now.up or changed:
        yield from _ipv6_mtu_change(asked, asked.netdev, now)
    if not now.up:
        _check_ipv6(asked.netdev, now, "go up, and down again in the end")
        yield from _following_changes(asked, now)
        yield LinkSetting(asked.netdev, "state", "down", "up", **_as_it_is(asked, now))
    # The MTU is changed after the state, so it is undone first: below 1280 bytes no IPv6 address can be given back.
    if changed:
        if asked.mtu < IPV6_MTU <= now.mtu:
            _check_ipv6(asked.netdev, now, f"have MTU {asked.mtu}")
        yield from _stacked_changes(asked, now)
        yield LinkSetting(asked.netdev, "mtu", now.mtu, asked.mtu, **_as_it_is(asked, now))


def _as_it_is(asked: Wanted, now: Netdev) -> dict[str, Any]:
    return {"netns": asked.netns, "given": tuple(text for text in now.given if is_ipv6(text)), "index": now.index}


def _ipv6_mtu_change(asked: Wanted, name: str, now: Netdev, *, always: bool = False) -> Iterator[Change]:
    """A change that does nothing when made and restores the IPv6 MTU when undone, after all others.

    The kernel sets the IPv6 MTU to the link's MTU with each change of the latter.
    """
    if (own := ipv6_mtu(name)) and (always or own != now.mtu):
        yield LinkSetting(name, "ipv6 mtu", own, own, asked.netns, index=now.index)


def _check_elsewhere(asked: Wanted, now: Netdev, what: str, concerned: Callable[[Elsewhere], bool]) -> None:
    """Raises AdapterError when ``what`` changes a netdev in another namespace, because that cannot be undone here."""
    for upper in stacked_elsewhere(now.index):
        if concerned(upper):
            raise AdapterError(f"{asked.netdev} cannot {what}: it would change {upper.stacked.name} in {upper.where}")


def _check_on_master(asked: Wanted, now: Netdev, what: str) -> None:
    """Raises AdapterError when ``what`` lowers the MTU of netdevs on top of the netdev's bridge.

    A bridge's MTU follows its smallest port, and netdevs on top follow the bridge. An undo restores only the bridge.
    """
    if master := master_of(now.index):
        index, name = master
        if lowered := [upper for upper in on_top_of(index) if known_netdev(upper).mtu > asked.mtu]:
            raise AdapterError(f"{asked.netdev} cannot {what}: it would change {', '.join(lowered)} on {name}")


def _following_changes(asked: Wanted, now: Netdev) -> Iterator[Change]:
    """Changes of VLANs that go up and down with the netdev below; they lose addresses when they go down again."""
    _check_elsewhere(asked, now, "go up, and down again in the end", lambda upper: upper.stacked.follows)
    for stacked in stacked_on(now.index):
        upper = known_netdev(stacked.name)
        if stacked.follows and upper.up:
            # The VLAN was bound loosely when its netdev went down, so it is still up.
            what = f"{asked.netdev} cannot go up, and down again in the end"
            raise AdapterError(f"{what}: {stacked.name}, which is up, would go down with it")
        if stacked.follows:
            _check_ipv6(stacked.name, upper, f"go up and down with {asked.netdev}")
            yield from _ipv6_mtu_change(asked, stacked.name, upper)
            yield from _following_changes(asked, upper)
            yield LinkSetting(stacked.name, "state", "down", "down", **_as_it_is(asked, upper))


def _stacked_changes(asked: Wanted, now: Netdev) -> Iterator[Change]:
    """Changes of the MTUs of netdevs on top: the kernel lowers them with the netdev below, or makes them equal."""
    what = f"have MTU {asked.mtu}"
    _check_elsewhere(asked, now, what, lambda upper: upper.mtu > asked.mtu or upper.stacked.whole)
    _check_on_master(asked, now, what)
    for stacked in stacked_on(now.index):
        upper = known_netdev(stacked.name)
        if upper.mtu > asked.mtu or stacked.whole:
            if asked.mtu < IPV6_MTU <= upper.mtu:
                _check_ipv6(stacked.name, upper, f"have MTU {asked.mtu} with {asked.netdev}")
            # When the kernel raises the MTU of a netdev that follows wholly, it does not raise the IPv6 MTU.
            yield from _ipv6_mtu_change(asked, stacked.name, upper, always=stacked.whole)
            yield from _stacked_changes(asked, upper)
            yield LinkSetting(stacked.name, "mtu", upper.mtu, asked.mtu, **_as_it_is(asked, upper))


def _address_changes(asked: Wanted) -> Iterator[Change]:
    now = known_netdev(asked.netdev)
    for text in asked.addresses:
        if str(ipaddress.ip_interface(text)) not in now.addresses:
            yield Address(asked.netdev, str(ipaddress.ip_interface(text)), asked.netns, now.index)


def _device_change(asked: Wanted) -> Iterator[Change]:
    with RdmaLink() as link:
        ports = {d["DEV_NAME"]: link.ports(d["DEV_INDEX"]) for d in link.devices()}
    on = {name: port["NDEV_NAME"] for name, held in ports.items() for port in held if "NDEV_NAME" in port}
    if on.get(asked.device) == asked.netdev:
        return
    if asked.device in ports:
        raise AdapterError(
            f"{asked.device} exists already, on {on.get(asked.device, 'no netdev')}: name another device"
        )
    if other := next((name for name, netdev in on.items() if netdev == asked.netdev), None):
        raise AdapterError(f"{asked.netdev} carries the RDMA device {other} already: name that one, or another netdev")
    _check_soft_roce(asked)
    yield SoftDevice(asked.device, asked.link_type, asked.netdev, asked.netns)


def _check_soft_roce(asked: Wanted) -> None:
    """Raises AdapterError for soft-RoCE on a VLAN, which the kernel refuses without a reason."""
    if asked.link_type == "rxe" and (below := below_vlans(asked.netdev)) != asked.netdev:
        what = f"no soft-RoCE can be made on {asked.netdev}, which is a VLAN"
        raise AdapterError(f"{what}: make it on {below}; it serves addresses of {asked.netdev} too")


def _setting_changes(asked: Wanted) -> Iterator[Change]:
    if asked.flow_control is not None:
        was, wanted = get_pfc(asked.netdev).enabled, sum(1 << priority for priority in set(asked.flow_control))
        if was != wanted:
            yield FlowControl(asked.netdev, was, wanted)
    for path, value in (asked.settings or {}).items():
        yield from _setting(path, value)
    if asked.traffic_class is not None:
        if not RDMA_CM.is_dir():
            raise AdapterError(f"{RDMA_CM} is not there: load rdma_cm and mount -t configfs none {RDMA_CM.parent}")
        place = in_namespace(asked.netns, lambda: (asked.device, 1) if asked.device else device_on(asked.netdev))
        device, port = place
        folder = RDMA_CM / device
        if not folder.is_dir():
            yield Folder(str(folder))
        if not folder.is_dir():
            # The folder does not exist when the caller only lists the changes.
            return
        yield from _setting(str(folder / "ports" / str(port) / "default_roce_tos"), str(asked.traffic_class))


def _setting(path: str, value: str) -> Iterator[Change]:
    was = checked(path).read_text().strip() if checked(path).exists() else None
    if was is None:
        raise AdapterError(f"{path} is not there: this adapter's driver has no such setting")
    if was != value:
        yield Setting(path, was, value)


def device_on(netdev: str) -> tuple[str, int]:
    """The RDMA device and port that a netdev, or the one below a VLAN, belongs to. Raises AdapterError."""
    owner = below_vlans(netdev)
    with RdmaLink() as link:
        for device in link.devices():
            for port in link.ports(device["DEV_INDEX"]):
                if port.get("NDEV_NAME") == owner:
                    return device["DEV_NAME"], port["PORT_INDEX"]
    raise AdapterError(f"{netdev} belongs to no RDMA device: name a software device to make on it")


def wait_ready(device: str, addresses: list[str], timeout_s: float, port: int = 1) -> dict[str, Any]:
    """Wait until a port is ACTIVE and has the GIDs of ``addresses``. Raises NotReady after ``timeout_s``."""
    began_ns = time.monotonic_ns()
    end_ns = began_ns + int(timeout_s * 1e9)
    wanted = {gid_of(address) for address in addresses}
    while True:
        # A GID that does not come soon may lie behind a gap. The whole table is long, so it is not read at once.
        whole = time.monotonic_ns() - began_ns > SOON_NS
        state, present = port_state(device, port), gids(device, port, whole=whole)
        if state == PortState.ACTIVE and wanted <= present.keys():
            return {"device": device, "port": port, "gids": {gid: present[gid] for gid in wanted}}
        if time.monotonic_ns() > end_ns:
            seen = "not there" if state is None else f"{state.name} ({state})"
            raise NotReady(f"{device} port {port}: {seen}, GIDs {sorted(present)}, wanted ACTIVE with {sorted(wanted)}")
        time.sleep(POLL_S)


def port_state(device: str, port: int = 1) -> PortState | None:
    """The state of a port from RDMA netlink, or None when the port does not exist."""
    with RdmaLink() as link:
        for entry in link.devices():
            if entry["DEV_NAME"] == device:
                states = {p["PORT_INDEX"]: PortState(p["PORT_STATE"]) for p in link.ports(entry["DEV_INDEX"])}
                return states.get(port)
    return None


def gids(device: str, port: int = 1, *, whole: bool = False) -> dict[str, int]:
    """The RoCE v2 GIDs of a port, in full notation, each with its lowest index.

    The table is read up to a gap of ``GAP`` empty entries, or to its end with ``whole``.
    """
    found: dict[str, int] = {}
    for entry in gid_table(device, port, **({} if whole else {"last_gap": GAP})):
        if entry.type != "IB/RoCE v1":
            found.setdefault(entry.gid, entry.index)
    return found


def counters(netdev: str) -> dict[str, int]:
    """The netdev's packet and error counters by name. Raises OSError when there is no such netdev."""
    folder = Path(f"/sys/class/net/{netdev}/statistics")
    names = ("tx_packets", "rx_packets", "tx_dropped", "rx_dropped", "tx_errors", "rx_errors")
    return {name: int((folder / name).read_text()) for name in names}
