"""Distinguishes networks that use the same IP addresses by the MAC addresses of their frames."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hil.evidence.rebuild.rows import Flow

NO_MACS = (0, 0)
# The most pairs of addresses, and the most networks and MAC addresses of one pair. Beyond, the oldest pair of addresses
# is forgotten, and new networks of a pair are not distinguished.
PAIRS_KEPT, NETWORKS_KEPT, MACS_KEPT = 1 << 16, 256, 64


Macs = tuple[int, int]


@dataclass(slots=True)
class _Network:
    """The pairs of MAC addresses of packets between two addresses, for each of the two directions."""

    pairs: tuple[set[Macs], set[Macs]] = field(default_factory=lambda: (set(), set()))

    def shares(self, way: int, macs: Macs) -> bool:
        """Whether a pair seen in direction ``way`` has one of ``macs``."""
        return any(mac in pair for pair in self.pairs[way] for mac in macs)


@dataclass(slots=True)
class Networks:
    """Assigns flows to networks by their MAC addresses.

    Two networks share no MAC address. Routers have many, and a host's packets may take several routers. So a flow that
    shares one of its two MAC addresses with an earlier flow is in the same network; flows in the same direction are
    compared first. A pair of MAC addresses stays in its network.
    """

    _known: dict[tuple[int, int, int], list[_Network]] = field(default_factory=dict)

    def placed(self, flows: Sequence[Flow], macs: Sequence[Macs], order: Iterable[int]) -> list[Flow]:
        """The flows with their networks. ``macs``: of each flow. ``order``: the order of the flows in the capture."""
        found = list(flows)
        for index in order:
            if number := self._network(flows[index], macs[index]):
                segment = flows[index].segment._replace(network=number)
                found[index] = flows[index]._replace(segment=segment)
        return found

    def _network(self, flow: Flow, macs: Macs) -> int:
        """The number of a flow's network, from 0 for the first one between its addresses."""
        if macs == NO_MACS:
            return 0
        low, high = sorted((flow.source, flow.destination))
        way, key = int(flow.source > flow.destination), (flow.segment.tags, low, high)
        networks = self._known.get(key)
        if networks is None:
            if len(self._known) >= PAIRS_KEPT:
                del self._known[next(iter(self._known))]
            networks = self._known[key] = []
        number = self._found(networks, way, macs)
        pairs = networks[number].pairs[way]
        if len(pairs) < MACS_KEPT:
            pairs.add(macs)
        return number

    def _found(self, networks: list[_Network], way: int, macs: Macs) -> int:
        tests: tuple[Callable[[_Network], bool], ...] = (
            lambda network: macs in network.pairs[way],
            lambda network: network.shares(way, macs),
            lambda network: network.shares(1 - way, macs),
        )
        for test in tests:
            for number, network in enumerate(networks):
                if test(network):
                    return number
        if len(networks) < NETWORKS_KEPT:
            networks.append(_Network())
        return len(networks) - 1
