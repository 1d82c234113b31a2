"""The connection manager: librdmacm by ctypes.

pyverbs' CMEvent hides the event's status (a refusal's reason, a DREQ that timed out), the channel's descriptor and the
addresses of a new id, and blocks with the GIL held. The structures here are librdmacm's public ABI (rdma_cma.h).
"""

import ctypes as c
import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

AF_INET, AF_INET6 = socket.AF_INET, socket.AF_INET6
RDMA_PS_TCP = 0x0106
_OPTION_ID, _OPTION_REUSEADDR, _OPTION_ACK_TIMEOUT = 0, 1, 3
# Transport retries: soft-RoCE takes 7, the most, for retrying for ever, and a lost connection must end (RECV-15).
RETRY_COUNT = 6


class CmEventType(IntEnum):
    """RDMA_CM_EVENT_*."""

    ADDR_RESOLVED = 0
    ADDR_ERROR = 1
    ROUTE_RESOLVED = 2
    ROUTE_ERROR = 3
    CONNECT_REQUEST = 4
    CONNECT_RESPONSE = 5
    CONNECT_ERROR = 6
    UNREACHABLE = 7
    REJECTED = 8
    ESTABLISHED = 9
    DISCONNECTED = 10
    DEVICE_REMOVAL = 11
    MULTICAST_JOIN = 12
    MULTICAST_ERROR = 13
    ADDR_CHANGE = 14
    TIMEWAIT_EXIT = 15


class ConnParam(c.Structure):
    """struct rdma_conn_param."""

    _fields_ = [
        ("private_data", c.c_void_p),
        ("private_data_len", c.c_uint8),
        ("responder_resources", c.c_uint8),
        ("initiator_depth", c.c_uint8),
        ("flow_control", c.c_uint8),
        ("retry_count", c.c_uint8),
        ("rnr_retry_count", c.c_uint8),
        ("srq", c.c_uint8),
        ("qp_num", c.c_uint32),
    ]


def conn_param(qp_num: int, private_data: bytes, *, rnr_retry_count: int) -> ConnParam:
    """The parameters of a connection whose QP is ``qp_num``; keep the result alive during the call."""
    param = ConnParam(
        responder_resources=4,
        initiator_depth=4,
        retry_count=RETRY_COUNT,
        rnr_retry_count=rnr_retry_count,
        qp_num=qp_num,
    )
    param.private_data = c.cast(c.create_string_buffer(private_data, len(private_data)), c.c_void_p)
    param.private_data_len = len(private_data)
    return param


class _CmId(c.Structure):
    # struct rdma_cm_id up to port_num; rdma_addr is two sockaddr_storage and 40 bytes of native address.
    _fields_ = [
        ("verbs", c.c_void_p),
        ("channel", c.c_void_p),
        ("context", c.c_void_p),
        ("qp", c.c_void_p),
        ("src_addr", c.c_ubyte * 128),
        ("dst_addr", c.c_ubyte * 128),
        ("sgid", c.c_ubyte * 16),
        ("dgid", c.c_ubyte * 16),
        ("pkey", c.c_uint16),
        ("path_rec", c.c_void_p),
        ("num_paths", c.c_int),
        ("ps", c.c_int),
        ("port_num", c.c_uint8),
    ]


class _CmEvent(c.Structure):
    _fields_ = [
        ("id", c.POINTER(_CmId)),
        ("listen_id", c.POINTER(_CmId)),
        ("event", c.c_int),
        ("status", c.c_int),
        ("param", ConnParam),
    ]


class AhAttr(c.Structure):
    """struct ibv_ah_attr."""

    _fields_ = [
        ("dgid", c.c_ubyte * 16),
        ("flow_label", c.c_uint32),
        ("sgid_index", c.c_uint8),
        ("hop_limit", c.c_uint8),
        ("traffic_class", c.c_uint8),
        ("dlid", c.c_uint16),
        ("sl", c.c_uint8),
        ("src_path_bits", c.c_uint8),
        ("static_rate", c.c_uint8),
        ("is_global", c.c_uint8),
        ("port_num", c.c_uint8),
    ]


class QpAttr(c.Structure):
    """struct ibv_qp_attr."""

    _fields_ = [
        ("qp_state", c.c_int),
        ("cur_qp_state", c.c_int),
        ("path_mtu", c.c_int),
        ("path_mig_state", c.c_int),
        ("qkey", c.c_uint32),
        ("rq_psn", c.c_uint32),
        ("sq_psn", c.c_uint32),
        ("dest_qp_num", c.c_uint32),
        ("qp_access_flags", c.c_uint),
        ("cap", c.c_uint32 * 5),
        ("ah_attr", AhAttr),
        ("alt_ah_attr", AhAttr),
        ("pkey_index", c.c_uint16),
        ("alt_pkey_index", c.c_uint16),
        ("en_sqd_async_notify", c.c_uint8),
        ("sq_draining", c.c_uint8),
        ("max_rd_atomic", c.c_uint8),
        ("max_dest_rd_atomic", c.c_uint8),
        ("min_rnr_timer", c.c_uint8),
        ("port_num", c.c_uint8),
        ("timeout", c.c_uint8),
        ("retry_cnt", c.c_uint8),
        ("rnr_retry", c.c_uint8),
        ("alt_port_num", c.c_uint8),
        ("alt_timeout", c.c_uint8),
        ("rate_limit", c.c_uint32),
    ]


