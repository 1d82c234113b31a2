"""Packet sequence numbers: 24 bits, compared modulo 2**24 (InfiniBand volume 1, 9.7.2)."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NewType

Psn = NewType("Psn", int)
"""A packet sequence number, 0 to MASK."""

BITS = 24
MODULUS = 1 << BITS
MASK = MODULUS - 1
# A PSN follows another when it is less than this far ahead of it.
HALF = MODULUS >> 1


def psn_of(number: int) -> Psn:
    """A number modulo 2**24, as a PSN."""
    return Psn(number & MASK)


def not_before(psn: Psn, other: Psn) -> bool:
    """Whether ``psn`` is ``other`` or follows it."""
    return (psn - other) & MASK < HALF


def any_not_before(ascending: Sequence[Psn], other: Psn) -> bool:
    """Whether any PSN of ``ascending``, which is sorted by number, is ``other`` or follows it."""
    place = bisect_left(ascending, other)
    if place < len(ascending) and not_before(ascending[place], other):
        return True
    return bool(ascending) and not_before(ascending[0], other)
