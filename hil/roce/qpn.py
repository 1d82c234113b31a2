"""Queue pair numbers: 24 bits (InfiniBand volume 1, 9.2.5)."""

from typing import NewType

Qpn = NewType("Qpn", int)
"""A queue pair's number on its adapter, 0 to MASK."""

MASK = (1 << 24) - 1


def qpn_of(number: int) -> Qpn:
    """The QPN in the low 24 bits of a number."""
    return Qpn(number & MASK)
