"""The descriptor of a buffer for the peer's RDMA, which the switches carry unread (RMEM-01)."""

import struct

# What the peer's provider needs: rkey, address, length.
DESCRIPTOR = struct.Struct("!IQQ")
