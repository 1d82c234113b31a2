"""The Winsock catalogue and the registry, as far as a switch needs them to find its providers. Both are emulated.

On Windows they are the system's; here they are two mappings that a provider's installation fills.
"""

from dataclasses import dataclass, field
from uuid import UUID

from hil.winsock.codes import PFL_HIDDEN
from hil.winsock.structures import WSAPROTOCOL_INFOW

# The key below which the switch looks for SAN providers, and the name of the value with a provider's GUID (INST).
TCP_ON_SAN = "Winsock\\TCP on SAN"


class NoProvider(LookupError):
    """No SAN service provider is installed."""


@dataclass(slots=True)
class Catalogue:
    """``entries``: what providers publish; ``registry``: key to value name to binary value."""

    entries: list[WSAPROTOCOL_INFOW] = field(default_factory=list)
    registry: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def install(self, entry: WSAPROTOCOL_INFOW, name: str) -> None:
        """Publish ``entry`` and record its ProviderId for the switch, under the value ``name``."""
        self.entries.append(entry)
        self.registry.setdefault(TCP_ON_SAN, {})[name] = entry.ProviderId.bytes_le

    def visible(self) -> list[WSAPROTOCOL_INFOW]:
        """What an application sees when it lists the protocols: nothing that is hidden (INST-01)."""
        return [entry for entry in self.entries if not entry.dwProviderFlags & PFL_HIDDEN]

    def san_provider(self) -> WSAPROTOCOL_INFOW:
        """The entry the switch loads: the first whose GUID is recorded for it (INST-02). Raises NoProvider."""
        recorded = [UUID(bytes_le=value) for value in self.registry.get(TCP_ON_SAN, {}).values()]
        for entry in self.entries:
            if entry.ProviderId in recorded:
                return entry
        raise NoProvider(f"no provider of the catalogue is recorded under {TCP_ON_SAN}")
