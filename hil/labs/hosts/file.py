"""Lab files of hosts: the sections and keys of machines that exist without the bench."""

# RUF009: the defaults are a NewType and a frozen section, and neither can change.
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
    """``[nodes.NAME.adapter]``: the RDMA device, the netdev below it, and its addresses.

    ``device`` is the device's name, or a netdev, PCI address, GUID or IP address by which ``hil adapters`` finds it.

    ``provision``: configure the adapter for the run, and undo it afterwards. This sets missing addresses with their
    prefix lengths, ``mtu`` unless it is 0, and the link up; with ``soft_roce`` it makes a soft-RoCE device of that name
    on the netdev. Three keys have an effect only if they are written: ``flow_control``, the priorities that have PFC,
    all others have none; ``traffic_class`` of connections that choose none, its two lowest bits are ECN's;
    ``settings``, files below /sys/class/net and /proc/sys/net, such as a driver's ECN switches, with their new content.
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
    """``[nodes.NAME.power]``: the node's power control. Each kind of power control has a subclass of this."""

    kind: str


@attrs.frozen(kw_only=True)
class NodeSection:
    """``[nodes.NAME]``: the keys of every kind of node. Each kind has a subclass of this.

    ``sudo``: become root with ``sudo -n``. ``namespace``: run in this network namespace. With ``make_namespace`` a
    missing namespace is made for the run, and the adapter's netdev is moved into it.
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

    ``host`` is a name or an alias of the ssh configuration. ``port`` 0 and empty strings mean: as ssh is configured.
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
    """``[link]`` between hosts. ``kind``: how the adapters are connected, ``internal`` when both are in one host.

    ``soft``: the adapters are soft-RoCE, so that netdevs see their frames. ``cabling`` is a note for people, which
    every result repeats.
    """

    kind: Literal["cable", "switch", "internal"] = "cable"
    soft: bool = False
    cabling: str = ""


@attrs.frozen(kw_only=True)
class CaptureSection:
    """``[capture]``: the capture point. Each kind of capture point has a subclass of this."""

    kind: str


@attrs.frozen(kw_only=True)
class NoCapture(CaptureSection):
    """``kind = "none"``: no frames are recorded, so the wire cannot be judged."""


@attrs.frozen(kw_only=True)
class HostCapture(CaptureSection):
    """``kind = "host"``: on node a's or b's own netdev.

    ``method``: ``packet-socket`` is the bench's own method; the others are programs that the node must have.
    ``interface``: dumpcap's name of the interface to record on, if it is not the adapter's netdev.
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
