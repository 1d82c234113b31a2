"""Changes to a node's adapters. Each knows what was before, how to make it, and how to undo it, any number of times.

What is undone may have been made or not: its maker may have died in between. A netdev is known by its name; where it is
gone, there is nothing to undo.
"""

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from pyroute2 import IPRoute
from pyroute2 import netns as namespaces

from hil.adapters.pfc import get_pfc, set_priorities
from hil.adapters.settable import why_not_settable
from hil.errors import AdapterError
from hil.netlink.codes import NetnsMode
from hil.netlink.link import RdmaLink

T = TypeVar("T")
# linux/if.h and linux/if_addr.h.
IFF_UP, IFA_F_NODAD, IFA_F_PERMANENT = 0x1, 0x02, 0x80
# linux/sockios.h, and struct ifreq of linux/if.h with a hardware address in its union.
_SIOCADDMULTI, _IFREQ_ADDRESS = 0x8931, struct.Struct("16sH6s16x")
IPV6_MTU_OF = "/proc/sys/net/ipv6/conf/{}/mtu"
LINK_LOCAL = 253
"""The scope of addresses that are good on their link only (linux/rtnetlink.h)."""
KERNEL_LL = 3
"""The protocol of link-local addresses that the kernel makes itself (linux/if_addr.h, IFAPROT_KERNEL_LL)."""


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

    ``given``: the same, each in full as ``give_back`` takes it, without ``leased``, those that end by themselves.
    """

    index: int
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]
    given: tuple[str, ...]
    leased: tuple[str, ...]


def netdev(name: str) -> Netdev | None:
    """A netdev of this thread's namespace as it is now, or None."""
    with IPRoute() as ip:
        links = [link for link in ip.get_links() if link.get_attr("IFLA_IFNAME") == name]
        if not links:
            return None
        (link,) = links
        known = list(ip.get_addr())
        own = [address for address in known if address["index"] == link["index"]]
        # Linux before 5.18 says of no address who made it: of link-local ones it will have been the kernel.
        tells = any(address.get_attr("IFA_PROTO") for address in known)
        held = [address for address in own if not _is_the_kernels(address, tells=tells)]
    leased = [address for address in held if not (address.get_attr("IFA_FLAGS") or 0) & IFA_F_PERMANENT]
    return Netdev(
        link["index"],
        link.get_attr("IFLA_ADDRESS"),
        link.get_attr("IFLA_MTU"),
        bool(link["flags"] & IFF_UP),
        tuple(_text(address) for address in held),
        tuple(_in_full(address) for address in held if address not in leased),
        tuple(_text(address) for address in leased),
    )


def _is_the_kernels(address: Any, *, tells: bool) -> bool:
    if address["family"] != socket.AF_INET6 or address["scope"] != LINK_LOCAL:
        return False
    return not tells or address.get_attr("IFA_PROTO") == KERNEL_LL


def _text(address: Any) -> str:
    return f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"


def _in_full(address: Any) -> str:
    """An address with what it was given with, in words: "10.0.0.1/24 broadcast 10.0.0.255"."""
    words = [_text(address)]
    if broadcast := address.get_attr("IFA_BROADCAST"):
        words += ["broadcast", broadcast]
    if address["family"] == socket.AF_INET and address["scope"]:
        words += ["scope", str(address["scope"])]
    if (address.get_attr("IFA_FLAGS") or 0) & IFA_F_NODAD:
        words.append("nodad")
    return " ".join(words)


def give_back(name: str, given: Sequence[str]) -> None:
    """Give a netdev of this thread's namespace those of these addresses that it has not.

    Raises OSError and NetlinkError as the kernel answers, and ValueError for what ``Netdev.given`` does not hold.
    """
    # The kernel lists the newest of IPv6's first, and takes it first as the source of what it sends.
    by_age = [*(text for text in given if not is_ipv6(text)), *(text for text in reversed(given) if is_ipv6(text))]
    found = netdev(name)
    if found is None:
        return
    with IPRoute() as ip:
        for text in by_age:
            if text.split()[0] not in found.addresses:
                ip.addr("add", index=found.index, **_asked(text))


