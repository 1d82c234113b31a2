"""The controller's end of an agent's byte stream: calls with time-outs, events, death, and the clock."""

import errno
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hil import jitter, stopwatch
from hil.agent.protocol import BadFrame, FrameBuffer, Message, decode, encode
from hil.errors import NodeDied, PhaseTimeout, RemoteError
from hil.progress import printable

HANG_TIMEOUT_S = 10.0
STRANGE = "what came was not the agent's"
CLOCK_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class ClockRelation:
    """controller_ns = node_ns + offset_ns, right within +-uncertainty_ns, both monotonic clocks."""

    offset_ns: int
    uncertainty_ns: int

    def to_controller(self, node_ns: int) -> int:
        return node_ns + self.offset_ns


def joined(relations: Sequence[ClockRelation]) -> ClockRelation:
    """The relation that holds for the whole time between several measurements. Drift between the clocks is added to the
    uncertainty."""
    best = min(relations, key=lambda known: known.uncertainty_ns)
    apart = max(
        abs(known.offset_ns - best.offset_ns) - known.uncertainty_ns - best.uncertainty_ns for known in relations
    )
    return ClockRelation(best.offset_ns, best.uncertainty_ns + max(apart, 0))


class _Call:
    __slots__ = ("done", "reply")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: Message | None = None


