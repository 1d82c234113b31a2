"""Changes to a node's adapters. Each knows what was before, how to make it, and how to undo it, any number of times.

What is undone may have been made or not: its maker may have died in between. A netdev is known by its name; where it is
gone, there is nothing to undo.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from pyroute2 import IPRoute
from pyroute2 import netns as namespaces

from hil.adapters.pfc import get_pfc, set_priorities
from hil.adapters.settable import SETTABLE
from hil.errors import AdapterError
from hil.netlink.codes import NetnsMode
from hil.netlink.link import RdmaLink

T = TypeVar("T")
IFF_UP, IFA_F_NODAD, IFA_F_PERMANENT = 0x1, 0x02, 0x80
LINK_LOCAL = 253
"""The scope of addresses that are good on their link only (linux/rtnetlink.h)."""


class Change(Protocol):
    """One step of provisioning."""

    def make(self) -> None:
        """Change it. Raises OSError and pyroute2's NetlinkError as the kernel answers."""

    def undo(self) -> None:
        """Bring back what was. Does nothing where that is so already."""


def in_namespace(name: str, work: Callable[[], T]) -> T:
    """What ``work`` returns in the network namespace ``name``, "" for this process's own.

    Raises AdapterError where that name is no namespace's, and what ``work`` raises.
    """
    if not name:
        return work()
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            # A namespace belongs to a thread: this one ends with its work.
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
        # A file is left where "ip netns add" was interrupted, or its namespace was unmounted.
        hint = f": remove it with 'ip netns delete {name}'" if error.args[0] == errno.EINVAL else ""
        raise AdapterError(f"{name} is no network namespace ({os.strerror(error.args[0])}){hint}") from error


def _there(name: str) -> str:
    """``name``, or "" when that namespace has been removed: its netdevs came back to where they were."""
    return name if name in namespaces.listnetns() else ""


def _raise(error: BaseException) -> Any:
    raise error


@dataclass(frozen=True, slots=True)
class Netdev:
    """What provisioning changes of a netdev. ``addresses``: with prefix, but for those the kernel makes itself.

    ``unchecked``: those without duplicate address detection; ``leased``: those that end by themselves.
    """

    index: int
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]
    unchecked: tuple[str, ...]
    leased: tuple[str, ...]


def netdev(name: str) -> Netdev | None:
    """A netdev of this thread's namespace as it is now, or None."""
    with IPRoute() as ip:
        links = [link for link in ip.get_links() if link.get_attr("IFLA_IFNAME") == name]
        if not links:
            return None
        (link,) = links
        held = {_text(a): a.get_attr("IFA_FLAGS") or 0 for a in ip.get_addr(index=link["index"]) if _was_given(a)}
    return Netdev(
        link["index"],
        link.get_attr("IFLA_ADDRESS"),
        link.get_attr("IFLA_MTU"),
        bool(link["flags"] & IFF_UP),
        tuple(held),
        tuple(text for text, flags in held.items() if flags & IFA_F_NODAD),
        tuple(text for text, flags in held.items() if not flags & IFA_F_PERMANENT),
    )


def _was_given(address: Any) -> bool:
    return not (address["family"] == socket.AF_INET6 and address["scope"] == LINK_LOCAL)


def _text(address: Any) -> str:
    return f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"


def _netdevs() -> list[str]:
    """The netdevs of this thread's namespace that it was not made with."""
    with IPRoute() as ip:
        names = [str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links()]
    return [name for name in names if name != "lo"]


def known_netdev(name: str) -> Netdev:
    """Like ``netdev``. Raises AdapterError that lists the netdevs there are."""
    found = netdev(name)
    if found is None:
        with IPRoute() as ip:
            there = ", ".join(sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links()))
        raise AdapterError(f"there is no netdev {name!r}; there are: {there}")
    return found


@dataclass(frozen=True, slots=True)
class LinkSetting:
    """A netdev's "address", "mtu" or "state" ("up", "down").

    ``addresses`` are those it held: the kernel drops IPv6's where a netdev goes down, or its MTU below 1280. Of these,
    the ``unchecked`` were without duplicate address detection.
    """

    netdev: str
    setting: Literal["address", "mtu", "state"]
    was: str | int
    wanted: str | int
    netns: str = ""
    addresses: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def make(self) -> None:
        self._set(self.wanted)

    def undo(self) -> None:
        self._set(self.was)
        for address in self.addresses:
            Address(self.netdev, address, self.netns, detect=address not in self.unchecked).make()

    def _set(self, value: str | int) -> None:
        def work() -> None:
            found = netdev(self.netdev)
            if found is not None and self._now(found) != value:
                with IPRoute() as ip:
                    ip.link("set", index=found.index, **{self.setting: value})

        in_namespace(_there(self.netns), work)

    def _now(self, found: Netdev) -> str | int:
        now: dict[str, str | int] = {
            "address": found.mac,
            "mtu": found.mtu,
            "state": "up" if found.up else "down",
        }
        return now[self.setting]


