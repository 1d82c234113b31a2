"""What a capture must show to carry a judgement, and when its counts can be compared."""

import time
from pathlib import Path
from typing import Any, cast

import pytest

from hil.capture.pcapng import read_pcapng
from hil.evidence.evidence import Evidence
from hil.evidence.packets import roce_packets
from hil.evidence.resources import QueuePair, Resource
from hil.labs.node import Node
from hil.labs.pair import Pair, unseen_link
from hil.labs.soft.pair import PLACES
from hil.wire.counts import PlainCounts
from hil.wire.point import CapturePoint

RECORDED = Path(__file__).parent / "captures" / "hard_close_ipv4.pcapng"
CONNECTED: dict[str, list[Resource]] = {"a": [QueuePair(device="rxe0", number=17)], "b": []}


def test_a_mirror_that_sees_nothing_is_a_problem_of_the_evidence() -> None:
    """A connection was made, and nothing of it was recorded: invalid, no fail."""
    assert "does not see the link" in unseen_link(Evidence({}, during=CONNECTED), counted=False)


@pytest.mark.parametrize(("during", "counted"), [(CONNECTED, True), ({}, False), ({"a": []}, False)])
def test_what_is_counted_or_was_not_there_is_no_problem(during: dict[str, list[Resource]], counted: bool) -> None:
    """Where the adapter's counters agree, nothing was sent; where nothing was connected, nothing need be seen."""
    assert unseen_link(Evidence({}, during=during), counted=counted) == ""


def test_a_capture_with_the_connection_is_as_it_should_be() -> None:
    """Its REQ and REP are there."""
    packets = list(roce_packets(read_pcapng(RECORDED)))
    assert unseen_link(Evidence({}, packets=packets, during=CONNECTED), counted=False) == ""


class Wire:
    """A capture point that stands still."""

    sides = ("a",)

    def counts(self) -> PlainCounts:
        none = {"a": 0, "b": 0}
        return PlainCounts(none, none, none, none, "", 0)


class Asked:
    """A node whose adapter counts our own questions."""

    def __init__(self, step: int) -> None:
        self.count, self.step = 0, step

    def system(self, call: str, /, **arguments: Any) -> dict[str, int]:
        self.count += self.step
        return {"tx_packets": self.count, "rx_packets": self.count}


def test_counters_that_nobody_compares_are_not_waited_for(tmp_path: Path) -> None:
    """Where the way to a node leads over its adapter's netdev, its counters never stand still."""
    pair = Pair(tmp_path, PLACES)
    pair.nodes = cast(dict[str, Node], {"a": Asked(0), "b": Asked(1)})
    pair.wire = cast(CapturePoint, Wire())
    started_ns = time.monotonic_ns()
    counters, _ = pair._settled()
    assert list(counters) == ["a"] and time.monotonic_ns() - started_ns < 2 * 10**9


@pytest.mark.parametrize(
    "told", [{"kind": "coll", "t_ns": 1}, {"kind": "wc", "t_ns": 1, "handle": "x"}, {"kind": "wc"}]
)
def test_a_malformed_entry_of_a_journal_is_a_problem_of_the_evidence(tmp_path: Path, told: dict[str, Any]) -> None:
    """A node may send anything: what is no entry is kept as a reason, and the entries around it are there."""
    pair = Pair(tmp_path, PLACES)
    sound = {"kind": "wc", "t_ns": 1, "handle": 5, "status": 0, "wr_id": 7}
    for event in (sound, told, {"kind": "agent ready", "t_ns": 1}, sound):
        pair._record("b", 2, event)
    assert [(e.kind, e.worker) for e in pair.journal("b")] == [("wc", 2), ("wc", 2)]
    (problem,) = pair.malformed()
    assert problem.startswith("the journal of node b")
