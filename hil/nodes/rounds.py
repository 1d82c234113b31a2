"""The controller's side of the rounds: begin a race on both nodes, wait for its end, and gather what it came to."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hil.errors import NodeDied, PhaseTimeout
from hil.nodes.endpoint import FD_CONNECT, Endpoint
from hil.nodes.softpair import Pair

CALL_TIMEOUT_S = 60.0
POLL_S, LIMIT_S = 0.5, 15.0
# Of a race, between which the processes are measured.
PARTS = 3
LEAK_TIMEOUT_S = 10.0
WARM_UP_PORT = 5000
DUMP_SIGNAL, DUMP_S = 10, 2.0


class Racer(Endpoint):
    """An endpoint whose worker can also run rounds (hil.switch.races)."""

    ROLE = "rounds"

    def run(self, call: str, /, **arguments: Any) -> Any:
        """A call of the rounds. That the process dies in it, or hangs as a whole, is the provider's fault."""
        seen = self._console()
        try:
            return self.node.channel.call(self.worker, call, CALL_TIMEOUT_S, "rounds", **arguments)
        except NodeDied as error:
            fault = self._console().removeprefix(seen)
            raise AssertionError(f"the provider's process died on node {self.node.name}: {error}\n{fault}") from error
        except PhaseTimeout as error:
            self.node.channel.kill(self.worker, DUMP_SIGNAL)
            time.sleep(DUMP_S)
            fault = self._console().removeprefix(seen)
            raise AssertionError(f"HANG: the provider's process hangs as a whole: {error}\n{fault}") from error

    def _console(self) -> str:
        return self.node.console.read_text(errors="replace")

    def holds(self) -> dict[str, int]:
        """What the kernel and the process hold of this provider: verbs resources by kind, descriptors, threads."""
        found = Counter(r["kind"] for r in self.node.system("resources") if r["pid"] == self.pid)
        process = self.run("process")
        return dict(found) | {"descriptors": process["descriptors"], "threads": process["threads"]}


def connected_racers(
    pair: Pair,
    closer: str = "",
    peer: str = "",
    *,
    connect_timeout_s: float = 10.0,
    early_messages: tuple[int, int] = (0, 1),
) -> tuple[Racer, Racer]:
    """A racer on each node, by name with a broken provider, and one connection from the first to the second.

    It stays: what a provider opens once is open before anything is counted. ``early_messages``: how many private
    receives each has for a connection; the peer needs one, so that the closer need not wait for its first receive.
    """
    nodes, (a, b) = pair.nodes, pair.places
    mine, theirs = ({"connect_timeout_s": connect_timeout_s, "early_messages": count} for count in early_messages)
    one = Racer(nodes[a.name], a.ipv4, closer, **mine)
    other = Racer(nodes[b.name], b.ipv4, peer, **theirs)
    listener, socket = other.listen(WARM_UP_PORT), one.socket(0, FD_CONNECT)
    one.connect(socket, other.ip, WARM_UP_PORT)
    other.accept(listener)
    one.connected(socket)
    return one, other


