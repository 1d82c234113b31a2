"""The bench names each deliberately broken provider by the link it breaks."""

import threading

import pytest

from fixtures.bench import Bench
from hil.evidence.rules import broken


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
    """Each broken rule shows up as a broken link that names its requirement."""
    at_peer = provider == "NoFlush"
    bench.start(provider_a="" if at_peer else provider, provider_b=provider if at_peer else "")
    closer, peer = bench.connect()
    closer.recv()
    peer.recv()
    closer.close()

    findings = broken(bench.findings(bench.hard_close(closer, peer)))

    assert requirement in {r for finding in findings for r in finding.requirements}, "\n".join(map(str, findings))


def test_in_a_simultaneous_close_the_second_side_is_judged_too(bench: Bench) -> None:
    """Both close, one of them with a wrong code: its side is named whichever end it is."""
    bench.start(provider_b="WrongCode")
    one, two = bench.connect()
    for end in (one, two):
        end.recv()
    threads = [threading.Thread(target=end.close) for end in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    findings = broken(bench.findings(bench.hard_close(one, two, both=True)))
    assert "CLOSE-13" in {r for finding in findings for r in finding.requirements}


def test_a_sound_provider_breaks_no_link(bench: Bench) -> None:
    """The same steps with the real provider: every link holds, so what breaks above breaks for its own reason."""
    closer, peer = bench.connect()
    closer.recv()
    peer.recv()
    closer.close()
    assert broken(bench.findings(bench.hard_close(closer, peer))) == []
