"""Codes in RDMA netlink's attributes (rdma-core: rdma_netlink.h, ib_user_verbs.h; Linux: ib_verbs.h, rdma_cm.h)."""

from enum import IntEnum


class Known(IntEnum):
    """A code of the kernel. A code that this module does not know keeps its number and is named UNKNOWN_n."""

    @classmethod
    def _missing_(cls, value: object) -> "Known | None":
        if not isinstance(value, int):
            return None
        made = int.__new__(cls, value)
        made._name_, made._value_ = f"UNKNOWN_{value}", value
        return made


class NodeType(Known):
    CA = 1
    SWITCH = 2
    ROUTER = 3
    RNIC = 4
    USNIC = 5
    USNIC_UDP = 6
    UNSPECIFIED = 7


class PortState(Known):
    """PortInfo:PortState (InfiniBand specification 14.2.5.6)."""

    NOP = 0
    DOWN = 1
    INIT = 2
    ARMED = 3
    ACTIVE = 4
    ACTIVE_DEFER = 5


class PhysicalState(Known):
    """PortInfo:PortPhysicalState (InfiniBand specification 14.2.5.6)."""

    NOP = 0
    SLEEP = 1
    POLLING = 2
    DISABLED = 3
    ARMED = 4
    LINK_UP = 5
    LINK_ERROR_RECOVER = 6
    PHY_TEST = 7


class QpType(Known):
    SMI = 0
    GSI = 1
    RC = 2
    UC = 3
    UD = 4
    RAW_IPV6 = 5
    RAW_ETHERTYPE = 6
    RAW_PACKET = 8
    XRC_INI = 9
    XRC_TGT = 10
    DRIVER = 255


class QpState(Known):
    RESET = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQD = 4
    SQE = 5
    ERR = 6


class PathMigration(Known):
    MIGRATED = 0
    REARM = 1
    ARMED = 2


class SrqType(Known):
    BASIC = 0
    XRC = 1
    TM = 2


class PollContext(Known):
    """Where the kernel polls its own completion queues, since Linux 5.8 (enum ib_poll_context of rdma/ib_verbs.h).

    iproute2 still prints the names of the former order.
    """

    SOFTIRQ = 0
    WORKQUEUE = 1
    UNBOUND_WORKQUEUE = 2
    DIRECT = 3


class CmState(Known):
    """The state of a connection manager's id."""

    IDLE = 0
    ADDR_QUERY = 1
    ADDR_RESOLVED = 2
    ROUTE_QUERY = 3
    ROUTE_RESOLVED = 4
    CONNECT = 5
    DISCONNECT = 6
    ADDR_BOUND = 7
    LISTEN = 8
    DEVICE_REMOVAL = 9
    DESTROYING = 10


class PortSpace(Known):
    IPOIB = 0x0002
    TCP = 0x0106
    UDP = 0x0111
    IB = 0x013F


class NetnsMode(Known):
    """SHARED: every network namespace sees all RDMA devices. EXCLUSIVE: each sees its own devices only."""

    EXCLUSIVE = 0
    SHARED = 1


class CounterMode(Known):
    NONE = 0
    AUTO = 1
    MANUAL = 2


class EventType(Known):
    """Events of RDMA devices that the kernel sends to listeners."""

    REGISTER = 0
    UNREGISTER = 1
    NETDEV_ATTACH = 2
    NETDEV_DETACH = 3
    RENAME = 4
    NETDEV_RENAME = 5
