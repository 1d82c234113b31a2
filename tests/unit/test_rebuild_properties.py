"""Removing or reordering packets raises nothing, and never makes a pass of a capture that shows a failure."""

from collections.abc import Sequence
from dataclasses import replace

from captured import TEARDOWNS, judged, kind, made, moved, pcapng, place, rebuilt, recorded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hil.capture.pcapng import CapturedFrame
from hil.testing.roce import Side
from hil.verdict import Verdict

settings.register_profile("captures", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("captures")

NAMES = sorted(path.stem for path in TEARDOWNS.glob("*.pcapng"))
ALL = {name: recorded(name) for name in [*NAMES, "rping"]}
names = st.sampled_from(sorted(ALL))


def failing() -> tuple[list[CapturedFrame], int]:
    """A capture with a message behind the DREQ, and the places of both."""
    frames = made((Side(1, 0x11, 11), Side(2, 0x12, 22)), 6, step_ns=1_000_000)
    dreq = place(frames, "DREQ")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == "side-a")
    return moved(frames, data, dreq), dreq


FAILING, BEHIND = failing()


def taken(frames: Sequence[CapturedFrame], places: set[int]) -> list[CapturedFrame]:
    return [frame for n, frame in enumerate(frames) if n not in places]


@given(names, st.data())
def test_any_order_and_any_loss_are_survived(name: str, data: st.DataObject) -> None:
    """Frames that are dropped, repeated and shuffled, with their times too, get a judgement with its words."""
    frames = ALL[name]
    chosen = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=2 * len(frames)))
    times = data.draw(
        st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 10**10), min_size=len(chosen), max_size=len(chosen))
    )
    rebuilt(pcapng(replace(frames[n], time_ns=at) for n, at in zip(chosen, times, strict=True)))


@given(names, st.data())
def test_damaged_bytes_are_survived(name: str, data: st.DataObject) -> None:
    """Frames that are altered and cut get a judgement with its words."""
    frames = list(ALL[name])
    for _ in range(data.draw(st.integers(1, 12))):
        n = data.draw(st.integers(0, len(frames) - 1))
        raw = bytearray(frames[n].data)
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        frames[n] = replace(frames[n], data=bytes(raw[: data.draw(st.integers(0, 400))]))
    rebuilt(pcapng(frames))


@given(st.sampled_from(["reset", "acceptor_closes", "killed", "rping", "qp_error"]), st.data())
def test_one_byte_altered_never_makes_a_fail(name: str, data: st.DataObject) -> None:
    """A packet with a wrong ICRC counts as absent, because no adapter accepts it."""
    frames = list(ALL[name])
    n = data.draw(st.integers(0, len(frames) - 1))
    raw = bytearray(frames[n].data)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    frames[n] = replace(frames[n], data=bytes(raw))
    for connection in judged(frames):
        assert connection.verdict is not Verdict.FAIL, connection


@given(st.sets(st.integers(0, len(FAILING) - 1)))
def test_a_fail_stays_no_pass_while_its_packets_are_there(places: set[int]) -> None:
    """The DREQ and the message behind it are never a pass, whatever other packets are removed."""
    kept = places - {BEHIND, BEHIND + 1, BEHIND - 1}
    verdicts = {connection.verdict for connection in judged(taken(FAILING, kept))}
    assert Verdict.PASS not in verdicts


@given(names, st.data())
def test_removing_packets_never_makes_a_fail(name: str, data: st.DataObject) -> None:
    """Every part of a capture that passes is a pass or invalid."""
    places = data.draw(st.sets(st.integers(0, len(ALL[name]) - 1)))
    for connection in judged(taken(ALL[name], places)):
        assert connection.verdict is not Verdict.FAIL, connection


@given(st.sampled_from(["reset", "acceptor_closes", "killed", "rping"]), st.data())
def test_an_incomplete_capture_is_no_pass(name: str, data: st.DataObject) -> None:
    """A capture without its REQ, REP, DREQ or DREP is never a pass, whatever else is missing."""
    frames = ALL[name]
    gone = place(frames, data.draw(st.sampled_from(["REQ", "REP", "DREQ", "DREP"])))
    places = data.draw(st.sets(st.integers(0, len(frames) - 1))) | {gone}
    for connection in judged(taken(frames, places)):
        assert connection.verdict is Verdict.INVALID, connection


@given(names, st.integers(0, 2**30))
def test_a_shuffle_within_the_file_changes_no_verdict(name: str, seed: int) -> None:
    """Frames that keep their times but not their places give the same verdict, or none."""
    frames = ALL[name]
    shuffled = sorted(frames, key=lambda frame: (frame.number * 2654435761 ^ seed) % 1009)
    before = {connection.verdict for connection in judged(frames)}
    after = {connection.verdict for connection in judged(shuffled)}
    assert after <= before | {Verdict.INVALID}
