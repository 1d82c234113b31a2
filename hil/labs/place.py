"""A node's place in a lab: its adapter there, and their addresses."""

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from hil.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Place:
    """A node's place in a lab: its adapter and netdev there, and their addresses; ``ipv6`` may be missing."""

    name: str
    mac: str
    ipv4: str
    ipv6: str
    netdev: str = "eth0"
    device: str = "rxe0"
    ipv4_prefix: int = 24
    ipv6_prefix: int = 64

    def unused_address(self, *, ipv6: bool = False, taken: Collection[str] = ()) -> str:
        """An address on the node's network that no machine of a lab has and that is not in ``taken``.

        It is the 98th address after the node's own, or the next free one. Raises Unsupported if the network has no
        other address.
        """
        ip, length = (self.ipv6, self.ipv6_prefix) if ipv6 else (self.ipv4, self.ipv4_prefix)
        own = ipaddress.ip_interface(f"{ip}/{length}")
        size = own.network.num_addresses
        # Exclude the network address, which is the first, and the broadcast address, which is the last.
        inside = ((int(own.ip) - int(own.network.network_address) + step) % size for step in range(98, 98 + size))
        for found in (str(own.network[number]) for number in inside if number not in (0, size - 1)):
            if found != ip and found not in taken:
                return found
        raise Unsupported(f"the network of {own} has no unused address")
