"""RDMA netlink messages (rdma-core: rdma_netlink.h), on pyroute2's message classes."""

from enum import IntEnum

from pyroute2.netlink import nla, nlmsg

NETLINK_RDMA = 20
NLDEV_CLIENT = 5


class Command(IntEnum):
    """RDMA_NLDEV_CMD_*, those the bench uses."""

    GET = 1
    NEWLINK = 3
    DELLINK = 4
    PORT_GET = 5
    SYS_GET = 6
    RES_GET = 9
    RES_QP_GET = 10
    RES_CM_ID_GET = 11
    RES_CQ_GET = 12
    RES_MR_GET = 13
    RES_PD_GET = 14
    STAT_GET = 17
    RES_CTX_GET = 22
    RES_SRQ_GET = 23


# One flat attribute space at every level of nesting; "nested" is replaced by the recursive class below.
_ATTRIBUTES = (
    "PAD hex,DEV_INDEX uint32,DEV_NAME asciiz,PORT_INDEX uint32,CAP_FLAGS uint64,FW_VERSION asciiz,NODE_GUID uint64,"
    "SYS_IMAGE_GUID uint64,SUBNET_PREFIX uint64,LID uint32,SM_LID uint32,LMC uint8,PORT_STATE uint8,"
    "PORT_PHYS_STATE uint8,DEV_NODE_TYPE uint8,RES_SUMMARY nested,RES_SUMMARY_ENTRY nested,"
    "RES_SUMMARY_ENTRY_NAME asciiz,RES_SUMMARY_ENTRY_CURR uint64,RES_QP nested,RES_QP_ENTRY nested,RES_LQPN uint32,"
    "RES_RQPN uint32,RES_RQ_PSN uint32,RES_SQ_PSN uint32,RES_PATH_MIG_STATE uint8,RES_TYPE uint8,RES_STATE uint8,"
    "RES_PID uint32,RES_KERN_NAME asciiz,RES_CM_ID nested,RES_CM_ID_ENTRY nested,RES_PS uint32,RES_SRC_ADDR hex,"
    "RES_DST_ADDR hex,RES_CQ nested,RES_CQ_ENTRY nested,RES_CQE uint32,RES_USECNT uint64,RES_POLL_CTX uint8,"
    "RES_MR nested,RES_MR_ENTRY nested,RES_RKEY uint32,RES_LKEY uint32,RES_IOVA uint64,RES_MRLEN uint64,"
    "RES_PD nested,RES_PD_ENTRY nested,RES_LOCAL_DMA_LKEY uint32,RES_UNSAFE_GLOBAL_RKEY uint32,NDEV_INDEX uint32,"
    "NDEV_NAME asciiz,DRIVER hex,DRIVER_ENTRY hex,DRIVER_STRING asciiz,DRIVER_PRINT_TYPE uint8,DRIVER_S32 int32,"
    "DRIVER_U32 uint32,DRIVER_S64 int64,DRIVER_U64 uint64,RES_PDN uint32,RES_CQN uint32,RES_MRN uint32,"
    "RES_CM_IDN uint32,RES_CTXN uint32,LINK_TYPE asciiz,SYS_ATTR_NETNS_MODE uint8,DEV_PROTOCOL asciiz,"
    "NET_NS_FD uint32,STAT_MODE uint32,STAT_RES uint32,STAT_AUTO_MODE_MASK uint32,STAT_COUNTER nested,"
    "STAT_COUNTER_ENTRY nested,STAT_COUNTER_ID uint32,STAT_HWCOUNTERS nested,STAT_HWCOUNTER_ENTRY nested,"
    "STAT_HWCOUNTER_ENTRY_NAME asciiz,STAT_HWCOUNTER_ENTRY_VALUE uint64"
)
_MAP = tuple(
    (name, "attribute" if kind == "nested" else kind)
    for name, kind in (entry.split(" ") for entry in _ATTRIBUTES.split(","))
)


class rdma_attribute(nla):  # type: ignore[misc]
    """A nest; holds any attribute again."""

    nla_map = _MAP


class rdmamsg(nlmsg):  # type: ignore[misc]
    """A message: attributes follow the netlink header at once."""

    fields = ()
    nla_map = _MAP

    attribute = rdma_attribute


rdma_attribute.attribute = rdma_attribute


def message_type(command: int) -> int:
    """The netlink message type of a command of the NLDEV client."""
    return (NLDEV_CLIENT << 10) + command
