"""Races: thousands of rounds that run on the nodes, each with its own connection.

Every kind prints one line: rounds, operations, completions by kind and code, seconds, and its seed. The seed decides
the operations and the delay of each round. It cannot decide how the threads of two machines meet, so a failure may
need several runs to come again. To run with a seed again, and for longer:

    HIL_SEED=1234 HIL_ROUNDS=20 .venv/bin/pytest tests/contract/test_races.py -k deregister

HIL_ROUNDS multiplies the rounds. Without it --hil-thorough runs all of them, and other runs a few.
hil/agent/roles/rounds.py describes the checks of a round. After the last round no verbs resource, descriptor or thread
may be left, and memory may not have grown with the rounds.
"""

import os
import random
from collections.abc import Callable

import pytest

from hil import RocePacket
from hil.testing import Bench
from hil.testing.races import PARTS, Outcome, Racer, connected_racers, race

ROUNDS_PORT = 5001
# The part of a kind's rounds that runs first. Without --hil-thorough it is small.
# More rounds run only if a race was not met.
TIMES = float(os.environ.get("HIL_ROUNDS", "0"))
FEW, ALL = 0.15, 1.0
SEED = int(os.environ.get("HIL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 24)
# The growth that a round may cause, in blocks of Python's allocator and in resident bytes.
# One kept record is more blocks than this. The C libraries keep some MiB of freed memory, however short the race.
MAX_BLOCKS, MAX_BYTES, KEPT_BYTES = 5, 16384, 4 << 20
MORE = 2
ENDED = ("OK (0)", "WSA_OPERATION_ABORTED (995)")

pytestmark = pytest.mark.timeout(480 + 360 * TIMES)
Run = Callable[..., Outcome]


@pytest.fixture
def run(bench: Bench, capsys: pytest.CaptureFixture[str], thorough: bool) -> Run:
    """A function that runs a race between two fresh providers, prints its line, and fails with every problem.

    ``met`` says whether the outcome shows the race. A race that was not met gets more rounds.
    """

    def started(kind: str, rounds: int, workers: int = 2, met: Callable[[Outcome], object] = lambda _: True) -> Outcome:
        chance = random.Random(SEED)
        early = chance.randint(0, 3), chance.randint(1, 4)
        closer, peer = connected_racers(bench.pair, bench.provider, bench.provider, early_messages=early)
        bench.endpoints |= {"a": closer, "b": peer}
        bench.pair.note_resources()
        outcome = measured(kind, max(int(rounds * (TIMES or (ALL if thorough else FEW))), 1), closer, peer, workers)
        was_met = met(outcome)
        while (grew(outcome) or not was_met) and outcome.rounds <= rounds * max(TIMES, ALL):
            # Caches may take more rounds to fill. A leak grows on.
            outcome = measured(kind, MORE * outcome.rounds, closer, peer, workers)
            was_met = met(outcome)
        assert was_met, f"the race was not met: {outcome.calls}, {outcome.codes}"
        assert not grown(outcome), f"memory grows with the rounds on nodes {grown(outcome)}: {outcome}"
        return outcome

    def measured(kind: str, rounds: int, closer: Racer, peer: Racer, workers: int) -> Outcome:
        outcome = race(kind, rounds, SEED, closer, peer, ROUNDS_PORT, workers=workers)
        with capsys.disabled():
            print(f"\n{outcome}")
        assert not outcome.problems, outcome.problems_text()
        return outcome

    return started


def grew(outcome: Outcome) -> bool:
    """Whether a process grew so much that more rounds must tell a leak from a cache."""
    return any(blocks > MAX_BLOCKS or size > MAX_BYTES for size, blocks in outcome.growth.values())


def grown(outcome: Outcome) -> list[str]:
    """The nodes whose process grew with each round by more than caches explain."""
    most = max(MAX_BYTES, KEPT_BYTES / (outcome.rounds / PARTS))
    return [node for node, (size, blocks) in outcome.growth.items() if blocks > MAX_BLOCKS or size > most]


def after_reset(packets: list[RocePacket]) -> list[int]:
    """The frames that an end sent on a connection after its DREQ."""
    reset: set[tuple[str, int]] = set()
    late = []
    for p in packets:
        if p.cm in ("REQ", "REP"):
            # A new connection uses the queue pair's number again.
            reset.discard((p.destination, p.qpn))
        elif p.cm == "DREQ":
            reset.add((p.source, p.qpn))
        elif not p.cm and (p.source, p.dest_qp) in reset:
            late.append(p.frame)
    return late


def crossed(packets: list[RocePacket]) -> int:
    """The number of connections for which both ends sent a DREQ."""
    senders: dict[frozenset[tuple[str, int]], set[str]] = {}
    for p in packets:
        if p.cm == "DREQ":
            ends = frozenset({(p.source, p.local_comm_id), (p.destination, p.remote_comm_id)})
            senders.setdefault(ends, set()).add(p.source)
    return sum(len(found) == 2 for found in senders.values())


@pytest.mark.requirement(
    "CLOSE-13", "CLOSE-14", "CLOSE-15", "CLOSE-16", "CLOSE-25", "CLOSE-26", "CLOSE-36", "OVL-02", "OVL-24", "RECV-13"
)
def test_close_against_completion(bench: Bench, run: Run) -> None:
    """A close among completions completes each operation once: done or aborted, and at the peer done or reset."""
    # Operations posted before the greeting do not count: they are always done, or always aborted.
    transfers = [f"{kind} {code}" for kind in ("write", "read") for code in ENDED]
    run("completion", 300, met=lambda outcome: all(outcome.codes[transfer] for transfer in transfers))

    assert after_reset(bench.pair.packets()) == []
    bench.judge()


@pytest.mark.requirement("CLOSE-14", "CLOSE-25", "CLOSE-30", "CLOSE-36", "OVL-02")
def test_close_against_the_peers_close(bench: Bench, run: Run) -> None:
    """When both ends close at about the same time, each completes its own operations once, in either order."""
    run("peer", 300, met=lambda _: crossed(bench.pair.packets()))

    assert after_reset(bench.pair.packets()) == []
    bench.judge()


@pytest.mark.requirement("CONN-18", "CLOSE-20", "CLOSE-21")
def test_close_against_connect(bench: Bench, run: Run) -> None:
    """A close anywhere in a connect ends it at once and without FD_CONNECT, and a late REP is refused."""
    run("connect", 400, met=lambda outcome: outcome.calls["closed connecting"] and outcome.calls["closed connected"])

    packets, closer = bench.pair.packets(), bench.endpoints["a"]
    requests = [p.local_comm_id for p in packets if p.cm == "REQ"]
    assert len(requests) == len(set(requests)), "a REQ was sent again after the close"
    answered = {p.remote_comm_id for p in packets if p.cm in ("RTU", "REJ", "DREQ")}
    # A REJ that crosses the REP does not know the acceptor's id yet, so it names the connector's.
    withdrawn = {p.local_comm_id for p in packets if p.cm == "REJ" and p.source == closer.ip}
    unanswered = [p for p in packets if p.cm == "REP" and p.local_comm_id not in answered]
    assert [p.frame for p in unanswered if p.remote_comm_id not in withdrawn] == []
    bench.judge()


@pytest.mark.requirement("CLOSE-38", "CLOSE-39", "CLOSE-43", "ACC-20", "CLOSE-40")
def test_close_of_a_listener_and_of_what_it_accepted(bench: Bench, run: Run) -> None:
    """A listener or an accepted socket closes during connects, and each connect ends with success or refusal."""
    refused = {"connect WSAECONNREFUSED (10061)", "connect WSAECONNRESET (10054)"}
    run("accept", 400, workers=3, met=lambda outcome: outcome.calls["connect OK (0)"] and refused & set(outcome.calls))

    bench.judge()


@pytest.mark.requirement("CLOSE-02", "CLOSE-08", "CLOSE-14", "CLOSE-48", "OVL-02")
def test_close_from_several_threads(bench: Bench, run: Run) -> None:
    """Of three closes of one descriptor one succeeds; the others, and other threads' calls, give WSAENOTSOCK."""
    run("threads", 150)

    bench.judge()


@pytest.mark.requirement("CLOSE-44", "CLOSE-14", "CLOSE-36")
def test_close_during_a_long_write(bench: Bench, run: Run) -> None:
    """A close in the middle of RDMA writes ends them, and none of their packets follows on the wire."""
    run("write", 120, met=lambda outcome: all(outcome.codes[f"write {code}"] for code in ENDED))

    assert after_reset(bench.pair.packets()) == []
    bench.judge()


@pytest.mark.requirement("MEM-12")
def test_deregistration_against_transfers(bench: Bench, run: Run) -> None:
    """Deregistering memory in use gives WSAEINVAL until the transfer is done, and the data arrives whole."""
    run("deregister", 100, met=lambda outcome: outcome.calls["deregistered after WSAEINVAL"])

    bench.judge()


@pytest.mark.requirement("RMEM-12")
def test_memory_is_withdrawn_while_the_peer_writes(bench: Bench, run: Run) -> None:
    """After WSPDeregisterRdmaMemory has returned, no further byte of the peer's running write arrives."""
    run("withdraw", 80, met=lambda outcome: outcome.codes["write WSAECONNABORTED (10053)"])

    bench.judge()


@pytest.mark.requirement("EVT-08", "ACC-07")
def test_a_storm_of_connectors_loses_no_wake_up(bench: Bench, run: Run) -> None:
    """A listener that accepts one request each time its event object is set accepts every connector."""
    outcome = run("storm", 600, workers=8)

    assert outcome.calls["connect OK (0)"] == outcome.rounds
    bench.judge()


@pytest.mark.requirement("SEND-12", "SEND-02")
def test_sends_of_several_threads(bench: Bench, run: Run) -> None:
    """Messages that three threads send on one socket arrive whole and once, each thread's in order."""
    run("sends", 80)

    bench.judge()


@pytest.mark.requirement("OVL-25", "CLOSE-11", "CLOSE-14")
def test_closes_from_inside_upcalls(bench: Bench, run: Run) -> None:
    """Two threads close two sockets, each in an up-call of the other, and no thread waits for ever."""
    run("upcalls", 80, met=lambda outcome: outcome.calls["closed in an up-call"] and outcome.calls["closed outside"])

    bench.judge()
