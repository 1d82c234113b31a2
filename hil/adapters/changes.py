"""Changes to a node's adapters. Each change holds the former value, and can be made and undone any number of times.

``undo`` also works for a change that was noted but never made, because its process died in between. A netdev is
identified by its name; a netdev that was renamed is an error. When a netdev is gone, there is nothing to undo, except
for a netdev that was to come back from another namespace.
"""

import errno
import ipaddress
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from pyroute2 import netns as namespaces
from pyroute2.iproute.linux import IPRoute

from hil.adapters.netdev import (
    Netdev,
    give_back,
    give_groups_back,
    ipv6_mtu,
    is_ipv6,
    known_netdev,
    netdev,
    netdevs,
    promoting,
    set_ipv6_mtu,
    still,
)
from hil.adapters.pfc import get_pfc, set_priorities
from hil.adapters.settable import why_not_settable
from hil.errors import AdapterError
from hil.netlink.codes import NetnsMode
from hil.netlink.link import RdmaLink

T = TypeVar("T")


class Change(Protocol):
    """One step of provisioning."""

    def make(self) -> None:
        """Make the change. Raises OSError or pyroute2's NetlinkError with the kernel's answer."""

    def undo(self) -> None:
        """Bring back the former state. Does nothing where that state is already there."""


def in_namespace(name: str, work: Callable[[], T]) -> T:
    """Call ``work`` in the network namespace ``name`` ("": this process's own), and return its result.

    Raises AdapterError when no namespace has that name, and every error of ``work``.
    """
    if not name:
        return work()
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            # A namespace belongs to a thread, so the work has a thread of its own.
            _enter(name)
            value = work()
            outcome.append(lambda: value)
        except BaseException as error:
            caught = error
            outcome.append(lambda: _raise(caught))

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]()


def _enter(name: str) -> None:
    try:
        namespaces.setns(name, flags=0)
    except OSError as error:
        # The file remains when "ip netns add" was interrupted, or when the namespace was unmounted.
        hint = f": remove it with 'ip netns delete {name}'" if error.args[0] == errno.EINVAL else ""
        raise AdapterError(f"{name} is no network namespace ({os.strerror(error.args[0])}){hint}") from error


def _existing(name: str) -> str:
    """``name``, or "" when that namespace has been removed, because its netdevs then came back to this one."""
    return name if name in namespaces.listnetns() else ""


def _to_undo(netns: str, index: int) -> tuple[str, int]:
    """The namespace that now holds a netdev changed in ``netns``, and the netdev's index, 0 when unknown."""
    where = _existing(netns)
    # A netdev that came back from a namespace may have another index.
    return where, index if where == netns else 0


def _raise(error: BaseException) -> Any:
    raise error


@dataclass(frozen=True, slots=True)
class LinkSetting:
    """A netdev's "address", "mtu" (bytes), "state" ("up", "down"), or its "ipv6 mtu" where that differs from "mtu".

    ``given``: the IPv6 addresses it held, each with all its properties. The kernel drops them when the netdev goes
    down, or when its MTU falls below 1280 bytes. ``index``: the netdev's index, which a rename does not change; 0 when
    unknown.
    """

    netdev: str
    setting: Literal["address", "mtu", "state", "ipv6 mtu"]
    was: str | int
    wanted: str | int
    netns: str = ""
    given: tuple[str, ...] = ()
    index: int = 0

    def make(self) -> None:
        in_namespace(self.netns, lambda: self._set(self.wanted))

    def undo(self) -> None:
        where, index = _to_undo(self.netns, self.index)

        def work() -> None:
            still(self.netdev, index)
            self._set(self.was)
            give_back(self.netdev, self.given)

        in_namespace(where, work)

    def _set(self, value: str | int) -> None:
        found = netdev(self.netdev)
        if found is None or self._now(found) == value:
            return
        if self.setting == "ipv6 mtu":
            set_ipv6_mtu(self.netdev, int(value))
        else:
            with IPRoute() as ip:
                ip.link("set", index=found.index, **{self.setting: value})

    def _now(self, found: Netdev) -> str | int:
        now: dict[str, str | int] = {
            "address": found.mac,
            "mtu": found.mtu,
            "state": "up" if found.up else "down",
            "ipv6 mtu": ipv6_mtu(self.netdev),
        }
        return now[self.setting]


@dataclass(frozen=True, slots=True)
class Address:
    """An address, such as "10.0.0.1/24", that the netdev did not have before. ``index``: as in ``LinkSetting``."""

    netdev: str
    address: str
    netns: str = ""
    index: int = 0

    def make(self) -> None:
        # Duplicate address detection takes a second, in which the port has no GID for the address.
        text = f"{self.address} nodad" if is_ipv6(self.address) else self.address
        in_namespace(self.netns, lambda: give_back(self.netdev, [text]))

    def undo(self) -> None:
        where, index = _to_undo(self.netns, self.index)
        in_namespace(where, lambda: self._take(index))

    def _take(self, index: int) -> None:
        found = still(self.netdev, index)
        if found is None or self.address not in found.addresses:
            return
        interface = ipaddress.ip_interface(self.address)
        with promoting(self.netdev), IPRoute() as ip:
            ip.addr("del", index=found.index, address=str(interface.ip), prefixlen=interface.network.prefixlen)


