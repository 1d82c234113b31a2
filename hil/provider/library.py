"""The provider as its loader sees it: a library with one entry point."""

from collections.abc import Callable

from hil.provider.provider import Provider


class Library:
    """WSPStartupEx is all that a SAN service provider exports (STARTUP-01)."""

    def __init__(self, provider: Provider) -> None:
        self.WSPStartupEx: Callable[..., int] = provider.WSPStartupEx
