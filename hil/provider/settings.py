"""The settings of a provider, fixed before its start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Optional features and limits of a provider.

    - ``rdma_read``, ``cache``: whether WSPRdmaRead and the registration cache are offered (RDMA-14, CACHE-01).
    - ``early_messages``: the number of private receives for messages that arrive before the switch posts a receive, for
      adapters without flow control of their own (NEG-03); 0 leaves early messages to the transport.
    - ``rnr_retry_count``: 7 means for ever.
    - ``connect_timeout_s``: a connect that takes longer ends with WSAETIMEDOUT (CONN-25).
    - ``handover_timeout_s``: a connection that was handed over and not taken in this time is reset (DUP-22); at most
      600, the lifetime of tokens.
    - ``max_clients``, ``max_sockets``, ``max_bound``, ``max_listeners``: the most calls of WSPStartupEx, descriptors,
      bound sockets, and listening sockets.
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
