"""The base of the provider: its records and locks, and how a call answers."""

import contextlib
import ipaddress
import itertools
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from hil.provider.settings import Settings
from hil.provider.sockets import SanSocket, State
from hil.verbs.cm import CmChannel, CmId
from hil.verbs.connection import Connection, Device
from hil.winsock import codes as w
from hil.winsock.codes import Code, Event
from hil.winsock.structures import WSPUPCALLTABLEEX, LpErrno, SockAddr

FAMILIES = {w.AF_INET: 4, w.AF_INET6: 6}
# A connection's completion channel, and for the first one of an adapter its command and asynchronous event descriptors.
CONNECTION_DESCRIPTORS = 3

Observer = Callable[..., None]
T = TypeVar("T")


class NetworkView(Protocol):
    """The part of ``hil.adapters.network.Network`` that the provider uses."""

    fd: int

    def drain(self) -> None: ...
    def addresses(self, *, afresh: bool = False) -> dict[str, str]: ...
    def up(self) -> bool: ...


class Refused(Exception):
    """A call that ends with an error code."""

    def __init__(self, code: Code) -> None:
        super().__init__(str(code))
        self.code = code


class Inside(threading.local):
    """``depth``: the number of completion up-calls that the current thread is in."""

    depth = 0


class Core:
    """Records and checks. ``observe(kind, **facts)`` is called for CM events, completions and memory."""

    def __init__(self, observe: Observer, network: NetworkView, settings: Settings | None = None) -> None:
        self._observe = observe
        self._network = network
        self._settings = settings or Settings()
        self._lock = threading.RLock()
        self._started = 0
        self._cleaning = False
        # The number of sockets that are being made and have no record yet.
        self._making = 0
        self._network_down = False
        # Two providers of a machine never use the same descriptors, so that a mix-up in the switch shows.
        self._descriptors = itertools.count((os.getpid() << 20) + 0x1001)
        self._wr_ids = itertools.count(1)
        self._upcalls = WSPUPCALLTABLEEX()
        self._catalog_entry = 0
        self._kicked: deque[SanSocket] = deque()
        self._sockets: dict[int, SanSocket] = {}
        self._by_cm: dict[int, SanSocket] = {}
        self._by_fd: dict[int, SanSocket] = {}
        self._by_secret: dict[bytes, SanSocket] = {}
        self._listeners: set[SanSocket] = set()
        # Sockets whose close has not ended yet, and CM ids whose DREQ is not answered yet.
        self._tearing: set[SanSocket] = set()
        self._lingering: dict[int, CmId] = {}
        self._changed = threading.Condition(self._lock)
        self._deadlines: deque[tuple[float, SanSocket]] = deque()
        self._inside = Inside()
        self._devices: dict[str, Device] = {}
        self._channel: CmChannel
        self._epoll: Any = None
        self._wake_write = -1

    @property
    def cm_fd(self) -> int:
        """The descriptor of the channel to the kernel's connection manager; valid after the start."""
        return self._channel.fd

    # --- answering -------------------------------------------------------------------------------------------------

    def _answer(self, lpErrno: LpErrno, sentinel: T, work: Callable[[], T]) -> T:
        try:
            return work()
        except Refused as refused:
            lpErrno.value = refused.code
            return sentinel

    def _find(self, descriptor: int, *, network: bool = True) -> SanSocket:
        """The socket of a descriptor. Refuses with WSAENOTSOCK, and unless ``network`` is False with WSAENETDOWN."""
        with self._lock:
            socket = self._sockets.get(descriptor) if self._started and isinstance(descriptor, int) else None
        if socket is None:
            raise Refused(Code.WSAENOTSOCK)
        if network:
            self._check_network()
        return socket

    def _check_network(self) -> None:
        # No notice follows when a port comes back later than its netdev, so the port is asked while it is down.
        if self._network_down:
            self._network_changed()
            if self._network_down:
                raise Refused(Code.WSAENETDOWN)

    def _network_changed(self) -> None:
        down = not self._network.up()
        if down != self._network_down:
            self._observe("network", handle=0, event="down" if down else "up")
        self._network_down = down

    def _check_open(self, socket: SanSocket) -> None:
        if socket.closing:
            raise Refused(Code.WSAENOTSOCK)
        if socket.state is State.HANDED_OVER:
            raise Refused(Code.WSAEINVAL)

    def _connected(self, socket: SanSocket) -> Connection:
        self._check_open(socket)
        if socket.state is State.DISCONNECTED:
            raise Refused(socket.error)
        if socket.state is not State.CONNECTED or socket.connection is None:
            raise Refused(Code.WSAENOTCONN)
        return socket.connection

    def _check_address(self, socket: SanSocket, name: SockAddr | None, namelen: int) -> SockAddr:
        try:
            assert name is not None
            version = ipaddress.ip_address(name.sin_addr).version
            ports = range(1 << 16)
        except (ValueError, AttributeError, AssertionError) as error:
            raise Refused(Code.WSAEFAULT) from error
        right = version == FAMILIES[socket.family] and name.sin_family == socket.family and name.sin_port in ports
        if not right or namelen < (16 if version == 4 else 28):
            raise Refused(Code.WSAEFAULT)
        return name

    # --- records -----------------------------------------------------------------------------------------------------

    def _new_socket(self, family: int) -> SanSocket:
        with self._lock:
            if not self._started:
                raise Refused(Code.WSAENETDOWN)
            self._making += 1
        try:
            return self._make_socket(family)
        finally:
            with self._changed:
                self._making -= 1
                self._changed.notify_all()

    def _make_socket(self, family: int) -> SanSocket:
        self._check_room()
        descriptor = next(self._descriptors)
        code = LpErrno()
        handle = self._upcalls.lpWPUCreateSocketHandle(self._catalog_entry, descriptor, code)
        if handle == w.INVALID_SOCKET:
            raise Refused(Code(code.value) if code.value else Code.WSAENOBUFS)
        socket = SanSocket(descriptor, handle, family)
        with self._lock:
            self._sockets[descriptor] = self._by_secret[socket.secret] = socket
        return socket

    def _leave(self, socket: SanSocket) -> None:
        """Begin the close of ``socket``: it cannot be found any more. The caller holds the lock."""
        self._tearing.add(socket)
        self._listeners.discard(socket)
        if self._by_secret.get(socket.secret) is socket:
            del self._by_secret[socket.secret]

    def _check_room(self, more: int = 1) -> None:
        """Refuses with WSAEMFILE unless there is room for ``more`` sockets and for a connection's descriptors."""
        with self._lock:
            if self._wake_write < 0:
                raise Refused(Code.WSAENETDOWN)
            if len(self._sockets) + more > self._settings.max_sockets:
                raise Refused(Code.WSAEMFILE)
            # A connection needs file descriptors of the process too.
            with contextlib.ExitStack() as tried:
                try:
                    for _ in range(CONNECTION_DESCRIPTORS):
                        tried.callback(os.close, os.dup(self._wake_write))
                except OSError as error:
                    raise Refused(Code.WSAEMFILE) from error

    def _new_id(self) -> CmId:
        try:
            return self._channel.create_id()
        except OSError as error:
            raise Refused(Code.WSAENOBUFS) from error

    def _adopt(self, socket: SanSocket, cm_id: CmId) -> None:
        socket.cm_id = cm_id
        with self._lock:
            self._by_cm[cm_id.key] = socket

    def _refuse(self, cm_id: CmId) -> None:
        with contextlib.suppress(OSError):
            cm_id.reject()
        with contextlib.suppress(OSError):
            cm_id.destroy()

    def _step(self, work: Callable[..., object], *arguments: object) -> None:
        # A step of a close that fails must not prevent the other steps.
        try:
            work(*arguments)
        except Exception:
            self._observe("error", handle=0, traceback=traceback.format_exc())

    # --- events ------------------------------------------------------------------------------------------------------

    def _signal(self, socket: SanSocket, event: Event, bit: int, code: Code) -> None:
        with socket.lock:
            if socket.closing:
                return
            socket.happened |= event
            socket.event_codes[bit] = code
            if socket.event is not None and socket.selected & event:
                socket.event.SetEvent()

    def _kick(self, socket: SanSocket) -> None:
        """Have the provider's thread deliver the outcomes of ``socket``, so that no up-call precedes the return."""
        self._kicked.append(socket)
        self._wake()

    def _wake(self) -> None:
        # After the end the descriptor may belong to another file. A full pipe wakes the thread too. This call must not
        # wait for the thread that empties the pipe.
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._wake_write >= 0:
                os.write(self._wake_write, b"x")
