"""The connection manager: librdmacm through ctypes.

pyverbs is not used here. Its CMEvent hides the event's status (the reason of a REJ, a DREQ that timed out), the
channel's descriptor and the addresses of a new id, and it blocks with the GIL held. The structures here are librdmacm's
public ABI (rdma_cma.h).
"""

import ctypes as c
import errno
import ipaddress
import itertools
import os
import socket
import struct
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

AF_INET, AF_INET6 = socket.AF_INET, socket.AF_INET6
RDMA_PS_TCP = 0x0106
_OPTION_ID, _OPTION_REUSEADDR, _OPTION_ACK_TIMEOUT = 0, 1, 3
# Transport retries. Soft-RoCE retries for ever with 7, the maximum, and a lost connection must end (RECV-15).
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
    """The parameters of a connection with QP ``qp_num``; the caller must keep them alive during its call."""
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
    # struct rdma_cm_id up to port_num. Its rdma_addr is two sockaddr_storage and 40 bytes of native address.
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
# Keys of ids; an id's ``context`` holds its key.
_keys = itertools.count(1)
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
    """A connection manager id. Methods raise OSError with librdmacm's errno, and EBADF after ``destroy``.

    Any thread may call the methods: ``destroy`` waits for a call in another thread, and then frees the memory. ``key``
    is never used for another id. An address is: librdmacm soon reuses the address of a destroyed id, so an event that
    was read a moment earlier would be taken for the new id's.
    """

    def __init__(self, pointer: "c._Pointer[_CmId]", key: int) -> None:
        self.key = key
        # A copy of the pointer, because a pointer in an event is freed with the event at its ack.
        self._pointer: c._Pointer[_CmId] | None = c.cast(c.cast(pointer, c.c_void_p), _IdPointer)
        self._lock = threading.Lock()

    def _call(self, name: str, *arguments: Any) -> None:
        with self._lock:
            _checked(getattr(_lib, name)(self._alive(name), *arguments), name)

    def _alive(self, what: str) -> "c._Pointer[_CmId]":
        if self._pointer is None:
            raise OSError(errno.EBADF, f"{what}: the id is destroyed")
        return self._pointer

    @property
    def local(self) -> tuple[str, int]:
        with self._lock:
            return parse_sockaddr(bytes(self._alive("local").contents.src_addr))

    @property
    def remote(self) -> tuple[str, int]:
        with self._lock:
            return parse_sockaddr(bytes(self._alive("remote").contents.dst_addr))

    @property
    def port_num(self) -> int:
        with self._lock:
            return int(self._alive("port_num").contents.port_num)

    def has_device(self) -> bool:
        with self._lock:
            return bool(self._alive("has_device").contents.verbs)

    def device_name(self) -> str:
        """The name of the id's RDMA device (struct ibv_context begins with the device pointer)."""
        with self._lock:
            context = c.cast(self._alive("device_name").contents.verbs, c.POINTER(c.c_void_p))
            return _device_name(context[0])

    def bind(self, address: str, port: int) -> None:
        self._set_option(_OPTION_REUSEADDR, c.c_int(1))
        self._call("rdma_bind_addr", sockaddr(address, port))

    def set_ack_timeout(self, exponent: int) -> None:
        """Set the local ACK time-out to 4.096 us * 2**exponent, where the kernel has the option."""
        self._set_option(_OPTION_ACK_TIMEOUT, c.c_uint8(exponent))

    def _set_option(self, option: int, value: Any) -> None:
        with self._lock:
            pointer = self._alive("rdma_set_option")
            _lib.rdma_set_option(pointer, _OPTION_ID, option, c.byref(value), c.sizeof(value))

    def resolve_addr(self, address: str, port: int, timeout_ms: int) -> None:
        self._call("rdma_resolve_addr", None, sockaddr(address, port), timeout_ms)

    def resolve_route(self, timeout_ms: int) -> None:
        self._call("rdma_resolve_route", timeout_ms)

    def listen(self, backlog: int) -> None:
        self._call("rdma_listen", backlog)

    def connect(self, param: ConnParam) -> None:
        self._call("rdma_connect", c.byref(param))

    def accept(self, param: ConnParam) -> None:
        self._call("rdma_accept", c.byref(param))

    def establish(self) -> None:
        """Send the RTU of a connection whose QP librdmacm did not make."""
        self._call("rdma_establish")

    def reject(self, private_data: bytes = b"") -> None:
        self._call("rdma_reject", private_data or None, len(private_data))

    def disconnect(self) -> None:
        """Send the DREQ, or the DREP when the peer's DREQ has arrived."""
        self._call("rdma_disconnect")

    def qp_attr(self, state: int) -> tuple[QpAttr, int]:
        """Attributes and mask that bring a QP not made by librdmacm into ``state`` (INIT 1, RTR 2, RTS 3)."""
        attr, mask = QpAttr(), c.c_int(0)
        attr.qp_state = state
        self._call("rdma_init_qp_attr", c.byref(attr), c.byref(mask))
        return attr, mask.value

    def destroy(self) -> None:
        """Destroy the id; a second call does nothing.

        It cannot block on an event, because every event is acknowledged when it is read.
        """
        with self._lock:
            pointer, self._pointer = self._pointer, None
            if pointer is not None:
                _checked(_lib.rdma_destroy_id(pointer), "rdma_destroy_id")


@dataclass(frozen=True, slots=True)
class CmEvent:
    """One event, already acknowledged. ``status``: a negative errno, or the positive reason of a REJ."""

    kind: CmEventType
    status: int
    id_key: int
    listen_key: int | None
    new_id: CmId | None
    private_data: bytes
    qp_num: int


class CmChannel:
    """An event channel that never blocks; poll ``fd``, then call ``next_event``. Raises OSError."""

    def __init__(self) -> None:
        self._channel = _lib.rdma_create_event_channel()
        if not self._channel:
            number = c.get_errno()
            raise OSError(number, f"rdma_create_event_channel: {os.strerror(number)}")
        self.fd: int = self._channel[0]
        os.set_blocking(self.fd, False)

    def create_id(self) -> CmId:
        pointer, key = _IdPointer(), next(_keys)
        _checked(_lib.rdma_create_id(self._channel, c.byref(pointer), key, RDMA_PS_TCP), "rdma_create_id")
        return CmId(pointer, key)

    def next_event(self) -> CmEvent | None:
        """The next event, or None when no event waits. Raises OSError."""
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
        if is_request:
            # librdmacm gave the new id the listener's context.
            event.id.contents.context = next(_keys)
        key = event.id.contents.context or 0
        copy = CmEvent(
            kind,
            event.status,
            key,
            event.listen_id.contents.context if is_request else None,
            CmId(event.id, key) if is_request else None,
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
