"""Faults of the wire: a match that picks frames, and an action on them. Checked when made, sent to the wire as JSON."""

import dataclasses
import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hil.capture.sides import SIDES
from hil.errors import FaultError
from hil.roce.psn import MASK as LAST_PSN
from hil.roce.qpn import MASK as LAST_QPN

LONGEST_NS = 600 * 10**9
ETHERNET_HEADER = 14
# Jumbo frames of all adapters are shorter.
LONGEST_FRAME = 16384
# InfiniBand volume 1: attributes of CM messages (12.6), and the opcode of the datagram that carries one (9.2).
CM_ATTRIBUTES, UD_SEND_ONLY = range(0x10, 0x1B), 0x64


def _check(held: bool, mistake: str) -> None:
    if not held:
        raise FaultError(mistake)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True)
class Span:
    """The whole numbers from ``first`` to ``last``, both included. Without ``last`` the span has no end."""

    first: int
    last: int | None = None

    def __post_init__(self) -> None:
        _check(_whole(self.first, 0, 1 << 62), f"a span begins with a whole number from 0, not with {self.first!r}")
        ends = self.last is None or _whole(self.last, self.first, 1 << 62)
        _check(ends, f"a span that begins with {self.first} cannot end with {self.last!r}")

    def __contains__(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)


def only(number: int) -> Span:
    """The span of a single number."""
    return Span(number, number)


