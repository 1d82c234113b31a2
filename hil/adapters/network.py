"""The IP addresses and ports of this machine's RDMA devices, and notices of their changes."""

import errno
import fcntl
import os
import socket
import struct
import threading

from pyroute2.iproute.linux import IPRoute

from hil.adapters.find import IFF_UP
from hil.adapters.netdev import kind_of
from hil.netlink.link import RdmaLink

NETLINK_ROUTE = 0
# Multicast groups of rtnetlink: links, IPv4 addresses, IPv6 addresses (linux/rtnetlink.h, RTMGRP_*).
_GROUPS = 0x1 | 0x10 | 0x100
ACTIVE = 4
# linux/sockios.h, and struct ifreq of linux/if.h with the flags in its union.
_SIOCGIFFLAGS, _IFREQ = 0x8913, struct.Struct("16sH22x")
_DEVICES = "/sys/class/infiniband"


class Network:
    """The facts of the network that a SAN provider needs. ``fd`` is readable when addresses or links have changed.

    In a process without a free descriptor ``up`` still works, and ``addresses`` returns the last known addresses.
    Raises OSError where the kernel has no RDMA.
    """

    def __init__(self) -> None:
        self._socket, self._changes = _notices(), _notices()
        self.fd = self._socket.fileno()
        self._link = RdmaLink()
        self._lock = threading.Lock()
        self._devices: set[tuple[str, int]] = set()
        self._known: dict[str, str] = {}
        self._stale = True

    def drain(self) -> None:
        """Discard the notices that wait at ``fd``; ``addresses`` and ``up`` ask the kernel for the new state."""
        _drain(self._socket)

    def addresses(self, *, afresh: bool = False) -> dict[str, str]:
        """IP addresses of RDMA devices' netdevs and of VLANs on these, each with its device (ADDR-01, ADDR-02).

        The kernel takes long to list addresses, and every bind and connect needs them. So the kernel is asked again
        only after a notice of a change, after a change of the devices, or when ``afresh`` is set. The notice arrives
        before the program that made the change continues. But other programs may get theirs earlier: a caller that
        learned of a change from another program must set ``afresh``.
        """
        with self._lock:
            self._stale |= _drain(self._changes) or afresh
            try:
                devices = _devices()
                if self._stale or devices != self._devices:
                    self._devices, self._known, self._stale = devices, self._ask(), False
            except OSError as error:
                # Without a free descriptor the kernel is asked at the next call.
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                self._stale = True
            return dict(self._known)

    def _ask(self) -> dict[str, str]:
        netdevs = {
            port["NDEV_INDEX"]: device["DEV_NAME"]
            for device in self._link.devices()
            for port in self._link.ports(device["DEV_INDEX"])
            if "NDEV_INDEX" in port
        }
        with IPRoute() as ip:
            # A kernel without VLANs ignores the filter and returns all links.
            vlans = [link for link in ip.get_links(kind="vlan") if kind_of(link) == "vlan"]
            here = [link for link in vlans if link.get_attr("IFLA_LINK_NETNSID") is None]
            below = {link["index"]: link.get_attr("IFLA_LINK") for link in here}
            for index in below:
                bottom = index
                while bottom in below:
                    bottom = below[bottom]
                if bottom in netdevs:
                    netdevs[index] = netdevs[bottom]
            return {
                message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"): netdevs[message["index"]]
                for message in ip.get_addr()
                if message["index"] in netdevs
            }

    def up(self) -> bool:
        """Whether any port of any RDMA device is ACTIVE and its netdev is up.

        RDMA netlink is asked, because sysfs still shows a device that is being removed. The netdev is asked too,
        because its port stays ACTIVE for a moment after the netdev went down.
        """
        with self._lock:
            self._stale = True
            ports = [port for device in self._link.devices() for port in self._link.ports(device["DEV_INDEX"])]
            return any(port.get("PORT_STATE") == ACTIVE and self._is_up(port.get("NDEV_NAME")) for port in ports)

    def _is_up(self, netdev: str | None) -> bool:
        if netdev is None:
            # An InfiniBand port has no netdev.
            return True
        try:
            _, flags = _IFREQ.unpack(fcntl.ioctl(self._socket, _SIOCGIFFLAGS, _IFREQ.pack(netdev.encode(), 0)))
        except OSError as error:
            # ENODEV: the netdev is gone or is being removed.
            if error.errno != errno.ENODEV:
                raise
            return False
        return bool(flags & IFF_UP)

    def close(self) -> None:
        self._socket.close()
        self._changes.close()
        self._link.close()


def _devices() -> set[tuple[str, int]]:
    """The RDMA devices by name and inode; a device that was removed and made again has another inode."""
    try:
        with os.scandir(_DEVICES) as entries:
            return {(entry.name, entry.inode()) for entry in entries}
    except FileNotFoundError:
        return set()


def _notices() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE)
    made.bind((0, _GROUPS))
    return made


def _drain(notices: socket.socket) -> bool:
    """Discard the waiting notices; returns whether there were any."""
    any_waits = False
    while True:
        try:
            notices.recv(1 << 16)
        except BlockingIOError:
            return any_waits
        except OSError:
            # ENOBUFS: notices were lost, which counts as a notice.
            pass
        any_waits = True
