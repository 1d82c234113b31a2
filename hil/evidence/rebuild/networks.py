"""Networks that use the same addresses, told apart by the MAC addresses that their frames are sent between."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hil.evidence.rebuild.rows import Flow

NO_MACS = (0, 0)
# Pairs of addresses, and networks and MAC addresses of one pair: beyond, the oldest are forgotten and the newest are
# not told apart.
PAIRS_KEPT, NETWORKS_KEPT, MACS_KEPT = 1 << 16, 256, 64


@dataclass(slots=True)
class Networks:
    """Follows which MAC addresses packets between two addresses have.

    Two networks have none in common. Routers have many, and a host's packets may take several of them: whatever shares
    one of its two MAC addresses with what was seen before is in the same network.
    """

    _known: dict[tuple[int, int, int], list[set[int]]] = field(default_factory=dict)

    def placed(self, flows: Iterable[Flow], macs: Iterable[tuple[int, int]]) -> Iterator[Flow]:
        """The flows, each in its network."""
        for flow, between in zip(flows, macs, strict=True):
            number = self._network(flow, between)
            yield flow._replace(segment=flow.segment._replace(network=number)) if number else flow

    def _network(self, flow: Flow, macs: tuple[int, int]) -> int:
        """The number of a flow's network; 0 is the first one between its addresses."""
        if macs == NO_MACS:
            return 0
        low, high = sorted((flow.source, flow.destination))
        key = flow.segment.tags, low, high
        networks = self._known.get(key)
        if networks is None:
            if len(self._known) >= PAIRS_KEPT:
                del self._known[next(iter(self._known))]
            networks = self._known[key] = []
        for number, known in enumerate(networks):
            if not known.isdisjoint(macs):
                if len(known) < MACS_KEPT:
                    known.update(macs)
                return number
        if len(networks) < NETWORKS_KEPT:
            networks.append(set(macs))
        return len(networks) - 1
