"""What tests need of a lab, and what a lab has: told from the lab file alone, before anything is touched."""

from enum import StrEnum

from hil.labs.file import (
    HostCapture,
    HostsFile,
    LabFile,
    MirrorCapture,
    NoCapture,
    NodeSection,
    SoftBridgeFile,
    SoftPairFile,
)


class Need(StrEnum):
    """A property of labs that some have and some lack.

    CAPTURE: every frame between the nodes is recorded, and a missing one is noticed (how: ``guarantee``).
    INLINE_WIRE: frames pass through the bench, which can hold them back or change them. OWN_NODES: the nodes are the
    bench's; a test may change their addresses, take adapters away, and need not put anything back. POWER: a node can be
    halted and cut off at will. IPV6: adapters have an IPv6 address. GUESTS: the nodes are guests, whose netdevs and
    networks a test knows.
    MANY_NODES: sixteen nodes at least on one bridge. CLONES: the nodes are clones, on their distribution's own kernel.
    """

    PAIR = "pair"
    CAPTURE = "capture"
    INLINE_WIRE = "inline wire"
    OWN_NODES = "own nodes"
    POWER = "power control"
    IPV6 = "IPv6"
    GUESTS = "guests"
    MANY_NODES = "many nodes"
    CLONES = "clones"


MANY = 16


def lacks(lab: LabFile) -> dict[Need, str]:
    """What a lab has not, each with the reason, in words for the person who wrote its file."""
    if isinstance(lab, SoftPairFile):
        # Its guests can be made as often as a test likes.
        return _not_clones(lab)
    if isinstance(lab, SoftBridgeFile):
        found = _not_clones(lab) | {
            Need.PAIR: "contract tests run between two nodes on a wire; take a lab of kind soft-pair or hosts"
        }
        found[Need.INLINE_WIRE] = "the bridge carries every frame and changes none"
        if lab.bridge.nodes < MANY:
            found[Need.MANY_NODES] = f"[bridge] nodes is {lab.bridge.nodes}, {MANY} are needed"
        return found
    return _lacks_hosts(lab)


def _not_clones(lab: SoftPairFile | SoftBridgeFile) -> dict[Need, str]:
    other = lab.guest_b if isinstance(lab, SoftPairFile) else None
    kinds = {guest.kind for guest in (lab.guest, other) if guest is not None}
    return {} if kinds == {"clone"} else {Need.CLONES: f"[guest] kind is {', '.join(sorted(kinds - {'clone'}))}"}


def _lacks_hosts(lab: HostsFile) -> dict[Need, str]:
    found = {
        Need.INLINE_WIRE: "frames go from adapter to adapter, not through the bench",
        Need.POWER: "nobody can halt these hosts",
        Need.CLONES: "its nodes are machines that exist without the bench",
        Need.GUESTS: "its nodes are machines with networks of their own",
        Need.OWN_NODES: "hosts must be given back as they were, and these tests leave them changed",
        Need.MANY_NODES: "tests of many nodes run on a lab of kind soft-bridge",
    }
    if reason := capture_lacks(lab):
        found[Need.CAPTURE] = reason
    if without := [name for name, node in lab.nodes.items() if node.adapter and not node.adapter.ipv6]:
        found[Need.IPV6] = f"[nodes.{without[0]}.adapter] names no ipv6"
    return found


def capture_lacks(lab: HostsFile) -> str:
    """Why the capture of a lab of hosts cannot be complete, or an empty string when it can."""
    if isinstance(lab.capture, NoCapture):
        return "[capture] kind is none"
    if isinstance(lab.capture, MirrorCapture):
        return ""
    if lab.link.soft or _sees_hardware(lab.capture):
        return ""
    return (
        "RoCE frames of a hardware adapter pass its netdev by, so they are not in a capture there; mirror the port to "
        "a third node, or name an interface that dumpcap records RDMA on"
    )


def doubts(lab: LabFile) -> list[str]:
    """What of a lab file that holds no mistake is likely to be one, in words."""
    if not isinstance(lab, HostsFile):
        return []
    where = [_network(node) for name, node in lab.nodes.items() if name in ("a", "b")]
    if len(set(where)) == len(where):
        return []
    return [
        "nodes a and b are one machine in one network namespace, where a kernel keeps what it sends to its own "
        "addresses to itself: unless its routing was arranged for this, no adapter is tested; give one node a namespace"
    ]


def _network(node: NodeSection) -> tuple[str, ...]:
    """The machine and the network namespace that a node is in, as its section names them."""
    machine = ("", "", "") if node.kind == "local" else (node.host, str(node.port), node.config)
    return (*machine, node.namespace)


def guarantee(lab: LabFile) -> str:
    """How a frame that is missing in the captures of a lab is noticed."""
    if not isinstance(lab, HostsFile):
        return "each node's frames are counted against its adapter's counters"
    drops = "the recording's own drops are counted"
    gaps = f"{drops}; PSNs and answers tell of others, but not of a last frame that nothing else speaks of"
    if isinstance(lab.capture, HostCapture) and lab.link.soft and not lab.capture.interface:
        counted = f"the frames of node {lab.capture.on} are counted against its adapter's counters, and {drops}"
        return counted if lab.capture.method == "packet-socket" else gaps
    if isinstance(lab.capture, HostCapture) and not lab.link.soft:
        uncounted = "libpcap counts no drops on an RDMA device, and stamps frames when it reads them"
        return f"{uncounted}; {gaps.removeprefix(f'{drops}; ')}"
    return gaps


def _sees_hardware(capture: HostCapture) -> bool:
    return bool(capture.interface) and capture.method != "packet-socket"
