"""The IP addresses and ports of this machine's RDMA devices, and notice of their changes."""

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
    """What a SAN provider must know of the network. ``fd`` polls readable when addresses or links changed.

    A process without a free descriptor still learns which ports are up; of addresses it has those known before.
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
        """Consume the notices; what they say is asked for afresh."""
        _drain(self._socket)

    def addresses(self, *, afresh: bool = False) -> dict[str, str]:
        """IP addresses of RDMA devices' netdevs and of VLANs on these, each with its device (ADDR-01, ADDR-02).

        Every bind and connect wants to know, and the kernel takes long to say: it is asked again only when it told of a
        change, or when the devices are not the same. It tells of a change before the change's maker goes on, but it
        may tell others first: who asks because of a change that somebody else told of must ask ``afresh``.
        """
        with self._lock:
            self._stale |= _drain(self._changes) or afresh
            try:
                devices = _devices()
                if self._stale or devices != self._devices:
                    self._devices, self._known, self._stale = devices, self._ask(), False
            except OSError as error:
                # What cannot be asked now is asked the next time.
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
            # A kernel that knows no VLANs passes over which links were asked for.
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
        """Whether any port of any RDMA device is ACTIVE, and its netdev up.

        A device being removed is none: its sysfs stays longer. Of a netdev that goes down the kernel tells before it
        tells the RDMA device, whose port is ACTIVE for a moment longer.
        """
        with self._lock:
            self._stale = True
            ports = [port for device in self._link.devices() for port in self._link.ports(device["DEV_INDEX"])]
            return any(port.get("PORT_STATE") == ACTIVE and self._is_up(port.get("NDEV_NAME")) for port in ports)

    def _is_up(self, netdev: str | None) -> bool:
        if netdev is None:
            # An InfiniBand port has none.
            return True
        try:
            _, flags = _IFREQ.unpack(fcntl.ioctl(self._socket, _SIOCGIFFLAGS, _IFREQ.pack(netdev.encode(), 0)))
        except OSError as error:
            # ENODEV: it is gone, or going.
            if error.errno != errno.ENODEV:
                raise
            return False
        return bool(flags & IFF_UP)

    def close(self) -> None:
        self._socket.close()
        self._changes.close()
        self._link.close()


def _devices() -> set[tuple[str, int]]:
    """The RDMA devices by name and number of their entry, which a device made anew does not share."""
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
    """Consume what waits; whether there was any."""
    any_waits = False
    while True:
        try:
            notices.recv(1 << 16)
        except BlockingIOError:
            return any_waits
        except OSError:
            # ENOBUFS: notices were lost, which is as good as one notice.
            pass
        any_waits = True