@dataclass(frozen=True, slots=True)
class SoftDevice:
    """A new software RDMA device on a netdev."""

    device: str
    kind: str
    netdev: str
    netns: str = ""

    def make(self) -> None:
        def work() -> None:
            with RdmaLink() as link:
                link.add_link(self.device, self.kind, self.netdev)

        in_namespace(self.netns, work)

    def undo(self) -> None:
        def work() -> None:
            with RdmaLink() as link:
                for known in link.devices():
                    if known["DEV_NAME"] == self.device and self._is_ours(link.ports(known["DEV_INDEX"])):
                        link.delete_link(known["DEV_INDEX"])

        in_namespace(_existing(self.netns), work)

    def _is_ours(self, ports: list[dict[str, Any]]) -> bool:
        # The kernel leaves out a netdev in another namespace.
        return all(port.get("NDEV_NAME", self.netdev) == self.netdev for port in ports)


@dataclass(frozen=True, slots=True)
class Mode:
    """RDMA's namespace mode, as the number of a ``NetnsMode``."""

    was: int
    wanted: int

    def make(self) -> None:
        self._set(self.wanted)

    def undo(self) -> None:
        self._set(self.was)

    def _set(self, mode: int) -> None:
        with RdmaLink() as link:
            if link.netns_mode() != mode:
                link.set_netns_mode(NetnsMode(mode))


@dataclass(frozen=True, slots=True)
class Namespace:
    """A new network namespace."""

    name: str

    def make(self) -> None:
        namespaces.create(self.name)

    def undo(self) -> None:
        if self.name in namespaces.listnetns():
            if others := in_namespace(self.name, netdevs):
                raise AdapterError(f"namespace {self.name} still holds {', '.join(others)}")
            namespaces.remove(self.name)


@dataclass(frozen=True, slots=True)
class Moved:
    """A netdev moved to another namespace.

    The kernel drops the netdev's addresses (``given``) and its multicast groups (``groups``, see ``groups_of``) on a
    move, and takes it down; ``up`` is its state before.
    """

    netdev: str
    netns: str
    up: bool
    given: tuple[str, ...]
    groups: tuple[str, ...] = ()

    def make(self) -> None:
        found = known_netdev(self.netdev)
        handle = os.open(f"/var/run/netns/{self.netns}", os.O_RDONLY)
        try:
            with IPRoute() as ip:
                ip.link("set", index=found.index, net_ns_fd=handle)
        finally:
            os.close(handle)

    def undo(self) -> None:
        if self.netns in namespaces.listnetns():
            home = os.open("/proc/self/ns/net", os.O_RDONLY)
            try:
                in_namespace(self.netns, lambda: self._send_to(home))
            finally:
                os.close(home)
        self._make_as_before()

    def _send_to(self, namespace: int) -> None:
        found = netdev(self.netdev)
        if found is not None:
            with IPRoute() as ip:
                ip.link("set", index=found.index, net_ns_fd=namespace)

    def _make_as_before(self) -> None:
        if netdev(self.netdev) is None:
            gone = f"netdev {self.netdev} is gone, perhaps with namespace {self.netns}"
            raise AdapterError(f"{gone}: make it again, and restore once more")
        LinkSetting(self.netdev, "state", "down", "up" if self.up else "down").make()
        give_back(self.netdev, self.given)
        give_groups_back(self.netdev, self.groups)


@dataclass(frozen=True, slots=True)
class Folder:
    """A new folder of configfs, which holds a device's defaults for the connection manager."""

    path: str

    def make(self) -> None:
        checked(self.path).mkdir()

    def undo(self) -> None:
        try:
            checked(self.path).rmdir()
        except FileNotFoundError:
            pass


@dataclass(frozen=True, slots=True)
class Setting:
    """A value in a file of sysfs, procfs or configfs."""

    path: str
    was: str
    wanted: str

    def make(self) -> None:
        checked(self.path).write_text(self.wanted)

    def undo(self) -> None:
        try:
            if checked(self.path).read_text().strip() != self.was:
                checked(self.path).write_text(self.was)
        except FileNotFoundError:
            pass


@dataclass(frozen=True, slots=True)
class FlowControl:
    """Priority flow control of a netdev; ``was`` and ``wanted`` have a bit for each priority with flow control."""

    netdev: str
    was: int
    wanted: int

    def make(self) -> None:
        set_priorities(self.netdev, self.wanted)

    def undo(self) -> None:
        if netdev(self.netdev) is not None and get_pfc(self.netdev).enabled != self.was:
            set_priorities(self.netdev, self.was)


def checked(path: str) -> Path:
    """``path`` when provisioning may write it. Raises AdapterError for any other path."""
    if why := why_not_settable(path):
        raise AdapterError(f"{path} is no setting of the network: {why}")
    return Path(path)


KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (LinkSetting, Address, SoftDevice, Mode, Namespace, Moved, Folder, Setting, FlowControl)
}


def noted(change: Any) -> tuple[str, dict[str, Any]]:
    """The kind of a change, and its facts as plain data, for the journal."""
    return type(change).__name__, asdict(change)


def read(kind: str, facts: dict[str, Any]) -> Change:
    """A change from the journal. Raises AdapterError when this version does not know the kind or its facts."""
    made = KINDS.get(kind)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    if made is not None and _fits(made, given):
        try:
            change: Change = made(**given)
            return change
        except TypeError:
            pass
    raise AdapterError(f"the journal holds a change that this version does not know: {kind} {facts}")


def _fits(kind: type[Any], facts: dict[str, Any]) -> bool:
    """Whether every fact has the type of its field."""
    types = get_type_hints(kind)
    return all(name in types and _is_a(value, types[name]) for name, value in facts.items())


def _is_a(value: object, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    return isinstance(value, wanted)
