"""Priority flow control of a netdev (IEEE 802.1Qbb) over rtnetlink's DCB messages (linux/dcbnl.h)."""

import errno
import struct
from dataclasses import dataclass, replace
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.marshal import Marshal
from pyroute2.netlink.nlsocket import NetlinkSocket

from hil.errors import AdapterError

NETLINK_ROUTE = 0
RTM_GETDCB, RTM_SETDCB = 78, 79
IEEE_SET, IEEE_GET = 20, 21
PRIORITIES = 8
# struct ieee_pfc: classes it can do, enabled priorities, bypass, delay, then requests and indications by priority.
_PFC = struct.Struct("=BBBxHxx8Q8Q")


@dataclass(frozen=True, slots=True)
class Pfc:
    """``enabled``: a bit for each priority; ``classes``: how many the adapter can do. ``delay``: in bit times."""

    classes: int
    enabled: int
    bypass: int
    delay: int

    def packed(self) -> bytes:
        """As the kernel takes it: counts of frames are only told, never set."""
        return _PFC.pack(self.classes, self.enabled, self.bypass, self.delay, *[0] * 16)


def unpacked(data: bytes) -> Pfc:
    """What the kernel tells. Raises AdapterError when it is too short."""
    if len(data) < _PFC.size:
        raise AdapterError(f"the kernel told {len(data)} bytes about PFC, {_PFC.size} were expected")
    return Pfc(*_PFC.unpack_from(data)[:4])


class ieee_attribute(nla):  # type: ignore[misc]
    """DCB_ATTR_IEEE's nest."""

    nla_map = (("IEEE_UNSPEC", "none"), ("IEEE_ETS", "cdata"), ("IEEE_PFC", "cdata"))


class dcbmsg(nlmsg):  # type: ignore[misc]
    """A DCB message, with the two attributes that PFC needs."""

    fields = (("family", "B"), ("cmd", "B"), ("pad", "H"))
    nla_map = ((1, "IFNAME", "asciiz"), (13, "IEEE", "ieee"))
    ieee = ieee_attribute


class MarshalDcb(Marshal):  # type: ignore[misc]
    """pyroute2's marshal, for DCB messages."""

    msg_map = {RTM_GETDCB: dcbmsg, RTM_SETDCB: dcbmsg}


def message(netdev: str, command: int, pfc: Pfc | None = None) -> Any:
    """An unencoded question, or an order to set ``pfc``."""
    made = dcbmsg()
    made["family"], made["cmd"], made["pad"] = 0, command, 0
    nest = [["IEEE", {"attrs": [["IEEE_PFC", pfc.packed()]]}]] if pfc else []
    made["attrs"] = [["IFNAME", netdev], *nest]
    return made


def get_pfc(netdev: str) -> Pfc:
    """How flow control is set. Raises AdapterError for a netdev that has none to set."""
    told = _asked(netdev, message(netdev, IEEE_GET), RTM_GETDCB, NLM_F_REQUEST)
    for answer in told:
        if (nest := answer.get_attr("IEEE")) and (data := nest.get_attr("IEEE_PFC")):
            return unpacked(bytes(data))
    raise AdapterError(f"{netdev} tells nothing about PFC: its driver has no priority flow control")


def set_priorities(netdev: str, enabled: int) -> None:
    """Enable PFC for the priorities whose bits are set, and no others.

    Raises AdapterError like ``get_pfc``, and when the adapter does not do what it was told: a driver's refusal comes in
    the answer, and the kernel acknowledges the order all the same.
    """
    wanted = replace(get_pfc(netdev), enabled=enabled)
    _asked(netdev, message(netdev, IEEE_SET, wanted), RTM_SETDCB, NLM_F_REQUEST | NLM_F_ACK)
    check_priorities(netdev, get_pfc(netdev), enabled)


def check_priorities(netdev: str, told: Pfc, enabled: int) -> None:
    """Raises AdapterError unless PFC is ``told`` to be enabled for these priorities and no others."""
    if told.enabled != enabled:
        raise AdapterError(
            f"{netdev} did not take PFC for priorities {_listed(enabled)}: it has it for {_listed(told.enabled)}; "
            "its driver or firmware refuses (lldpad or a firmware's DCBX may own the setting)"
        )


def _listed(enabled: int) -> str:
    return ", ".join(str(p) for p in range(PRIORITIES) if enabled >> p & 1) or "none"


def _asked(netdev: str, question: Any, kind: int, flags: int) -> list[Any]:
    with NetlinkSocket(family=NETLINK_ROUTE) as link:
        link.set_marshal(MarshalDcb())
        link.bind()
        # The kernel answers once, without an acknowledgement unless that was asked for.
        single = None if flags & NLM_F_ACK else lambda answer: True
        try:
            return list(link.nlm_request(question, msg_type=kind, msg_flags=flags, terminate=single))
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                raise AdapterError(f"{netdev} has no PFC to set: its driver has no DCB") from error
            raise OSError(error.code, f"PFC of {netdev}: {error}") from error
