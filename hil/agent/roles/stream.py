"""The ``stream`` role of a worker: byte streams between applications, over the switch's sessions.

It also serves the calls of the ``provider`` role, and starts and calls the provider in the same way.
"""

import hashlib
import itertools
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hil.adapters.network import Network
from hil.agent.loading import load
from hil.agent.roles.provider import Service, pattern
from hil.switch.carrier import free
from hil.switch.requests import Options, StreamError
from hil.switch.session import Session
from hil.switch.switch import Memory, Switch
from hil.winsock import codes as w
from hil.winsock.codes import Code, Event

QUERY_TIMEOUT_S = 1.0
# All other options belong to the switch and TCP/IP (OPT-06).
PASSED_ON = (w.SO_DEBUG, w.SO_GROUP_PRIORITY)


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    switch = Switch(emit)
    service = Service(switch)
    parts = (service, StreamService(switch, service))
    return {name: getattr(part, name) for part in parts for name in dir(part) if not name.startswith("_")}


class AddressWatch:
    """The provider's address list, queried on socket ``s`` after each change that TCP/IP reports (SWITCH-17)."""

    def __init__(self, switch: Switch, s: int) -> None:
        self._switch, self._s = switch, s
        self._network = Network()
        self._changed = threading.Condition()
        self._stale = False
        self.addresses: list[str] = []
        self._wake_read, self._wake_write = os.pipe()
        self._query()
        self._thread = threading.Thread(target=self._watch, name="address watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        poller = select.poll()
        for fd in (self._network.fd, self._wake_read):
            poller.register(fd, select.POLLIN)
        while self._wake_read not in [fd for fd, _ in poller.poll()]:
            with self._changed:
                self._network.drain()
                self._stale = True
                self._switch.journal("addresses", event="TCP/IP reports a change")
                self._on_change()

    def _on_change(self) -> None:
        self._query()

    def _query(self) -> None:
        out: list[Any] = []
        arguments = (self._s, w.SIO_ADDRESS_LIST_QUERY, None, 0, out, 1 << 16, [0], None, None, None)
        if not self._switch.call("WSPIoctl", *arguments)["code"]:
            with self._changed:
                self.addresses = [name.sin_addr for name in out]
                self._stale = False
                self._changed.notify_all()

    def wait(self, address: str, *, there: bool, timeout_s: float) -> bool:
        """Wait until the list has ``address``, or no longer has it. Returns False after ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: (address in self.addresses) is there, timeout_s)

    def check(self) -> None:
        """Report SWITCH-17 if the list was not queried again after a change."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._stale, QUERY_TIMEOUT_S):
                self._switch.misbehaves("SWITCH-17", f"addresses changed and the list is still {self.addresses}")

    def close(self) -> None:
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._network.close()


@dataclass(frozen=True, slots=True)
class _Listener:
    s: int
    event: int
    options: Options


class StreamService:
    """Each method is a remote call. Each answer has ``code``, 0 or a StreamError's, and further values."""

    def __init__(self, switch: Switch, service: Service) -> None:
        self._switch, self._service = switch, service
        self._streams: dict[int, Session] = {}
        self._listeners: dict[int, _Listener] = {}
        self._numbers = itertools.count(1)

    def start(
        self,
        provider: str,
        code: bytes = b"",
        settings: Mapping[str, Any] | None = None,
        mutant: str = "",
        family: int = w.AF_INET,
    ) -> int:
        """Start the provider and query its addresses.

        ``mutant``: a class, as ``MODULE:NAME``, that replaces the switch's session or its address watch.
        """
        wrong: type[Any] = load(mutant) if mutant else Session
        watch = wrong if issubclass(wrong, AddressWatch) else AddressWatch
        self._session: type[Session] = wrong if issubclass(wrong, Session) else Session
        status = self._service.start(provider, code, settings=settings)
        if not status:
            # This socket serves queries to the provider before there is a connection (STARTUP-16).
            self._watch: AddressWatch = watch(self._switch, _result(self._service.WSPSocket(family)))
        return status

    def end(self) -> list[dict[str, Any]]:
        """Close every stream abortively and call WSPCleanup. Returns all answers."""
        self._watch.check()
        self._watch.close()
        answers = [stream.close(0) for stream in self._streams.values()]
        self._streams.clear()
        return [*answers, *self._service.end()]

    def addresses(self) -> list[str]:
        """The provider's addresses in the switch's list."""
        return list(self._watch.addresses)

    def wait_address(self, address: str, there: bool, timeout_s: float) -> bool:
        return self._watch.wait(address, there=there, timeout_s=timeout_s)

    # --- connections -------------------------------------------------------------------------------------------------

    def listen(
        self, local: str, port: int, backlog: int = 5, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Listen. ``options`` are Options of the accepted sessions."""

        def work() -> dict[str, Any]:
            s, event = self._socket(local, port, Event.FD_ACCEPT, ())
            self._must(s, self._service.WSPListen(s, backlog))
            number = next(self._numbers)
            self._listeners[number] = _Listener(s, event, Options(**(options or {})))
            return {"listener": number}

        return _answer(work)

    def connect(
        self,
        local: str,
        local_port: int,
        address: str,
        port: int,
        timeout_s: float,
        socket_options: Iterable[tuple[int, int]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Connect. ``socket_options``: SOL_SOCKET options that the application set before."""

        def work() -> dict[str, Any]:
            s, event = self._socket(local, local_port, Event.FD_CONNECT, socket_options)
            self._must(s, self._service.WSPConnect(s, address, port), Code.WSAEWOULDBLOCK)
            in_time = self._service.wait_event(event, timeout_s)
            answer = self._service.WSPEnumNetworkEvents(s, event)
            code = Code(answer["codes"][w.FD_CONNECT_BIT]) if in_time else Code.WSAETIMEDOUT
            if code:
                self._switch.close_socket(s)
                raise StreamError(code)
            return self._opened(self._session(self._switch, s, connector=True, options=_options(options)), timeout_s)

        return _answer(work)

    def accept(self, listener: int, timeout_s: float) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            known = self._listeners[listener]
            end = time.monotonic() + timeout_s
            while self._service.wait_event(known.event, max(end - time.monotonic(), 0.0)):
                self._service.WSPEnumNetworkEvents(known.s, known.event)
                answer = self._service.WSPAccept(known.s)
                if not answer["code"]:
                    session = self._session(self._switch, answer["result"], connector=False, options=known.options)
                    return self._opened(session, timeout_s) | {"peer": [answer["address"], answer["port"]]}
            raise StreamError(Code.WSAETIMEDOUT)

        return _answer(work)

    def _socket(
        self, local: str, port: int, event: Event, socket_options: Iterable[tuple[int, int]]
    ) -> tuple[int, int]:
        """A socket and its event object: created and bound, then options set, then the event selected (SWITCH-04)."""
        if local not in self.addresses():
            raise StreamError(Code.WSAEADDRNOTAVAIL)
        s = _result(self._service.WSPSocket(w.AF_INET6 if ":" in local else w.AF_INET))
        self._must(s, self._service.WSPBind(s, local, port))
        for name, value in socket_options:
            if name in PASSED_ON:
                self._must(s, self._service.WSPSetSockOpt(s, w.SOL_SOCKET, name, value))
        made = self._service.event()
        self._must(s, self._service.WSPEventSelect(s, made, int(event)))
        return s, made

    def _must(self, s: int, answer: dict[str, Any], code: Code = Code.OK) -> None:
        """Close the socket and raise StreamError unless the answer has this code.

        The switch closes SAN sockets after failures too (SWITCH-14).
        """
        if answer["code"] != code:
            self._switch.close_socket(s)
            raise StreamError(Code(answer["code"]))

    def _opened(self, session: Session, timeout_s: float) -> dict[str, Any]:
        try:
            session.open(timeout_s)
        except StreamError:
            session.close(0)
            raise
        return self._known(session)

    def _known(self, session: Session) -> dict[str, Any]:
        number = next(self._numbers)
        self._streams[number] = session
        return {"stream": number, "s": session.s, "handle": self._switch.handle_of(session.s)}

    # --- data --------------------------------------------------------------------------------------------------------

    def send_pattern(self, stream: int, length: int, seed: int, piece: int, timeout_s: float) -> dict[str, Any]:
        """Send ``pattern`` in sends of ``piece`` bytes. The answer's ``digest`` is the SHA-256 of all bytes."""
        data = pattern(seed, length)
        return self.send(stream, data, piece, timeout_s) | {"digest": hashlib.sha256(data).hexdigest()}

    def send(self, stream: int, data: bytes, piece: int, timeout_s: float) -> dict[str, Any]:
        """Send ``data`` in sends of ``piece`` bytes. ``done`` is the number of bytes sent, also after a failure."""
        memory = Memory(len(data))
        memory.write(0, data)
        done = 0

        def work() -> dict[str, Any]:
            nonlocal done
            while done < len(data):
                count = min(piece, len(data) - done)
                done += self._streams[stream].send(memory.address + done, count, timeout_s)
            return {"done": 0}

        answer = _answer(work)
        free(self._switch, memory)
        return answer | {"done": done + answer["done"]}

    def recv(self, stream: int, most: int, timeout_s: float) -> dict[str, Any]:
        """Read up to ``most`` bytes that have arrived, none at the end of the stream."""
        memory = Memory(most)

        def work() -> dict[str, Any]:
            return {"data": memory.read(0, self._streams[stream].recv(memory.address, most, timeout_s))}

        answer = _answer(work)
        free(self._switch, memory)
        return answer

    def recv_digest(self, stream: int, length: int, piece: int, timeout_s: float) -> dict[str, Any]:
        """Read ``length`` bytes, or to the end, up to ``piece`` at a time. Answers their number and SHA-256."""
        memory, digest, done = Memory(piece), hashlib.sha256(), 0

        def work() -> dict[str, Any]:
            nonlocal done
            while done < length:
                count = self._streams[stream].recv(memory.address, min(piece, length - done), timeout_s)
                if not count:
                    break
                digest.update(memory.read(0, count))
                done += count
            return {}

        answer = _answer(work)
        free(self._switch, memory)
        return answer | {"done": done, "digest": digest.hexdigest()}

    def send_urgent(self, stream: int, data: bytes, timeout_s: float) -> dict[str, Any]:
        return _answer(lambda: self._streams[stream].send_urgent(data, timeout_s))

    def recv_urgent(self, stream: int, timeout_s: float) -> dict[str, Any]:
        return _answer(lambda: {"data": self._streams[stream].recv_urgent(timeout_s)})

    # --- ends --------------------------------------------------------------------------------------------------------

    def shutdown(self, stream: int, timeout_s: float) -> dict[str, Any]:
        return _answer(lambda: self._streams[stream].shutdown(timeout_s))

    def close_stream(self, stream: int, linger_s: float) -> dict[str, Any]:
        """Close the stream, abortively with ``linger_s`` 0. The answer is WSPCloseSocket's."""
        return _answer(lambda: self._streams.pop(stream).close(linger_s))

    # --- suspension and hand-over ------------------------------------------------------------------------------------

    def suspend(self, stream: int, timeout_s: float) -> dict[str, Any]:
        return _answer(lambda: self._streams[stream].suspend(timeout_s))

    def resume(self, stream: int, timeout_s: float) -> dict[str, Any]:
        return _answer(lambda: self._streams[stream].resume(timeout_s))

    def hand_over(self, stream: int, pid: int, timeout_s: float) -> dict[str, Any]:
        """Hand a suspended stream to process ``pid``, whose switch needs the answer's ``token`` and ``state``."""

        def work() -> dict[str, Any]:
            token, state = self._streams[stream].hand_over(pid, timeout_s)
            return {"token": token, "state": state}

        return _answer(work)

    def take_over(self, token: int, state: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
        """Take over another process's stream, which stays suspended."""

        def work() -> dict[str, Any]:
            s = _result(self._service.WSPSocket(token=token))
            return self._known(self._session.take_over(self._switch, s, state, _options(options)))

        return _answer(work)


def _options(given: Mapping[str, Any] | None) -> Options:
    return Options(**(given or {}))


def _result(answer: dict[str, Any]) -> int:
    """The descriptor in WSPSocket's answer. Raises StreamError."""
    if answer["code"]:
        raise StreamError(Code(answer["code"]))
    return int(answer["result"])


def _answer(work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    try:
        return {"code": int(Code.OK)} | (work() or {})
    except StreamError as error:
        return {"code": int(error.code), "done": error.done}