class Channel:
    """Calls to a node's agent and its workers over ``sock``; several at a time, from any thread.

    ``on_event(worker, event)`` receives the events that workers send. ``last_words()`` is added to the message of
    NodeDied. ``window``: how many sent bytes the agent may not have acknowledged yet; 0 where the stream itself has
    flow control.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        on_event: Callable[[int, Message], None],
        last_words: Callable[[], str],
        window: int = 0,
    ) -> None:
        self.name = name
        self._sock = sock
        self._on_event = on_event
        self._last_words = last_words
        self._send_lock = threading.Lock()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._calls: dict[tuple[int, int], _Call] = {}
        self._workers: set[int] = set()
        self._exits: dict[int, int] = {}
        self._exit_changed = threading.Condition(self._lock)
        self._dead: str | None = None
        self._first = b""
        self._window, self._sent, self._came = window, 0, 0
        self._came_changed = threading.Condition(self._lock)
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name=f"channel {name}", daemon=True)
        self._reader.start()

    def call(self, worker: int, call: str, timeout_s: float, phase: str, /, **arguments: Any) -> Any:
        """Make one remote call and return its value.

        Raises RemoteError when the call raised, NodeDied when the node or the worker has ended or the node hangs, and
        PhaseTimeout when the node is alive but the answer did not come within ``timeout_s``.
        """
        if worker:
            jitter.nap(jitter.TEST_CALL)
        begun_ns = time.monotonic_ns()
        try:
            return self._call(worker, call, timeout_s, phase, arguments)
        finally:
            stopwatch.waited(call, time.monotonic_ns() - begun_ns)

    def _call(self, worker: int, call: str, timeout_s: float, phase: str, arguments: dict[str, Any]) -> Any:
        pending = _Call()
        number = next(self._ids)
        with self._lock:
            self._check(worker)
            self._calls[worker, number] = pending
        try:
            self._send({"to": worker, "id": number, "call": call, "args": arguments})
            if not pending.done.wait(timeout_s):
                self._explain_silence(call, timeout_s, phase)
        finally:
            with self._lock:
                self._calls.pop((worker, number), None)
        return self._value(worker, pending.reply)

    def spawn(self, role: str) -> tuple[int, int]:
        """Start a worker for ``role``. Returns its number and its process id on the node."""
        value = self.call(
            0,
            "spawn",
            HANG_TIMEOUT_S,
            "start of a worker",
            role=role,
            jitter=jitter.derived(f"{self.name} {role}"),
        )
        with self._lock:
            self._workers.add(value["worker"])
        return value["worker"], value["pid"]

    def workers(self) -> list[int]:
        """The workers that this channel started and that have not ended."""
        with self._lock:
            return sorted(self._workers - self._exits.keys())

    def strange(self) -> str:
        """A message with the first bytes received, if no agent sent them; else an empty text."""
        told = self._first[:80].decode(errors="replace").strip()
        return f"{STRANGE}: {told!r}" if self._first and not self.ready.is_set() else ""

    def alive(self) -> bool:
        """Whether the stream is open, as far as is known."""
        return self._dead is None

    def kill(self, worker: int, signal_number: int = 9) -> None:
        self.call(0, "kill", HANG_TIMEOUT_S, "kill of a worker", worker=worker, signal=signal_number)

    def wait_exit(self, worker: int, timeout_s: float) -> int:
        """The exit status of a worker, negative for a signal. Raises PhaseTimeout."""
        with self._exit_changed:
            if not self._exit_changed.wait_for(lambda: worker in self._exits or self._dead, timeout_s):
                raise PhaseTimeout(f"{self.name}: worker {worker} did not end within {timeout_s} s")
            if worker not in self._exits:
                raise NodeDied(f"{self.name}: {self._dead}")
            return self._exits[worker]

    def clock(self) -> ClockRelation:
        """The clock relation now, from the shortest of a few round trips. The uncertainty is half that round trip."""
        best: ClockRelation | None = None
        for _ in range(CLOCK_SAMPLES):
            before_ns = time.monotonic_ns()
            node_ns = self.call(0, "clock", HANG_TIMEOUT_S, "clock")
            after_ns = time.monotonic_ns()
            half_ns = (after_ns - before_ns + 1) // 2
            if best is None or half_ns < best.uncertainty_ns:
                best = ClockRelation(before_ns + half_ns - node_ns, half_ns)
        assert best is not None
        return best

    def close(self) -> None:
        self._die("the channel was closed")
        self._end_stream()
        self._reader.join(5)

    def _end_stream(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _check(self, worker: int) -> None:
        if self._dead is not None:
            raise NodeDied(f"{self.name}: {self._dead}")
        if worker in self._exits:
            raise NodeDied(f"{self.name}: worker {worker} ended with {self._exits[worker]}")

    def _explain_silence(self, call: str, timeout_s: float, phase: str) -> None:
        where = f"{self.name}: {call} did not answer within {timeout_s} s ({phase})"
        if call == "clock":
            self._die(f"the node hangs; {self._last_words()}")
            raise NodeDied(f"{where}: {self._dead}")
        self.call(0, "clock", HANG_TIMEOUT_S, "is the node alive?")
        raise PhaseTimeout(where)

    def _value(self, worker: int, reply: Message | None) -> Any:
        if reply is None:
            with self._lock:
                self._check(worker)
            raise NodeDied(f"{self.name}: worker {worker} ended")
        if error := reply.get("error"):
            told = error if isinstance(error, dict) else {"text": error}
            # The text comes from the node and may be printed to a terminal.
            raise RemoteError(*(printable(str(told.get(key, ""))) for key in ("kind", "text", "traceback")))
        return reply.get("value")

    def _send(self, message: Message) -> None:
        try:
            with self._send_lock:
                self._send_all(encode(message))
        except OSError as error:
            hangs = isinstance(error, TimeoutError)
            why = "the node hangs: it takes nothing" if hangs else f"the node's stream broke: {error}"
            self._die(f"{why}; {self._last_words()}")
            # Part of a message may have been sent, so the agent could not decode any later message.
            self._end_stream()
            raise NodeDied(f"{self.name}: {self._dead}") from error

    def _send_all(self, data: bytes) -> None:
        """Send all of ``data``. Raises TimeoutError when the node takes no bytes for HANG_TIMEOUT_S, and OSError."""
        left = memoryview(data)
        while left:
            room = self._wait_room() if self._window else len(left)
            try:
                sent = self._sock.send(left[:room], socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait_writable()
            else:
                self._sent += sent
                left = left[sent:]

    def _wait_room(self) -> int:
        """How many bytes may be sent now, at least one."""
        with self._came_changed:
            changed = self._came_changed.wait_for(
                lambda: self._dead or self._sent - self._came < self._window, HANG_TIMEOUT_S
            )
            if self._dead:
                raise OSError(errno.EPIPE, "the node is gone")
            if not changed:
                raise TimeoutError
            return self._window - (self._sent - self._came)

    def _wait_writable(self) -> None:
        if (descriptor := self._sock.fileno()) < 0:
            raise OSError(errno.EBADF, "it was closed")
        writable = select.poll()
        writable.register(descriptor, select.POLLOUT)
        if not writable.poll(HANG_TIMEOUT_S * 1000):
            raise TimeoutError

    def _read(self) -> None:
        frames = FrameBuffer()
        try:
            while data := self._sock.recv(1 << 18):
                self._first = self._first or data
                for body in frames.feed(data):
                    self._take(decode(body))
            self._die(f"the node is gone; {self._last_words()}")
        except (OSError, BadFrame, KeyError, TypeError, AttributeError, ValueError) as error:
            self._die(f"the node's stream broke: {error!r}; {self._last_words()}")

    def _take(self, message: Message) -> None:
        worker = message["from"]
        if "came" in message:
            with self._came_changed:
                self._came = int(message["came"])
                self._came_changed.notify_all()
        elif "event" in message:
            if message["event"].get("kind") == "agent ready":
                self.ready.set()
            self._on_event(worker, message["event"])
        elif "exit" in message:
            self._on_event(worker, {"kind": "exit", "status": message["exit"], "t_ns": message["t_ns"]})
            self._worker_ended(worker, message["exit"])
        else:
            with self._lock:
                pending = self._calls.get((worker, message["id"]))
            if pending is not None:
                pending.reply = message
                pending.done.set()

    def _worker_ended(self, worker: int, status: int) -> None:
        with self._exit_changed:
            self._exits[worker] = status
            ended = [call for (number, _), call in self._calls.items() if number == worker]
            self._exit_changed.notify_all()
        for call in ended:
            call.done.set()

    def _die(self, reason: str) -> None:
        with self._exit_changed:
            if self._dead is None:
                self._dead = reason
            calls = list(self._calls.values())
            self._exit_changed.notify_all()
            self._came_changed.notify_all()
        for call in calls:
            call.done.set()
