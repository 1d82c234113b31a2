"""The extension point of the provider under test.

A provider from another package is a factory with the shape of ``ProviderFactory``. The command ``hil run
--provider PACKAGE.MODULE:FACTORY`` copies the Python files of its top-level package to both nodes and calls it there.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from hil.adapters.network import Network
from hil.provider.settings import Settings
from hil.winsock.structures import WSAPROTOCOL_INFOW, WSPDATA

Journal = Callable[..., None]
"""``journal(kind, **facts)``: writes one entry with the time and the thread of the call. Any thread may call it."""


class SanProvider(Protocol):
    """A SAN service provider as its loader sees it: one export, WSPStartupEx (STARTUP-01)."""

    def WSPStartupEx(
        self,
        wVersionRequested: int,
        lpWSPData: WSPDATA | None,
        lpProtocolInfo: WSAPROTOCOL_INFOW,
        UpCallTable: Any,
        lpProcTable: dict[str, Callable[..., Any]] | None,
    ) -> int:
        """Start the provider for one client of the switch; returns 0, or a Windows Sockets error code.

        The call comes in the worker's thread that serves the controller's call. Other threads may make the same call at
        the same time (STARTUP-12). The provider fills ``lpProcTable`` with the seventeen functions of the dispatch
        table, by their documented names. Each function takes its documented arguments in order; any thread may call it.
        ``UpCallTable`` is a ``hil.winsock.structures.WSPUPCALLTABLEEX``. Raises nothing: an error is a code.
        """


class ProviderFactory(Protocol):
    """Makes a provider in a worker process on a node, before the first WSPStartupEx.

    The worker calls it once for each load of the provider, in the thread that serves the controller's call. Verbs
    objects that the provider makes belong to this process. An exception ends the test as invalid.

    ``journal``: the provider reports here the work below its functions. The rules over evidence read the kinds ``qp``,
    ``mr``, ``cm`` and ``wc``; ``hil/evidence/journal.py`` has their facts. ``network``: the IP addresses of the node's
    RDMA devices, and notices of their changes. ``settings``: an instance of the factory's class ``Settings``, or of
    ``hil.provider.settings.Settings`` when the factory has none; times are in seconds. ``protocol_info``: the entry of
    the catalogue that the provider installs (INST-01 to INST-05), or the bench's own when the factory has none.
    """

    Settings: ClassVar[type[Any]]
    protocol_info: ClassVar[WSAPROTOCOL_INFOW]

    def __call__(self, journal: Journal, network: Network, settings: Any) -> SanProvider: ...


class NoSuchSetting(Exception):
    """A test uses settings that the provider under test does not have; the text begins with their names."""


def settings_of(factory: Any, values: Mapping[str, Any]) -> Any:
    """The factory's settings with ``values``; other settings keep their defaults. Raises NoSuchSetting."""
    cls = getattr(factory, "Settings", Settings)
    known = inspect.signature(cls).parameters
    if unknown := sorted(values.keys() - known.keys()):
        raise NoSuchSetting(f"{', '.join(unknown)}: the provider has no such setting; it has {', '.join(known)}")
    return cls(**values)
