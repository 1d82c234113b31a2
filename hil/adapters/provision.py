"""Give a netdev its address and an RDMA device on it, and wait until it can be used."""

import ipaddress
import time
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from hil.netlink.link import RdmaLink

PORT_ACTIVE = 4
IFA_F_NODAD = 0x02
POLL_S = 0.01


class NotReady(Exception):
    """The port did not become ACTIVE with its GID in time."""


def provision(
    netdev: str, mac: str, addresses: list[str], mtu: int, device: str, timeout_s: float = 20.0
) -> dict[str, Any]:
    """Set ``netdev`` up with its MAC, ``addresses`` ("10.0.0.1/24", IPv4 or IPv6) and MTU; add soft-RoCE on it.

    Returns the device's description once its port is ACTIVE and the GID of every address is present. Raises OSError or
    NetlinkError as the kernel answers, NotReady after ``timeout_s``.
    """
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=netdev)[0]
        ip.link("set", index=index, address=mac, mtu=mtu)
        ip.link("set", index=index, state="up")
        for text in addresses:
            interface = ipaddress.ip_interface(text)
            # Nobody else is on the link: duplicate address detection would only cost a second.
            extra = {"flags": IFA_F_NODAD} if interface.version == 6 else {}
            ip.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **extra)
    with RdmaLink() as link:
        link.add_link(device, "rxe", netdev)
    return wait_ready(device, [str(ipaddress.ip_interface(a).ip) for a in addresses], timeout_s)


def wait_ready(device: str, addresses: list[str], timeout_s: float) -> dict[str, Any]:
    """Wait until port 1 of ``device`` is ACTIVE and has the GIDs of ``addresses``. Raises NotReady."""
    end_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    wanted = {gid_of(address) for address in addresses}
    while True:
        state, present = port_state(device), gids(device)
        if state == PORT_ACTIVE and wanted <= present.keys():
            return {"device": device, "port": 1, "gids": {gid: present[gid] for gid in wanted}}
        if time.monotonic_ns() > end_ns:
            raise NotReady(
                f"{device} port 1: state {state} (ACTIVE is 4), GIDs {sorted(present)}, wanted {sorted(wanted)}"
            )
        time.sleep(POLL_S)


def port_state(device: str) -> int | None:
    """The state of port 1 by RDMA netlink, or None when the device is not there."""
    with RdmaLink() as link:
        for entry in link.devices():
            if entry["DEV_NAME"] == device:
                return next((p["PORT_STATE"] for p in link.ports(entry["DEV_INDEX"]) if p["PORT_INDEX"] == 1), None)
    return None


def gids(device: str) -> dict[str, int]:
    """The GID table of port 1: GID in full notation to its lowest index."""
    found: dict[str, int] = {}
    folder = Path(f"/sys/class/infiniband/{device}/ports/1/gids")
    for index in range(16):
        try:
            gid = (folder / str(index)).read_text().strip()
        except OSError:
            continue
        if gid.strip("0:"):
            found.setdefault(gid, index)
    return found


def gid_of(address: str) -> str:
    """The RoCE v2 GID of an IP address (InfiniBand annex A17: IPv4 is mapped into IPv6)."""
    parsed = ipaddress.ip_address(address)
    number = int(parsed) if parsed.version == 6 else 0xFFFF << 32 | int(parsed)
    digits = f"{number:032x}"
    return ":".join(digits[i : i + 4] for i in range(0, 32, 4))


def counters(netdev: str) -> dict[str, int]:
    """The netdev's own counters."""
    folder = Path(f"/sys/class/net/{netdev}/statistics")
    names = ("tx_packets", "rx_packets", "tx_dropped", "rx_dropped", "tx_errors", "rx_errors")
    return {name: int((folder / name).read_text()) for name in names}
