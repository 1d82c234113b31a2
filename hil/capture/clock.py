"""Conversion of a capture's ticks to nanoseconds since the epoch (pcapng specification, if_tsresol, if_tsoffset)."""

import numpy as np

from hil.capture.chunk import Integers, Unsigned

NANOSECONDS = 9
_SECOND_NS = 1_000_000_000
_LATEST_NS = 2**63 - 1


def to_ns(ticks: Unsigned, resolution: int) -> Integers:
    """``ticks`` in nanoseconds, rounded down. ``resolution`` is the byte of if_tsresol.

    The byte is a negative power of ten, or of two when its upper bit is set. Times after the year 2262 become
    2**63 - 1.
    """
    if resolution & 0x80:
        return _of_binary(ticks, resolution & 0x7F)
    if resolution <= NANOSECONDS:
        return _multiplied(ticks, 10 ** (NANOSECONDS - resolution))
    divisor = 10 ** (resolution - NANOSECONDS)
    return (ticks // np.uint64(divisor) if divisor < 2**64 else np.zeros_like(ticks)).astype(np.int64)


def tick_ns(resolution: int) -> int:
    """The length of a tick in nanoseconds, rounded up. ``resolution`` is the byte of if_tsresol."""
    ticks = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    return -(-_SECOND_NS // ticks)


def shifted(time_ns: Integers, seconds: Integers) -> Integers:
    """``time_ns`` plus the whole seconds of if_tsoffset, limited to the range of 64 bits."""
    whole = np.clip(seconds, -(2**32), 2**32) * _SECOND_NS
    held: Integers = np.minimum(time_ns, _LATEST_NS - np.maximum(whole, 0))
    return held + whole


def _multiplied(ticks: Unsigned, factor: int) -> Integers:
    return (np.minimum(ticks, np.uint64(_LATEST_NS // factor)) * np.uint64(factor)).astype(np.int64)


def _of_binary(ticks: Unsigned, bits: int) -> Integers:
    if bits <= 32:
        # One second below the latest time leaves room for the fraction.
        seconds = np.minimum(ticks >> np.uint64(bits), np.uint64(_LATEST_NS // _SECOND_NS - 1))
        fraction = ticks & np.uint64(2**bits - 1)
        return _multiplied(seconds, _SECOND_NS) + (fraction * np.uint64(_SECOND_NS) >> np.uint64(bits)).astype(np.int64)
    # The product has up to 94 bits. It is computed in two halves, and only its upper part is needed.
    high, low = ticks >> np.uint64(32), ticks & np.uint64(2**32 - 1)
    upper = high * np.uint64(_SECOND_NS) + (low * np.uint64(_SECOND_NS) >> np.uint64(32))
    return (upper >> np.uint64(bits - 32) if bits < 96 else np.zeros_like(upper)).astype(np.int64)
