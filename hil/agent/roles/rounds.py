"""The frame of races, which run on the nodes as loops of rounds. hil.agent.roles.races has the kinds of race.

One node runs ``race``, the other ``serve_rounds``. A round is one connection: it is made, operations of every kind are
posted on both ends, and after a delay that the seed decides comes the race. The controller asks for ``progress``.
After each round every operation must have completed once, with a code that this race allows and with the right data.
Its buffers and its WSAOVERLAPPED may not be touched afterwards: they are poisoned, and checked some rounds later.

The provider's functions are called directly, because the races break the switch's obligations on purpose.
"""

import ctypes
import faulthandler
import gc
import itertools
import mmap
import os
import queue
import random
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hil.agent.roles.provider import Service
from hil.switch.switch import Emit, Memory, Switch, length_of, name_of
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, WSABUFEX, WSAEVENT, WSANETWORKEVENTS, WSAOVERLAPPED, LpErrno

# Time limit of an operation, a connect or a call, after which it is a hang. ``race`` can set another one.
# Time limit of a close.
# Time limit of a round, as a multiple of the first limit.
LIMIT_S, CLOSE_LIMIT_S, ROUND_LIMITS = 15.0, 5.0, 4
MAX_PROBLEMS = 5
CREW = 24
# The memory of an end: slots for incoming and outgoing messages, two pieces to write from, and two to read into.
SLOT, SLOTS = 1024, 16
# The hello, at most four of Hand.mix, and three of a thread that uses a socket while others close it.
MOST_SENDS = 8
MESSAGES = 2 * SLOT * SLOTS
PIECE, LONG_PIECE = 4096, 128 << 10
QUARANTINE = 24
# Bit 0 of hEvent, and the share of a mix's operations with it.
POLLED, POLLED_SHARE = 1, 0.3
POISON, POISON_WORD = 0xA5, 0x5EED
# Content numbers of pieces: those that are written to the peer, and those that the peer reads.
WRITTEN, READ = 500, 700
# A message's head: round, number of the message, its length, length of the descriptor that follows.
_HEAD = struct.Struct("!IHHB")
_ROUND = struct.Struct("!I")
CLOSED = frozenset({Code.OK, Code.WSA_OPERATION_ABORTED})
RESET = frozenset({Code.OK, Code.WSAECONNRESET})
EITHER = CLOSED | RESET
POSTED = frozenset({Code.WSA_IO_PENDING, Code.WSAECONNRESET})

_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class Failed(Exception):
    """A round failed. The text describes the failure."""


def stacks() -> str:
    """The stack of every thread of this process."""
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode()


def pause(seconds: float) -> None:
    """Wait, also for a few microseconds, which a sleep cannot do."""
    if seconds > 0.0002:
        time.sleep(seconds)
        return
    end_ns = time.monotonic_ns() + int(seconds * 1e9)
    while time.monotonic_ns() < end_ns:
        pass


def common_length(one: bytes, two: bytes) -> int:
    """The length of the common beginning of two byte strings of one length."""
    low, high = 0, len(one)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Ledger:
    """Takes the switch's journal, keeps each operation's completions, and sends only errors to the controller."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._done: dict[int, list[tuple[int, int]]] = {}
        self.wrong: list[str] = []
        self.notes: deque[str] = deque(maxlen=8)

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "upcall":
            self._upcall(event)
        elif kind in ("error", "misbehaves", "flush incomplete"):
            self._emit(event)
            if not event.get("deliberate"):
                self.wrong.append(f"{kind}: {event.get('traceback') or event}")
        elif kind in ("call", "begin") and event["function"] in ("WSPStartupEx", "WSPCleanup"):
            self._emit(event)
        elif "error" in event:
            self._emit(event)
            self.notes.append(f"{kind}: {event['error']}")

    def _upcall(self, event: dict[str, Any]) -> None:
        if not event.get("known", True):
            self.wrong.append(f"{event['function']} for a handle that is closed or was never made: {event}")
            self._emit(event)
        if event["function"] == "WPUCompleteOverlappedRequest":
            with self._lock:
                self._done.setdefault(event["overlapped"], []).append((event["code"], event["transferred"]))

    def completions(self, overlapped: int) -> list[tuple[int, int]]:
        """(code, byte count) of every completion of an operation so far."""
        with self._lock:
            return list(self._done.get(overlapped, ()))

    def forget(self, overlapped: int) -> None:
        with self._lock:
            self._done.pop(overlapped, None)


class Crew:
    """Threads that exist from the beginning, so that no round starts or ends a thread."""

    def __init__(self, count: int) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._since: dict[int, int] = {}
        for _ in range(count):
            threading.Thread(target=self._serve, name="crew", daemon=True).start()

    def give(self, work: Callable[[], None]) -> threading.Event:
        """Let a thread do ``work``. Returns an event that is set afterwards."""
        done = threading.Event()

        def whole() -> None:
            self.restart()
            try:
                work()
            finally:
                del self._since[threading.get_ident()]
                done.set()

        self._work.put(whole)
        return done

    def all(self, *works: Callable[[], None]) -> list[threading.Event]:
        return [self.give(work) for work in works]

    def restart(self) -> None:
        """Restart the calling thread's clock, because it begins new work."""
        self._since[threading.get_ident()] = time.monotonic_ns()

    def longest_s(self) -> float:
        """The running time of the longest current work, in seconds."""
        return max(((time.monotonic_ns() - since) / 1e9 for since in list(self._since.values())), default=0.0)

    def idle(self) -> bool:
        return not self._since and self._work.empty()

    def _serve(self) -> None:
        while True:
            self._work.get()()


