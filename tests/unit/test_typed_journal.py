"""Journal entries as types: what came from a node is checked, and misspelt facts are errors."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hil
from hil.errors import EvidenceError
from hil.evidence.evidence import Evidence
from hil.evidence.journal import (
    Begin,
    Call,
    CmEvent,
    Completed,
    Entry,
    Kind,
    UpCall,
    chosen,
    entry_of,
    facts_of,
    plain_entry,
)
from hil.switch.journal import CLASSES
from hil.verbs.cm import CmEventType

HIL = Path(hil.__file__).parent
AT = {"node": "a", "at_ns": 5, "t_ns": 3, "worker": 1, "thread": 9, "pid": 8}
COMPLETED = {
    "kind": "upcall",
    "function": "WPUCompleteOverlappedRequest",
    "handle": 1,
    "overlapped": 2,
    "code": 0,
    "transferred": 64,
    "known": True,
    "was_pending": True,
}
CALL = {
    "kind": "call",
    "function": "WSPSocket",
    "socket": None,
    "begun_ns": 1,
    "result": "INVALID_SOCKET",
    "code": 10050,
}
ENTRIES: list[dict[str, Any]] = [
    COMPLETED,
    CALL,
    {"kind": "begin", "function": "WSPRecv", "socket": 7, "overlapped": 3, "polled": False},
    {"kind": "upcall", "function": "WPUCloseSocketHandle", "handle": 1, "known": False},
    {"kind": "upcall", "function": "WPUCreateSocketHandle", "handle": 1, "context": 5},
    {"kind": "mr", "event": "registered", "handle": 1, "key": 2, "length": 3},
    {"kind": "mr", "event": "released", "handle": 1, "registration": 2, "count": 1},
    {"kind": "cm", "event": "rdma_disconnect failed", "handle": 1, "status": 22},
    {"kind": "exit", "status": -9},
]


@pytest.mark.parametrize("told", ENTRIES, ids=lambda told: str(told["kind"]))
def test_an_entry_is_written_as_it_came_and_read_back_equal(told: dict[str, Any]) -> None:
    """The line of the timeline holds the same facts, but for those that are null."""
    entry = entry_of(AT | told, "node a")
    line = plain_entry(entry)
    assert line == {name: fact for name, fact in (AT | told).items() if fact is not None}
    assert entry_of(json.loads(json.dumps(line)), "the timeline") == entry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "coll"}, "there is no entry of kind 'coll'"),
        ({"kind": None}, "there is no entry of kind 'None'"),
        ({"kind": ["call"]}, "there is no entry of kind"),
        ({"kind": "mr", "event": "lost"}, "there is no entry of kind 'mr'"),
        ({"code": "0"}, r"node a\.code: a whole number was expected, not '0'"),
        ({"code": None}, "code is missing"),
        ({"code": True}, "a whole number was expected, not True"),
        ({"code": 1 << 64}, "more than 64 bits"),
        ({"coda": 0}, "'coda' is no fact of it"),
        ({"known": 1}, "null was expected, not 1"),
        ({"t_ns": 1.5}, "a whole number was expected, not 1.5"),
        ({"node": {}}, "text was expected, not a dict"),
    ],
)
def test_a_malformed_entry_is_an_error_that_names_the_fact(change: dict[str, Any], message: str) -> None:
    """Unknown kinds and facts, missing ones, and wrong types; nothing is passed over."""
    with pytest.raises(EvidenceError, match=message):
        entry_of(AT | COMPLETED | change, "node a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(ENTRIES), st.dictionaries(st.sampled_from(["kind", "node", "event", "handle", "code"]), JSON))
def test_any_entry_is_read_or_refused(told: dict[str, Any], change: dict[str, Any]) -> None:
    """Whatever a node sends, the answer is an entry or an EvidenceError."""
    try:
        assert isinstance(entry_of(AT | told | change, "node a"), Entry)
    except EvidenceError as error:
        assert str(error).startswith("node a")


def test_a_misspelt_fact_or_kind_is_an_error() -> None:
    """A rule that asks for a fact that no entry has would never break."""
    evidence = Evidence({}, [entry_of(AT | CALL, "node a"), entry_of(AT | COMPLETED, "node a")])
    assert len(evidence.of("a", Call, function="WSPSocket")) == len(evidence.of("a", "call", code=10050)) == 1
    assert evidence.of("a", "upcall", overlapped=2) == evidence.of("a", Completed) == evidence.of("a", UpCall)
    assert evidence.of("a", Begin) == [] == evidence.of("b", Call)
    with pytest.raises(TypeError, match="has no fact functoin; it has at_ns, begun_ns, code, function"):
        evidence.of("a", Call, functoin="WSPSocket")
    with pytest.raises(TypeError, match="upcall has no fact socket"):
        chosen(evidence.events, "upcall", socket=1)
    with pytest.raises(ValueError, match="coll"):
        evidence.of("a", "coll")


def test_every_kind_has_a_class_and_every_cm_event_a_name() -> None:
    """The connection manager's events are those of its header."""
    assert {cls.kind for cls in CLASSES} == set(Kind)
    assert {event.name for event in CmEventType} == set(CmEvent.__members__) - {
        "NO_HANDOVER_LISTENER",
        "DISCONNECT_FAILED",
    }


def emitted() -> Iterator[tuple[str, str, set[str]]]:
    """Where the code of nodes and wire writes an entry: the place, the kind, and the facts that it names there."""
    for room in ("provider", "switch", "agent", "mutants", "wire"):
        for path in sorted((HIL / room).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text())):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                name, named = call.func.attr, {keyword.arg for keyword in call.keywords if keyword.arg}
                if texts and (name in ("journal", "_observe") or (name == "add" and "_log" in ast.dump(call.func))):
                    yield f"{path.relative_to(HIL)}:{call.lineno}", texts[0], named


PLACES = list(emitted())


@pytest.mark.parametrize(("kind", "facts"), [place[1:] for place in PLACES], ids=[place[0] for place in PLACES])
def test_what_the_code_of_nodes_writes_is_defined(kind: str, facts: set[str]) -> None:
    """Each kind is one of the kinds, each fact one of its facts: a misspelt one would make every verdict invalid."""
    classes = tuple(cls for cls in CLASSES if cls.kind is Kind(kind))
    assert facts <= facts_of(classes)


def test_the_places_that_write_entries_are_found() -> None:
    """Of every kind that provider, switch and wire write as a call with a text; the channel writes exits itself, the
    system role device events."""
    assert {kind for _, kind, _ in PLACES} == {*Kind} - {Kind.EXIT, Kind.DEVICE}
