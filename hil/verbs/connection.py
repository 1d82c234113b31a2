"""The verbs objects of one socket: PD, CQ with its channel, QP, MRs; made by pyverbs, closed in order.

No call here blocks: pyverbs holds the GIL, so the completion channel's descriptor is polled first.
"""

import errno
import os
import select
import threading
from dataclasses import dataclass
from typing import Any

import pyverbs.device as d
from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from hil.verbs.cm import CmId, QpAttr

try:
    from pyverbs import libibverbs_enums as e
except ImportError:
    from pyverbs import enums as e

SEND_DEPTH = 64
RECV_DEPTH = 256
MAX_SGE = 8
INIT, RTR, RTS, ERR = 1, 2, 3, 6
WC_SUCCESS, WC_LOC_LEN_ERR, WC_LOC_QP_OP_ERR, WC_LOC_PROT_ERR, WC_WR_FLUSH_ERR = 0, 1, 2, 4, 5
LOCAL_WRITE, REMOTE_WRITE, REMOTE_READ = 1, 2, 4
CHANNEL_TRIES = 100
# 61 ms (9.7.5.2.8). The connection manager leaves 0, which means 655 ms: a late receive would cost that much. The ACK
# time-out of soft-RoCE runs meanwhile, so a late receiver would also use up the few retries (NEG-02).
MIN_RNR_TIMER = 25
_fd_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Completion:
    """A work completion. ``status``: an ibv_wc_status. ``length``: in bytes, 0 unless the work succeeded."""

    wr_id: int
    status: int
    length: int
    qp_num: int


def device_names() -> list[str]:
    """The names of the RDMA devices that libibverbs sees."""
    try:
        return [device.name.decode() for device in d.get_device_list()]
    except Exception:
        return []


class Device:
    """An open device; the sockets of a provider share it."""

    def __init__(self, name: str) -> None:
        self.name = name
        with _fd_lock:
            self.context = d.Context(name=name)
        self.max_message: int = self.context.query_port(1).max_msg_sz
        """The largest message of port 1, in bytes."""
        self.removed = False
        """Whether the kernel has announced the removal of the device."""

    def close(self) -> None:
        self.context.close()


def _channel_with_fd(context: Any) -> tuple[Any, int]:
    # pyverbs before version 59 hides the descriptor. The kernel uses the lowest free number, which an open file finds.
    # Another thread may get that number in between, so the descriptor is checked. A channel at that number is the new
    # one, because all channels are made and closed under this lock.
    for _ in range(CHANNEL_TRIES):
        with _fd_lock:
            fd = os.open("/dev/null", os.O_RDONLY)
            os.close(fd)
            channel = CompChannel(context)
            if _is_channel(fd):
                os.set_blocking(fd, False)
                return channel, fd
            channel.close()
    raise OSError(errno.EAGAIN, "the completion channel's descriptor was not found")


def _is_channel(fd: int) -> bool:
    try:
        return "infinibandevent" in os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    except OSError:
        return False