@dataclass(frozen=True, slots=True)
class Address:
    """An address that a netdev had not before, "10.0.0.1/24". ``detect``: whether to look for a duplicate first."""

    netdev: str
    address: str
    netns: str = ""
    detect: bool = False

    def make(self) -> None:
        self._change("add")

    def undo(self) -> None:
        self._change("del")

    def _change(self, command: str) -> None:
        def work() -> None:
            found = netdev(self.netdev)
            if found is not None and (self.address in found.addresses) == (command == "del"):
                with IPRoute() as ip:
                    ip.addr(command, index=found.index, **self._facts(new=command == "add"))

        in_namespace(_there(self.netns), work)

    def _facts(self, *, new: bool) -> dict[str, Any]:
        interface = ipaddress.ip_interface(self.address)
        facts = {"address": str(interface.ip), "prefixlen": interface.network.prefixlen}
        # Duplicate address detection costs a second, in which the address is no GID.
        unchecked = new and interface.version == 6 and not self.detect
        return facts | ({"flags": IFA_F_NODAD} if unchecked else {})


@dataclass(frozen=True, slots=True)
class SoftDevice:
    """A software RDMA device that was not there before, on a netdev."""

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

        in_namespace(_there(self.netns), work)

    def _is_ours(self, ports: list[dict[str, Any]]) -> bool:
        # A netdev in another namespace is not told.
        return all(port.get("NDEV_NAME", self.netdev) == self.netdev for port in ports)


@dataclass(frozen=True, slots=True)
class Mode:
    """RDMA's namespace mode, by number."""

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
    """A network namespace that was not there before."""

    name: str

    def make(self) -> None:
        namespaces.create(self.name)

    def undo(self) -> None:
        if self.name in namespaces.listnetns():
            if others := in_namespace(self.name, _netdevs):
                raise AdapterError(f"namespace {self.name} still holds {', '.join(others)}")
            namespaces.remove(self.name)


@dataclass(frozen=True, slots=True)
class Moved:
    """A netdev in another namespace, which made the kernel forget its ``addresses`` and that it was up."""

    netdev: str
    netns: str
    up: bool
    addresses: tuple[str, ...]
    unchecked: tuple[str, ...]

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
            raise AdapterError(f"there is no netdev {self.netdev} that {self.addresses} could be given back to")
        LinkSetting(self.netdev, "state", "down", "up" if self.up else "down").make()
        for address in self.addresses:
            Address(self.netdev, address, detect=address not in self.unchecked).make()


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of configfs that was not there before: a device's defaults of the connection manager."""

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
    """Priority flow control of a netdev: a bit for each priority that has it."""

    netdev: str
    was: int
    wanted: int

    def make(self) -> None:
        set_priorities(self.netdev, self.wanted)

    def undo(self) -> None:
        if netdev(self.netdev) is not None and get_pfc(self.netdev).enabled != self.was:
            set_priorities(self.netdev, self.was)


def checked(path: str) -> Path:
    """A path that provisioning may write. Raises AdapterError for any other."""
    if not path.startswith(SETTABLE) or ".." in Path(path).parts:
        raise AdapterError(f"{path} is no setting of the network: it must lie below {', '.join(SETTABLE)}")
    return Path(path)


KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (LinkSetting, Address, SoftDevice, Mode, Namespace, Moved, Folder, Setting, FlowControl)
}


def noted(change: Any) -> tuple[str, dict[str, Any]]:
    """A change as the journal holds it: its kind, and its facts as plain data."""
    return type(change).__name__, asdict(change)


def read(kind: str, facts: dict[str, Any]) -> Change:
    """A change from the journal. Raises AdapterError when it is none that this version knows."""
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
    """Whether every fact is of the type that its field has."""
    types = get_type_hints(kind)
    return all(name in types and _is_a(value, types[name]) for name, value in facts.items())


def _is_a(value: object, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    return isinstance(value, wanted)