@dataclass(slots=True)
class Posted:
    """One operation. ``sequence`` is the number of its message or piece, in the order of posting."""

    kind: str
    number: int
    overlapped: WSAOVERLAPPED
    offset: int
    length: int
    sequence: int

    @property
    def polled(self) -> bool:
        """Whether the switch polls the operation, so that no up-call may come (OVL-03)."""
        return bool(self.overlapped.hEvent & POLLED)


@dataclass(slots=True)
class Tally:
    """The results of a race on one node."""

    rounds: int = 0
    operations: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    problems: list[dict[str, Any]] = field(default_factory=list)
    begun_ns: int = field(default_factory=time.monotonic_ns)
    ended_ns: int = 0


class Buffers:
    """Two memories, one for local use and one for the peer's RDMA. They are used, quarantined, and used again."""

    def __init__(self, piece: int) -> None:
        self.piece = piece
        self.local, self.exposed = Memory(MESSAGES + 4 * piece), Memory(4 * piece)
        self._poison = ctypes.create_string_buffer(bytes([POISON]) * self.local.size, self.local.size)

    def fill(self, content: Callable[[int, int], bytes]) -> None:
        """Fill the pieces that are written to the peer or read by it with their content, and the rest with zeros."""
        for memory in (self.local, self.exposed):
            ctypes.memset(memory.address, 0, memory.size)
        for i in (0, 1):
            self.local.write(MESSAGES + i * self.piece, content(WRITTEN + i, self.piece))
            self.exposed.write((2 + i) * self.piece, content(READ + i, self.piece))

    def poison(self, memory: Memory) -> None:
        ctypes.memset(memory.address, POISON, memory.size)

    def poisoned(self, memory: Memory) -> bool:
        """Whether ``memory`` still holds only poison."""
        return int(_libc.memcmp(memory.address, self._poison, memory.size)) == 0

    def free(self) -> None:
        self.local.free()
        self.exposed.free()


