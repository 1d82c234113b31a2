"""Reads the settings of a netdev of this thread's namespace, and gives them back to it."""

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.iproute.linux import IPRoute

from hil.adapters.find import IFF_UP
from hil.errors import AdapterError

# linux/if_addr.h.
IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
LINK_LOCAL = 253
"""The scope of addresses that are valid on their link only (linux/rtnetlink.h)."""
KERNEL_LL = 3
"""The protocol of link-local addresses that the kernel made (linux/if_addr.h, IFAPROT_KERNEL_LL)."""
VLAN_FLAG_LOOSE_BINDING = 0x4
"""The flag of a VLAN whose state does not follow the netdev below (linux/if_vlan.h)."""
# linux/sockios.h, and struct ifreq of linux/if.h with a hardware address in its union.
_SIOCADDMULTI, _IFREQ_ADDRESS = 0x8931, struct.Struct("16sH6s16x")
_IPV6_MTU = "/proc/sys/net/ipv6/conf/{}/mtu"
# Kinds of netdevs whose MTU is at most that of the netdev below. A move of that netdev cuts them off, or ends them.
STACKED = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"})


@dataclass(frozen=True, slots=True)
class Netdev:
    """The settings of a netdev that provisioning changes. ``mtu``: in bytes.

    ``addresses``: with prefix lengths, without those that the kernel makes itself. ``leased``: those of them that
    expire. ``given``: the others, with all their properties, as ``give_back`` takes them.
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
        # Linux before 5.18 does not say who made an address. The kernel is then taken to have made link-local ones.
        has_protocols = any(address.get_attr("IFA_PROTO") for address in known)
        held = [address for address in own if not _made_by_kernel(address, has_protocols=has_protocols)]
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


def _made_by_kernel(address: Any, *, has_protocols: bool) -> bool:
    if address["family"] != socket.AF_INET6 or address["scope"] != LINK_LOCAL:
        return False
    return not has_protocols or address.get_attr("IFA_PROTO") == KERNEL_LL


def _text(address: Any) -> str:
    return f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"


def _in_full(address: Any) -> str:
    """An address with its properties, in words: "10.0.0.1/24 broadcast 10.0.0.255"."""
    words = [_text(address)]
    if broadcast := address.get_attr("IFA_BROADCAST"):
        words += ["broadcast", broadcast]
    if address["family"] == socket.AF_INET and address["scope"]:
        words += ["scope", str(address["scope"])]
    if (address.get_attr("IFA_FLAGS") or 0) & IFA_F_NODAD:
        words.append("nodad")
    return " ".join(words)


def give_back(name: str, given: Sequence[str]) -> None:
    """Give a netdev of this thread's namespace the addresses of ``given`` that it lacks.

    Raises OSError or NetlinkError with the kernel's answer, and ValueError for a text not in the form of
    ``Netdev.given``.
    """
    # The kernel lists the newest IPv6 address first, and prefers it as a source address.
    by_age = [*(text for text in given if not is_ipv6(text)), *(text for text in reversed(given) if is_ipv6(text))]
    found = netdev(name)
    if found is None:
        return
    with IPRoute() as ip:
        for text in by_age:
            if text.split()[0] not in found.addresses:
                ip.addr("add", index=found.index, **_asked(text))


@contextmanager
def promoting(name: str) -> Iterator[None]:
    """Until the context ends, removing the first address of an IPv4 network keeps its other addresses.

    The other addresses and their routes may belong to other programs.
    """
    setting = Path(f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries")
    # A netdev whose MTU is too small for IPv4 has no IPv4 settings.
    unset = setting.exists() and setting.read_text().strip() == "0"
    if unset:
        setting.write_text("1")
    try:
        yield
    finally:
        if unset:
            setting.write_text("0")


def groups_of(name: str) -> tuple[str, ...]:
    """The link-layer multicast addresses that programs added to a netdev of this thread's namespace, in hexadecimal.

    An LLDP daemon adds one. Addresses that the kernel derives from joined IP groups are left out.
    """
    found = []
    # The columns: index, name, users, whether a program added the address, address.
    for line in Path("/proc/thread-self/net/dev_mcast").read_text().splitlines():
        match line.split():
            case [_, held_by, _, given, address] if held_by == name and given != "0":
                found.append(address)
    return tuple(found)


def give_groups_back(name: str, groups: Sequence[str]) -> None:
    """Give a netdev of this thread's namespace the link-layer multicast addresses of ``groups`` that it lacks.

    Raises OSError with the kernel's answer, and ValueError for a text not in the form of ``groups_of``.
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
                raise ValueError(f"{text!r} is no address with its properties")
    return asked


