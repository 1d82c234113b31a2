"""One provider in its worker process, as a test drives it: SPI calls by name, and the switch's usual sequences."""

from dataclasses import dataclass
from typing import Any

from hil.errors import HilError, PhaseTimeout
from hil.nodes.node import Node
from hil.winsock.codes import MEM_READWRITE, Code

CALL_TIMEOUT_S = 30.0
EVENT_TIMEOUT_S = 10.0
FD_ACCEPT, FD_CONNECT = 0x08, 0x10


class ProviderHangs(AssertionError):
    """A WSP function did not return although its node lives: the provider's fault, so a fail."""


class UnexpectedResult(HilError):
    """A step that only prepares a test did not end as it must."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a WSP function returned: its value and the code stored in lpErrno."""

    result: Any
    code: Code
    more: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket of an endpoint: descriptor, switch handle, its event object, and a buffer registered as ``region``."""

    s: int
    handle: int
    event: int
    address: int = 0
    memory: int = 0
    region: int = 0


class Endpoint:
    """A provider process on ``node``. ``provider`` names a broken one, ``settings`` are hil.provider.settings'."""

    ROLE = "provider"

    def __init__(self, node: Node, ip: str, provider: str = "", **settings: Any) -> None:
        self.node, self.ip = node, ip
        self.worker, self.pid = node.channel.spawn(self.ROLE)
        code = self.ask("start", provider=provider, settings=settings)
        if code:
            raise UnexpectedResult(f"WSPStartupEx on node {node.name}: {Code(code)}")

    def ask(self, call: str, /, **arguments: Any) -> Any:
        return self.node.channel.call(self.worker, call, CALL_TIMEOUT_S, "provider call", **arguments)

    def wsp(self, function: str, /, **arguments: Any) -> Answer:
        """Call a WSP function by name."""
        try:
            answer = dict(self.ask(function, **arguments))
        except PhaseTimeout as error:
            raise ProviderHangs(f"{function} did not return (CLOSE-47): {error}") from error
        return Answer(answer.pop("result"), Code(answer.pop("code")), answer)

    def must(self, function: str, code: Code = Code.OK, /, **arguments: Any) -> Answer:
        """A call that prepares the test. Raises UnexpectedResult when it ends with another code."""
        answer = self.wsp(function, **arguments)
        if answer.code is not code:
            raise UnexpectedResult(f"{function} on node {self.node.name}: {answer.code}, expected {code}")
        return answer

    def socket(self, port: int, events: int, address: str = "") -> Socket:
        """A bound socket with an event object selected for ``events`` (SWITCH-04)."""
        s = self.must("WSPSocket", af=23 if ":" in self.ip else 2).result
        self.must("WSPBind", s=s, address=address or self.ip, port=port)
        event = self.ask("event")
        self.must("WSPEventSelect", s=s, event=event, mask=events)
        return Socket(s, self.handle_of(s), event)

    def handle_of(self, s: int) -> int:
        return int(self.ask("handle_of", s=s))

    def listen(self, port: int, backlog: int = 5, address: str = "") -> Socket:
        listener = self.socket(port, FD_ACCEPT, address)
        self.must("WSPListen", s=listener.s, backlog=backlog)
        return listener

    def wait_request(self, listener: Socket) -> None:
        """Wait for FD_ACCEPT. Raises UnexpectedResult."""
        if not self.ask("wait_event", event=listener.event, timeout_s=EVENT_TIMEOUT_S):
            raise UnexpectedResult("no connection request came")

    def accept(self, listener: Socket) -> Socket:
        """Wait for FD_ACCEPT, accept, and register a buffer."""
        self.wait_request(listener)
        s = self.must("WSPAccept", s=listener.s).result
        event = self.ask("event")
        self.must("WSPEventSelect", s=s, event=event, mask=FD_ACCEPT | FD_CONNECT)
        return self.with_memory(Socket(s, self.handle_of(s), event))

    def connect(self, socket: Socket, address: str, port: int, **more: Any) -> None:
        """Begin a connect, which must pend."""
        self.must("WSPConnect", Code.WSAEWOULDBLOCK, s=socket.s, address=address, port=port, **more)

    def connect_result(self, socket: Socket, timeout_s: float = EVENT_TIMEOUT_S) -> Code:
        """Wait for FD_CONNECT: the code the connect ended with. Raises UnexpectedResult when it does not end."""
        if not self.ask("wait_event", event=socket.event, timeout_s=timeout_s):
            raise UnexpectedResult("the connect did not end")
        answer = self.must("WSPEnumNetworkEvents", s=socket.s, event=socket.event)
        if not answer.more["events"] & FD_CONNECT:
            raise UnexpectedResult(f"the event object was set, the events are {answer.more['events']:#x}")
        return Code(answer.more["codes"][4])

    def connected(self, socket: Socket) -> Socket:
        """Wait for FD_CONNECT with code 0, and register a buffer."""
        code = self.connect_result(socket)
        if code:
            raise UnexpectedResult(f"the connect failed: {code}")
        return self.with_memory(socket)

    def with_memory(self, socket: Socket, size: int = 65536, flags: int = MEM_READWRITE) -> Socket:
        """The socket with a new buffer of ``size`` bytes, registered for it."""
        made = self.ask("memory", size=size)
        region = self.must("WSPRegisterMemory", s=socket.s, address=made["address"], length=size, flags=flags).result
        return Socket(socket.s, socket.handle, socket.event, made["address"], made["memory"], region)

    def recv(self, socket: Socket, length: int = 256, offset: int = 0, hEvent: int = 0) -> int:
        """Post a receive into the socket's buffer; its WSAOVERLAPPED's number."""
        overlapped = int(self.ask("overlapped", hEvent=hEvent))
        buffers = [[length, socket.address + offset]]
        self.must("WSPRecv", Code.WSA_IO_PENDING, s=socket.s, buffers=buffers, overlapped=overlapped)
        return overlapped

    def send(self, socket: Socket, data: bytes, offset: int = 32768, hEvent: int = 0) -> int:
        """Send ``data`` from the socket's buffer; its WSAOVERLAPPED's number."""
        self.ask("write_memory", memory=socket.memory, offset=offset, data=data)
        overlapped = int(self.ask("overlapped", hEvent=hEvent))
        buffers = [[len(data), socket.address + offset]]
        self.must("WSPSend", Code.WSA_IO_PENDING, s=socket.s, buffers=buffers, overlapped=overlapped)
        return overlapped

    def expose(self, socket: Socket, flags: int, size: int = 65536) -> tuple[int, bytes]:
        """New memory registered for the peer's RDMA: its number, and the descriptor for the peer."""
        made = self.ask("memory", size=size)
        arguments = {"s": socket.s, "address": made["address"], "length": size, "flags": flags}
        return made["memory"], self.must("WSPRegisterRdmaMemory", **arguments).more["descriptor"]

    def rdma(
        self,
        function: str,
        socket: Socket,
        descriptor: bytes,
        length: int,
        *,
        at: int = 0,
        offset: int = 0,
        hEvent: int = 0,
    ) -> int:
        """WSPRdmaWrite or WSPRdmaRead of ``length`` bytes between the socket's buffer, from ``at`` on, and the peer's,
        from ``offset`` on; its WSAOVERLAPPED's number."""
        overlapped = int(self.ask("overlapped", hEvent=hEvent))
        buffers = [[length, socket.address + at, socket.region]]
        arguments = {"s": socket.s, "buffers": buffers, "descriptor": descriptor, "offset": offset}
        self.must(function, Code.WSA_IO_PENDING, overlapped=overlapped, **arguments)
        return overlapped

    def completion(self, overlapped: int, timeout_s: float = 10.0) -> tuple[Code, int] | None:
        """Code and bytes an operation was completed with, or None when it was not in time."""
        done = self.ask("wait_completion", overlapped=overlapped, timeout_s=timeout_s)
        return (Code(done["code"]), done["transferred"]) if done else None

    def data(self, socket: Socket, length: int, offset: int = 0) -> bytes:
        return bytes(self.ask("read_memory", memory=socket.memory, offset=offset, length=length))

    def close(self, socket: Socket) -> Answer:
        """WSPCloseSocket as the switch calls it: what is idle is deregistered first (SWITCH-10)."""
        return self.wsp("close", s=socket.s)

    def end(self) -> None:
        """Close what is open and call WSPCleanup. Raises UnexpectedResult when it fails."""
        answers = self.ask("end")
        # A clean-up that reports the network down has freed everything all the same.
        if answers[-1]["code"] not in (Code.OK, Code.WSAENETDOWN):
            raise UnexpectedResult(f"WSPCleanup on node {self.node.name}: {Code(answers[-1]['code'])}")