class Hand:
    """One end of a round's connection: its memory, and its posted operations."""

    def __init__(self, rounds: "Rounds", n: int, s: int, event: int, piece: int) -> None:
        self.n, self.s, self.event = n, s, event
        self._rounds, self._switch, self._ledger, self._call = rounds, rounds.switch, rounds.ledger, rounds.call
        self._handle = self._switch.handle_of(s)
        self.buffers = rounds.take_buffers(piece)
        self.buffers.fill(self.content)
        self.posted: list[Posted] = []
        self.region = 0
        self.descriptor = self._theirs = b""
        # Whether the peer's messages come in the order of their numbers. Messages of several threads need not.
        self.ordered, self.arrived = True, list[int]()
        self._withdrawn, self._counted = False, 0
        self._closes: list[Code] = []
        self._sequence = {kind: itertools.count() for kind in ("send", "recv", "write", "read")}
        self._lock = threading.Lock()

    # --- memory and messages -----------------------------------------------------------------------------------------

    def content(self, number: int, length: int) -> bytes:
        """The content of this round's message or piece of this number. Both nodes compute the same."""
        pattern = self._rounds.pattern
        start = (self.n * 131 + number * 17) * 64 % (len(pattern) - length)
        return pattern[start : start + length]

    def _message(self, number: int, length: int) -> bytes:
        head = _HEAD.pack(self.n, number, length, len(self.descriptor)) + self.descriptor
        return head + self.content(number, length)[len(head) :]

    def register(self) -> Code:
        """Register the memory for local use."""
        local = self.buffers.local
        region, code = self._call("WSPRegisterMemory", self.s, local.address, local.size, w.MEM_READWRITE)
        self.region = region or 0
        return code

    def prepare(self) -> Code:
        """Register the memory for local use and for the peer's RDMA."""
        exposed = self.buffers.exposed
        space, size = bytearray(64), [64]
        arguments = (self.s, exposed.address, exposed.size, w.MEM_READWRITE, space, size)
        code = self.register() or self._call("WSPRegisterRdmaMemory", *arguments)[1]
        self.descriptor = b"" if code else bytes(space[: size[0]])
        return code

    def register_again(self) -> Code:
        """Register a part of the memory once more, and deregister it."""
        region, code = self._call("WSPRegisterMemory", self.s, self.buffers.local.address, SLOT, w.MEM_READ)
        return code or self._call("WSPDeregisterMemory", self.s, region)[1]

    def deregister(self) -> Code:
        return self._call("WSPDeregisterMemory", self.s, self.region)[1]

    def withdraw(self) -> Code:
        """Deregister the memory that the peer's RDMA could reach. Later checks fail if the peer still writes to it."""
        code = self._call("WSPDeregisterRdmaMemory", self.s, self.descriptor, len(self.descriptor))[1]
        self._judge_written()
        if code is Code.OK:
            self._withdrawn = True
            self.buffers.poison(self.buffers.exposed)
        return code

    def reached(self) -> None:
        """Raises Failed when the peer wrote into memory after its deregistration."""
        if self._withdrawn and not self.buffers.poisoned(self.buffers.exposed):
            raise Failed("the peer wrote into memory that was deregistered")

    # --- calls -------------------------------------------------------------------------------------------------------

    def post(self, kind: str, length: int = 0, number: int | None = None, *, polled: bool = False) -> Code:
        """Post one operation, and keep it if it pends. Returns the code. ``number``: of one thread's message."""
        with self._lock:
            sequence = next(self._sequence[kind]) if number is None else number
        name = self._switch.new_overlapped(POLLED if polled else 0)
        overlapped, local = self._switch.overlapped[name], self.buffers.local
        if kind in ("send", "recv"):
            length, offset = length or SLOT, SLOT * (sequence % SLOTS + SLOTS * (kind == "send"))
            if kind == "send":
                local.write(offset, self._message(sequence, length))
            flags: Any = 0 if kind == "send" else [0]
            rest = ([WSABUF(length, local.address + offset)], 1, [0], flags, overlapped, None, None)
            code = self._call("WSPSend" if kind == "send" else "WSPRecv", self.s, *rest)[1]
        else:
            piece = self.buffers.piece
            place = sequence % 2 + 2 * (kind == "read")
            length, offset = length or piece, MESSAGES + place * piece
            target = (self._theirs, len(self._theirs), place * piece, [0], 0, overlapped, None, None)
            many = [WSABUFEX(length, local.address + offset, self.region)]
            code = self._call("WSPRdmaWrite" if kind == "write" else "WSPRdmaRead", self.s, many, 1, *target)[1]
        if code is Code.WSA_IO_PENDING:
            with self._lock:
                self.posted.append(Posted(kind, name, overlapped, offset, length, sequence))
        else:
            self._switch.forget(name)
        return code

    def must_post(self, kind: str, length: int = 0, allowed: Collection[Code] = (Code.WSA_IO_PENDING,)) -> None:
        self.expect(self.post(kind, length), allowed, kind)

    def mix(self, rng: random.Random, receives: int = 0, allowed: Collection[Code] = POSTED) -> None:
        """Post operations of all kinds in random order, some of them to be polled."""
        kinds = ["recv"] * receives + ["send"] * rng.randint(1, 4)
        kinds += ["write"] * rng.randint(0, 2) + ["read"] * rng.randint(0, 2)
        rng.shuffle(kinds)
        for kind in kinds:
            length = {"send": rng.randint(64, SLOT), "recv": 0}.get(kind, rng.randint(1, PIECE))
            self.expect(self.post(kind, length, polled=rng.random() < POLLED_SHARE), allowed, kind)

    def expect(self, code: Code, allowed: Collection[Code], what: str) -> Code:
        if code not in allowed:
            raise Failed(f"{what} ended with {code}")
        return code

    def option(self) -> Code:
        return self._call("WSPGetSockOpt", self.s, w.SOL_SOCKET, w.SO_MAX_MSG_SIZE, bytearray(4), [4])[1]

    def result(self, posted: Posted) -> Code:
        return self._call("WSPGetOverlappedResult", self.s, posted.overlapped, [0], False, [0])[1]

    def last(self, kind: str) -> Posted:
        return [posted for posted in self.posted if posted.kind == kind][-1]

    def wait(self, posted: Posted) -> Code:
        """Wait for an operation. Returns its code. Raises Failed when it does not complete."""
        limit_s = self._rounds.limit_s
        if posted.polled:
            end_ns = time.monotonic_ns() + int(limit_s * 1e9)
            while not (found := self._done(posted)) and time.monotonic_ns() < end_ns:
                pause(0.002)
        else:
            told = self._switch.wait_completion(posted.number, limit_s)
            found = [(told["code"], told["transferred"])] if told else []
        if not found:
            raise Failed(f"HANG: a {posted.kind} did not complete within {limit_s} s")
        return Code(found[0][0])

    def _done(self, posted: Posted) -> list[tuple[int, int]]:
        """(code, byte count) of every completion so far, by up-call or, if polled, in the WSAOVERLAPPED."""
        told, o = self._ledger.completions(posted.number), posted.overlapped
        ended = posted.polled and o.Internal != w.WSS_OPERATION_IN_PROGRESS
        return [*told, (int(o.OffsetHigh), int(o.InternalHigh))] if ended else told

    def received(self, posted: Posted) -> bool:
        """Wait for a receive, and take the peer's descriptor from its message. Returns whether a message came."""
        if self.wait(posted) is not Code.OK:
            return False
        head = self.buffers.local.read(posted.offset, SLOT)
        length = _HEAD.unpack_from(head)[3]
        self._theirs = head[_HEAD.size : _HEAD.size + length]
        return True

    def ended(self) -> bool:
        """Whether a receive has failed, so that the connection is over."""
        receives = [posted for posted in self.posted if posted.kind == "recv"]
        return any(code for posted in receives for code, _ in self._done(posted))

    # --- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Call WSPCloseSocket. It must return 0 promptly, after every posted operation has completed."""
        self._rounds.close_socket(self.s)
        self._completed_at_return()

    def try_close(self) -> Code:
        """Make one of several closes, of which exactly one must succeed (``closed_once``)."""
        code = self._call("WSPCloseSocket", self.s)[1]
        self._closes.append(code)
        return code

    def closed_once(self) -> None:
        if sorted(self._closes) != [Code.OK] + [Code.WSAENOTSOCK] * (len(self._closes) - 1):
            raise Failed(f"several closes of one descriptor ended with {[str(code) for code in self._closes]}")
        self._completed_at_return()

    def wait_closed(self) -> None:
        """Wait for the return and the last up-call of another thread's close, which may be inside an up-call."""
        end_ns = time.monotonic_ns() + int(self._rounds.limit_s * 1e9)
        while self._switch.knows(self._handle) or Code.OK not in self._closes:
            if time.monotonic_ns() > end_ns:
                raise Failed("HANG: the close or its WPUCloseSocketHandle does not come")
            pause(0.002)

    def _completed_at_return(self) -> None:
        left = [posted.kind for posted in self.posted if not self._done(posted)]
        if left:
            raise Failed(f"the close ended before these completed: {left}")

    # --- after the race ----------------------------------------------------------------------------------------------

    def settle(self, allowed: Collection[Code]) -> None:
        """Wait for every operation, and check the number of its completions, its code, byte count and data."""
        codes = [self.wait(posted) for posted in self.posted]
        for posted, code in zip(self.posted, codes, strict=True):
            done = self._done(posted)
            if len(done) != 1:
                raise Failed(f"a {posted.kind} completed {len(done)} times: {[str(Code(c)) for c, _ in done]}")
            self.expect(code, allowed, f"a {posted.kind}")
            self._judge_count(posted, code, done[0][1])
        self._judge_receives(codes)
        self._judge_pieces(codes)
        ended = [(posted.kind, code) for posted, code in zip(self.posted, codes, strict=True)]
        self._rounds.count(ended[self._counted :])
        self._counted = len(codes)

    def _judge_count(self, posted: Posted, code: Code, transferred: int) -> None:
        if code and transferred:
            raise Failed(f"a {posted.kind} failed with {code} and {transferred} bytes")
        if not code and posted.kind != "recv" and transferred != posted.length:
            raise Failed(f"a {posted.kind} of {posted.length} bytes succeeded with {transferred}")

    def _judge_receives(self, codes: list[Code]) -> None:
        # Receives are filled in order, with the peer's whole messages in order. Cancelled receives come after those.
        receives = [(p, c) for p, c in zip(self.posted, codes, strict=True) if p.kind == "recv"]
        receives.sort(key=lambda entry: entry[0].sequence)
        filled = [posted for posted, code in receives if code is Code.OK]
        if filled != [posted for posted, _ in receives[: len(filled)]]:
            raise Failed(f"receives completed out of order: {[(p.sequence, str(c)) for p, c in receives]}")
        self.arrived = [self._judge_message(posted) for posted in filled]
        if (sorted(self.arrived) if not self.ordered else self.arrived) != list(range(len(filled))):
            raise Failed(f"messages that came, in this order: {self.arrived}")

    def _judge_message(self, posted: Posted) -> int:
        """Check that a whole message of this round came. Returns its number."""
        ((_, transferred),) = self._done(posted)
        data = self.buffers.local.read(posted.offset, transferred)
        n, number, length, room = _HEAD.unpack_from(data)
        skip = _HEAD.size + room
        if (n, length) != (self.n, transferred) or data[skip:] != self.content(number, length)[skip:]:
            raise Failed(f"a message is not what was sent: {data[:40].hex()}, {transferred} bytes")
        return int(number)

    def _judge_pieces(self, codes: list[Code]) -> None:
        piece = self.buffers.piece
        for posted, code in zip(self.posted, codes, strict=True):
            if posted.kind == "read":
                data = self.buffers.local.read(posted.offset, piece)
                whole = posted.length if code is Code.OK else 0
                self._judge_piece(data, self.content(READ + posted.sequence % 2, piece), whole, "a read")
        self._judge_written()

    def _judge_written(self) -> None:
        """Raises Failed unless the exposed memory holds a beginning of the peer's data, and zeros behind it."""
        piece = self.buffers.piece
        for i in (0, 1) if not self._withdrawn else ():
            data = self.buffers.exposed.read(i * piece, piece)
            self._judge_piece(data, self.content(WRITTEN + i, piece), 0, "the peer's write")

    def _judge_piece(self, data: bytes, wanted: bytes, whole: int, what: str) -> None:
        same = common_length(data, wanted)
        # A byte of the wanted content may be zero by chance, like a byte that is not yet written.
        if same < whole or data[same:].strip(b"\0"):
            raise Failed(f"{what} left wrong data after {same} bytes")

    def retire(self) -> None:
        """Poison the memory that provider and adapter must not touch any more, and check it some rounds later."""
        self.reached()
        for memory in (self.buffers.local, self.buffers.exposed):
            self.buffers.poison(memory)
        for posted in self.posted:
            o = posted.overlapped
            o.Internal = o.InternalHigh = o.Offset = o.OffsetHigh = POISON_WORD
        self._set_count = self._switch.events[self.event].set_count
        self._rounds.quarantine(self.n, self._look_again, self.buffers)

    def _look_again(self) -> None:
        if not all(self.buffers.poisoned(memory) for memory in (self.buffers.local, self.buffers.exposed)):
            raise Failed(f"a buffer of round {self.n} was written after its operations had completed")
        if self._switch.events.pop(self.event).set_count != self._set_count:
            raise Failed(f"the event object of round {self.n} was set after the close")
        for posted in self.posted:
            o = posted.overlapped
            if {o.Internal, o.InternalHigh, o.Offset, o.OffsetHigh} != {POISON_WORD}:
                raise Failed(f"the WSAOVERLAPPED of a {posted.kind} was written after it was reported complete")
            if len(self._ledger.completions(posted.number)) != (0 if posted.polled else 1):
                raise Failed(f"a {posted.kind} of round {self.n} completed again after the close")
            self._ledger.forget(posted.number)
            self._switch.forget(posted.number)


