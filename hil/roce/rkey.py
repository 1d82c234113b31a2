"""Remote keys of memory regions: 32 bits (InfiniBand volume 1, 9.3.3)."""

from typing import NewType

Rkey = NewType("Rkey", int)
"""The key by which a peer reaches a memory region, 0 to MASK."""

MASK = (1 << 32) - 1
