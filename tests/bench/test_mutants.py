"""The bench names each mutant of the provider by the broken finding."""

import re
import threading

import pytest

from hil.evidence.disconnect import broken
from hil.testing.bench import Bench
from hil.winsock.codes import Code


@pytest.mark.parametrize(
    ("provider", "requirement"),
    [
        ("NoDreq", "CLOSE-35"),
        ("NoFlush", "RECV-13"),
        ("LeakMr", "CLOSE-18"),
        ("WrongCode", "CLOSE-13"),
        ("FalseSuccess", "CLOSE-15"),
        ("HandleFirst", "CLOSE-26"),
        ("Lingers", "CLOSE-07"),
        ("LateDreq", "CLOSE-35"),
        ("LeakExtra", "CLOSE-18"),
        ("StrayUpcall", "CLOSE-25"),
        ("MemoryLast", "CLOSE-17"),
    ],
)
def test_a_broken_provider_is_named(bench: Bench, provider: str, requirement: str) -> None:
    """Each broken requirement is named by a broken finding."""
    at_peer = provider == "NoFlush"
    bench.start(provider_a="" if at_peer else provider, provider_b=provider if at_peer else "")
    closer, peer = bench.connect()
    closer.recv()
    peer.recv()
    closer.close()

    findings = broken(bench.findings(bench.hard_close(closer, peer)))

    assert requirement in {r for finding in findings for r in finding.requirements}, "\n".join(map(str, findings))


def test_a_failure_that_returns_success_is_named(bench: Bench) -> None:
    """The close of an invalid socket stores WSAENOTSOCK and returns 0. The code alone is not enough."""
    bench.start(provider_a="ClosesAnyway")
    closer, peer = bench.connect()
    answer = closer.at.wsp("WSPCloseSocket", s=closer.socket.s + 1000, deliberately=["SWITCH-12"])
    assert (answer.result, answer.code) == (0, Code.WSAENOTSOCK)
    closer.close()

    (finding,) = broken(bench.findings(bench.hard_close(closer, peer)))

    assert "CLOSE-02" in finding.requirements
    assert "WSPCloseSocket returned 0 with WSAENOTSOCK (10038)" in finding.seen


@pytest.mark.parametrize(
    ("provider", "texts"),
    [
        (
            "LeakMr",
            [
                r"MR 0x[0-9a-f]+, 65536 bytes, rxe0, pid {pid} .*, opened by WSPRegisterMemory for socket {socket} at",
                r"PD \d+, rxe0, pid {pid} \(.*\), opened by .* at \d+\.\d+ ms",
                r"CQ \d+, \d+ entries, rxe0, pid {pid} \(.*\), there when the connection was open",
            ],
        ),
        ("LeakExtra", [r"PD \d+, rxe0, pid {pid} \(.*\), made when the connection was open already"]),
        ("LeakContext", [r"CTX \d+, rxe0, pid {pid}", r"pid {pid} \(.*\): \d+ descriptors of .*infinibandevent"]),
        ("LeakThread", [r"pid {pid} \(.*\): 1 threads"]),
        ("LeakLocked", [r"pid {pid} \(.*\): 4096 bytes of locked memory"]),
        ("LeakDescriptor", [r"pid {pid} \(.*\): 1 descriptors of /tmp/"]),
    ],
)
def test_a_leak_is_named(bench: Bench, provider: str, texts: list[str]) -> None:
    """A leak's finding names the remaining resource, its process, and the call that made it."""
    bench.start(provider_a=provider)
    closer, peer = bench.connect()
    closer.recv()
    closer.close()

    seen = "\n".join(str(finding) for finding in broken(bench.findings(bench.hard_close(closer, peer))))

    for text in texts:
        known = {"pid": str(closer.at.pid), "socket": str(closer.socket.s)}
        assert re.search(text.replace("{pid}", known["pid"]).replace("{socket}", known["socket"]), seen), seen


def test_a_complaint_of_the_kernel_is_noticed(bench: Bench) -> None:
    """The messages of a node's kernel during a test are judged, and counters and log are kept."""
    closer, peer = bench.connect()
    closer.close()
    # Only the kernel's own messages count. This makes it list its processes, as it does after an error.
    bench.run("b", "sh", "-c", "echo 'BUG: said by a program' > /dev/kmsg; echo t > /proc/sysrq-trigger")

    (finding,) = broken(bench.findings(bench.hard_close(closer, peer)))

    assert finding.statement == "node b's kernel does not complain"
    assert "Call Trace" in finding.seen and "BUG" not in finding.seen, finding.seen
    evidence = bench.pair.evidence()
    bench.pair.write(evidence)
    before, after = evidence.port_counters["a"]
    assert after["rxe0/1"]["sent_pkts"] > before["rxe0/1"]["sent_pkts"]


def test_in_a_simultaneous_close_the_second_side_is_judged_too(bench: Bench) -> None:
    """Both close, one of them with a wrong code. The finding names its side, at either end."""
    bench.start(provider_b="WrongCode")
    closes = []
    # If one close came first, its reset ended the other side's operations. One of several closes is simultaneous.
    for port in range(6000, 6006):
        one, two = bench.connect(port)
        for end in (one, two):
            end.recv()
        threads = [threading.Thread(target=end.close) for end in (two, one)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        closes.append(bench.hard_close(one, two, both=True))
    findings = broken(bench.findings(*closes))
    assert "CLOSE-13" in {r for finding in findings for r in finding.requirements}


def test_a_good_provider_breaks_no_finding(bench: Bench) -> None:
    """The same steps with the real provider: every finding holds, so only the mutants break findings above."""
    closer, peer = bench.connect()
    closer.recv()
    peer.recv()
    closer.close()
    assert broken(bench.findings(bench.hard_close(closer, peer))) == []