class Rounds(Service):
    """One race at a time. ``race`` and ``serve_rounds`` begin it, ``progress`` reports it, ``end_rounds`` ends it."""

    def __init__(self, switch: Switch, ledger: Ledger) -> None:
        super().__init__(switch)
        self.switch, self.ledger = switch, ledger
        self.pattern = random.Random(7).randbytes(1 << 21)
        self._crew = Crew(CREW)
        self._lock = threading.Lock()
        self._tally = Tally()
        self._free: deque[Buffers] = deque()
        self._waiting: deque[tuple[int, Callable[[], None], Buffers | None]] = deque()
        self._stop = threading.Event()
        self._workers: list[threading.Event] = []
        self._typical_s = 0.02
        self.limit_s = LIMIT_S

    # --- calls of the controller -------------------------------------------------------------------------------------

    def race(
        self,
        kind: str,
        first: int,
        last: int,
        seed: int,
        ip: str,
        address: str,
        port: int,
        workers: int,
        limit_s: float,
    ) -> None:
        """Begin rounds ``first`` to ``last`` against the peer's listener at ``address``, ``workers`` of them at a time.

        An operation, connect or call that takes longer than ``limit_s`` seconds is a hang.
        """
        self._begin(kind, seed, ip, limit_s)
        self._peer = (address, port)
        numbers = iter(range(first, last + 1))

        def work() -> None:
            while not self._stop.is_set():
                with self._lock:
                    n = next(numbers, 0)
                if not n:
                    return
                self._crew.restart()
                self._round(getattr(self, f"_race_{kind}"), n)

        self._workers = self._crew.all(*[work] * workers)

    def serve_rounds(self, kind: str, seed: int, ip: str, port: int, limit_s: float, backlog: int = 100) -> None:
        """Begin to serve the peer's rounds. Returns when the listener is up. Raises TimeoutError."""
        self._begin(kind, seed, ip, limit_s)
        ready = threading.Event()
        loop = self._flicker if kind == "accept" else self._listen_all_the_time
        self._workers = [self._crew.give(lambda: loop(port, backlog, ready))]
        if not ready.wait(self.limit_s):
            raise TimeoutError("the listener did not come up")

    def progress(self) -> dict[str, Any]:
        """The race's results so far. A round that takes too long is a problem, with the stacks of all threads."""
        if self._crew.longest_s() > ROUND_LIMITS * self.limit_s and not self._stop.is_set():
            self._problem(0, f"HANG: a round has been running for {self._crew.longest_s():.0f} s")
        tally = self._tally
        return {
            "running": not all(done.is_set() for done in self._workers),
            "rounds": tally.rounds,
            "operations": tally.operations,
            "codes": dict(tally.codes),
            "calls": dict(tally.calls),
            "problems": [*tally.problems, *({"round": 0, "what": what} for what in self.ledger.wrong)],
            "notes": list(self.ledger.notes),
            "seconds": ((tally.ended_ns or time.monotonic_ns()) - tally.begun_ns) / 1e9,
        }

    def end_rounds(self) -> tuple[int, int]:
        """Stop, wait for the rounds that still run, and check all memory in quarantine.

        Returns the process's resident bytes, and its blocks of Python's allocator.
        """
        self._stop.set()
        end_ns = time.monotonic_ns() + int(self.limit_s * 1e9)
        while not self._crew.idle() and time.monotonic_ns() < end_ns:
            time.sleep(0.01)
        if not self._crew.idle() and not self._tally.problems:
            self._problem(0, "HANG: the rounds do not end")
        self._tally.ended_ns = time.monotonic_ns()
        while self._waiting:
            self._look_again()
        while self._free:
            self._free.popleft().free()
        gc.collect()
        # Freed memory that the C library keeps must not count as growth.
        _libc.malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE, sys.getallocatedblocks()

    # --- the frame of every round ------------------------------------------------------------------------------------

    def _begin(self, kind: str, seed: int, ip: str, limit_s: float) -> None:
        self._stop.clear()
        self._tally, self.ledger.wrong = Tally(), []
        self._kind, self._seed, self._ip, self.limit_s = kind, seed, ip, limit_s
        # Work in an up-call must run in the provider's thread, not in a timer's.
        self.switch.set_late(random.Random(f"{seed}/{kind}/late"), late=kind != "upcalls")
        # The interval of the interpreter's thread switches decides which races occur.
        sys.setswitchinterval(random.Random(f"{seed}/{kind}/interval").choice((5e-3, 1e-3, 2e-4)))

    def _rng(self, n: int, side: str) -> random.Random:
        return random.Random(f"{self._seed}/{self._kind}/{n}/{side}")

    def _round(self, work: Callable[..., None], n: int, *arguments: Any) -> None:
        try:
            work(n, *arguments)
        except Failed as failed:
            self._problem(n, str(failed))
        except Exception as error:
            self._problem(n, f"the round raised {error!r}")
        with self._lock:
            self._tally.rounds += 1

    def _problem(self, n: int, what: str) -> None:
        with self._lock:
            self._tally.problems.append({"round": n, "what": what, "stacks": stacks()})
            if len(self._tally.problems) >= MAX_PROBLEMS or what.startswith("HANG"):
                self._stop.set()

    def count(self, ended: list[tuple[str, Code]]) -> None:
        """Count operations, each given by its kind and its final code."""
        with self._lock:
            self._tally.operations += len(ended)
            self._tally.codes.update(f"{kind} {code}" for kind, code in ended)

    def _count_call(self, what: str) -> None:
        """Count a call by its result ``what``."""
        with self._lock:
            self._tally.calls[what] += 1

    def take_buffers(self, piece: int) -> Buffers:
        with self._lock:
            found = self._free.popleft() if self._free and self._free[0].piece == piece else None
        return found or Buffers(piece)

    def quarantine(self, n: int, look: Callable[[], None], buffers: Buffers | None = None) -> None:
        """Call ``look`` some rounds later, and use ``buffers`` again after that."""
        with self._lock:
            self._waiting.append((n, look, buffers))
            due = len(self._waiting) > QUARANTINE
        if due:
            self._look_again()

    def _look_again(self) -> None:
        with self._lock:
            n, look, buffers = self._waiting.popleft()
        try:
            look()
        except Failed as failed:
            self._problem(n, str(failed))
        if buffers is not None:
            with self._lock:
                self._free.append(buffers)

    # --- connecting and accepting ------------------------------------------------------------------------------------

    def call(self, function: str, *arguments: Any) -> tuple[Any, Code]:
        """Call a function of the provider. Returns its value and the code it stored."""
        code = LpErrno()
        result = self.switch.functions[function](*arguments, code)
        return result, Code(code.value)

    def _must(self, function: str, *arguments: Any, code: Code = Code.OK) -> Any:
        result, found = self.call(function, *arguments)
        if found is not code:
            raise Failed(f"{function} ended with {found}")
        return result

    def close_socket(self, s: int) -> None:
        """Call WSPCloseSocket. Raises Failed unless it returns 0 promptly."""
        begun_ns = time.monotonic_ns()
        if self._must("WSPCloseSocket", s) != 0:
            raise Failed("WSPCloseSocket did not return 0")
        if (took_s := (time.monotonic_ns() - begun_ns) / 1e9) > CLOSE_LIMIT_S:
            raise Failed(f"WSPCloseSocket took {took_s:.1f} s")

    def _discard(self, n: int, s: int, event: int) -> None:
        """Close a socket without operations, and check later that its event object was not set afterwards."""
        self.close_socket(s)
        set_count = self.switch.events[event].set_count

        def look() -> None:
            if self.switch.events.pop(event).set_count != set_count:
                raise Failed(f"the event object of round {n} was set after the close")

        self.quarantine(n, look)

    def _bound(self, port: int, mask: int) -> tuple[int, int]:
        """A bound socket, and the number of its event object, selected for ``mask``."""
        s = self._must("WSPSocket", w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP, None, 0, w.WSA_FLAG_OVERLAPPED)
        name, number = name_of(self._ip, port), self.switch.new_event()
        self._must("WSPBind", s, name, length_of(name))
        self._must("WSPEventSelect", s, self.switch.events[number], mask)
        return s, number

    def _begin_connect(self, n: int) -> tuple[int, int, WSAEVENT]:
        """A socket whose connect has begun: descriptor, the event object's number and the event object."""
        s, number = self._bound(0, 0x10)
        data = ctypes.create_string_buffer(_ROUND.pack(n), _ROUND.size)
        name, caller = name_of(*self._peer), WSABUF(_ROUND.size, ctypes.addressof(data))
        self._must("WSPConnect", s, name, length_of(name), caller, None, None, None, code=Code.WSAEWOULDBLOCK)
        return s, number, self.switch.events[number]

    def _connect_code(self, s: int, event: WSAEVENT) -> Code:
        if not event.wait(self.limit_s):
            raise Failed(f"HANG: a connect did not end within {self.limit_s} s")
        out = WSANETWORKEVENTS()
        self._must("WSPEnumNetworkEvents", s, event, out)
        if not out.lNetworkEvents & 0x10:
            raise Failed(f"the event object was set, the events are {out.lNetworkEvents:#x}")
        code = Code(out.iErrorCode[w.FD_CONNECT_BIT])
        self._count_call(f"connect {code}")
        return code

    def _connected(self, n: int, piece: int = PIECE, receives: int = 1) -> Hand:
        """A connected end that has sent its hello and has the answer, so that its peer's receives are posted."""
        hand, answered = self._greeted(n, piece, receives)
        if not answered:
            raise Failed("the peer's answer did not come")
        return hand

    def _greeted(self, n: int, piece: int = PIECE, receives: int = 1) -> tuple[Hand, bool]:
        """A connected end that has sent its hello, and whether its peer answered. A closing peer may not answer.

        ``receives`` are posted here before the hello, one of them for the answer. A message without a receive would
        be repeated only after most of a second, when the race is over.
        """
        begun_ns = time.monotonic_ns()
        s, number, event = self._begin_connect(n)
        if code := self._connect_code(s, event):
            raise Failed(f"the connect ended with {code}")
        self._typical_s = 0.8 * self._typical_s + 0.2 * (time.monotonic_ns() - begun_ns) / 1e9
        hand = Hand(self, n, s, number, piece)
        hand.expect(hand.prepare(), {Code.OK}, "registering memory")
        for _ in range(receives):
            hand.must_post("recv")
        hand.must_post("send", 64)
        return hand, hand.received(hand.posted[0])

    def _listen_all_the_time(self, port: int, backlog: int, ready: threading.Event) -> None:
        listener = self._bound(port, 0x08)
        self._must("WSPListen", listener[0], backlog)
        ready.set()
        rng = self._rng(0, "listener")
        while not self._stop.is_set():
            self._crew.restart()
            self._serve_one(listener, rng)
        self._discard(0, *listener)

    def _flicker(self, port: int, backlog: int, ready: threading.Event) -> None:
        """Close a listener and make it again, over and over."""
        rng = self._rng(0, "listener")
        while not self._stop.is_set():
            self._crew.restart()
            listener = self._bound(port, 0x08)
            self._must("WSPListen", listener[0], backlog)
            ready.set()
            end_ns = time.monotonic_ns() + int(rng.uniform(0.005, 0.12) * 1e9)
            while not self._stop.is_set() and time.monotonic_ns() < end_ns:
                self._serve_one(listener, rng, 0.01)
            self._discard(0, *listener)
            self._count_call("listener closed")

    def _serve_one(self, listener: tuple[int, int], rng: random.Random, timeout_s: float = 0.2) -> None:
        """Wait for the event object, and accept one request each time it is set. A lost wake-up shows as a hang."""
        event = self.switch.events[listener[1]]
        if not event.wait(timeout_s):
            return
        if rng.random() < 0.5:
            self._must("WSPEnumNetworkEvents", listener[0], event, WSANETWORKEVENTS())
        asked: list[int] = []

        def condition(caller: Any, data: WSABUF | None, *rest: Any) -> int:
            if data is not None:
                asked.extend(_ROUND.unpack(ctypes.string_at(data.buf, data.len)))
            return w.CF_ACCEPT

        s, code = self.call("WSPAccept", listener[0], None, None, condition, 0)
        self._count_call(f"accept {code}")
        if code is Code.OK:
            number = self.switch.new_event()
            self._crew.give(lambda: self._round(self._serve, asked[0], s, number))
        elif code not in (Code.WSAECONNRESET, Code.WSAEWOULDBLOCK):
            self._problem(0, f"WSPAccept ended with {code}")

    # --- the peer's side of a round ----------------------------------------------------------------------------------

    def _serve(self, n: int, s: int, event: int) -> None:
        serve = getattr(self, f"_serve_{self._kind}", self._serve_until_reset)
        serve(n, self._rng(n, "peer"), s, event)

    def _greet(
        self, n: int, s: int, event: int, piece: int = PIECE, receives: int = MOST_SENDS + 1
    ) -> tuple[Hand, bool]:
        """Post receives, wait for the peer's hello and answer it. Returns False when the peer has closed already.

        There is one receive more than a closer ever sends messages. It pends until the reset, so no end closes before.
        """
        hand = Hand(self, n, s, event, piece)
        if hand.expect(hand.prepare(), {Code.OK, Code.WSAENOTCONN}, "registering memory"):
            return hand, False
        for _ in range(receives):
            hand.must_post("recv", 0, POSTED)
        if not hand.posted or not hand.received(hand.posted[0]):
            return hand, False
        hand.must_post("send", 64, POSTED)
        return hand, True

    def _serve_until_reset(self, n: int, rng: random.Random, s: int, event: int, piece: int = PIECE) -> None:
        """Wait until every posted operation is done or ended with WSAECONNRESET, and then close this end."""
        hand, going = self._greet(n, s, event, piece)
        if going:
            hand.mix(rng)
        hand.settle(RESET)
        hand.close()
        hand.retire()