@dataclass(slots=True)
class Outcome:
    """What a race came to, on both nodes together: completions by kind and code, connects and accepts by how they
    ended.

    ``growth``: for each node by how many resident bytes, and by how many blocks of Python's allocator, the process grew
    with each round, after the first of its ``PARTS``: that fills what is kept for use again.
    """

    kind: str
    seed: int
    rounds: int = 0
    operations: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    growth: dict[str, tuple[float, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(self.codes.items()))
        calls = "".join(f", {count} {call}" for call, count in sorted(self.calls.items()))
        counts = f"{self.rounds} rounds, {self.operations} operations: {codes or 'no completions'}{calls}"
        grown = ", ".join(
            f"{name} {size:+.0f} bytes {blocks:+.1f} blocks" for name, (size, blocks) in self.growth.items()
        )
        return f"race {self.kind}: {counts}; {self.seconds:.1f} s, grown a round {grown}, seed {self.seed}"

    def told(self) -> str:
        """Every problem, with the seed to run it again."""
        return "\n".join([f"HIL_SEED={self.seed}", *self.problems, *self.notes])


def race(
    kind: str,
    rounds: int,
    seed: int,
    closer: Racer,
    peer: Racer,
    port: int,
    *,
    workers: int = 2,
    limit_s: float = LIMIT_S,
) -> Outcome:
    """Run ``rounds`` rounds of ``kind``, the peer serving them at ``port``; the outcome, with every problem seen.

    What takes longer than ``limit_s`` seconds is a hang.
    """
    outcome = Outcome(kind, seed)
    before = {racer: racer.holds() for racer in (closer, peer)}
    both = {"kind": kind, "seed": seed, "port": port, "limit_s": limit_s}
    ends = sorted({max(part * rounds // PARTS, 1) for part in range(1, PARTS + 1)})
    sizes: list[dict[Racer, tuple[int, int]]] = []
    for first, last in zip((0, *ends), ends, strict=False):
        if not outcome.problems:
            peer.run("serve_rounds", ip=peer.ip, **both)
            closer.run("race", first=first + 1, last=last, ip=closer.ip, address=peer.ip, workers=workers, **both)
            sizes.append(_until_end(outcome, closer, peer))
    if len(sizes) == PARTS:
        for racer in before:
            outcome.growth[racer.node.name] = _growth([size[racer] for size in sizes], ends)
    if not outcome.problems and (left := _left(before)):
        outcome.problems.append(left)
    return outcome


def _growth(sizes: list[tuple[int, int]], ends: list[int]) -> tuple[float, float]:
    """By how many bytes and blocks a round made the process grow, in that part behind the first where it was least: a
    leak is in all of them, what an allocator keeps for once is in one."""
    parts = [
        [(now - was) / (end - begin) for was, now in zip(before, after, strict=True)]
        for before, after, begin, end in zip(sizes, sizes[1:], ends, ends[1:], strict=False)
    ]
    size, blocks = (min(values) for values in zip(*parts, strict=True))
    return size, blocks


def _until_end(outcome: Outcome, closer: Racer, peer: Racer) -> dict[Racer, tuple[int, int]]:
    """Wait until all rounds are over, or one broke; the size of both processes when they are idle."""
    while (mine := closer.run("progress"))["running"] and not mine["problems"] and not peer.run("progress")["problems"]:
        time.sleep(POLL_S)
    size = {racer: tuple(racer.run("end_rounds")) for racer in (closer, peer)}
    told = {racer: racer.run("progress") for racer in (closer, peer)}
    outcome.rounds += told[closer]["rounds"]
    outcome.seconds += told[closer]["seconds"]
    for racer in (closer, peer):
        _add(outcome, racer, told[racer])
    return size


def _add(outcome: Outcome, racer: Racer, told: dict[str, Any]) -> None:
    outcome.operations += told["operations"]
    outcome.codes.update(told["codes"])
    outcome.calls.update(told["calls"])
    outcome.problems += [f"node {racer.node.name}, {_shown(problem)}" for problem in told["problems"]]
    outcome.notes += [f"node {racer.node.name} noted {note}" for note in told["notes"]]


def _shown(problem: dict[str, Any]) -> str:
    stacks = problem.get("stacks", "")
    return f"round {problem['round']}: {problem['what']}" + (f"\n{stacks}" if stacks else "")


def _left(before: dict[Racer, dict[str, int]]) -> str:
    """What is held now and was not before, once the ends of the last connections are over; empty for nothing."""
    end_ns = time.monotonic_ns() + int(LEAK_TIMEOUT_S * 1e9)
    while True:
        left = {racer.node.name: _more(held, racer.holds()) for racer, held in before.items()}
        if not any(left.values()):
            return ""
        if time.monotonic_ns() > end_ns:
            return f"leaked, before and after: {left}"
        time.sleep(0.1)


def _more(before: dict[str, int], now: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (before.get(name, 0), count) for name, count in now.items() if count > before.get(name, 0)}
