"""Races that are run, not argued: thousands of rounds, on the nodes themselves, each a connection of its own.

Every kind prints one line: rounds, operations, completions by code, seconds, and its seed. The seed decides what each
round posts and how long it waits before the race; it cannot decide how the threads of two machines meet, so a failure
may need several runs to come again. To run with a seed again, and for longer:

    HIL_SEED=1234 HIL_ROUNDS=20 .venv/bin/pytest tests/contract/test_races.py -k deregister

HIL_ROUNDS multiplies the rounds. What a round checks is told in hil/switch/rounds.py; after the last one nothing may be
left: verbs resources, descriptors, threads, and no memory that grows with the rounds.
"""

import os
import random
from collections.abc import Callable

import pytest

from fixtures.bench import Bench
from hil.evidence.packets import RocePacket
from hil.nodes.rounds import Outcome, Racer, race

ROUNDS_PORT = 5001
TIMES = float(os.environ.get("HIL_ROUNDS", "1"))
SEED = int(os.environ.get("HIL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 24)
# By how much a round may make a process grow. Memory that a round loses is a few hundred blocks and more; short runs
# measure up to some thirty where nothing is lost.
MAX_BYTES, MAX_BLOCKS = 8192, 90

pytestmark = pytest.mark.timeout(120 + 120 * TIMES)
Run = Callable[..., Outcome]


@pytest.fixture
def run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a race between two fresh providers, prints its line, and fails with every problem seen."""

    def started(kind: str, rounds: int, workers: int = 2) -> Outcome:
        a, b = bench.pair.nodes["a"], bench.pair.nodes["b"]
        closer = Racer(a, "10.77.0.1", bench.provider, connect_timeout_s=10.0)
        # A private receive is there before the first message can be: the connector need not wait for the acceptor's.
        peer = Racer(b, "10.77.0.2", bench.provider, connect_timeout_s=10.0, early_messages=1)
        bench.endpoints |= {"a": closer, "b": peer}
        bench.connect()
        outcome = race(kind, max(int(rounds * TIMES), 1), SEED, closer, peer, ROUNDS_PORT, workers)
        with capsys.disabled():
            print(f"\n{outcome}")
        assert not outcome.problems, outcome.told()
        assert all(size < MAX_BYTES or blocks < MAX_BLOCKS for size, blocks in outcome.growth.values()), outcome
        return outcome

    return started


def after_reset(packets: list[RocePacket]) -> list[int]:
    """Frames that an end sent for a connection after it had sent the DREQ."""
    reset: set[tuple[str, int]] = set()
    late = []
    for p in packets:
        if p.cm in ("REQ", "REP"):
            # A queue pair's number that is used again.
            reset.discard((p.destination, p.qpn))
        elif p.cm == "DREQ":
            reset.add((p.source, p.qpn))
        elif not p.cm and (p.source, p.dest_qp) in reset:
            late.append(p.frame)
    return late


def crossed(packets: list[RocePacket]) -> int:
    """Connections for which both ends sent a DREQ."""
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
    """Wherever a close comes among completions, each operation completes once: done, or aborted; the peer's, reset."""
    outcome = run("completion", 300)

    assert outcome.codes["WSA_OPERATION_ABORTED (995)"] and outcome.codes["OK (0)"], "the race was not met"
    assert after_reset(bench.pair.packets()) == []
    bench.judge()


@pytest.mark.requirement("CLOSE-14", "CLOSE-25", "CLOSE-30", "CLOSE-36", "OVL-02")
def test_close_against_the_peers_close(bench: Bench, run: Run) -> None:
    """Both ends close at about the same time: each completes its own operations once, whosever reset was first."""
    run("peer", 300)

    packets = bench.pair.packets()
    assert crossed(packets), "no two DREQs crossed: the race was not met"
    assert after_reset(packets) == []
    bench.judge()


@pytest.mark.requirement("CONN-18", "CLOSE-20", "CLOSE-21")
def test_close_against_connect(bench: Bench, run: Run) -> None:
    """A close anywhere in a connect ends it at once and without FD_CONNECT; a REP that comes late is refused."""
    outcome = run("connect", 400)

    assert outcome.calls["closed connecting"] and outcome.calls["closed connected"], "the race was not met"
    packets, closer = bench.pair.packets(), bench.endpoints["a"]
    requests = [p.local_comm_id for p in packets if p.cm == "REQ"]
    assert len(requests) == len(set(requests)), "a REQ was sent again after the close"
    answered = {p.remote_comm_id for p in packets if p.cm in ("RTU", "REJ", "DREQ")}
    # A REJ that crosses the REP does not know the acceptor's id yet: it names the connector's.
    withdrawn = {p.local_comm_id for p in packets if p.cm == "REJ" and p.source == closer.ip}
    unanswered = [p for p in packets if p.cm == "REP" and p.local_comm_id not in answered]
    assert [p.frame for p in unanswered if p.remote_comm_id not in withdrawn] == []
    bench.judge()


@pytest.mark.requirement("CLOSE-38", "CLOSE-39", "CLOSE-43", "ACC-20", "CLOSE-40")
def test_close_of_a_listener_and_of_what_it_accepted(bench: Bench, run: Run) -> None:
    """While others connect, the listener or the accepted socket closes: each connect ends with success or refusal."""
    outcome = run("accept", 400, workers=3)

    assert outcome.calls["connect OK (0)"], "the race was not met"
    assert {"connect WSAECONNREFUSED (10061)", "connect WSAECONNRESET (10054)"} & set(outcome.calls)
    bench.judge()


@pytest.mark.requirement("CLOSE-02", "CLOSE-08", "CLOSE-14", "CLOSE-48", "OVL-02")
def test_close_from_several_threads(bench: Bench, run: Run) -> None:
    """Of three closes of one descriptor one succeeds, two fail with WSAENOTSOCK, like every call of other threads."""
    run("threads", 150)

    bench.judge()


@pytest.mark.requirement("CLOSE-44", "CLOSE-14", "CLOSE-36")
def test_close_during_a_long_write(bench: Bench, run: Run) -> None:
    """A close in the middle of RDMA writes ends them, and nothing of them follows on the wire."""
    outcome = run("write", 120)

    assert outcome.codes["WSA_OPERATION_ABORTED (995)"], "the race was not met"
    assert after_reset(bench.pair.packets()) == []
    bench.judge()


@pytest.mark.requirement("MEM-12")
def test_deregistration_against_transfers(bench: Bench, run: Run) -> None:
    """Memory in use cannot be deregistered: WSAEINVAL until the transfer is done, and the data arrives whole."""
    outcome = run("deregister", 100)

    assert outcome.calls["deregistered after WSAEINVAL"], "the race was not met"
    bench.judge()


@pytest.mark.requirement("RMEM-12")
def test_memory_is_withdrawn_while_the_peer_writes(bench: Bench, run: Run) -> None:
    """Once WSPDeregisterRdmaMemory has returned, not a byte more of a running write arrives."""
    outcome = run("withdraw", 80)

    assert outcome.codes["WSAECONNABORTED (10053)"], "no write was caught running: the race was not met"
    bench.judge()


@pytest.mark.requirement("EVT-08", "ACC-07")
def test_a_storm_of_connectors_loses_no_wake_up(bench: Bench, run: Run) -> None:
    """A listener that accepts one request each time its event object is set accepts every connector."""
    outcome = run("storm", 600, workers=8)

    assert outcome.calls["connect OK (0)"] == outcome.rounds
    bench.judge()


@pytest.mark.requirement("SEND-12", "SEND-02")
def test_sends_of_several_threads(bench: Bench, run: Run) -> None:
    """Messages that three threads send on one socket arrive whole, once, and each thread's in its order."""
    run("sends", 80)

    bench.judge()


@pytest.mark.requirement("OVL-25", "CLOSE-11", "CLOSE-14")
def test_closes_from_inside_upcalls(bench: Bench, run: Run) -> None:
    """Two sockets, each closed in an up-call of the other, in two threads: no thread waits for ever."""
    run("upcalls", 80)

    bench.judge()
