"""The IP addresses and ports of this machine's RDMA devices, and notice of their changes."""

import socket

from pyroute2 import IPRoute

from hil.netlink.link import RdmaLink

NETLINK_ROUTE = 0
# Multicast groups of rtnetlink: links, IPv4 addresses, IPv6 addresses (linux/rtnetlink.h, RTMGRP_*).
_GROUPS = 0x1 | 0x10 | 0x100
ACTIVE = 4


class Network:
    """What a SAN provider must know of the network. ``fd`` polls readable when addresses or links changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        self._socket.bind((0, _GROUPS))
        self.fd = self._socket.fileno()

    def drain(self) -> None:
        """Consume the notices; what they say is asked for afresh."""
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                # ENOBUFS: notices were lost, which is as good as one notice.
                continue

    def addresses(self) -> dict[str, str]:
        """IP addresses of the netdevs below RDMA devices, each with its device (ADDR-01, ADDR-02)."""
        with RdmaLink() as link:
            netdevs = {
                port["NDEV_INDEX"]: device["DEV_NAME"]
                for device in link.devices()
                for port in link.ports(device["DEV_INDEX"])
                if "NDEV_INDEX" in port
            }
        with IPRoute() as ip:
            return {
                message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"): netdevs[message["index"]]
                for message in ip.get_addr()
                if message["index"] in netdevs
            }

    def up(self) -> bool:
        """Whether any port of any RDMA device is ACTIVE. A device being removed is none: its sysfs stays longer."""
        with RdmaLink() as link:
            ports = [port for device in link.devices() for port in link.ports(device["DEV_INDEX"])]
        return any(port.get("PORT_STATE") == ACTIVE for port in ports)

    def close(self) -> None:
        self._socket.close()
