"""Lab files of hosts: the sections and keys of machines that exist without the bench."""

# A NewType, and a frozen section: neither is a default that could change.
# ruff: noqa: RUF009

from typing import Literal

import attrs

from hil.labs.schema import (
    STAND_IN,
    AnyMtu,
    Host,
    Ipv4,
    Ipv4Prefix,
    Ipv6,
    Ipv6Prefix,
    LabSection,
    Name,
    Namespace,
    NetdevName,
    Priority,
    ProviderSection,
    TcpPort,
    TrafficClass,
)

PROVISIONED = ("soft_roce", "mtu", "flow_control", "traffic_class", "settings")


@attrs.frozen
class Adapter:
    """``[nodes.NAME.adapter]``: the RDMA device, the netdev below it, and the addresses that it has.

    ``device`` is its name, or what ``hil adapters`` finds it by: a netdev, PCI address, GUID or IP address.

    ``provision``: give it what it lacks of these for the run, and take it away again: addresses with their prefix
    lengths, ``mtu`` unless 0, link up, and with ``soft_roce`` a soft-RoCE device of that name on the netdev. Only
    where they are written: ``flow_control``, the priorities that have PFC and no others; ``traffic_class`` of
    connections that choose none, its two lowest bits ECN's; ``settings``, files below /sys/class/net and /proc/sys/net,
    such as a driver's ECN switches, and what to write into them.
    """

    device: Name
    netdev: NetdevName
    ipv4: Ipv4
    ipv6: Ipv6 = Ipv6("")
    provision: bool = False
    soft_roce: bool = False
    ipv4_prefix: Ipv4Prefix = Ipv4Prefix(24)
    ipv6_prefix: Ipv6Prefix = Ipv6Prefix(64)
    mtu: AnyMtu = AnyMtu(0)
    flow_control: tuple[Priority, ...] | None = None
    traffic_class: TrafficClass | None = None
    settings: dict[str, str] | None = None


@attrs.frozen(kw_only=True)
class PowerSection:
    """``[nodes.NAME.power]``: how the machine is halted and cut off; a kind of power control has a subclass of this."""

    kind: str


@attrs.frozen(kw_only=True)
class NodeSection:
    """``[nodes.NAME]``: what every kind of node has; each has a subclass of this.

    ``sudo``: become root with ``sudo -n``. ``namespace``: run in this network namespace; with ``make_namespace`` it is
    made where it is not there, and the adapter's netdev is moved into it, for the run.
    """

    kind: str
    python: str = "python3"
    sudo: bool = False
    namespace: Namespace = Namespace("")
    make_namespace: bool = False
    adapter: Adapter | None = None
    power: PowerSection | None = None


@attrs.frozen(kw_only=True)
class SshNode(NodeSection):
    """``kind = "ssh"``: a host as the user's own ssh reaches it.

    ``host`` is a name or an alias of the ssh configuration; ``port`` 0 and empty strings leave it to that.
    ``config``, ``identity`` and ``known_hosts`` are paths, relative to the lab file's folder.
    """

    host: Host
    user: str = ""
    port: TcpPort = TcpPort(0)
    config: str = ""
    identity: str = ""
    known_hosts: str = ""


@attrs.frozen(kw_only=True)
class LocalNode(NodeSection):
    """``kind = "local"``: this machine."""


@attrs.frozen
class Cable:
    """``[link]`` between hosts. ``kind``: what is between the adapters, ``internal`` when both are in one host.

    ``soft``: the adapters are soft-RoCE, so that netdevs see their frames. ``cabling`` is for people, and stands in
    every result.
    """

    kind: Literal["cable", "switch", "internal"] = "cable"
    soft: bool = False
    cabling: str = ""


@attrs.frozen(kw_only=True)
class CaptureSection:
    """``[capture]``: where frames are recorded; each kind of capture point has a subclass of this."""

    kind: str


@attrs.frozen(kw_only=True)
class NoCapture(CaptureSection):
    """``kind = "none"``: nothing is recorded, so nothing about the wire can be judged."""


@attrs.frozen(kw_only=True)
class HostCapture(CaptureSection):
    """``kind = "host"``: on node a's or b's own netdev.

    ``method``: ``packet-socket`` is the bench's own, the others are programs that the node must have.
    ``interface``: what to record on when it is not the adapter's netdev, as dumpcap calls it.
    """

    on: Literal["a", "b"] = "a"
    method: Literal["packet-socket", "dumpcap", "tcpdump"] = "packet-socket"
    interface: str = ""


@attrs.frozen(kw_only=True)
class MirrorCapture(CaptureSection):
    """``kind = "mirror"``: on a third node, whose ``netdev`` the switch mirrors the link to."""

    node: Name
    netdev: Name
    method: Literal["packet-socket", "dumpcap", "tcpdump"] = "packet-socket"


@attrs.frozen
class HostsFile:
    """Machines that exist without the bench: nodes a and b with an adapter each, and the capture point."""

    lab: LabSection
    nodes: dict[Name, NodeSection]
    capture: CaptureSection = attrs.field(metadata={STAND_IN: {"kind": "none"}})
    link: Cable = Cable()
    provider: ProviderSection = ProviderSection()
