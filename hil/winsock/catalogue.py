"""An emulation of the Winsock catalogue and the registry, as far as a switch needs them to find its providers.

On Windows the system has both; here they are two mappings that a provider's installation fills.
"""

from dataclasses import dataclass, field
from uuid import UUID

from hil.winsock.codes import PFL_HIDDEN
from hil.winsock.structures import WSAPROTOCOL_INFOW

# The key whose values hold the GUIDs of the SAN providers for the switch (INST).
TCP_ON_SAN = "Winsock\\TCP on SAN"


class NoProvider(LookupError):
    """No SAN service provider is installed."""


@dataclass(slots=True)
class Catalogue:
    """``entries``: published by providers. ``registry``: maps a key to value names, and a value name to its bytes."""

    entries: list[WSAPROTOCOL_INFOW] = field(default_factory=list)
    registry: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def install(self, entry: WSAPROTOCOL_INFOW, name: str) -> None:
        """Publish ``entry`` and record its ProviderId for the switch, under the value ``name``."""
        self.entries.append(entry)
        self.registry.setdefault(TCP_ON_SAN, {})[name] = entry.ProviderId.bytes_le

    def visible(self) -> list[WSAPROTOCOL_INFOW]:
        """The entries that an application sees when it lists the protocols: those that are not hidden (INST-01)."""
        return [entry for entry in self.entries if not entry.dwProviderFlags & PFL_HIDDEN]

    def san_provider(self) -> WSAPROTOCOL_INFOW:
        """The entry that the switch loads: the first whose GUID is recorded (INST-02). Raises NoProvider."""
        recorded = [UUID(bytes_le=value) for value in self.registry.get(TCP_ON_SAN, {}).values()]
        for entry in self.entries:
            if entry.ProviderId in recorded:
                return entry
        raise NoProvider(f"no provider of the catalogue is recorded under {TCP_ON_SAN}")
