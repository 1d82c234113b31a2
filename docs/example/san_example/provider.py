"""A provider under test: it has a catalogue entry and settings of its own, and keeps the contract.

This module is imported on the nodes only, where pyverbs is. To save code the example inherits the bench's provider; any
class with the shape of ``hil.provider.seam.SanProvider`` will do.
"""

import time
from dataclasses import dataclass, replace
from typing import ClassVar
from uuid import UUID

from hil.provider import settings
from hil.provider.library import PROTOCOL_INFO
from hil.provider.provider import Provider
from hil.winsock.structures import WSAPROTOCOL_INFOW, LpErrno


@dataclass(frozen=True, slots=True)
class Settings(settings.Settings):
    """``close_late_s``: seconds that WSPCloseSocket waits before it resets the connection: a defect (CLOSE-07)."""

    close_late_s: float = 0.0


class ExampleProvider(Provider):
    """The bench's provider under another name, with one setting more."""

    Settings: ClassVar[type[Settings]] = Settings
    protocol_info: ClassVar[WSAPROTOCOL_INFOW] = replace(
        PROTOCOL_INFO, dwCatalogEntryId=2002, ProviderId=UUID("0d3f5c4e-8a52-4c0f-9d0b-2b7d1c1a9e11")
    )

    def WSPCloseSocket(self, s: int, lpErrno: LpErrno) -> int:
        """Close as the bench's provider does, and late where that is set."""
        assert isinstance(self._settings, Settings)
        time.sleep(self._settings.close_late_s)
        return super().WSPCloseSocket(s, lpErrno)
