"""A log of the actions of faults and tests on the wire."""

from typing import Any

LIMIT = 100_000
PAGE = 1000


class Log:
    """Entries in order. Entries beyond ``LIMIT`` are only counted."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self.unlogged = 0

    def add(self, t_ns: int, kind: str, **facts: Any) -> None:
        """Add an entry: ``t_ns`` on the monotonic clock, ``kind`` and further facts."""
        if len(self._entries) >= LIMIT:
            self.unlogged += 1
            return
        self._entries.append({"t_ns": t_ns, "kind": kind} | facts)

    def page(self, start: int) -> list[dict[str, Any]]:
        """At most ``PAGE`` entries, beginning with the ``start``-th."""
        return self._entries[start : start + PAGE]
