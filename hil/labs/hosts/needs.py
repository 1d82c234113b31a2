"""The unmet needs of a lab of hosts, and the likely mistakes in its file, derived from the file alone."""

from hil.labs.hosts.file import HostsFile, NodeSection
from hil.labs.hosts.kinds import capture_kind, node_kind
from hil.labs.needs import Need

TESTED = ("a", "b")


def lacks(lab: HostsFile) -> dict[Need, str]:
    """The needs that a lab does not meet, each with the reason for the author of its file."""
    found = {
        Need.INLINE_WIRE: "frames go from adapter to adapter, not through the bench",
        Need.CLONES: "its nodes are machines that exist without the bench",
        Need.GUESTS: "its nodes are machines with networks of their own",
        Need.OWN_NODES: "hosts must be restored after a run, and these tests leave them changed",
        Need.MANY_NODES: "tests of many nodes run on a lab of kind soft-bridge",
    }
    if unpowered := [name for name, node in lab.nodes.items() if name in TESTED and node.power is None]:
        found[Need.POWER] = f"[nodes.{unpowered[0]}] has no section power, which names the commands that halt the host"
    if reason := capture_kind(lab).lacks(lab.capture, lab):
        found[Need.CAPTURE] = reason
    if without := [name for name, node in lab.nodes.items() if node.adapter and not node.adapter.ipv6]:
        found[Need.IPV6] = f"[nodes.{without[0]}.adapter] names no ipv6"
    return found


def doubts(lab: HostsFile) -> list[str]:
    """Messages about likely mistakes in a valid lab file."""
    where = [_network(node) for name, node in lab.nodes.items() if name in TESTED]
    if len(set(where)) == len(where):
        return []
    return [
        "nodes a and b are one machine in one network namespace, and a kernel does not send packets for its own "
        "addresses to an adapter: without special routing no adapter is tested; give one node a namespace"
    ]


def _network(node: NodeSection) -> tuple[str, ...]:
    """The machine and the network namespace that a node is in, as its section names them."""
    return (node.kind, *node_kind(node).machine(node), node.namespace)
