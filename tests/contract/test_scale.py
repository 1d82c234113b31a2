"""Many sockets in one provider: closes at once, a storm of connectors, and the time of a close among many.

Figures are printed. The only judged figure is a ratio of two times of one run.
"""

import threading
from typing import Any

import pytest

from hil import Code
from hil.testing import PORT, Bench, Endpoint, Socket

SOCKETS = 500
CHUNK = 25
FIRST_PORT = 20000
LONG_S = 120.0
# The allowed time of a close among hundreds of sockets, relative to one among few. It should not grow at all.
WORST_RATIO = 3.0


class Crowd(Endpoint):
    """A provider whose worker handles many sockets with one call."""

    ROLE = "crowd"

    def run(self, call: str, /, **arguments: Any) -> Any:
        """Make a call of the crowd role, which may take long."""
        return self.node.channel.call(self.worker, call, LONG_S, "crowd", **arguments)


def crowds(bench: Bench) -> tuple[Crowd, Crowd]:
    """Start a crowd on each node in place of the endpoints."""
    # The time-outs are long, because the machine may be busy.
    patient = {"connect_timeout_s": 90.0}
    a, b = (Crowd(bench.pair.nodes[p.name], p.ipv4, bench.provider, **patient) for p in bench.pair.places)
    bench.endpoints |= {"a": a, "b": b}
    return a, b


def grow(a: Crowd, b: Crowd, listener: Socket, count: int, first: int) -> tuple[list[int], list[int]]:
    """Make ``count`` more connections from a to b, a few at a time. Returns the sockets at a and at b."""
    ours: list[int] = []
    theirs: list[int] = []
    for begin in range(first, first + count, CHUNK):
        size = min(CHUNK, first + count - begin)
        accepting = threading.Thread(
            target=lambda n=size: theirs.extend(
                b.run("accept_crowd", s=listener.s, event=listener.event, count=n, timeout_s=60)
            )
        )
        accepting.start()
        begun = a.run("connect_crowd", ip=a.ip, address=b.ip, port=PORT, first=FIRST_PORT + begin, count=size)
        ended = a.run("connects_ended", sockets=begun, timeout_s=60)
        accepting.join()
        assert ended == {"OK": size}, ended
        ours += begun
    assert len(theirs) == count
    return ours, theirs


@pytest.mark.timeout(400)
@pytest.mark.requirement("CLOSE-11", "CLOSE-13", "CLOSE-31", "CLOSE-45")
def test_five_hundred_connections_are_closed_at_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Five hundred closes at once, each in a thread, abort every own receive and reset every peer.

    Before that, a single close among many sockets takes no longer than among few.
    """
    a, b = crowds(bench)
    listener = b.listen(PORT, backlog=100)
    bench.pair.note_baseline()

    few, _ = grow(a, b, listener, 20, first=0)
    among_few = a.run("quickest_close", sockets=few[:10])
    many, theirs = grow(a, b, listener, SOCKETS + 10, first=100)
    among_many = a.run("quickest_close", sockets=many[:10])
    took = a.run("close_crowd", sockets=many[10:], threads=SOCKETS)

    with capsys.disabled():
        print(
            f"\nscale: a close among 20 sockets {among_few * 1e3:.1f} ms, among {SOCKETS} {among_many * 1e3:.1f} ms; "
            f"{len(took)} begun at once: the first back after {took[0]:.1f} s, the last after {took[-1]:.1f} s"
        )
    assert len(took) == SOCKETS
    ended = a.run("receives_ended", sockets=[*many, *few[:10]], timeout_s=10)
    assert ended == {"WSA_OPERATION_ABORTED 0": SOCKETS + 20}
    assert b.run("receives_ended", sockets=theirs, timeout_s=30) == {"WSAECONNRESET 0": SOCKETS + 10}
    assert a.run("receives_ended", sockets=few[10:], timeout_s=0) == {"pending": 10}
    assert among_many < WORST_RATIO * among_few, "a close costs more among many sockets"
    b.run("close_crowd", sockets=theirs, threads=4)
    bench.judge()


@pytest.mark.timeout(400)
@pytest.mark.requirement("CLEAN-05", "CLEAN-07", "CLOSE-24", "CLOSE-31")
def test_five_hundred_connections_are_ended_by_one_cleanup(bench: Bench) -> None:
    """WSPCleanup with 500 open connections aborts each receive, closes each handle once, and resets each peer."""
    a, b = crowds(bench)
    listener = b.listen(PORT, backlog=100)
    bench.pair.note_baseline()
    ours, theirs = grow(a, b, listener, SOCKETS, first=0)

    answer = a.run("WSPCleanup", deliberately=["SWITCH-14"])

    assert (answer["result"], answer["code"]) == (0, Code.OK)
    assert a.run("receives_ended", sockets=ours, timeout_s=0) == {"WSA_OPERATION_ABORTED 0": SOCKETS}
    assert b.run("receives_ended", sockets=theirs, timeout_s=30) == {"WSAECONNRESET 0": SOCKETS}
    del bench.endpoints["a"]
    b.run("close_crowd", sockets=theirs, threads=4)
    evidence = bench.judge()
    closed = [e.handle for e in evidence.of("a", "upcall", function="WPUCloseSocketHandle")]
    assert len(closed) == len(set(closed)) == SOCKETS


@pytest.mark.timeout(240)
@pytest.mark.requirement("LISTEN-07", "LISTEN-08", "LISTEN-09", "LISTEN-12")
def test_a_storm_of_connectors_meets_full_backlogs(bench: Bench) -> None:
    """Eighty connectors fill two backlogs of eight, the others are refused, and accepting makes room again."""
    a, b = crowds(bench)
    listeners = {port: b.listen(port, backlog=8) for port in (PORT, PORT + 1)}
    bench.pair.note_baseline()

    storm = []
    for begin in range(0, 80, 20):
        port = PORT + begin // 20 % 2
        storm += a.run("connect_crowd", ip=a.ip, address=b.ip, port=port, first=FIRST_PORT + begin, count=20)
    first = a.run("connects_ended", sockets=storm, timeout_s=8)
    queued = [
        b.run("accept_crowd", s=listener.s, event=listener.event, count=8, timeout_s=15)
        for listener in listeners.values()
    ]

    assert first == {"WSAECONNREFUSED": 64, "pending": 16}, (first, queued)
    assert [len(accepted) for accepted in queued] == [8, 8]
    again, theirs = grow(a, b, listeners[PORT], 8, first=200)
    assert [b.wsp("WSPAccept", s=listener.s).code for listener in listeners.values()] == [Code.WSAEWOULDBLOCK] * 2
    a.run("close_crowd", sockets=[*storm, *again])
    b.run("close_crowd", sockets=[*queued[0], *queued[1], *theirs])
    bench.judge()
