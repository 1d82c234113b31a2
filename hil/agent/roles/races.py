"""The ``rounds`` role of a worker: the kinds of race, each a method for the closer's side and one for the peer's."""

import faulthandler
import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

from hil.agent.roles.rounds import (
    CLOSED,
    EITHER,
    LONG_PIECE,
    PIECE,
    POSTED,
    RESET,
    SLOT,
    SLOTS,
    Failed,
    Hand,
    Ledger,
    Rounds,
    pause,
)
from hil.switch.switch import Emit, Switch
from hil.winsock.codes import Code

# A call that another thread makes: its name, the call, and the codes it may end with before the close.
Use = tuple[str, Callable[[], Code], Set[Code]]
REFUSED = (Code.WSAECONNREFUSED, Code.WSAECONNRESET)
# Transfers into memory that the peer deregisters are done, or break the connection.
BROKEN = RESET | {Code.WSAECONNABORTED}


def serve(emit: Emit) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role: those of the provider role, and those of the rounds."""
    # A crash writes its stack to the console. A process that hangs as a whole does so on SIGUSR1.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    ledger = Ledger(emit)
    service = Races(Switch(ledger), ledger)
    return {name: getattr(service, name) for name in dir(service) if not name.startswith("_")}


class Races(Rounds):
    """``_race_KIND`` runs a round on the closer's node, and ``_serve_KIND`` the peer's end of it."""

    # --- close against completion ------------------------------------------------------------------------------------

    def _race_completion(self, n: int) -> None:
        """Close at any time among the completions. The peer does nothing meanwhile."""
        rng = self._rng(n, "closer")
        hand = self._connected(n, receives=rng.randint(1, 5))
        hand.mix(rng, rng.randint(0, 2))
        pause(rng.uniform(0, 0.02))
        hand.close()
        hand.settle(CLOSED)
        hand.retire()

    # --- close against the peer's close ------------------------------------------------------------------------------

    def _race_peer(self, n: int) -> None:
        rng = self._rng(n, "closer")
        hand, answered = self._greeted(n, receives=rng.randint(1, 5))
        if answered:
            hand.mix(rng, rng.randint(0, 2))
        self._close_soon(hand, rng)

    def _serve_peer(self, n: int, rng: random.Random, s: int, event: int) -> None:
        hand, going = self._greet(n, s, event)
        if going:
            hand.mix(rng)
        self._close_soon(hand, rng)

    def _close_soon(self, hand: Hand, rng: random.Random) -> None:
        pause(rng.uniform(0, 0.01))
        hand.close()
        hand.settle(EITHER)
        hand.retire()

    # --- close against connect and accept ----------------------------------------------------------------------------

    def _race_connect(self, n: int) -> None:
        """Close at any time during a connect. Some connects run to their end, to measure their time."""
        if n % 16 < 2:
            hand = self._connected(n)
            hand.close()
            hand.settle(CLOSED)
            hand.retire()
            return
        s, number, event = self._begin_connect(n)
        pause(self._rng(n, "closer").uniform(0, 1.2 * self._typical_s))
        self._count_call("closed connected" if event.is_set() else "closed connecting")
        self._discard(n, s, number)

    def _race_accept(self, n: int) -> None:
        """The peer closes its listener or its accepted socket. The connect and the operations on it must end."""
        s, number, event = self._begin_connect(n)
        if code := self._connect_code(s, event):
            if code not in REFUSED:
                raise Failed(f"the connect ended with {code}")
            self._discard(n, s, number)
            return
        hand = Hand(self, n, s, number, PIECE)
        if not hand.expect(hand.prepare(), {Code.OK, Code.WSAENOTCONN}, "registering memory"):
            for kind in ("recv", "send", "recv"):
                hand.must_post(kind, 64, POSTED)
        hand.settle(RESET)
        hand.close()
        hand.retire()

    def _serve_accept(self, n: int, rng: random.Random, s: int, event: int) -> None:
        hand = Hand(self, n, s, event, PIECE)
        if rng.random() < 0.5 and not hand.expect(hand.prepare(), {Code.OK, Code.WSAENOTCONN}, "registering memory"):
            hand.must_post("recv", 0, POSTED)
        self._close_soon(hand, rng)

    # --- close from several threads ----------------------------------------------------------------------------------

    def _race_threads(self, n: int) -> None:
        """Three threads close one descriptor while five others use it until they get WSAENOTSOCK."""
        rng = self._rng(n, "closer")
        hand = self._connected(n, receives=3)
        hand.mix(rng, 1)
        failures: list[str] = []
        go = threading.Event()
        middle_s = rng.uniform(0.005, 0.03)
        delays = [middle_s + rng.uniform(-0.001, 0.001) for _ in range(3)]
        works = [partial(self._close_after, hand, go, delay_s) for delay_s in delays]
        works += [partial(self._use_until_closed, use, go, failures) for use in self._uses(hand)]
        rng.shuffle(works)
        done = self._crew.all(*works)
        go.set()
        self._join(done, "a call on a closing descriptor")
        if failures:
            raise Failed("; ".join(failures))
        hand.closed_once()
        hand.settle(CLOSED)
        hand.retire()

    def _close_after(self, hand: Hand, go: threading.Event, delay_s: float) -> None:
        go.wait()
        pause(delay_s)
        hand.try_close()

    def _use_until_closed(self, use: Use, go: threading.Event, failures: list[str]) -> None:
        name, call, allowed = use
        go.wait()
        end_ns = time.monotonic_ns() + int(self.limit_s * 1e9)
        while (code := call()) is not Code.WSAENOTSOCK:
            if code not in allowed or time.monotonic_ns() > end_ns:
                failures.append(f"{name} of another thread ended with {code}")
                return
        if (code := call()) is not Code.WSAENOTSOCK:
            failures.append(f"{name} ended with {code} after WSAENOTSOCK")

    def _uses(self, hand: Hand) -> list[Use]:
        counts = Counter[str]()

        def post(kind: str, most: int) -> Code:
            counts[kind] += 1
            if counts[kind] <= most:
                return hand.post(kind, 64 if kind == "send" else 0)
            pause(0.001)
            return hand.option()

        return [
            ("WSPSend", partial(post, "send", 3), {Code.WSA_IO_PENDING, Code.OK}),
            ("WSPRecv", partial(post, "recv", 6), {Code.WSA_IO_PENDING, Code.OK}),
            ("WSPGetSockOpt", hand.option, {Code.OK}),
            ("WSPGetOverlappedResult", partial(hand.result, hand.posted[-1]), CLOSED | {Code.WSA_IO_INCOMPLETE}),
            ("WSPRegisterMemory", hand.register_again, {Code.OK}),
        ]

    def _join(self, done: list[threading.Event], what: str) -> None:
        for event in done:
            if not event.wait(2 * self.limit_s):
                raise Failed(f"HANG: {what} does not return")

    # --- close during a long transfer --------------------------------------------------------------------------------

    def _race_write(self, n: int) -> None:
        rng = self._rng(n, "closer")
        hand = self._connected(n, LONG_PIECE)
        kinds = ["write", "write", "recv", rng.choice(("read", "send"))]
        rng.shuffle(kinds)
        for kind in kinds:
            hand.must_post(kind)
        # The link decides the time of a write. An early close meets fast writes, a late close slow ones.
        pause(0.15 * rng.random() ** 4)
        hand.close()
        hand.settle(CLOSED)
        hand.retire()

    def _serve_write(self, n: int, rng: random.Random, s: int, event: int) -> None:
        self._serve_until_reset(n, rng, s, event, LONG_PIECE)

    # --- deregistration against a running transfer -------------------------------------------------------------------

    def _race_deregister(self, n: int) -> None:
        """Deregister memory during transfers. Memory in use stays registered, and transferred data is whole."""
        rng = self._rng(n, "closer")
        hand = self._connected(n)
        for _ in range(3):
            for kind in rng.sample(("send", "write", "read", "write"), rng.randint(1, 4)):
                hand.must_post(kind, rng.randint(64, SLOT))
            refused = self._deregister_until_done(hand)
            self._count_call(f"deregistered {'after WSAEINVAL' if refused else 'at once'}")
            hand.settle({Code.OK})
            hand.expect(hand.register(), {Code.OK}, "registering memory again")
        hand.close()
        hand.retire()

    def _deregister_until_done(self, hand: Hand) -> int:
        """Call WSPDeregisterMemory until it succeeds. Returns the number of refusals."""
        end_ns = time.monotonic_ns() + int(self.limit_s * 1e9)
        refusals = itertools.count()
        while hand.expect(hand.deregister(), {Code.OK, Code.WSAEINVAL}, "WSPDeregisterMemory"):
            next(refusals)
            if time.monotonic_ns() > end_ns:
                raise Failed("HANG: memory stays in use")
        return next(refusals)

    def _serve_deregister(self, n: int, rng: random.Random, s: int, event: int) -> None:
        """Receives pend here until the peer closes, and until then their memory cannot be deregistered."""
        hand, going = self._greet(n, s, event, receives=SLOTS)
        while going and not hand.ended():
            if not hand.expect(hand.deregister(), {Code.OK, Code.WSAEINVAL}, "WSPDeregisterMemory"):
                # The connection is over, and with it every receive.
                hand.must_post("recv", 0, {Code.WSAECONNRESET})
                break
            pause(rng.uniform(0, 0.01))
        hand.settle(RESET)
        hand.close()
        hand.retire()

    # --- the peer deregisters memory during a write ------------------------------------------------------------------

    def _race_withdraw(self, n: int) -> None:
        """The peer deregisters its RDMA memory while this end writes to it."""
        hand = self._connected(n, LONG_PIECE)
        for _ in range(2):
            hand.must_post("write", 0, BROKEN | {Code.WSA_IO_PENDING})
        hand.settle(BROKEN)
        hand.close()
        hand.retire()

    def _serve_withdraw(self, n: int, rng: random.Random, s: int, event: int) -> None:
        hand, going = self._greet(n, s, event, LONG_PIECE)
        if going:
            pause(rng.uniform(0, 0.15))
            code = hand.expect(hand.withdraw(), {Code.OK, Code.WSAEINVAL}, "WSPDeregisterRdmaMemory")
            self._count_call(f"withdrawn {code}")
            pause(rng.uniform(0, 0.02))
            hand.reached()
        hand.settle(BROKEN)
        hand.close()
        hand.retire()

    # --- a storm of connectors ---------------------------------------------------------------------------------------

    def _race_storm(self, n: int) -> None:
        """Every connector is accepted. A request without a wake-up at the listener would wait for ever."""
        s, number, event = self._begin_connect(n)
        if code := self._connect_code(s, event):
            raise Failed(f"the connect ended with {code}")
        self._discard(n, s, number)

    def _serve_storm(self, n: int, rng: random.Random, s: int, event: int) -> None:
        self._discard(n, s, event)

    # --- sends of several threads ------------------------------------------------------------------------------------

    def _race_sends(self, n: int) -> None:
        """Three threads each send four messages on one socket. The peer answers when it has them."""
        rng = self._rng(n, "closer")
        hand = self._connected(n)
        hand.must_post("recv")
        lengths = [rng.randint(64, SLOT) for _ in range(13)]
        codes: list[Code] = []

        def sender(first: int) -> None:
            codes.extend(hand.post("send", lengths[number], number) for number in range(first, first + 4))

        self._join(self._crew.all(*[partial(sender, first) for first in (1, 5, 9)]), "WSPSend")
        if codes != [Code.WSA_IO_PENDING] * 12:
            raise Failed(f"sends ended with {[str(code) for code in codes]}")
        hand.settle({Code.OK})
        hand.close()
        hand.retire()

    def _serve_sends(self, n: int, rng: random.Random, s: int, event: int) -> None:
        hand, going = self._greet(n, s, event, receives=13)
        if not going:
            raise Failed("the connector closed before it had an answer")
        hand.ordered = False
        hand.settle({Code.OK})
        of_threads = [[number for number in hand.arrived if (number + 3) // 4 == thread] for thread in (1, 2, 3)]
        if of_threads != [sorted(numbers) for numbers in of_threads]:
            raise Failed(f"one thread's messages came out of order: {of_threads}")
        hand.must_post("recv", 0, POSTED)
        hand.must_post("send", 64, POSTED)
        hand.settle(RESET)
        hand.close()
        hand.retire()

    # --- closes from inside up-calls ---------------------------------------------------------------------------------

    def _race_upcalls(self, n: int) -> None:
        """Close each of two sockets in a completion of the other, while two threads poll for completions."""
        rng = self._rng(n, "closer")
        hands = [self._connected(n), self._connected(n + 1_000_000)]
        for hand, other in zip(hands, hands[::-1], strict=True):
            hand.must_post("recv")
            self._when_completed(hand, partial(self._close_in_upcall, other, rng.uniform(0, 0.03)))
        done = self._crew.all(*[partial(self._poll, hand, rng.uniform(0, 0.002)) for hand in hands])
        # The first message of each socket asks the peer for a message.
        for hand in hands:
            hand.mix(rng, 2, POSTED | {Code.WSAENOTSOCK})
        # Half of the pauses are long enough for both up-calls to come first.
        pause(rng.choice((rng.uniform(0, 0.03), 0.25)))
        for hand in hands:
            if hand.try_close() is Code.OK:
                self._count_call("closed outside")
        self._join(done, "a thread that polls, and closes in an up-call,")
        for hand in hands:
            hand.wait_closed()
        for hand in hands:
            hand.closed_once()
            hand.settle(CLOSED)
            hand.retire()

    def _serve_upcalls(self, n: int, rng: random.Random, s: int, event: int) -> None:
        hand, going = self._greet(n, s, event)
        if going and hand.received(hand.posted[1]):
            hand.mix(rng)
        hand.settle(RESET)
        hand.close()
        hand.retire()

    def _when_completed(self, hand: Hand, work: Callable[[], object]) -> None:
        """Do ``work`` inside the up-call for the last receive."""
        self.switch.on_completion[hand.last("recv").number] = lambda code, transferred: work()

    def _close_in_upcall(self, hand: Hand, delay_s: float) -> None:
        pause(delay_s)
        if hand.try_close() is Code.OK:
            self._count_call("closed in an up-call")

    def _poll(self, hand: Hand, delay_s: float) -> None:
        while hand.result(hand.posted[-1]) is not Code.WSAENOTSOCK:
            pause(delay_s)
