"""The controller's side of the rounds: begin a race on both nodes, wait for its end, and gather what it came to."""

import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from hil.errors import NodeDied, PhaseTimeout
from hil.nodes.clone import Clone
from hil.nodes.endpoint import Endpoint, UnexpectedResult
from hil.winsock.codes import Code

CALL_TIMEOUT_S = 60.0
POLL_S = 0.5
LEAK_TIMEOUT_S = 10.0
DUMP_SIGNAL, DUMP_S = 10, 2.0
Samples = list[tuple[int, int, int]]


class Racer(Endpoint):
    """An endpoint whose worker can also run rounds (hil.switch.races)."""

    def __init__(self, node: Clone, ip: str, provider: str = "", **settings: Any) -> None:
        self.node, self.ip = node, ip
        self.worker, self.pid = node.channel.spawn("rounds")
        code = self.ask("start", provider=provider, settings=settings)
        if code:
            raise UnexpectedResult(f"WSPStartupEx on node {node.name}: {Code(code)}")

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
        return self.node.machine.console.read_text(errors="replace")

    def holds(self) -> dict[str, int]:
        """What the kernel and the process hold of this provider: verbs resources by kind, descriptors, threads."""
        found = Counter(r["kind"] for r in self.node.system("resources") if r["pid"] == self.pid)
        process = self.run("process")
        return dict(found) | {"descriptors": process["descriptors"], "threads": process["threads"]}


@dataclass(slots=True)
class Outcome:
    """What a race came to, on both nodes together: completions by code, connects and accepts by how they ended.

    ``growth``: for each node by how many resident bytes, and by how many blocks of Python's allocator, the process grew
    with each round, from a window of early rounds to a window of late ones.
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


def race(kind: str, rounds: int, seed: int, closer: Racer, peer: Racer, port: int, workers: int = 2) -> Outcome:
    """Run ``rounds`` rounds of ``kind``, the peer serving them at ``port``; the outcome, with every problem seen."""
    outcome = Outcome(kind, seed)
    peer.run("serve_rounds", kind=kind, seed=seed, ip=peer.ip, port=port)
    before = {racer: racer.holds() for racer in (closer, peer)}
    arguments = {"kind": kind, "rounds": rounds, "seed": seed, "ip": closer.ip, "workers": workers}
    closer.run("race", address=peer.ip, port=port, **arguments)
    while (mine := closer.run("progress"))["running"] and not mine["problems"] and not peer.run("progress")["problems"]:
        time.sleep(POLL_S)
    closer.run("end_rounds")
    left = "" if closer.run("progress")["problems"] else _left(before)
    peer.run("end_rounds")
    for racer in (closer, peer):
        _add(outcome, racer, racer.run("progress"))
    outcome.rounds, outcome.seconds = mine["rounds"], mine["seconds"]
    if left and not outcome.problems:
        outcome.problems.append(left)
    return outcome


def _add(outcome: Outcome, racer: Racer, told: dict[str, Any]) -> None:
    outcome.operations += told["operations"]
    outcome.codes.update(told["codes"])
    outcome.calls.update(told["calls"])
    outcome.growth[racer.node.name] = growth(told["samples"])
    outcome.problems += [f"node {racer.node.name}, {_shown(problem)}" for problem in told["problems"]]
    outcome.notes += [f"node {racer.node.name} noted {note}" for note in told["notes"]]


def _shown(problem: dict[str, Any]) -> str:
    stacks = problem.get("stacks", "")
    return f"round {problem['round']}: {problem['what']}" + (f"\n{stacks}" if stacks else "")


def growth(samples: Samples) -> tuple[float, float]:
    """By how much each round has grown resident bytes and blocks: a window of early rounds against one of late rounds.

    The first rounds count for nothing: they fill what is kept for use again.
    """
    last = max((rounds for rounds, _, _ in samples), default=0)
    early = [sample for sample in samples if last * 0.3 <= sample[0] <= last * 0.55]
    late = [sample for sample in samples if last * 0.75 <= sample[0]]
    if not early or not late:
        return 0.0, 0.0
    rounds, size, blocks = (median(s[i] for s in late) - median(s[i] for s in early) for i in range(3))
    return (size / rounds, blocks / rounds) if rounds > 0 else (0.0, 0.0)


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