def ipv6_mtu(name: str) -> int:
    """The IPv6 MTU of a netdev of this thread's namespace, in bytes; 0 without IPv6."""
    # The kernel opens this file in the namespace of the calling thread.
    try:
        return int(Path(_IPV6_MTU.format(name)).read_text())
    except FileNotFoundError:
        return 0


def set_ipv6_mtu(name: str, mtu: int) -> None:
    """Set the IPv6 MTU, in bytes, of a netdev of this thread's namespace. Does nothing without IPv6."""
    with suppress(FileNotFoundError):
        Path(_IPV6_MTU.format(name)).write_text(str(mtu))


def still(name: str, index: int) -> Netdev | None:
    """The netdev with this name, or None when it is gone. Raises AdapterError when it has been renamed."""
    found = netdev(name)
    if found is None and index:
        with IPRoute() as ip:
            for link in ip.get_links():
                if link["index"] == index:
                    now = link.get_attr("IFLA_IFNAME")
                    raise AdapterError(f"{name} is called {now} now: call it {name} again, and restore once more")
    return found


def netdevs() -> list[str]:
    """The names of the netdevs of this thread's namespace, without its loopback."""
    with IPRoute() as ip:
        names = [str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links()]
    return [name for name in names if name != "lo"]


def known_netdev(name: str) -> Netdev:
    """Like ``netdev``; raises AdapterError, which lists the existing netdevs, instead of returning None."""
    found = netdev(name)
    if found is None:
        with IPRoute() as ip:
            there = ", ".join(sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links()))
        raise AdapterError(f"there is no netdev {name!r}; there are: {there}")
    return found


@dataclass(frozen=True, slots=True)
class Stacked:
    """A netdev on top of another.

    ``follows``: its state follows the netdev below. ``whole``: its MTU always follows the netdev below; otherwise the
    kernel only lowers it.
    """

    name: str
    follows: bool
    whole: bool


def stacked_on(index: int) -> list[Stacked]:
    """The netdevs of this thread's namespace on top of netdev ``index``, such as its VLANs."""
    with IPRoute() as ip:
        return [stacked(link) for link in ip.get_links() if kind_of(link) in STACKED and _below(link) == index]


def on_top_of(index: int) -> list[str]:
    """The names of all netdevs of this thread's namespace that are made on netdev ``index``, tunnels included."""
    with IPRoute() as ip:
        return [str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links() if _below(link) == index]


def _below(link: Any) -> int | None:
    """The index of the netdev below, if it is in the same namespace."""
    kind, below = kind_of(link), link.get_attr("IFLA_LINK")
    if kind == "vxlan":
        # A VXLAN has an attribute of its own for the netdev below.
        below = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA").get_attr("IFLA_VXLAN_LINK")
    # IFLA_LINK of a veth is its other end. With IFLA_LINK_NETNSID the index belongs to another namespace.
    return None if kind == "veth" or link.get_attr("IFLA_LINK_NETNSID") is not None else below


def master_of(index: int) -> tuple[int, str] | None:
    """Index and name of the bridge or bond of a netdev of this thread's namespace, or None."""
    with IPRoute() as ip:
        if master := ip.get_links(index)[0].get_attr("IFLA_MASTER"):
            return int(master), str(ip.get_links(master)[0].get_attr("IFLA_IFNAME"))
    return None


def stacked(link: Any) -> Stacked:
    """The facts of a netdev on top of another, from the kernel's message ``link``."""
    kind = kind_of(link)
    return Stacked(link.get_attr("IFLA_IFNAME"), kind == "vlan" and not _is_loose(link), kind in ("ipvlan", "ipvtap"))


def _is_loose(link: Any) -> bool:
    facts = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    flags = facts.get_attr("IFLA_VLAN_FLAGS") if facts is not None else None
    return flags is not None and bool(flags["flags"] & VLAN_FLAG_LOOSE_BINDING)


def below_vlans(name: str) -> str:
    """The netdev of this thread's namespace below a VLAN or a stack of VLANs; for another netdev its own name."""
    with IPRoute() as ip:
        links = {link["index"]: link for link in ip.get_links()}
    here = next((link for link in links.values() if link.get_attr("IFLA_IFNAME") == name), None)
    while here is not None and kind_of(here) == "vlan" and here.get_attr("IFLA_LINK_NETNSID") is None:
        name, here = here.get_attr("IFLA_IFNAME"), links.get(here.get_attr("IFLA_LINK"))
    return name if here is None else str(here.get_attr("IFLA_IFNAME"))


def kind_of(link: Any) -> str:
    """The kind of a virtual netdev, from the kernel's message ``link``, or ""."""
    info = link.get_attr("IFLA_LINKINFO")
    return (info.get_attr("IFLA_INFO_KIND") if info is not None else "") or ""
