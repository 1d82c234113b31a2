"""The switch's session with its peer over one SAN connection: a byte stream over messages and RDMA.

The contract describes it in words only (SESS, XFER, URG, SHUT), so the format is this switch's own. Each side posts its
receives and then tells their number: the connector sends HELLO first, and the acceptor answers with its own. From then
on every message uses one receive of the peer (a credit). It tells how many receives the sender has posted again and how
many stream bytes its application has read.

DATA carries data up to the threshold. For larger data the sender offers a SOURCE, which the receiver reads by RDMA and
ends with PULLED. If the receiver's provider has no RDMA read, the sender sends a REQUEST, the receiver answers with a
TARGET, and the sender writes into it by RDMA and ends with PUSHED. END half-closes the stream. FAREWELL goes before the
socket is closed.
"""

import contextlib
import ctypes
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import Any

from hil.switch.carrier import DRAIN_TIMEOUT_S, CallFailed, Carrier, free
from hil.switch.messages import HEADER, BadMessage, Flow, Hello, Kind, Message, parse_transfer, transfer
from hil.switch.requests import (
    Item,
    Open,
    Options,
    Outgoing,
    Read,
    Request,
    Resume,
    Send,
    StreamError,
    Suspend,
    Urgent,
)
from hil.switch.switch import Switch
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUFEX, WSAPROTOCOL_INFOW

MOST_URGENT = 16
# Time limit for noticing an overdue suspension.
GRACE_S = 0.5
# A registration ends with one of these codes when there is no memory for it.
_NO_MEMORY = (Code.WSAENOBUFS, Code.WSAEFAULT)


