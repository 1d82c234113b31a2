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
# struct ieee_pfc: supported classes, enabled priorities, bypass, delay, then requests and indications by priority.
_PFC = struct.Struct("=BBBxHxx8Q8Q")


@dataclass(frozen=True, slots=True)
class Pfc:
    """PFC settings. ``classes``: the number that the adapter supports. ``enabled``: a bit for each priority.

    ``delay``: in bit times.
    """

    classes: int
    enabled: int
    bypass: int
    delay: int

    def packed(self) -> bytes:
        """The settings in the kernel's layout; the frame counters behind them are read-only and stay 0."""
        return _PFC.pack(self.classes, self.enabled, self.bypass, self.delay, *[0] * 16)


def unpacked(data: bytes) -> Pfc:
    """PFC settings from the kernel's layout. Raises AdapterError when ``data`` is too short."""
    if len(data) < _PFC.size:
        raise AdapterError(f"the kernel answered {len(data)} bytes about PFC instead of {_PFC.size}")
    return Pfc(*_PFC.unpack_from(data)[:4])


class ieee_attribute(nla):  # type: ignore[misc]
    """The nest of DCB_ATTR_IEEE."""

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
    """An unencoded message: a request for the settings, or a request to set ``pfc``."""
    made = dcbmsg()
    made["family"], made["cmd"], made["pad"] = 0, command, 0
    nest = [["IEEE", {"attrs": [["IEEE_PFC", pfc.packed()]]}]] if pfc else []
    made["attrs"] = [["IFNAME", netdev], *nest]
    return made


def get_pfc(netdev: str) -> Pfc:
    """A netdev's PFC settings. Raises AdapterError for a netdev without PFC."""
    for answer in _asked(netdev, message(netdev, IEEE_GET), RTM_GETDCB, NLM_F_REQUEST):
        if (nest := answer.get_attr("IEEE")) and (data := nest.get_attr("IEEE_PFC")):
            return unpacked(bytes(data))
    raise AdapterError(f"{netdev} has no PFC settings: its driver has no priority flow control")


def set_priorities(netdev: str, enabled: int) -> None:
    """Enable PFC for the priorities whose bits are set in ``enabled``, and disable it for the others.

    Raises AdapterError like ``get_pfc``, and when the adapter did not take the settings: the kernel acknowledges the
    request even when the driver refuses it, so the settings are read back.
    """
    wanted = replace(get_pfc(netdev), enabled=enabled)
    _asked(netdev, message(netdev, IEEE_SET, wanted), RTM_SETDCB, NLM_F_REQUEST | NLM_F_ACK)
    check_priorities(netdev, get_pfc(netdev), enabled)


def check_priorities(netdev: str, found: Pfc, enabled: int) -> None:
    """Raises AdapterError unless ``found``, the settings read back, enables exactly the priorities ``enabled``."""
    if found.enabled != enabled:
        raise AdapterError(
            f"{netdev} did not take PFC for priorities {_listed(enabled)}: it has PFC for {_listed(found.enabled)}; "
            "its driver or firmware refuses (lldpad or a firmware's DCBX may own the setting)"
        )


def _listed(enabled: int) -> str:
    return ", ".join(str(p) for p in range(PRIORITIES) if enabled >> p & 1) or "none"


def _asked(netdev: str, question: Any, kind: int, flags: int) -> list[Any]:
    with NetlinkSocket(family=NETLINK_ROUTE) as link:
        link.set_marshal(MarshalDcb())
        link.bind()
        # The kernel sends one answer, and an acknowledgement only on request.
        single = None if flags & NLM_F_ACK else lambda answer: True
        try:
            return list(link.nlm_request(question, msg_type=kind, msg_flags=flags, terminate=single))
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                raise AdapterError(f"{netdev} has no PFC to set: its driver has no DCB") from error
            raise OSError(error.code, f"PFC of {netdev}: {error}") from error