_IdPointer = c.POINTER(_CmId)
_lib = c.CDLL("librdmacm.so.1", use_errno=True)
_lib.rdma_create_event_channel.restype = c.POINTER(c.c_int)
_lib.rdma_get_cm_event.argtypes = [c.c_void_p, c.POINTER(c.POINTER(_CmEvent))]
_lib.rdma_ack_cm_event.argtypes = [c.POINTER(_CmEvent)]
_lib.rdma_create_id.argtypes = [c.c_void_p, c.POINTER(_IdPointer), c.c_void_p, c.c_int]
for _name in ("rdma_destroy_id", "rdma_disconnect", "rdma_establish"):
    getattr(_lib, _name).argtypes = [_IdPointer]
_lib.rdma_bind_addr.argtypes = [_IdPointer, c.c_char_p]
_lib.rdma_resolve_addr.argtypes = [_IdPointer, c.c_char_p, c.c_char_p, c.c_int]
_lib.rdma_resolve_route.argtypes = [_IdPointer, c.c_int]
_lib.rdma_listen.argtypes = [_IdPointer, c.c_int]
_lib.rdma_connect.argtypes = _lib.rdma_accept.argtypes = [_IdPointer, c.POINTER(ConnParam)]
_lib.rdma_reject.argtypes = [_IdPointer, c.c_void_p, c.c_uint8]
_lib.rdma_init_qp_attr.argtypes = [_IdPointer, c.POINTER(QpAttr), c.POINTER(c.c_int)]
_lib.rdma_set_option.argtypes = [_IdPointer, c.c_int, c.c_int, c.c_void_p, c.c_size_t]
_lib.rdma_destroy_event_channel.argtypes = [c.c_void_p]


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = c.get_errno() or errno.EIO
        raise OSError(number, f"{what}: {os.strerror(number)}")


def sockaddr(address: str, port: int) -> bytes:
    """A sockaddr_in or sockaddr_in6 in the host's layout."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return struct.pack("=H", AF_INET) + struct.pack(">H", port) + parsed.packed + bytes(8)
    return struct.pack("=H", AF_INET6) + struct.pack(">HI", port, 0) + parsed.packed + bytes(4)


def parse_sockaddr(data: bytes) -> tuple[str, int]:
    """(address, port) of a sockaddr_in or sockaddr_in6; ("", 0) for another family."""
    (family,) = struct.unpack_from("=H", data)
    (port,) = struct.unpack_from(">H", data, 2)
    if family == AF_INET:
        return str(ipaddress.IPv4Address(data[4:8])), port
    if family == AF_INET6:
        return str(ipaddress.IPv6Address(data[8:24])), port
    return "", 0


class CmId:
    """A connection manager id. Methods raise OSError with the errno of librdmacm."""

    def __init__(self, pointer: "c._Pointer[_CmId]") -> None:
        self.key = c.cast(pointer, c.c_void_p).value
        # A copy of the pointer: one read from an event lives in the event's memory, which goes with its ack.
        self._pointer = c.cast(c.c_void_p(self.key), _IdPointer)

    @property
    def local(self) -> tuple[str, int]:
        return parse_sockaddr(bytes(self._pointer.contents.src_addr))

    @property
    def remote(self) -> tuple[str, int]:
        return parse_sockaddr(bytes(self._pointer.contents.dst_addr))

    @property
    def port_num(self) -> int:
        return int(self._pointer.contents.port_num)

    def has_device(self) -> bool:
        return bool(self._pointer.contents.verbs)

    def device_name(self) -> str:
        """Name of the RDMA device the id is bound to (struct ibv_context begins with the device pointer)."""
        context = c.cast(self._pointer.contents.verbs, c.POINTER(c.c_void_p))
        return _device_name(context[0])

    def bind(self, address: str, port: int) -> None:
        one = c.c_int(1)
        _lib.rdma_set_option(self._pointer, _OPTION_ID, _OPTION_REUSEADDR, c.byref(one), 4)
        _checked(_lib.rdma_bind_addr(self._pointer, sockaddr(address, port)), "rdma_bind_addr")

    def set_ack_timeout(self, exponent: int) -> None:
        """Local ACK time-out of 4.096 us * 2**exponent, where the kernel has the option."""
        value = c.c_uint8(exponent)
        _lib.rdma_set_option(self._pointer, _OPTION_ID, _OPTION_ACK_TIMEOUT, c.byref(value), 1)

    def resolve_addr(self, address: str, port: int, timeout_ms: int) -> None:
        _checked(
            _lib.rdma_resolve_addr(self._pointer, None, sockaddr(address, port), timeout_ms),
            "rdma_resolve_addr",
        )

    def resolve_route(self, timeout_ms: int) -> None:
        _checked(_lib.rdma_resolve_route(self._pointer, timeout_ms), "rdma_resolve_route")

    def listen(self, backlog: int) -> None:
        _checked(_lib.rdma_listen(self._pointer, backlog), "rdma_listen")

    def connect(self, param: ConnParam) -> None:
        _checked(_lib.rdma_connect(self._pointer, c.byref(param)), "rdma_connect")

    def accept(self, param: ConnParam) -> None:
        _checked(_lib.rdma_accept(self._pointer, c.byref(param)), "rdma_accept")

    def establish(self) -> None:
        """Send the RTU of a connection whose QP is not librdmacm's."""
        _checked(_lib.rdma_establish(self._pointer), "rdma_establish")

    def reject(self, private_data: bytes = b"") -> None:
        _checked(_lib.rdma_reject(self._pointer, private_data or None, len(private_data)), "rdma_reject")

    def disconnect(self) -> None:
        """Send the DREQ, or the DREP when the peer's DREQ came first."""
        _checked(_lib.rdma_disconnect(self._pointer), "rdma_disconnect")

    def qp_attr(self, state: int) -> tuple[QpAttr, int]:
        """Attributes and mask to bring an outside QP into ``state`` (INIT 1, RTR 2, RTS 3)."""
        attr, mask = QpAttr(), c.c_int(0)
        attr.qp_state = state
        _checked(_lib.rdma_init_qp_attr(self._pointer, c.byref(attr), c.byref(mask)), "rdma_init_qp_attr")
        return attr, mask.value

    def destroy(self) -> None:
        """Every event of the id was acknowledged when it was read, so this cannot block on one."""
        if self.key is not None:
            self.key = None
            _checked(_lib.rdma_destroy_id(self._pointer), "rdma_destroy_id")


