"""The capture points of labs of hosts: on a node's own netdev, on a mirror port, and none."""

from collections.abc import Iterator
from typing import Any, Literal

from hil.labs.findings import INSTALL, Finding, Level
from hil.labs.hosts.capture import NodeCapture
from hil.labs.hosts.file import HostCapture, HostsFile, MirrorCapture, NoCapture
from hil.labs.hosts.kinds import CaptureKind, Scene
from hil.labs.schema import NetdevName, netdev_name, table
from hil.wire.point import NothingRecorded

DROPS = "the recording's own drops are counted"
GAPS = "PSNs and answers reveal other losses, but not a lost last frame"
METHOD_PACKAGES = {"dumpcap": "wireshark-common"}


class NoCaptureKind:
    """A lab without a capture point."""

    schema = NoCapture

    def mistakes(self, section: NoCapture, lab: HostsFile, written: dict[str, Any]) -> list[str]:
        return []

    def lacks(self, section: NoCapture, lab: HostsFile) -> str:
        return "[capture] kind is none"

    def guarantee(self, section: NoCapture, lab: HostsFile) -> str:
        return "nothing is recorded"

    def node(self, section: NoCapture) -> str:
        return ""

    def examine(self, section: NoCapture, lab: HostsFile, facts: dict[str, Any]) -> list[Finding]:
        return []

    def open(self, section: NoCapture, scene: Scene) -> NothingRecorded:
        return NothingRecorded(scene.path)


class HostCaptureKind:
    """A capture point on node a's or b's own netdev."""

    schema = HostCapture

    def mistakes(self, section: HostCapture, lab: HostsFile, written: dict[str, Any]) -> Iterator[str]:
        if section.interface == "any":
            yield "[capture.interface] a recording of any has no Ethernet frames: name one netdev or RDMA device"

    def lacks(self, section: HostCapture, lab: HostsFile) -> str:
        sees_hardware = bool(section.interface) and section.method != "packet-socket"
        if lab.link.soft or sees_hardware:
            return ""
        return (
            "RoCE frames of a hardware adapter pass its netdev by, so they are not in a capture there; mirror the port "
            "to a third node, or name an interface that dumpcap records RDMA on"
        )

    def guarantee(self, section: HostCapture, lab: HostsFile) -> str:
        if not lab.link.soft:
            return f"libpcap counts no drops on an RDMA device, and stamps frames when it reads them; {GAPS}"
        if section.interface or section.method != "packet-socket":
            return f"{DROPS}; {GAPS}"
        return f"the frames of node {section.on} are counted against its adapter's counters, and {DROPS}"

    def node(self, section: HostCapture) -> str:
        return section.on

    def examine(self, section: HostCapture, lab: HostsFile, facts: dict[str, Any]) -> Iterator[Finding]:
        adapter = next(node.adapter for name, node in lab.nodes.items() if name == section.on)
        own = adapter.netdev if adapter else ""
        return _recorder(section.on, section.method, section.interface or own, facts)

    def open(self, section: HostCapture, scene: Scene) -> NodeCapture:
        place = scene.place(section.on)
        counted = scene.soft and not section.interface and section.method == "packet-socket"
        return NodeCapture(
            scene.nodes[section.on],
            section.method,
            section.interface or place.netdev,
            scene.path,
            _macs(scene),
            (section.on,) if counted else (),
            polled=not scene.soft,
        )


class MirrorCaptureKind:
    """A capture point on a third node, whose netdev the link is mirrored to."""

    schema = MirrorCapture

    def mistakes(self, section: MirrorCapture, lab: HostsFile, written: dict[str, Any]) -> Iterator[str]:
        if table(written, "nodes", section.node) is None:
            yield f"[capture.node] there is no node {section.node!r}; known are {', '.join(written['nodes'])}"
        if section.node in ("a", "b") and not lab.link.soft:
            yield (
                f"[capture.node] node {section.node} is tested: RoCE frames of a hardware adapter pass its netdevs by; "
                "mirror the port to a third node"
            )
        if section.method == "packet-socket":
            try:
                netdev_name(section.netdev, NetdevName)
            except ValueError as error:
                yield f"[capture.netdev] {error}"

    def lacks(self, section: MirrorCapture, lab: HostsFile) -> str:
        return ""

    def guarantee(self, section: MirrorCapture, lab: HostsFile) -> str:
        return f"{DROPS}; {GAPS}"

    def node(self, section: MirrorCapture) -> str:
        return section.node

    def examine(self, section: MirrorCapture, lab: HostsFile, facts: dict[str, Any]) -> Iterator[Finding]:
        return _recorder(section.node, section.method, section.netdev, facts)

    def open(self, section: MirrorCapture, scene: Scene) -> NodeCapture:
        return NodeCapture(scene.nodes[section.node], section.method, section.netdev, scene.path, _macs(scene))


def _macs(scene: Scene) -> dict[str, str]:
    return {place.name: place.mac for place in scene.places}


Method = Literal["packet-socket", "dumpcap", "tcpdump"]


def _recorder(node: str, method: Method, interface: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Check that a node can record on ``interface``."""
    what = f"node {node}"
    # libpcap also records on RDMA devices, by their names.
    there = [*facts["netdevs"], *(facts["rdma netlink"] if isinstance(facts["rdma netlink"], list) else [])]
    # libpcap calls the second port of an RDMA device NAME:2.
    named = interface if interface in facts["netdevs"] else interface.partition(":")[0]
    if named not in (facts["netdevs"] if method == "packet-socket" else there):
        yield Finding(Level.BAD, what, f"there is no {interface} to record on (there is: {', '.join(there)})")
    if method == "packet-socket" and "CAP_NET_RAW" not in facts["capabilities"]:
        mend = "log in as root, or set sudo = true"
        yield Finding(Level.BAD, what, "CAP_NET_RAW is missing, which recording needs", mend)
    if method != "packet-socket" and method not in facts["programs"]:
        package = METHOD_PACKAGES.get(method, method)
        yield Finding(Level.BAD, what, f"the capture program {method} is missing", INSTALL.format(package))


HOST: CaptureKind = HostCaptureKind()
MIRROR: CaptureKind = MirrorCaptureKind()
NONE: CaptureKind = NoCaptureKind()
