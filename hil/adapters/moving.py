"""Lists the settings that a netdev loses for good by a move to another namespace and back, or by a time without IPv6.

Addresses, link-layer groups and the state are given back, so they are not lost.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2.iproute.linux import IPRoute

from hil.adapters.elsewhere import stacked_elsewhere
from hil.adapters.netdev import Netdev, ipv6_mtu, is_ipv6, on_top_of

KERNEL_ROUTE = 2
"""The protocol of routes that the kernel makes with an address (linux/rtnetlink.h, RTPROT_KERNEL)."""
# linux/rtnetlink.h, linux/neighbour.h, linux/if_addr.h
LOCAL_TABLE, MULTICAST, NUD_PERMANENT = 255, 5, 0x80
AF_BRIDGE, NTF_SELF = 7, 0x02
# The lowest bit of a MAC address's first byte (IEEE 802).
GROUP = 0x01
IPV6_METRIC = 256
"""The metric of routes that the kernel makes for IPv6 (linux/ipv6_route.h, IP6_RT_PRIO_ADDRCONF)."""
IFA_F_DEPRECATED, IFA_F_NOPREFIXROUTE = 0x20, 0x200
# IFA_F_HOMEADDRESS, IFA_F_MANAGETEMPADDR, IFA_F_MCAUTOJOIN.
_IFA_F_OTHERS = 0x10 | 0x100 | 0x400
# Queueing disciplines that the kernel gives a netdev itself.
OWN_QDISCS = frozenset({"noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "pfifo"})
CONF = Path("/proc/sys/net")
# stable_secret cannot be read. lost_by_a_move() compares the IPv6 MTU with the netdev's own.
OWN_CONF = frozenset({"mtu", "stable_secret"})


def lost_by_a_move(name: str, now: Netdev) -> list[str]:
    """The settings, in words, that cannot be given back to a netdev after a move to another namespace and back."""
    with IPRoute() as ip:
        found = [f"the leased address {address}" for address in now.leased]
        found += _of_link(ip.get_links(now.index)[0])
        found += map(str, stacked_elsewhere(now.index))
        found += [f"{upper}, which is on top of it" for upper in on_top_of(now.index)]
        found += _of_addresses(ip, name, now)
        found += _routes(ip, now.index)
        permanent = [n for n in ip.get_neighbours(ifindex=now.index) if n["state"] & NUD_PERMANENT]
        found += [f"the neighbour {neighbour.get_attr('NDA_DST')}" for neighbour in permanent]
        found += [f"the forwarding entry {entry}" for entry in _forwarding(ip, now)]
        kinds = {qdisc.get_attr("TCA_KIND") for qdisc in ip.get_qdiscs(index=now.index)}
        found += [f"the queueing discipline {kind}" for kind in sorted(kinds - OWN_QDISCS)]
    if (own := ipv6_mtu(name)) not in (0, now.mtu):
        found.append(f"ipv6.mtu = {own}")
    return [*found, *_of_conf(name)]


def lost_without_ipv6(name: str, now: Netdev) -> list[str]:
    """Like ``lost_by_a_move``, for a netdev that loses IPv6 for a time: it goes down, or its MTU becomes too small."""
    found = [f"the leased address {address}" for address in now.leased if is_ipv6(address)]
    with IPRoute() as ip:
        found += _of_addresses(ip, name, now, family=socket.AF_INET6)
        return [*found, *_routes(ip, now.index, family=socket.AF_INET6)]


def _forwarding(ip: IPRoute, now: Netdev) -> Iterator[str]:
    """The unicast MAC addresses that a netdev was told to accept; multicast addresses move with it."""
    for entry in ip.get_neighbours(family=AF_BRIDGE):
        mac = entry.get_attr("NDA_LLADDR") or ""
        own = entry["ifindex"] == now.index and entry["flags"] & NTF_SELF
        if own and mac not in ("", now.mac) and not int(mac.split(":")[0], 16) & GROUP:
            yield mac


def _of_addresses(ip: IPRoute, name: str, now: Netdev, **wanted: int) -> list[str]:
    return [text for address in ip.get_addr(index=now.index, **wanted) for text in _of_address(address, name)]


def _of_link(link: Any) -> Iterator[str]:
    if link.get_attr("IFLA_MASTER"):
        yield "its place in a bridge or bond"
    families = link.get_attr("IFLA_AF_SPEC")
    ipv6 = families.get_attr("AF_INET6") if families is not None else None
    if ipv6 is not None and ipv6.get_attr("IFLA_INET6_TOKEN") not in (None, "::"):
        yield f"the IPv6 token {ipv6.get_attr('IFLA_INET6_TOKEN')}"


def _of_address(address: Any, name: str) -> Iterator[str]:
    peer = address.get_attr("IFA_ADDRESS")
    local = address.get_attr("IFA_LOCAL") or peer
    if local != peer:
        yield f"the peer {peer} of {local}"
    if address.get_attr("IFA_LABEL") not in (None, name):
        yield f"the label of {local}"
    if (address.get_attr("IFA_FLAGS") or 0) & IFA_F_NOPREFIXROUTE or address.get_attr("IFA_RT_PRIORITY"):
        yield f"how {local} makes no route, or one with a metric"
    if (address.get_attr("IFA_FLAGS") or 0) & IFA_F_DEPRECATED:
        yield f"that {local} is deprecated"
    if (address.get_attr("IFA_FLAGS") or 0) & _IFA_F_OTHERS:
        yield f"the flags of {local}"


def _routes(ip: IPRoute, index: int, **wanted: int) -> Iterator[str]:
    """The number of routes that do not come back with the addresses, in words."""
    own = [route for route in ip.get_routes(**wanted) if index in _out_of(route) and route["type"] != MULTICAST]
    own = [route for route in own if (route.get_attr("RTA_TABLE") or route["table"]) != LOCAL_TABLE]
    usual = (None, 0, IPV6_METRIC)
    others = [r for r in own if r["proto"] != KERNEL_ROUTE or r.get_attr("RTA_PRIORITY") not in usual]
    if others:
        yield f"{len(others)} routes"


def _out_of(route: Any) -> list[int]:
    """The indices of the netdevs that a route leads to."""
    return [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ())]


def _of_conf(name: str) -> Iterator[str]:
    """The netdev's settings below /proc/sys/net that differ from the defaults."""
    for family in ("ipv4", "ipv6"):
        own, usual = CONF / family / "conf" / name, CONF / family / "conf" / "default"
        if own.is_dir():
            for path in sorted(own.iterdir()):
                if path.name not in OWN_CONF and _read(path) != _read(usual / path.name):
                    yield f"{family}.{path.name} = {_read(path)}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
