"""Networks that use the same addresses, told apart by the MAC addresses that their frames are sent between."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hil.evidence.rebuild.rows import Flow

NO_MACS = (0, 0)
# Pairs of addresses, and networks and MAC addresses of one pair: beyond, the oldest are forgotten and the newest are
# not told apart.
PAIRS_KEPT, NETWORKS_KEPT, MACS_KEPT = 1 << 16, 256, 64


Macs = tuple[int, int]


@dataclass(slots=True)
class _Network:
    """The pairs of MAC addresses of packets one way and the other way between two addresses."""

    pairs: tuple[set[Macs], set[Macs]] = field(default_factory=lambda: (set(), set()))

    def shares(self, way: int, macs: Macs) -> bool:
        """Whether a pair seen this way has one of ``macs``."""
        return any(mac in pair for pair in self.pairs[way] for mac in macs)


@dataclass(slots=True)
class Networks:
    """Follows which MAC addresses packets between two addresses have.

    Two networks have none in common. Routers have many, and a host's packets may take several of them: whatever shares
    one of its two MAC addresses with what was seen before is in the same network, with what went the same way first.
    A pair of MAC addresses stays in the network that it was found in.
    """

    _known: dict[tuple[int, int, int], list[_Network]] = field(default_factory=dict)

    def placed(self, flows: Sequence[Flow], macs: Sequence[Macs], order: Iterable[int]) -> list[Flow]:
        """The flows, each in its network; ``order`` is that in which they come."""
        found = list(flows)
        for index in order:
            if number := self._network(flows[index], macs[index]):
                segment = flows[index].segment._replace(network=number)
                found[index] = flows[index]._replace(segment=segment)
        return found

    def _network(self, flow: Flow, macs: Macs) -> int:
        """The number of a flow's network; 0 is the first one between its addresses."""
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