@dataclass(frozen=True, slots=True)
class CmEvent:
    """One event, already acknowledged. ``status`` is an errno (negative) or a refusal's reason (positive)."""

    kind: CmEventType
    status: int
    id_key: int
    listen_key: int | None
    new_id: CmId | None
    private_data: bytes
    qp_num: int


class CmChannel:
    """An event channel that never blocks: poll ``fd``, then call ``next_event``."""

    def __init__(self) -> None:
        self._channel = _lib.rdma_create_event_channel()
        if not self._channel:
            number = c.get_errno()
            raise OSError(number, f"rdma_create_event_channel: {os.strerror(number)}")
        self.fd: int = self._channel[0]
        os.set_blocking(self.fd, False)

    def create_id(self) -> CmId:
        pointer = _IdPointer()
        _checked(_lib.rdma_create_id(self._channel, c.byref(pointer), None, RDMA_PS_TCP), "rdma_create_id")
        return CmId(pointer)

    def next_event(self) -> CmEvent | None:
        """The next event, or None when none is waiting."""
        pointer = c.POINTER(_CmEvent)()
        if _lib.rdma_get_cm_event(self._channel, c.byref(pointer)) != 0:
            if c.get_errno() in (errno.EAGAIN, errno.EINTR):
                return None
            raise OSError(c.get_errno(), "rdma_get_cm_event")
        event = pointer.contents
        kind = CmEventType(event.event)
        is_request = kind is CmEventType.CONNECT_REQUEST
        carries = kind in (CmEventType.CONNECT_REQUEST, CmEventType.CONNECT_RESPONSE, CmEventType.REJECTED)
        size = event.param.private_data_len
        data = c.string_at(event.param.private_data, size) if carries and event.param.private_data and size else b""
        copy = CmEvent(
            kind,
            event.status,
            c.cast(event.id, c.c_void_p).value or 0,
            c.cast(event.listen_id, c.c_void_p).value if is_request else None,
            CmId(event.id) if is_request else None,
            data,
            event.param.qp_num,
        )
        _lib.rdma_ack_cm_event(pointer)
        return copy

    def close(self) -> None:
        _lib.rdma_destroy_event_channel(self._channel)


def _device_name(device: int) -> str:
    verbs = c.CDLL("libibverbs.so.1")
    verbs.ibv_get_device_name.restype = c.c_char_p
    verbs.ibv_get_device_name.argtypes = [c.c_void_p]
    name: bytes = verbs.ibv_get_device_name(device)
    return name.decode()
