"""Journal entries: typed facts of what nodes and the wire sent, which nobody has checked before."""

from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any, TypeVar, cast, overload

from hil.evidence import plain
from hil.switch.journal import (
    BY_FUNCTION,
    BY_MR_EVENT,
    CLASSES,
    AcceptFailed,
    AddressesChanged,
    Begin,
    CableChanged,
    CableEvent,
    Call,
    CmEvent,
    CmHeard,
    Completed,
    Condition,
    ConditionEvent,
    ConnectFailed,
    DeviceChanged,
    Entry,
    Exit,
    FaultHit,
    FeedFailed,
    FlushIncomplete,
    HandedOver,
    HandleMade,
    HandoverFailed,
    Injected,
    Kind,
    Misbehaves,
    MrEvent,
    NetworkChanged,
    NetworkEvent,
    QueuePairMade,
    Raised,
    Registered,
    Released,
    Session,
    SessionEvent,
    UpCall,
    WorkCompletion,
)

__all__ = [
    "AcceptFailed",
    "AddressesChanged",
    "Begin",
    "CableChanged",
    "CableEvent",
    "Call",
    "CmEvent",
    "CmHeard",
    "Completed",
    "Condition",
    "ConditionEvent",
    "ConnectFailed",
    "DeviceChanged",
    "Entry",
    "Exit",
    "FaultHit",
    "FeedFailed",
    "FlushIncomplete",
    "HandedOver",
    "HandleMade",
    "HandoverFailed",
    "Injected",
    "Kind",
    "Misbehaves",
    "MrEvent",
    "NetworkChanged",
    "NetworkEvent",
    "QueuePairMade",
    "Raised",
    "Registered",
    "Released",
    "Session",
    "SessionEvent",
    "UpCall",
    "WorkCompletion",
    "chosen",
    "entry_of",
    "plain_entry",
]

E = TypeVar("E", bound=Entry)
# What nodes say beside the journal: an agent that is there, and a program's output in a terminal.
UNJOURNALED = frozenset({"agent ready", "output", "ended"})
_FIRST = ("node", "at_ns", "kind", "t_ns", "thread", "pid")


def entry_of(told: dict[str, Any], place: str) -> Entry:
    """The entry that ``told`` is: its kind, ``node``, ``at_ns``, ``t_ns`` and the facts of that kind.

    Raises EvidenceError for an unknown kind and for facts that are missing, unknown or of the wrong type.
    """
    return plain.read(Entry, told, place)


def _class_of(facts: dict[str, Any]) -> type[Entry] | None:
    kind: str = facts["kind"]
    if kind == Kind.UPCALL:
        function = facts.get("function")
        return BY_FUNCTION.get(function, UpCall) if isinstance(function, str) else UpCall
    if kind == Kind.MR:
        event = facts.get("event")
        return BY_MR_EVENT.get(event) if isinstance(event, str) else None
    return _ONE_CLASS.get(kind)


_ONE_CLASS: dict[str, type[Entry]] = {cls.kind: cls for cls in CLASSES if cls.kind not in (Kind.UPCALL, Kind.MR)}
plain.teach(Entry, CLASSES, _class_of)


def plain_entry(entry: Entry) -> dict[str, Any]:
    """An entry as plain data, for a line of the timeline; ``entry_of`` gives an equal entry back."""
    told: dict[str, Any] = plain.plain(entry)
    first = {name: told.pop(name) for name in _FIRST if name in told}
    worker = {"worker": told.pop("worker")} if "worker" in told else {}
    return first | told | worker


@overload
def chosen(entries: Iterable[Entry], kind: type[E], /, **facts: Any) -> list[E]: ...
@overload
def chosen(entries: Iterable[Entry], kind: str, /, **facts: Any) -> list[Any]: ...
def chosen(entries: Iterable[Entry], kind: type[Entry] | str, /, **facts: Any) -> list[Any]:
    """The entries of a class, or of a kind by its name, that carry these facts, in order.

    Raises ValueError for a kind that is none, TypeError for a fact that entries of the kind do not have.
    """
    classes = (kind,) if isinstance(kind, type) else _of_kind(Kind(kind))
    if unknown := facts.keys() - facts_of(classes):
        raise TypeError(
            f"{kind} has no fact {', '.join(sorted(unknown))}; it has {', '.join(sorted(facts_of(classes)))}"
        )
    wanted = list(facts.items())
    return [
        entry
        for entry in entries
        if isinstance(entry, classes)
        and (isinstance(kind, str) or entry.kind is kind.kind)
        and all(getattr(entry, name, None) == value for name, value in wanted)
    ]


@cache
def _of_kind(kind: Kind) -> tuple[type[Entry], ...]:
    return tuple(cls for cls in CLASSES if cls.kind is kind)


@cache
def facts_of(classes: tuple[type[Entry], ...]) -> frozenset[str]:
    """The names of the facts that entries of these classes can have."""
    return frozenset(name for cls in classes for name in plain.names(cast(Hashable, cls)))
