"""What can be set of a provider before it is started."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Optional features and limits of a provider.

    ``rdma_read``, ``cache``: whether WSPRdmaRead and the registration cache are offered (RDMA-14, CACHE-01).
    ``early_messages``: private receives for messages that come before the switch posted any, for adapters without flow
    control of their own (NEG-03); 0 leaves it to the transport. ``rnr_retry_count``: 7 is for ever.
    ``connect_timeout_s``: after which a connect ends with WSAETIMEDOUT (CONN-25). ``handover_timeout_s``: after which a
    connection that was handed over and never taken is reset (DUP-22); at most 600, the lifetime of tokens.
    ``max_clients`` bounds WSPStartupEx, ``max_sockets`` the descriptors, ``max_bound`` the bound sockets,
    ``max_listeners`` the listening ones.
    """

    rdma_read: bool = True
    cache: bool = True
    early_messages: int = 0
    rnr_retry_count: int = 7
    connect_timeout_s: float = 20.0
    handover_timeout_s: float = 30.0
    max_clients: int = 256
    max_sockets: int = 65536
    max_bound: int = 65536
    max_listeners: int = 4096
