"""RDMA netlink messages (rdma-core: rdma_netlink.h), on pyroute2's message classes."""

import struct
from enum import IntEnum
from typing import Any

from pyroute2.netlink import NLM_F_ACK_TLVS, NLMSG_DONE, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.marshal import Marshal

NETLINK_RDMA = 20
NLDEV_CLIENT = 5
NOTIFY_GROUP = 4
"""The multicast group of device events (RDMA_NL_GROUP_NOTIFY)."""
_ERRNO = struct.Struct("=i")


class Command(IntEnum):
    """RDMA_NLDEV_CMD_*: every command of the client for devices."""

    GET = 1
    SET = 2
    NEWLINK = 3
    DELLINK = 4
    PORT_GET = 5
    SYS_GET = 6
    SYS_SET = 7
    RES_GET = 9
    RES_QP_GET = 10
    RES_CM_ID_GET = 11
    RES_CQ_GET = 12
    RES_MR_GET = 13
    RES_PD_GET = 14
    GET_CHARDEV = 15
    STAT_SET = 16
    STAT_GET = 17
    STAT_DEL = 18
    RES_QP_GET_RAW = 19
    RES_CQ_GET_RAW = 20
    RES_MR_GET_RAW = 21
    RES_CTX_GET = 22
    RES_SRQ_GET = 23
    STAT_GET_STATUS = 24
    RES_SRQ_GET_RAW = 25
    NEWDEV = 26
    DELDEV = 27
    MONITOR = 28


# In the kernel's order, which numbers the attributes from 0. Every level of nesting uses the same numbers.
# "nested" is replaced by the recursive class below.
_ATTRIBUTES = (
    "PAD hex,DEV_INDEX uint32,DEV_NAME asciiz,PORT_INDEX uint32,CAP_FLAGS uint64,FW_VERSION asciiz,NODE_GUID uint64,"
    "SYS_IMAGE_GUID uint64,SUBNET_PREFIX uint64,LID uint32,SM_LID uint32,LMC uint8,PORT_STATE uint8,"
    "PORT_PHYS_STATE uint8,DEV_NODE_TYPE uint8,RES_SUMMARY nested,RES_SUMMARY_ENTRY nested,"
    "RES_SUMMARY_ENTRY_NAME asciiz,RES_SUMMARY_ENTRY_CURR uint64,RES_QP nested,RES_QP_ENTRY nested,RES_LQPN uint32,"
    "RES_RQPN uint32,RES_RQ_PSN uint32,RES_SQ_PSN uint32,RES_PATH_MIG_STATE uint8,RES_TYPE uint8,RES_STATE uint8,"
    "RES_PID uint32,RES_KERN_NAME asciiz,RES_CM_ID nested,RES_CM_ID_ENTRY nested,RES_PS uint32,RES_SRC_ADDR cdata,"
    "RES_DST_ADDR cdata,RES_CQ nested,RES_CQ_ENTRY nested,RES_CQE uint32,RES_USECNT uint64,RES_POLL_CTX uint8,"
    "RES_MR nested,RES_MR_ENTRY nested,RES_RKEY uint32,RES_LKEY uint32,RES_IOVA uint64,RES_MRLEN uint64,"
    "RES_PD nested,RES_PD_ENTRY nested,RES_LOCAL_DMA_LKEY uint32,RES_UNSAFE_GLOBAL_RKEY uint32,NDEV_INDEX uint32,"
    "NDEV_NAME asciiz,DRIVER nested,DRIVER_ENTRY nested,DRIVER_STRING asciiz,DRIVER_PRINT_TYPE uint8,DRIVER_S32 int32,"
    "DRIVER_U32 uint32,DRIVER_S64 int64,DRIVER_U64 uint64,RES_PDN uint32,RES_CQN uint32,RES_MRN uint32,"
    "RES_CM_IDN uint32,RES_CTXN uint32,LINK_TYPE asciiz,SYS_ATTR_NETNS_MODE uint8,DEV_PROTOCOL asciiz,"
    "NET_NS_FD uint32,CHARDEV_TYPE asciiz,CHARDEV_NAME asciiz,CHARDEV_ABI uint64,CHARDEV uint64,"
    "UVERBS_DRIVER_ID uint32,STAT_MODE uint32,STAT_RES uint32,STAT_AUTO_MODE_MASK uint32,STAT_COUNTER nested,"
    "STAT_COUNTER_ENTRY nested,STAT_COUNTER_ID uint32,STAT_HWCOUNTERS nested,STAT_HWCOUNTER_ENTRY nested,"
    "STAT_HWCOUNTER_ENTRY_NAME asciiz,STAT_HWCOUNTER_ENTRY_VALUE uint64,DEV_DIM uint8,RES_RAW cdata,RES_CTX nested,"
    "RES_CTX_ENTRY nested,RES_SRQ nested,RES_SRQ_ENTRY nested,RES_SRQN uint32,MIN_RANGE uint32,MAX_RANGE uint32,"
    "SYS_ATTR_COPY_ON_FORK uint8,STAT_HWCOUNTER_INDEX uint32,STAT_HWCOUNTER_DYNAMIC uint8,"
    "SYS_ATTR_PRIVILEGED_QKEY_MODE uint8,DRIVER_DETAILS uint8,RES_SUBTYPE asciiz,DEV_TYPE uint8,PARENT_NAME asciiz,"
    "NAME_ASSIGN_TYPE uint8,EVENT_TYPE uint8,SYS_ATTR_MONITOR_MODE uint8,STAT_OPCOUNTER_ENABLED uint8"
)
ATTRIBUTES = tuple(entry.split(" ")[0] for entry in _ATTRIBUTES.split(","))
"""The names of all attributes; the index of a name is the attribute's number."""
_MAP = tuple(
    (name, "attribute" if kind == "nested" else kind)
    for name, kind in (entry.split(" ") for entry in _ATTRIBUTES.split(","))
)


