"""One switch in its worker process, as an application uses it: byte streams over the SAN."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hil.nodes.endpoint import UnexpectedResult
from hil.nodes.node import Node
from hil.nodes.softpair import Pair
from hil.winsock.codes import AF_INET, AF_INET6, Code

# How long a step of a stream may take, and how much longer the answer may be on its way.
TIMEOUT_S, MARGIN_S = 20.0, 20.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a call on a stream ended: its code, bytes moved, their SHA-256 or the bytes themselves."""

    code: Code
    done: int = 0
    digest: str = ""
    data: bytes = b""


class StreamEndpoint:
    """A switch and its provider on ``node``.

    ``misbehaving`` names a switch that breaks an obligation (hil.switch.session), ``settings`` are the provider's.
    """

    def __init__(self, node: Node, ip: str, provider: str = "", misbehaving: str = "", **settings: Any) -> None:
        self.node, self.ip = node, ip
        self.worker, self.pid = node.channel.spawn("stream")
        family = AF_INET6 if ":" in ip else AF_INET
        arguments = {"provider": provider, "misbehaving": misbehaving, "settings": settings, "family": family}
        code = self.ask("start", **arguments)
        if code:
            raise UnexpectedResult(f"WSPStartupEx on node {node.name}: {Code(code)}")

    def ask(self, call: str, /, **arguments: Any) -> Any:
        patience_s = arguments.get("timeout_s", TIMEOUT_S) + MARGIN_S
        return self.node.channel.call(self.worker, call, patience_s, "stream call", **arguments)

    def listen(self, port: int, **options: Any) -> int:
        """A listener's number. ``options`` are those of the sessions that it will accept."""
        return int(self._must("listen", local=self.ip, port=port, options=options)["listener"])

    def connect(
        self,
        local_port: int,
        address: str,
        port: int,
        socket_options: Sequence[tuple[int, int]] = (),
        **options: Any,
    ) -> "Stream":
        """A connected stream. Raises UnexpectedResult."""
        return self._stream(
            self._must("connect", **self._connecting(local_port, address, port, socket_options, options))
        )

    def connect_code(self, local_port: int, address: str, port: int, timeout_s: float = TIMEOUT_S) -> Code:
        """What a connect ends with."""
        arguments = self._connecting(local_port, address, port, (), {}) | {"timeout_s": timeout_s}
        return Code(self.ask("connect", **arguments)["code"])

    def _connecting(
        self, local_port: int, address: str, port: int, socket_options: Sequence[tuple[int, int]], options: Any
    ) -> dict[str, Any]:
        target = {"local": self.ip, "local_port": local_port, "address": address, "port": port}
        return target | {"socket_options": socket_options, "options": options, "timeout_s": TIMEOUT_S}

    def accept(self, listener: int) -> "Stream":
        """The next stream. Raises UnexpectedResult."""
        return self._stream(self._must("accept", listener=listener, timeout_s=TIMEOUT_S))

    def take_over(self, token: int, state: Mapping[str, Any], **options: Any) -> "Stream":
        """A stream that another switch handed over, still suspended. Raises UnexpectedResult."""
        return self._stream(self._must("take_over", token=token, state=state, options=options))

    def end(self) -> None:
        """Close every stream abortively and call WSPCleanup. Raises UnexpectedResult when it fails."""
        answers = self.ask("end")
        # A clean-up that reports the network down has freed everything all the same.
        if answers[-1]["code"] not in (Code.OK, Code.WSAENETDOWN):
            raise UnexpectedResult(f"WSPCleanup on node {self.node.name}: {Code(answers[-1]['code'])}")

    def _must(self, call: str, /, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask(call, **arguments)
        if answer["code"]:
            raise UnexpectedResult(f"{call} on node {self.node.name}: {Code(answer['code'])}")
        return answer

    def _stream(self, answer: dict[str, Any]) -> "Stream":
        return Stream(self, answer["stream"], answer["s"], answer["handle"])


@dataclass(frozen=True, slots=True)
class Stream:
    """One end of a stream: its number at its switch, and the SAN socket and switch handle behind it."""

    at: StreamEndpoint
    number: int
    s: int
    handle: int

    def send(self, data: bytes, piece: int = 0, timeout_s: float = TIMEOUT_S) -> Done:
        """Send ``data``, ``piece`` bytes at a time or all at once."""
        return self._ask("send", data=data, piece=piece or len(data), timeout_s=timeout_s)

    def send_pattern(self, length: int, seed: int, piece: int = 0, timeout_s: float = TIMEOUT_S) -> Done:
        """Send bytes made on the node, likewise."""
        return self._ask("send_pattern", length=length, seed=seed, piece=piece or length, timeout_s=timeout_s)

    def recv(self, most: int = 65536, timeout_s: float = TIMEOUT_S) -> Done:
        return self._ask("recv", most=most, timeout_s=timeout_s)

    def recv_digest(self, length: int, piece: int = 1 << 20, timeout_s: float = TIMEOUT_S) -> Done:
        """Read ``length`` bytes, or to the end of the stream, and tell their SHA-256."""
        return self._ask("recv_digest", length=length, piece=piece, timeout_s=timeout_s)

    def send_urgent(self, data: bytes) -> Done:
        return self._ask("send_urgent", data=data, timeout_s=TIMEOUT_S)

    def recv_urgent(self) -> Done:
        return self._ask("recv_urgent", timeout_s=TIMEOUT_S)

    def shutdown(self) -> Done:
        return self._ask("shutdown", timeout_s=TIMEOUT_S)

    def close(self, linger_s: float = TIMEOUT_S) -> Code:
        """Graceful, or with ``linger_s`` 0 abortive."""
        return self._ask("close_stream", linger_s=linger_s).code

    def suspend(self, timeout_s: float = TIMEOUT_S) -> Done:
        return self._ask("suspend", timeout_s=timeout_s)

    def resume(self) -> Done:
        return self._ask("resume", timeout_s=TIMEOUT_S)

    def hand_over(self, pid: int) -> tuple[int, dict[str, Any]]:
        """Token and state for the switch in process ``pid``, of a suspended stream. Raises UnexpectedResult."""
        answer = self.at._must("hand_over", stream=self.number, pid=pid, timeout_s=TIMEOUT_S)
        return answer["token"], answer["state"]

    def _ask(self, call: str, /, **arguments: Any) -> Done:
        answer: dict[str, Any] = self.at.ask(call, stream=self.number, **arguments)
        known = {name: answer[name] for name in ("done", "digest", "data") if name in answer}
        return Done(Code(answer["code"]), **known)


def start_both(
    pair: Pair,
    provider: str = "",
    misbehaving: str = "",
    settings_a: Mapping[str, Any] | None = None,
    settings_b: Mapping[str, Any] | None = None,
) -> dict[str, StreamEndpoint]:
    """A switch on each node of ``pair``, by the node's name. ``misbehaving`` is node a's."""
    chosen = ((misbehaving, settings_a), ("", settings_b))
    return {
        place.name: StreamEndpoint(pair.nodes[place.name], place.ipv4, provider, name, **(settings or {}))
        for place, (name, settings) in zip(pair.places, chosen, strict=True)
    }


def join(
    connector: StreamEndpoint, acceptor: StreamEndpoint, listener: int, local_port: int, port: int, **more: Any
) -> tuple[Stream, Stream]:
    """(connector's, acceptor's) stream of a new connection. ``more`` is StreamEndpoint.connect's."""
    one, two = at_once(
        lambda: connector.connect(local_port, acceptor.ip, port, **more),
        lambda: acceptor.accept(listener),
    )
    return one, two


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do several things at the same time; their results, when all have ended."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]
