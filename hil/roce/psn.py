"""Packet sequence numbers: 24 bits, compared modulo 2**24 (InfiniBand volume 1, 9.7.2)."""

MASK = (1 << 24) - 1
# A PSN less than this far ahead of another follows it; the rest is behind.
HALF = 1 << 23


def not_before(psn: int, other: int) -> bool:
    """Whether ``psn`` is ``other`` or follows it."""
    return (psn - other) & MASK < HALF
