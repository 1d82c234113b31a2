"""The descriptor of a buffer for the peer's RDMA; the switches carry it without reading it (RMEM-01)."""

import struct

# rkey, address, length in bytes.
DESCRIPTOR = struct.Struct("!IQQ")