@dataclass(frozen=True, slots=True)
class Match:
    """The conditions for the frames that a fault picks. All given conditions must hold.

    ``side``: the side where the frame comes in. ``opcodes``: opcodes of the BTH. ``cm``: attribute ids of CM messages.
    ``source``, ``destination``: IP addresses. ``qpns``: the BTH's destination QP. ``comm_ids``: a CM message's local or
    remote comm id. ``psn``: the distance of the PSN, modulo 2**24, from the first PSN of the same stream. Requests and
    responses of one direction of a connection are separate streams; a REQ or REP starts new streams of its queue pair.
    ``retransmissions``: how often the same packet (its stream, opcode and PSN; for a CM message the transaction) came
    before. Both count from when the first fault was set.

    Of the matching frames, ``occurrences`` selects some by number, counted from 1. Of those, each ``every``-th is
    selected, beginning with the first. Of those, each is picked with ``probability``, drawn with ``seed``.
    """

    side: str = ""
    opcodes: tuple[int, ...] = ()
    cm: tuple[int, ...] = ()
    source: str = ""
    destination: str = ""
    qpns: tuple[int, ...] = ()
    comm_ids: tuple[int, ...] = ()
    psn: Span | None = None
    retransmissions: Span | None = None
    occurrences: Span = Span(1)
    every: int = 1
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.side in ("", *SIDES), f"side is one of {', '.join(SIDES)}, or empty for both, not {self.side!r}")
        limits = {"opcodes": 0xFF, "cm": 0xFFFF, "qpns": LAST_QPN, "comm_ids": 0xFFFFFFFF}
        for name, high in limits.items():
            values = getattr(self, name)
            _check(isinstance(values, tuple), f"{name} is a tuple of whole numbers, not {values!r}")
            wrong = [value for value in values if not _whole(value, 0, high)]
            _check(not wrong, f"{name} are whole numbers from 0 to {high:#x}, not {wrong}")
        for name in ("source", "destination"):
            value = getattr(self, name)
            _check(_is_address(value), f"{name} is an IP address, and a text, not {value!r}")
        for name in ("psn", "retransmissions", "occurrences"):
            value = getattr(self, name)
            spans = isinstance(value, Span) or (value is None and name != "occurrences")
            _check(spans, f"{name} is a Span, not {value!r}")
        _check(self.occurrences.first >= 1, "occurrences are counted from 1")
        _check(_whole(self.every, 1, 1 << 62), f"every is a whole number from 1, not {self.every!r}")
        likely = isinstance(self.probability, int | float) and 0 < self.probability <= 1
        _check(likely, f"probability is above 0 and at most 1, not {self.probability!r}")
        _check(_whole(self.seed, 0, 1 << 62), f"seed is a whole number from 0, not {self.seed!r}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse conditions that no frame can meet together."""
        strange = [value for value in self.cm if value not in CM_ATTRIBUTES]
        _check(not strange, f"no CM message has the attribute id {', '.join(map(hex, strange))}")
        _check(self.psn is None or self.psn.first <= LAST_PSN, f"no PSN is farther than {LAST_PSN} from the first")
        of_cm = bool(self.cm or self.comm_ids)
        _check(not of_cm or self.psn is None, "CM messages have no PSN that counts: leave out psn, or cm and comm_ids")
        carried = not self.opcodes or UD_SEND_ONLY in self.opcodes
        _check(not of_cm or carried, f"CM messages have the opcode {UD_SEND_ONLY:#x}, which opcodes leave out")
        ends = {ipaddress.ip_address(end).version for end in (self.source, self.destination) if end}
        _check(len(ends) < 2, "source and destination are of one IP version")


def _is_address(text: object) -> bool:
    try:
        return isinstance(text, str) and (text == "" or bool(ipaddress.ip_address(text)))
    except ValueError:
        return False


def _check_time(name: str, value: object, low: int = 1) -> None:
    _check(_whole(value, low, LONGEST_NS), f"{name} is whole nanoseconds from {low} to {LONGEST_NS}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Drop:
    """The frame is dropped."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The frame is forwarded ``for_ns`` later, or up to a millisecond after that. Other frames overtake it."""

    for_ns: int

    def __post_init__(self) -> None:
        _check_time("for_ns", self.for_ns)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The frame is forwarded, and ``copies`` of it follow ``after_ns`` later (0: at once)."""

    copies: int = 1
    after_ns: int = 0

    def __post_init__(self) -> None:
        _check(_whole(self.copies, 1, 1000), f"copies is a whole number from 1 to 1000, not {self.copies!r}")
        _check_time("after_ns", self.after_ns, 0)


@dataclass(frozen=True, slots=True)
class Reorder:
    """The frame waits until ``frames`` later frames of its side were forwarded, but for ``at_most_ns`` at most."""

    frames: int
    at_most_ns: int

    def __post_init__(self) -> None:
        _check(_whole(self.frames, 1, 1 << 20), f"frames is a whole number from 1, not {self.frames!r}")
        _check_time("at_most_ns", self.at_most_ns)


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The byte at ``offset`` is changed by exclusive or with ``mask``. The ICRC is left wrong, or ``repaired``.

    ``offset`` counts from the BTH's first byte. A negative one counts back from the ICRC: -1 is the last byte that the
    ICRC covers. Picks only RoCE frames that have this byte.
    """

    offset: int = -1
    mask: int = 0xFF
    repaired: bool = False

    def __post_init__(self) -> None:
        _check(_whole(self.offset, -65536, 65535), f"offset is a whole number of bytes, not {self.offset!r}")
        _check(_whole(self.mask, 1, 0xFF), f"mask is a whole number from 1 to 255, not {self.mask!r}")
        _check(isinstance(self.repaired, bool), f"repaired is true or false, not {self.repaired!r}")


@dataclass(frozen=True, slots=True)
class Truncate:
    """Only the first ``keep`` bytes are forwarded. ``lengths_repaired``: the IP and UDP lengths are corrected."""

    keep: int
    lengths_repaired: bool = False

    def __post_init__(self) -> None:
        told = f"keep is a whole number of bytes from {ETHERNET_HEADER}, the Ethernet header, not {self.keep!r}"
        _check(_whole(self.keep, ETHERNET_HEADER, 1 << 62), told)
        _check(self.keep < LONGEST_FRAME, f"keep is less than any frame has, {LONGEST_FRAME} bytes, not {self.keep}")
        _check(isinstance(self.lengths_repaired, bool), f"lengths_repaired is true or false: {self.lengths_repaired!r}")


@dataclass(frozen=True, slots=True)
class MarkEcn:
    """The IP header's ECN field becomes ``codepoint`` (RFC 3168: 3, Congestion Experienced). Picks RoCE frames only."""

    codepoint: int = 3

    def __post_init__(self) -> None:
        _check(_whole(self.codepoint, 0, 3), f"codepoint is from 0 to 3, not {self.codepoint!r}")


@dataclass(frozen=True, slots=True)
class CutCable:
    """This frame and all other frames, of both sides, are dropped for ``for_ns``."""

    for_ns: int

    def __post_init__(self) -> None:
        _check_time("for_ns", self.for_ns)


Action = Drop | Delay | Duplicate | Reorder | Corrupt | Truncate | MarkEcn | CutCable
_ACTIONS: dict[str, Callable[..., Action]] = {
    kind.__name__: kind for kind in (Drop, Delay, Duplicate, Reorder, Corrupt, Truncate, MarkEcn, CutCable)
}


@dataclass(frozen=True, slots=True)
class Fault:
    """An action on the frames that a match picks. ``name`` identifies the fault in the timeline and the capture.

    Faults are tried in the order they were set. The first that picks a frame acts on it, and later ones do not see it.
    Raises FaultError that names the invalid value.
    """

    name: str
    action: Action
    match: Match = field(default_factory=Match)

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and 0 < len(self.name) <= 200 and self.name.isprintable()
        _check(named, f"a fault's name is 1 to 200 printable characters, not {self.name!r}")
        _check(isinstance(self.action, Action), f"fault {self.name}: {self.action!r} is no action")
        _check(isinstance(self.match, Match), f"fault {self.name}: {self.match!r} is no Match")

    def to_json(self) -> dict[str, Any]:
        """The fault in the form that ``from_json`` reads."""
        action = {"kind": type(self.action).__name__} | dataclasses.asdict(self.action)
        return {"name": self.name, "action": action, "match": dataclasses.asdict(self.match)}


def from_json(told: dict[str, Any]) -> Fault:
    """The fault of a result of ``Fault.to_json``. Raises FaultError for any other value."""
    try:
        if unknown := told.keys() - {"name", "action", "match"}:
            raise ValueError(f"unknown keys: {', '.join(sorted(map(str, unknown)))}")
        facts = dict(told["action"])
        action = _ACTIONS[facts.pop("kind")](**facts)
        match = {name: _back(name, value) for name, value in told["match"].items()}
        return Fault(told["name"], action, Match(**match))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FaultError(f"not a fault: {json.dumps(told, default=repr)[:200]}: {error}") from error


def _back(name: str, value: Any) -> Any:
    if name in ("psn", "retransmissions", "occurrences"):
        return None if value is None else Span(**value)
    return tuple(value) if isinstance(value, list) else value