class Connection:
    """PD, channel, CQ and QP of one socket on the device of ``cm_id``. Methods raise OSError or PyverbsError.

    ``extra``: the number of receives that the QP must hold in addition to the switch's RECV_DEPTH.
    """

    def __init__(self, device: Device, cm_id: CmId, extra: int = 0) -> None:
        self.device = device
        self._cm_id = cm_id
        self._receives = RECV_DEPTH + extra
        self.pd = PD(device.context)
        self._channel, self.fd = _channel_with_fd(device.context)
        self.cq = CQ(device.context, SEND_DEPTH + self._receives, None, self._channel, 0)
        self.cq.req_notify()
        self._poller = select.poll()
        self._poller.register(self.fd, select.POLLIN)
        # pyverbs crashes when a closed object is used, so uses and the close exclude each other.
        self._lock = threading.Lock()
        self._closed = False
        self._make_qp()

    def _make_qp(self) -> None:
        cap = QPCap(SEND_DEPTH, self._receives, MAX_SGE, MAX_SGE, 0)
        self.qp = QP(self.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=1))
        self.qp_num: int = self.qp.qp_num
        self._error = False

    def replace_qp(self, cm_id: CmId) -> None:
        """Replace the QP by a new one for ``cm_id`` in the same PD, so that keys and registrations stay valid."""
        with self._lock:
            self.qp.close()
            self._cm_id = cm_id
            self._make_qp()

    def to_init(self) -> None:
        self._modify(INIT)

    def to_rts(self) -> None:
        self._modify(RTR)
        self._modify(RTS)

    def to_error(self) -> None:
        """Stop all work: the QP sends nothing more, and every posted request is flushed."""
        with self._lock:
            if not self._error and not self._closed:
                self._error = True
                self.qp.modify(QPAttr(qp_state=ERR, cur_qp_state=RTS), int(e.IBV_QP_STATE))

    def register(self, address: int, length: int, access: int) -> Any:
        return MR(self.pd, length, access, address=address)

    def post_recv(self, wr_id: int, parts: list[tuple[int, int, int]]) -> None:
        """Post a receive of ``parts`` (address, length, lkey)."""
        elements = [SGE(*part) for part in parts]
        try:
            with RecvWR(wr_id=wr_id, num_sge=len(elements), sg=elements) as request, self._lock:
                self._check_open()
                self.qp.post_recv(request)
        finally:
            for element in elements:
                element.close()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "the connection is closed")

    def post_send(self, wr_id: int, parts: list[tuple[int, int, int]], *, fence: bool = False) -> None:
        """Post a SEND gathered from ``parts`` (address, length, lkey)."""
        self._post(wr_id, e.IBV_WR_SEND, parts, fence=fence)

    def post_rdma_write(
        self, wr_id: int, parts: list[tuple[int, int, int]], rkey: int, address: int, *, fence: bool = False
    ) -> None:
        """Post an RDMA WRITE of ``parts`` to the peer's ``address``."""
        self._post(wr_id, e.IBV_WR_RDMA_WRITE, parts, remote=(rkey, address), fence=fence)

    def post_rdma_read(
        self, wr_id: int, parts: list[tuple[int, int, int]], rkey: int, address: int, *, fence: bool = False
    ) -> None:
        """Post an RDMA READ of the peer's ``address`` into ``parts``."""
        self._post(wr_id, e.IBV_WR_RDMA_READ, parts, remote=(rkey, address), fence=fence)

    def _post(
        self,
        wr_id: int,
        opcode: Any,
        parts: list[tuple[int, int, int]],
        *,
        remote: tuple[int, int] | None = None,
        fence: bool,
    ) -> None:
        flags = int(e.IBV_SEND_SIGNALED) | (int(e.IBV_SEND_FENCE) if fence else 0)
        elements = [SGE(*part) for part in parts]
        try:
            arguments = {"wr_id": wr_id, "opcode": opcode, "num_sge": len(elements), "sg": elements}
            with SendWR(**arguments, send_flags=flags) as request, self._lock:
                self._check_open()
                if remote is not None:
                    request.set_wr_rdma(*remote)
                self.qp.post_send(request)
        finally:
            for element in elements:
                element.close()

    def take_events(self) -> None:
        """Consume the event that waits at ``fd``, if there is one, and request the next one.

        The caller may have seen ``fd`` readable some time ago. Meanwhile another thread may have taken the event, or
        the descriptor may have become another connection's.
        """
        with self._lock:
            if self._closed or not self._poller.poll(0):
                return
            self._channel.get_cq_event(self.cq)
            self.cq.ack_events(1)
            self.cq.req_notify()

    def poll(self) -> list[Completion]:
        """All completions in the CQ, the oldest first; empty after ``close``."""
        found: list[Completion] = []
        with self._lock:
            while not self._closed:
                count, completions = self.cq.poll(64)
                for wc in completions or ():
                    length = wc.byte_len if wc.status == WC_SUCCESS else 0
                    found.append(Completion(wc.wr_id, int(wc.status), length, wc.qp_num))
                if count < 64:
                    break
        return found

    def close_qp(self) -> None:
        with self._lock:
            self.qp.close()

    def close(self) -> None:
        """Close the remaining objects, children first: QP, CQ, channel, PD."""
        with self._lock:
            self._closed = True
            self.qp.close()
            self.cq.close()
            with _fd_lock:
                self._channel.close()
            self.pd.close()

    def _modify(self, state: int) -> None:
        attr, mask = self._cm_id.qp_attr(state)
        if state == INIT:
            # A connector's kernel does not know yet that the peer may read. Each registration limits the access.
            attr.qp_access_flags |= REMOTE_WRITE | REMOTE_READ
        if state == RTR:
            attr.min_rnr_timer = MIN_RNR_TIMER
        try:
            self.qp.modify(_pyverbs_attr(attr), mask)
        except Exception as error:
            raise OSError(errno.EINVAL, f"QP to state {state}, mask {mask:#x}, {_described(attr)}: {error}") from error


def _described(attr: QpAttr) -> str:
    names = (
        "path_mtu",
        "rq_psn",
        "sq_psn",
        "dest_qp_num",
        "max_rd_atomic",
        "max_dest_rd_atomic",
        "timeout",
        "port_num",
    )
    ah = attr.ah_attr
    return (
        ", ".join(f"{n}={getattr(attr, n)}" for n in names)
        + f", dgid={bytes(ah.dgid).hex()}, sgid_index={ah.sgid_index}, is_global={ah.is_global}, ah.port={ah.port_num}"
    )


def _pyverbs_attr(attr: QpAttr) -> Any:
    result = QPAttr(qp_state=attr.qp_state, cur_qp_state=attr.cur_qp_state, port_num=attr.port_num)
    for name in ("path_mtu", "path_mig_state", "qkey", "rq_psn", "sq_psn", "dest_qp_num", "qp_access_flags"):
        setattr(result, name, getattr(attr, name))
    for name in (
        "pkey_index",
        "max_rd_atomic",
        "max_dest_rd_atomic",
        "min_rnr_timer",
        "timeout",
        "retry_cnt",
        "rnr_retry",
    ):
        setattr(result, name, getattr(attr, name))
    ah = attr.ah_attr
    if ah.is_global:
        route = GlobalRoute(_gid(bytes(ah.dgid)), ah.sgid_index)
        made = AHAttr(dlid=ah.dlid, sl=ah.sl, port_num=ah.port_num or 1, is_global=1, gr=route)
        # The constructor ignores parts of the route; the properties set them.
        made.sgid_index, made.flow_label = ah.sgid_index, ah.flow_label
        made.hop_limit, made.traffic_class = ah.hop_limit, ah.traffic_class
        result.ah_attr = made
    return result


def _gid(raw: bytes) -> Any:
    from pyverbs.addr import GID

    return GID(":".join(raw[i : i + 2].hex() for i in range(0, 16, 2)))
