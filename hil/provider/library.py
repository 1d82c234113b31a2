"""The provider as its loader sees it: its entry in the catalogue, and a library with one entry point."""

from collections.abc import Callable
from uuid import UUID

from hil.provider.seam import SanProvider
from hil.winsock import codes as w
from hil.winsock.catalogue import Catalogue
from hil.winsock.structures import WSAPROTOCOL_INFOW

# The entry is hidden from applications, because only the switch may load the provider (INST-01). It offers no datagrams
# and no QoS, and its handles belong to the switch, not to the system (INST-03 to INST-05).
PROTOCOL_INFO = WSAPROTOCOL_INFOW(
    w.AF_INET,
    w.SOCK_STREAM,
    w.IPPROTO_TCP,
    dwCatalogEntryId=2001,
    dwServiceFlags1=w.XP1_GUARANTEED_DELIVERY | w.XP1_GUARANTEED_ORDER | w.XP1_MESSAGE_ORIENTED | w.XP1_CONNECT_DATA,
    dwProviderFlags=w.PFL_HIDDEN,
    ProviderId=UUID("5f0a2c1e-6d41-4b57-9c55-0f6a4e0b7d21"),
)


def install(catalogue: Catalogue, info: WSAPROTOCOL_INFOW = PROTOCOL_INFO) -> None:
    """An installer's work: publish the provider and record its GUID for the switch (INST-02)."""
    catalogue.install(info, "SAN service provider over verbs")


class Library:
    """The library of a SAN service provider; it exports only WSPStartupEx (STARTUP-01)."""

    def __init__(self, provider: SanProvider) -> None:
        self.WSPStartupEx: Callable[..., int] = provider.WSPStartupEx