class Session(Carrier):
    """A byte stream over the connected socket ``s``. Its public methods may be called by any thread.

    They raise StreamError. A ``connector`` sends its HELLO first.
    """

    def __init__(self, switch: Switch, s: int, *, connector: bool, options: Options | None = None) -> None:
        super().__init__(switch, s, options)
        self.connector = connector
        self._negotiation: Open | None = None
        self._numbers = itertools.count(1)
        self._senders: deque[Send] = deque()
        self._readers: deque[Read] = deque()
        self._outgoing: dict[int, Outgoing] = {}
        self._unannounced: set[int] = set()
        self._items: deque[Item] = deque()
        self._urgent_out: deque[bytes] = deque()
        self._urgent: deque[bytes] = deque(maxlen=MOST_URGENT)
        self._urgent_readers: deque[Urgent] = deque()
        self._shut = self._peer_ended = self._peer_left = False
        self._farewell: Send | None = None
        self._ours: Suspend | None = None
        self._theirs: Suspend | None = None
        self._next_ours: Suspend | None = None

    # --- for applications --------------------------------------------------------------------------------------------

    def open(self, timeout_s: float) -> None:
        """Register the pools, post the receives, and negotiate."""
        self._thread.start()
        self._ask(Open(), timeout_s)

    def send(self, address: int, length: int, timeout_s: float) -> int:
        """Send ``length`` bytes at ``address``. Returns the number of bytes sent, once their memory may be reused."""
        return int(self._ask(Send(address, length), timeout_s))

    def send_urgent(self, data: bytes, timeout_s: float) -> None:
        """Send urgent bytes outside of the stream, no more than fit into a message."""
        if not data:
            raise StreamError(Code.WSAEINVAL)
        self._ask(Urgent(data), timeout_s)

    def recv(self, address: int, length: int, timeout_s: float) -> int:
        """Put arrived data, up to ``length`` bytes, at ``address``. Returns its length, 0 at the stream's end."""
        return int(self._ask(Read(address, length), timeout_s))

    def recv_urgent(self, timeout_s: float) -> bytes:
        return bytes(self._ask(Urgent(), timeout_s))

    def shutdown(self, timeout_s: float) -> None:
        """Half-close: the peer reads to the end, and the connection stays (SHUT-03)."""
        self._ask(Send(0, 0, Kind.END), timeout_s)

    def suspend(self, timeout_s: float) -> None:
        """Stop requests, drain sends and RDMA at both ends, and release their memory. Receives stay (SWITCH-15)."""
        self._ask(Suspend(), timeout_s)

    def resume(self, timeout_s: float) -> None:
        self._ask(Resume(), timeout_s)

    def close(self, linger_s: float) -> dict[str, Any]:
        """Close the socket. Returns WSPCloseSocket's answer.

        It is abortive with ``linger_s`` 0. Otherwise sent data and a FAREWELL go first, within ``linger_s`` seconds.
        """
        if linger_s:
            with contextlib.suppress(StreamError):
                self._ask(Send(0, 0, Kind.FAREWELL), linger_s)
        future: Future[dict[str, Any]] = Future()
        if not self._put(partial(self._stop, future)):
            raise StreamError(Code.WSAENOTSOCK)
        return future.result(2 * DRAIN_TIMEOUT_S)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        if isinstance(request, Open):
            self._negotiation = request
            self._make_pools()
            if self.connector:
                self._say_hello()
        elif isinstance(request, Read):
            self._readers.append(request)
        elif isinstance(request, Urgent) and not request.data:
            self._urgent_readers.append(request)
        elif self.error is not None:
            request.fail(self.error)
        elif self._peer_left:
            request.fail(Code.WSAECONNRESET)
        else:
            self._admit_living(request)

    def _admit_living(self, request: Request) -> None:
        if isinstance(request, Urgent):
            if self._shut or len(request.data) > self._room():
                request.fail(Code.WSAESHUTDOWN if self._shut else Code.WSAEMSGSIZE)
                return
            self._urgent_out.append(request.data)
            request.settle()
        elif isinstance(request, Send):
            self._admit_send(request)
        elif isinstance(request, Suspend):
            self._begin_suspension(request)
        elif isinstance(request, Resume):
            self._end_suspension(request)

    def _admit_send(self, send: Send) -> None:
        if send.last is Kind.END and self._shut:
            send.settle()
        elif send.last is Kind.FAREWELL and self._held():
            send.fail(Code.WSAECONNABORTED)
        elif self._shut and send.last is not Kind.FAREWELL:
            send.fail(Code.WSAESHUTDOWN)
        else:
            self._shut = self._shut or send.last is not None
            self._senders.append(send)

    def _give_up(self, request: Request) -> None:
        """Take back a request whose time is over, or end the session if the peer already works on it."""
        if request.future.done():
            return
        if isinstance(request, Read):
            self._readers.remove(request)
        elif isinstance(request, Urgent):
            self._urgent_readers.remove(request)
        elif request is self._next_ours:
            self._next_ours = None
        elif isinstance(request, Send) and request.transfer is None:
            if request in self._senders:
                self._senders.remove(request)
            if request.done:
                request.settle(request.done)
        else:
            self._abort(Code.WSAETIMEDOUT)
        request.fail(Code.WSAETIMEDOUT)

    def _progress(self) -> None:
        self._serve()
        if self._unannounced:
            seen = f"RDMA transfers {sorted(self._unannounced)} ended without a message"
            self.switch.misbehaves("SWITCH-18", seen)
            self._unannounced.clear()
        if self.error is None and self._lost is None:
            self._advance()
            self._drain()
            self._pump(quiet=self._quiet())

    def _on_end(self, code: Code) -> None:
        for request in (self._negotiation, self._ours, self._next_ours, *self._urgent_readers):
            if request is not None:
                request.fail(code)
        for send in (*self._senders, *([self._farewell] if self._farewell else [])):
            send.fail(code, send.done)
        self._senders.clear()
        self._urgent_readers.clear()
        kept = list(itertools.takewhile(lambda item: item.data is not None, self._items))
        if len(kept) < len(self._items):
            # An announced transfer that can no longer be made is not the stream's end.
            self._peer_ended = False
        self._free(item for item in self._items if item not in kept)
        self._items = deque(kept)
        self._serve()

    def _on_sent(self, kind: Kind, code: Code) -> None:
        if kind is Kind.FAREWELL and self._farewell is not None:
            self._farewell.fail(code) if code else self._farewell.settle()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _say_hello(self) -> None:
        self._transmit(Kind.HELLO, self._hello().encode())

    def _hello(self) -> Hello:
        can_pull = "WSPRdmaRead" in self.switch.functions
        return Hello(self.options.receives, self.message_size, self.options.window, self.max_rdma, can_pull)

    def _on_message(self, message: Message) -> None:
        if self.flow.peer is None or message.kind is Kind.HELLO:
            self._on_hello(message)
            return
        transfers = {
            Kind.SOURCE: self._on_source,
            Kind.REQUEST: self._on_request,
            Kind.PULLED: self._on_pulled,
            Kind.TARGET: self._on_target,
            Kind.PUSHED: self._on_pushed,
        }
        others = {
            Kind.DATA: self._on_data,
            Kind.URGENT: self._on_urgent,
            Kind.SUSPEND: self._on_suspend,
            Kind.SUSPENDED: self._on_suspended,
            Kind.RESUME: self._on_resume,
        }
        if message.kind in transfers:
            transfers[message.kind](*parse_transfer(message.payload))
        elif message.kind in others:
            others[message.kind](message.payload)
        elif message.kind in (Kind.END, Kind.FAREWELL):
            self._on_last(message.kind)

    def _on_hello(self, message: Message) -> None:
        if self.flow.peer is not None or message.kind is not Kind.HELLO:
            raise BadMessage(f"{message.kind.name} in the negotiation")
        peer = Hello.parse(message.payload)
        if peer.max_rdma <= self.threshold:
            raise BadMessage(f"RDMA of {peer.max_rdma} bytes, below the threshold of {self.threshold}")
        self.flow.open(peer)
        if not self.connector:
            self._say_hello()
        if self._negotiation is not None:
            self._negotiation.settle()

    def _on_last(self, kind: Kind) -> None:
        if self._peer_left or (self._peer_ended and kind is Kind.END):
            raise BadMessage(f"{kind.name} after the end")
        self._peer_ended = True
        if kind is Kind.FAREWELL:
            self._peer_left = True
            for send in self._senders:
                send.fail(Code.WSAECONNRESET, send.done)
            self._senders.clear()

    def _on_urgent(self, payload: bytes) -> None:
        if not payload:
            raise BadMessage("urgent data of no bytes")
        self._urgent.append(payload)

    def _on_data(self, payload: bytes) -> None:
        if not payload or self._peer_ended:
            raise BadMessage(f"{len(payload)} bytes of data" + (" after the end" if self._peer_ended else ""))
        self.flow.arrived(len(payload))
        self._items.append(Item(payload))

    # --- sending -----------------------------------------------------------------------------------------------------

    def _peer(self) -> Hello:
        assert self.flow.peer is not None
        return self.flow.peer

    def _room(self) -> int:
        """The largest payload of one message, in bytes."""
        return min(self.threshold, self._peer().message_size - HEADER.size) if self.flow.peer else 0

    def _by_rdma(self, length: int) -> bool:
        return length > self.threshold

    def _advance(self) -> None:
        """Send the applications' data in order. A transfer by RDMA ends before the next begins."""
        if not self._held():
            self._send_urgent_first()
        while self._senders and self._senders[0].transfer is None:
            send = self._senders[0]
            left = send.length - send.done
            if not left and send.last is None:
                self._senders.popleft().settle(send.length)
            elif self._held():
                return
            elif send.last is not None:
                self._send_last(self._senders.popleft(), send.last)
            elif self._by_rdma(left):
                self._offer(send, left)
            elif not self._queue(send, left):
                return

    def _send_urgent_first(self) -> None:
        """Send urgent data as an ordinary message before the others (URG)."""
        place = sum(kind is Kind.URGENT for kind, _ in self._outbox)
        while self._urgent_out:
            self._outbox.insert(place, (Kind.URGENT, self._urgent_out.popleft()))
            place += 1

    def _send_last(self, send: Send, kind: Kind) -> None:
        self._outbox.append((kind, b""))
        if kind is Kind.END:
            send.settle()
        else:
            self._farewell = send

    def _queue(self, send: Send, left: int) -> bool:
        """Put data into messages. Returns whether the peer had room for any."""
        if left > self.threshold:
            self.switch.misbehaves("SWITCH-11", f"{left} bytes by message, the threshold is {self.threshold}")
        count = min(left, self.flow.window, self._room())
        if not count:
            return False
        data = ctypes.string_at(send.address + send.done, count)
        kind, before = self._outbox[-1] if self._outbox else (Kind.CREDIT, b"")
        if kind is Kind.DATA and len(before) + count <= self._room():
            self._outbox[-1] = (kind, before + data)
        else:
            self._outbox.append((Kind.DATA, data))
        self.flow.window -= count
        send.done += count
        return True

    def _offer(self, send: Send, left: int) -> None:
        """Begin the RDMA transfer of the next chunk: expose it, or ask for a target."""
        most = min(self.max_rdma, self._peer().max_rdma)
        length = min(left, max(self.options.chunk, self.threshold + 1) if self.options.chunk else most, most)
        if length <= self.threshold:
            self.switch.misbehaves("SWITCH-11", f"{length} bytes by RDMA, the threshold is {self.threshold}")
        outgoing = Outgoing(next(self._numbers), send, length)
        if self._peer().can_pull:
            try:
                outgoing.descriptor = self._expose(send.address + send.done, length, w.MEM_READ)
            except CallFailed as failed:
                self._lacks_memory(send, failed)
                return
            self._outbox.append((Kind.SOURCE, transfer(outgoing.number, length, outgoing.descriptor)))
        else:
            self._outbox.append((Kind.REQUEST, transfer(outgoing.number, length)))
        send.transfer = self._outgoing[outgoing.number] = outgoing

    def _lacks_memory(self, send: Send, failed: CallFailed | None = None) -> None:
        """End an application's send because this side or the peer lacks memory (SWITCH-18)."""
        if failed is not None and failed.code not in _NO_MEMORY:
            raise failed
        send.transfer = None
        self._senders.remove(send)
        send.fail(self._memory_code(), send.done)
        error = send.future.exception(0)
        if not isinstance(error, StreamError) or error.code is not Code.WSAENOBUFS:
            self.switch.misbehaves("SWITCH-18", f"a send that lacks memory ended with {error}")

    def _memory_code(self) -> Code:
        return Code.WSAENOBUFS

    def _named(self, number: int, *, pushing: bool, exposed: bool) -> Outgoing:
        outgoing = self._outgoing.get(number)
        if outgoing is None or outgoing.pushing is not pushing or bool(outgoing.descriptor) is not exposed:
            raise BadMessage(f"there is no such transfer {number}")
        return outgoing

    def _on_pulled(self, number: int, code: int, rest: bytes) -> None:
        outgoing = self._named(number, pushing=False, exposed=True)
        self._hide(outgoing.descriptor)
        self._transferred(outgoing, code)

    def _on_target(self, number: int, code: int, descriptor: bytes) -> None:
        outgoing = self._named(number, pushing=False, exposed=False)
        if code or not descriptor:
            self._transferred(outgoing, code or int(Code.WSAENOBUFS))
            return
        address = outgoing.send.address + outgoing.send.done
        try:
            outgoing.handle = self._register(address, outgoing.length, w.MEM_READ)
        except CallFailed as failed:
            del self._outgoing[number]
            self._lacks_memory(outgoing.send, failed)
            self._announce(Kind.PUSHED, number, Code.WSAENOBUFS)
            return
        outgoing.pushing = True
        buffer = WSABUFEX(outgoing.length, address, outgoing.handle)
        self._start_rdma("WSPRdmaWrite", buffer, descriptor, partial(self._wrote, outgoing))

    def _wrote(self, outgoing: Outgoing, code: Code, count: int) -> None:
        if code:
            self._lose(code)
            return
        self._deregister(outgoing.handle)
        self._unannounced.add(outgoing.number)
        self._announce(Kind.PUSHED, outgoing.number)
        self._transferred(outgoing, 0)

    def _transferred(self, outgoing: Outgoing, code: int) -> None:
        del self._outgoing[outgoing.number]
        if code:
            self._lacks_memory(outgoing.send)
        else:
            outgoing.send.done += outgoing.length
            outgoing.send.transfer = None

    def _start_rdma(
        self, function: str, buffer: WSABUFEX, descriptor: bytes, then: Callable[[Code, int], object]
    ) -> None:
        try:
            self._start(function, [buffer], then, descriptor)
        except CallFailed as failed:
            if failed.code in (Code.WSAEINVAL, Code.WSAEFAULT, Code.WSAEMSGSIZE):
                raise BadMessage(f"the peer's descriptor is refused: {failed}") from failed
            raise

    def _announce(self, kind: Kind, number: int, code: Code = Code.OK) -> None:
        """Tell the peer that a transfer has ended (SWITCH-18)."""
        self._unannounced.discard(number)
        self._outbox.append((kind, transfer(number, code)))

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _on_source(self, number: int, length: int, descriptor: bytes) -> None:
        if not descriptor or "WSPRdmaRead" not in self.switch.functions:
            raise BadMessage("a source that cannot be read")
        self._expect(Item(None, 0, False, number, length, descriptor))

    def _on_request(self, number: int, length: int, rest: bytes) -> None:
        self._expect(Item(None, 0, False, number, length))

    def _expect(self, item: Item) -> None:
        open_items = [known for known in self._items if known.data is None]
        if self._peer_ended or not 0 < item.length <= self.max_rdma or len(open_items) >= self.options.receives:
            raise BadMessage(f"transfer {item.number} of {item.length} bytes, {len(open_items)} are open")
        if any(known.number == item.number for known in open_items):
            raise BadMessage(f"transfer {item.number} twice")
        self._items.append(item)

    def _begin(self, item: Item) -> None:
        """Begin an announced transfer into new memory: read it by RDMA, or expose a target."""
        item.memory = self.switch.new_memory(item.length)["memory"]
        address = self.switch.memories[item.memory].address
        try:
            if item.source is None:
                item.target = self._expose(address, item.length, w.MEM_WRITE)
                self._outbox.append((Kind.TARGET, transfer(item.number, 0, item.target)))
                return
            item.handle = self._register(address, item.length, w.MEM_WRITE)
        except CallFailed as failed:
            if failed.code not in _NO_MEMORY:
                raise
            self._items.remove(item)
            self._free([item])
            self._announce(Kind.TARGET if item.source is None else Kind.PULLED, item.number, Code.WSAENOBUFS)
            return
        buffer = WSABUFEX(item.length, address, item.handle)
        self._start_rdma("WSPRdmaRead", buffer, item.source, partial(self._read, item))

    def _read(self, item: Item, code: Code, count: int) -> None:
        if code:
            self._lose(code)
            return
        self._deregister(item.handle)
        self._unannounced.add(item.number)
        self._announce(Kind.PULLED, item.number)
        self._have(item)

    def _on_pushed(self, number: int, code: int, rest: bytes) -> None:
        item = next((i for i in self._items if i.data is None and i.target and i.number == number), None)
        if item is None:
            raise BadMessage(f"there is no target {number}")
        self._hide(item.target)
        if code:
            self._items.remove(item)
            self._free([item])
        else:
            self._have(item)

    def _have(self, item: Item) -> None:
        if item.memory is not None:
            item.data = self.switch.memories[item.memory].read(0, item.length)
            self._free([item])

    def _free(self, items: Any) -> None:
        for item in items:
            if item.memory is not None:
                free(self.switch, self.switch.memories.pop(item.memory))
                item.memory = None

    def _serve(self) -> None:
        """Give arrived data to applications. A transfer by RDMA begins when its data is next to be read."""
        while self._urgent and self._urgent_readers:
            self._urgent_readers.popleft().settle(self._urgent.popleft())
        while self._readers:
            read = self._readers[0]
            self._fill(read)
            if not read.filled and self._items and self.error is None:
                if self._items[0].memory is None and self._lost is None:
                    self._begin(self._items[0])
                    continue
                return
            if not read.filled and not self._peer_ended and self.error is None:
                return
            self._readers.popleft()
            if read.filled or self._peer_ended:
                read.settle(read.filled)
            elif self.error is not None:
                read.fail(self.error)
        if self.error is not None:
            for urgent in self._urgent_readers:
                urgent.fail(self.error)
            self._urgent_readers.clear()

    def _fill(self, read: Read) -> None:
        while self._items and read.filled < read.length and (data := self._items[0].data) is not None:
            item = self._items[0]
            part = data[item.taken : item.taken + read.length - read.filled]
            ctypes.memmove(read.address + read.filled, part, len(part))
            read.filled += len(part)
            item.taken += len(part)
            # The window counts only data that came by message.
            if item.by_message:
                self.flow.owed_bytes += len(part)
            if item.taken == len(data):
                self._items.popleft()

    # --- suspension --------------------------------------------------------------------------------------------------

    def _held(self) -> bool:
        return self._ours is not None or self._theirs is not None

    def _quiet(self) -> bool:
        return any(s is not None and s.quiet for s in (self._ours, self._theirs))

    def _begin_suspension(self, request: Suspend) -> None:
        if self._ours is not None or self._next_ours is not None:
            request.fail(Code.WSAEALREADY)
            return
        if self._theirs is not None and self._theirs.quiet:
            # This side has promised the peer to be silent, so its own suspension waits for the end of the peer's.
            self._next_ours = request
            return
        self._ours = request
        self._outbox.append((Kind.SUSPEND, b""))
        self._bound_suspension()

    def _bound_suspension(self) -> None:
        """End a session that is suspended for longer than its limit (SWITCH-16)."""
        limit_s = self.options.suspension_timeout_s
        self._within(limit_s, "suspension", self._suspension_expired)
        self._within(limit_s + GRACE_S, "SWITCH-16", self._suspension_overdue)

    def _suspension_expired(self) -> None:
        self._abort(Code.WSAETIMEDOUT)

    def _suspension_overdue(self) -> None:
        seen = f"suspended for more than {self.options.suspension_timeout_s} s"
        self.switch.misbehaves("SWITCH-16", seen)

    def _unbound_suspension(self) -> None:
        if not self._held():
            self._deadlines.pop("suspension", None)
            self._deadlines.pop("SWITCH-16", None)

    def _drain(self) -> None:
        """While suspended, finish the operations under way, and then send nothing."""
        if not self._held():
            return
        for item in list(self._items):
            if item.data is None and item.memory is None:
                self._begin(item)
        open_items = any(item.data is None for item in self._items)
        if self._outgoing or open_items or self._outbox or self._under_way:
            return
        if self._theirs is not None and not self._theirs.quiet:
            self._theirs.quiet = True
            self._outbox.append((Kind.SUSPENDED, b""))
        elif self._ours is not None and self._ours.answered and not self._ours.quiet:
            self._ours.quiet = True
            self._release_sends()
            self._ours.settle()

    def _on_suspend(self, payload: bytes) -> None:
        if self._theirs is not None:
            raise BadMessage("suspended twice")
        self._theirs = Suspend()
        self._bound_suspension()

    def _on_suspended(self, payload: bytes) -> None:
        if self._ours is None or self._ours.answered:
            raise BadMessage("a SUSPENDED without a SUSPEND")
        self._ours.answered = True

    def _end_suspension(self, request: Resume) -> None:
        if self._ours is None or not self._ours.quiet:
            request.fail(Code.WSAEINVAL)
            return
        self._own_sends()
        self._ours = None
        self._unbound_suspension()
        self._outbox.append((Kind.RESUME, b""))
        request.settle()

    def _on_resume(self, payload: bytes) -> None:
        if self._theirs is None or not self._theirs.quiet:
            raise BadMessage("a RESUME without a suspension")
        self._theirs = None
        self._unbound_suspension()
        if (request := self._next_ours) is not None:
            self._next_ours = None
            self._begin_suspension(request)

    # --- hand-over ---------------------------------------------------------------------------------------------------

    def hand_over(self, pid: int, timeout_s: float) -> tuple[int, dict[str, Any]]:
        """Call WSPDuplicateSocket of the suspended session for process ``pid``. Returns its token and state."""
        future: Future[tuple[int, dict[str, Any]]] = Future()
        if not self._put(partial(self._hand_over, pid, future)):
            raise StreamError(Code.WSAENOTSOCK)
        return future.result(timeout_s)

    def _hand_over(self, pid: int, future: Future[tuple[int, dict[str, Any]]]) -> None:
        if self.error is not None or self._ours is None or not self._ours.quiet:
            future.set_exception(StreamError(self.error or Code.WSAEINVAL))
            return
        info = WSAPROTOCOL_INFOW(w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP)
        answer = self.switch.call("WSPDuplicateSocket", self.s, pid, info)
        if answer["code"]:
            future.set_exception(StreamError(Code(answer["code"])))
            return
        state = self._state()
        # Only WSPCloseSocket may follow on this descriptor (DUP-07).
        self._end(Code.WSAENOTSOCK)
        future.set_result((info.dwProviderReserved, state))

    def _state(self) -> dict[str, Any]:
        return {
            "connector": self.connector,
            "flow": asdict(self.flow),
            "items": [(item.data[item.taken :], item.by_message) for item in self._items if item.data is not None],
            "urgent": list(self._urgent),
            "next_number": next(self._numbers),
            "ends": [self._shut, self._peer_ended],
            "suspended_by_peer": self._theirs is not None,
        }

    @classmethod
    def take_over(cls, switch: Switch, s: int, state: Mapping[str, Any], options: Options | None = None) -> "Session":
        """The suspended session with the state of ``hand_over``, on its new descriptor ``s``. ``resume`` it."""
        session = cls(switch, s, connector=state["connector"], options=options)
        flow = dict(state["flow"])
        session.flow = Flow(**flow | {"peer": Hello(**flow["peer"])})
        session._items.extend(Item(data, 0, by_message) for data, by_message in state["items"])
        session._urgent.extend(state["urgent"])
        session._numbers = itertools.count(state["next_number"])
        session._shut, session._peer_ended = state["ends"]
        session._theirs = Suspend(quiet=True) if state["suspended_by_peer"] else None
        session._thread.start()
        taken: Future[None] = Future()
        session._put(partial(session._taken, taken))
        taken.result(2 * DRAIN_TIMEOUT_S)
        return session

    def _taken(self, taken: Future[None]) -> None:
        try:
            self._make_pools()
            self._release_sends()
        except CallFailed as failed:
            taken.set_exception(StreamError(failed.code))
            raise
        self._ours = Suspend(answered=True, quiet=True)
        self._bound_suspension()
        taken.set_result(None)
