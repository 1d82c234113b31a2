"""Lists the RDMA devices of this machine with their names and addresses, and chooses one by any of these."""

import errno
import ipaddress
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyroute2.iproute.linux import IPRoute

from hil.errors import AdapterError
from hil.netlink.facts import Device, facts
from hil.netlink.facts import Port as RdmaPort
from hil.netlink.link import RdmaLink

INFINIBAND, NET = Path("/sys/class/infiniband"), Path("/sys/class/net")
PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
IFF_UP = 1
# linux/neighbour.h: an entry that needs no resolution, such as a multicast address.
NUD_NOARP = 0x40
# rdma-core: enum rdma_driver_id in ib_user_ioctl_verbs.h.
# fmt: off
DRIVERS = (
    "unknown", "mlx5", "mlx4", "cxgb3", "cxgb4", "mthca", "bnxt_re", "ocrdma", "nes", "irdma", "vmw_pvrdma", "qedr",
    "hns", "usnic", "rxe", "hfi1", "qib", "efa", "siw", "erdma", "mana",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Gid:
    """An entry of a port's GID table. ``type``: as in sysfs, "RoCE v2" or "IB/RoCE v1"."""

    index: int
    gid: str
    type: str
    netdev: str


@dataclass(frozen=True, slots=True)
class Port:
    """A port and its netdev. ``mtu``: of the netdev, in bytes. ``addresses``: with prefix length, "10.0.0.1/24"."""

    number: int
    state: str
    physical_state: str
    link_layer: str
    speed: str
    netdev: str
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]
    gids: tuple[Gid, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An RDMA device. A fact that the kernel does not give is "". A software device has its netdev's PCI address."""

    name: str
    protocol: str
    driver: str
    firmware: str
    node_guid: str
    pci_address: str
    ports: tuple[Port, ...]

    def __str__(self) -> str:
        ports = ", ".join(
            " ".join([f"port {p.number} {p.state}", p.netdev or "no netdev", *p.addresses]) for p in self.ports
        )
        return f"{self.name} ({self.driver}, GUID {self.node_guid}, PCI {self.pci_address or 'none'}): {ports}"


@dataclass(frozen=True, slots=True)
class _Netdev:
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]


def adapters() -> list[Adapter]:
    """Every RDMA device that this network namespace sees. Raises AdapterError where the kernel has no RDMA."""
    try:
        link = RdmaLink()
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        raise AdapterError(
            "this kernel has no RDMA (no RDMA netlink): load an adapter's module, or soft-RoCE with: modprobe rdma_rxe"
        ) from error
    netdevs = _netdevs()
    with link:
        return [_adapter(link, facts(Device, known), netdevs) for known in link.devices()]


def _adapter(link: RdmaLink, device: Device, netdevs: dict[str, _Netdev]) -> Adapter:
    ports = [facts(RdmaPort, port) for port in link.ports(device.index)]
    places = [INFINIBAND / device.name / "device", *(NET / p.netdev / "device" for p in ports if p.netdev)]
    return Adapter(
        name=device.name,
        protocol=device.protocol or "",
        driver=_driver(link, device),
        firmware=device.firmware or "",
        node_guid=device.node_guid,
        pci_address=next(filter(None, map(pci_address, places)), ""),
        ports=tuple(_port(device.name, port, netdevs) for port in ports),
    )


def _driver(link: RdmaLink, device: Device) -> str:
    try:
        number = link.character_device("uverbs", device.index)["UVERBS_DRIVER_ID"]
        return DRIVERS[number]
    except (OSError, KeyError, IndexError):
        # Without ib_uverbs there is no driver number. A hardware device still has its kernel driver's name.
        place = INFINIBAND / device.name / "device" / "driver"
        return place.resolve().name if place.exists() else "unknown"


def _port(device: str, port: RdmaPort, netdevs: dict[str, _Netdev]) -> Port:
    folder = INFINIBAND / device / "ports" / str(port.number)
    table = gid_table(device, port.number)
    name = port.netdev or ""
    own = netdevs.get(name, _Netdev("", 0, False, ()))
    return Port(
        number=port.number,
        state=port.state.name,
        physical_state=port.physical_state.name,
        link_layer=read_text(folder / "link_layer"),
        speed=read_text(folder / "rate"),
        netdev=name,
        mac=own.mac,
        mtu=own.mtu,
        up=own.up,
        addresses=own.addresses,
        gids=tuple(table),
    )


def gid_table(device: str, port: int, last_gap: int = 1 << 16) -> list[Gid]:
    """The used entries of a port's GID table, in order, up to a gap of more than ``last_gap`` empty entries."""
    folder = INFINIBAND / device / "ports" / str(port)
    found: list[Gid] = []
    # The kernel numbers the files without a gap. Listing and sorting a thousand files takes longer than reading a few.
    for index in itertools.count():
        if index - (found[-1].index if found else -1) > last_gap:
            break
        try:
            gid = (folder / "gids" / str(index)).read_text().strip()
        except FileNotFoundError:
            break
        except OSError:
            gid = ""
        if gid.strip("0:"):
            attributes = folder / "gid_attrs"
            kind, netdev = (read_text(attributes / name / str(index)) for name in ("types", "ndevs"))
            found.append(Gid(index, gid, kind, netdev))
    return found