class rdma_attribute(nla):  # type: ignore[misc]
    """A nest, which may hold any attribute."""

    nla_map = _MAP


class rdmamsg(nlmsg):  # type: ignore[misc]
    """A message: its attributes follow the netlink header directly."""

    fields = ()
    nla_map = _MAP

    attribute = rdma_attribute


rdma_attribute.attribute = rdma_attribute


def message_type(command: int) -> int:
    """The netlink message type of a command of the NLDEV client."""
    return (NLDEV_CLIENT << 10) + command


class MarshalRdma(Marshal):  # type: ignore[misc]
    """pyroute2's marshal for RDMA netlink.

    A failed dump has an errno in its DONE message. pyroute2's own marshal ignores it, so the dump looks empty. Here the
    errno becomes the message's error.
    """

    msg_map = {message_type(command): rdmamsg for command in range(1, 64)}

    def fix_message(self, msg: Any) -> None:
        header = msg["header"]
        if header["type"] == NLMSG_DONE and not header["flags"] & NLM_F_ACK_TLVS and header["error"] is None:
            errno = done_errno(msg.data[msg.offset : msg.offset + header["length"]])
            if errno:
                header["error"] = NetlinkError(errno)


def done_errno(message: bytes) -> int:
    """The positive errno behind the header of a complete DONE message, or 0."""
    body = message[16:]
    return abs(int(_ERRNO.unpack_from(body)[0])) if len(body) >= _ERRNO.size else 0


def plain(message: Any) -> dict[str, Any]:
    """A decoded message or nest as a dict. A nest of entries is a list of dicts, a driver's nest maps name to value."""
    found: dict[str, Any] = {}
    for name, value in message["attrs"]:
        inner = value["attrs"] if hasattr(value, "get") and "attrs" in value else None
        if name == "DRIVER" and inner is not None:
            found[name] = _driver_facts(inner)
        elif inner is None:
            found[name] = value
        elif all(entry.endswith("_ENTRY") for entry, _ in inner):
            found[name] = [plain(entry) for _, entry in inner]
        else:
            found[name] = plain(value)
    return found


def _driver_facts(attributes: list[tuple[str, Any]]) -> dict[str, int | str]:
    # Names and values alternate; a hint how to print the value may stand between them.
    found: dict[str, int | str] = {}
    name = None
    for kind, value in attributes:
        if kind == "DRIVER_STRING" and name is None:
            name = value
        elif kind != "DRIVER_PRINT_TYPE" and name is not None:
            found[name], name = value, None
    return found