@contextmanager
def _promoting(name: str) -> Iterator[None]:
    """While it lasts, the first address of an IPv4 network does not take with it the others, which somebody else gave,
    and the routes from them."""
    setting = Path(f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries")
    # A netdev that is too small for IPv4 has no settings of it.
    unset = setting.exists() and setting.read_text().strip() == "0"
    if unset:
        setting.write_text("1")
    try:
        yield
    finally:
        if unset:
            setting.write_text("0")


def groups_of(name: str) -> tuple[str, ...]:
    """The link-layer multicast addresses that somebody gave to a netdev of this thread's namespace, in hexadecimal.

    Such as a daemon that listens for LLDP; the kernel's own, for what programs joined, are not among them.
    """
    found = []
    # The columns: index, name, users, whether it was given, address.
    for line in Path("/proc/thread-self/net/dev_mcast").read_text().splitlines():
        match line.split():
            case [_, held_by, _, given, address] if held_by == name and given != "0":
                found.append(address)
    return tuple(found)


def give_groups_back(name: str, groups: Sequence[str]) -> None:
    """Give a netdev of this thread's namespace those of these link-layer multicast addresses that it has not.

    Raises OSError as the kernel answers, and ValueError for what ``groups_of`` does not tell.
    """
    for group in groups:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(FileExistsError):
            fcntl.ioctl(asking, _SIOCADDMULTI, _IFREQ_ADDRESS.pack(name.encode(), 0, bytes.fromhex(group)))


def is_ipv6(text: str) -> bool:
    return ":" in text.split()[0]


def _asked(text: str) -> dict[str, Any]:
    words = text.split()
    interface = ipaddress.ip_interface(words.pop(0))
    asked: dict[str, Any] = {"address": str(interface.ip), "prefixlen": interface.network.prefixlen}
    while words:
        match words:
            case ["broadcast", address, *words]:
                asked["broadcast"] = str(ipaddress.ip_address(address))
            case ["scope", scope, *words]:
                asked["scope"] = int(scope)
            case ["nodad", *words]:
                asked["flags"] = IFA_F_NODAD
            case _:
                raise ValueError(f"{text!r} is no address in full")
    return asked


def ipv6_mtu(name: str) -> int:
    """The MTU that IPv6 keeps to on a netdev of this thread's namespace, in bytes; 0 where it has no IPv6."""
    # This file follows the namespace of the thread that opens it.
    try:
        return int(Path(IPV6_MTU_OF.format(name)).read_text())
    except FileNotFoundError:
        return 0


def _still(name: str, index: int) -> Netdev | None:
    """The netdev of that name, or None where it is gone. Raises AdapterError where it has another name now."""
    found = netdev(name)
    if found is None and index:
        with IPRoute() as ip:
            for link in ip.get_links():
                if link["index"] == index:
                    now = link.get_attr("IFLA_IFNAME")
                    raise AdapterError(f"{name} is called {now} now: call it {name} again, and restore once more")
    return found


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
    """A netdev's "address", "mtu", "state" ("up", "down"), or the "ipv6 mtu" where that is another.

    ``given``: IPv6's addresses that it held, in full: the kernel drops them where a netdev goes down, or its MTU below
    1280.
    ``index`` is the netdev's, which stays when it gets another name; 0: not known.
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
        where = _there(self.netns)

        def work() -> None:
            # One that came back from a namespace may have another index.
            _still(self.netdev, self.index if where == self.netns else 0)
            self._set(self.was)
            give_back(self.netdev, self.given)

        in_namespace(where, work)

    def _set(self, value: str | int) -> None:
        found = netdev(self.netdev)
        if found is None or self._now(found) == value:
            return
        if self.setting == "ipv6 mtu":
            with suppress(FileNotFoundError):
                Path(IPV6_MTU_OF.format(self.netdev)).write_text(str(value))
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
    """An address that a netdev had not before, "10.0.0.1/24". ``index`` as of a ``LinkSetting``."""

    netdev: str
    address: str
    netns: str = ""
    index: int = 0

    def make(self) -> None:
        # Duplicate address detection costs a second, in which the address is no GID.
        text = f"{self.address} nodad" if is_ipv6(self.address) else self.address
        in_namespace(self.netns, lambda: give_back(self.netdev, [text]))

    def undo(self) -> None:
        where = _there(self.netns)
        in_namespace(where, lambda: self._take(self.index if where == self.netns else 0))

    def _take(self, index: int) -> None:
        found = _still(self.netdev, index)
        if found is None or self.address not in found.addresses:
            return
        interface = ipaddress.ip_interface(self.address)
        with _promoting(self.netdev), IPRoute() as ip:
            ip.addr("del", index=found.index, address=str(interface.ip), prefixlen=interface.network.prefixlen)


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
    """A netdev in another namespace; the kernel forgot the addresses it was ``given``, its ``groups`` (``groups_of``),
    and that it was up."""

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
    if why := why_not_settable(path):
        raise AdapterError(f"{path} is no setting of the network: {why}")
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