def _netdevs() -> dict[str, _Netdev]:
    """The facts of every netdev from rtnetlink, by name."""
    with IPRoute() as ip:
        links, addresses = list(ip.get_links()), list(ip.get_addr())
    held: dict[int, list[str]] = {}
    for message in addresses:
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        held.setdefault(message["index"], []).append(f"{address}/{message['prefixlen']}")
    return {
        link.get_attr("IFLA_IFNAME"): _Netdev(
            link.get_attr("IFLA_ADDRESS") or "",
            link.get_attr("IFLA_MTU"),
            bool(link["flags"] & IFF_UP),
            tuple(held.get(link["index"], ())),
        )
        for link in links
    }


def standing() -> dict[str, Any]:
    """The present state of the network: netdevs with their addresses, states of RDMA ports, resolved neighbours."""
    with RdmaLink() as link:
        ports = [port for device in link.devices() for port in link.ports(device["DEV_INDEX"])]
    with IPRoute() as ip:
        neighbours = [known for known in ip.get_neighbours() if not known["state"] & NUD_NOARP]
    return {
        "netdevs": {name: asdict(netdev) for name, netdev in _netdevs().items()},
        "ports": {f"{p['DEV_NAME']}/{p['PORT_INDEX']}": p["PORT_STATE"] for p in ports},
        "neighbours": sorted(str(known.get_attr("NDA_DST")) for known in neighbours),
    }


def pci_address(place: Path) -> str:
    """The PCI address of the device behind a link in sysfs, or ""; for a virtio device that of its PCI device."""
    return next((part for part in reversed(place.resolve().parts) if PCI_ADDRESS.fullmatch(part)), "")


def choose(found: Sequence[Adapter], wanted: str) -> tuple[Adapter, Port]:
    """The adapter and port that ``wanted`` names by device, netdev, PCI address, GUID or IP address.

    The name of a device with several ports means its first port; "NAME/2" means its second. Raises AdapterError, which
    lists the adapters, when no adapter or several adapters match.
    """
    matching = [(adapter, port) for adapter in found for port in _meant(adapter, wanted)]
    # The address of a VLAN on a port's netdev is known only from the port's GIDs.
    matching = matching or [(a, p) for a in found for p in a.ports if _has_gid_of(wanted, p)]
    if len(matching) == 1:
        return matching[0]
    many = f"{wanted!r} means {len(matching)} adapters: choose by device name or netdev"
    none = f"there is no adapter {wanted!r}: choose by device name, netdev, PCI address, GUID or IP address"
    raise AdapterError((many if matching else none) + ". " + listed(found))


def netdevs_of(device: str) -> dict[int, str]:
    """The netdevs of an RDMA device's ports, by port number; an InfiniBand port has none."""
    with RdmaLink() as link:
        indexes = [known["DEV_INDEX"] for known in link.devices() if known["DEV_NAME"] == device]
        ports = [port for index in indexes for port in link.ports(index)]
        return {port["PORT_INDEX"]: port["NDEV_NAME"] for port in ports if "NDEV_NAME" in port}


def lower_of(netdev: str) -> list[str]:
    """All netdevs below a netdev such as a VLAN, direct and indirect."""
    lower = [path.name.removeprefix("lower_") for path in NET.glob(f"{netdev}/lower_*")]
    return lower + [name for below in lower for name in lower_of(below)]


def port_of(netdev: str, ports: dict[int, str]) -> int:
    """The number of the port below ``netdev``, or 1. ``ports``: of one device, as ``netdevs_of`` returns them."""
    return next((number for number, name in ports.items() if name in (netdev, *lower_of(netdev))), 1)


def listed(found: Iterable[Adapter]) -> str:
    """The adapters as text, one on each line."""
    return "\n  ".join(["There are:", *map(str, found)]) if found else "There are no RDMA devices."


def _meant(adapter: Adapter, wanted: str) -> list[Port]:
    name, _, number = wanted.rpartition("/")
    if name == adapter.name:
        return [port for port in adapter.ports if str(port.number) == number]
    if own := [port for port in adapter.ports if wanted == port.netdev or _same_address(wanted, port)]:
        return own
    whole = wanted == adapter.name or _same_guid(wanted, adapter) or _same_pci(wanted, adapter)
    return list(adapter.ports[:1]) if whole else []


def _same_address(wanted: str, port: Port) -> bool:
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        return False
    return any(ipaddress.ip_interface(known).ip == address for known in port.addresses)


def _has_gid_of(wanted: str, port: Port) -> bool:
    try:
        return gid_of(wanted) in {gid.gid for gid in port.gids}
    except ValueError:
        return False


def gid_of(address: str) -> str:
    """The RoCE v2 GID of an IP address (InfiniBand annex A17: IPv4 is mapped into IPv6). Raises ValueError."""
    parsed = ipaddress.ip_address(address)
    number = int(parsed) if parsed.version == 6 else 0xFFFF << 32 | int(parsed)
    digits = f"{number:032x}"
    return ":".join(digits[i : i + 4] for i in range(0, 32, 4))


def _same_guid(wanted: str, adapter: Adapter) -> bool:
    digits = wanted.lower().removeprefix("0x").replace(":", "")
    return len(digits) == 16 and digits == adapter.node_guid.replace(":", "")


def _same_pci(wanted: str, adapter: Adapter) -> bool:
    return bool(adapter.pci_address) and adapter.pci_address in (wanted.lower(), f"0000:{wanted.lower()}")


def read_text(path: Path) -> str:
    """The text of a file of sysfs, or "" when the kernel has no such file or no value for it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def plain(found: Iterable[Adapter]) -> list[dict[str, Any]]:
    """Adapters as plain data."""
    return [asdict(adapter) for adapter in found]
