"""Typed facts from plain data and back.

Plain data is what JSON holds. It comes from nodes and from files that anyone may have written, so every value is
checked against the type of its field before a rule sees it. Types: int, float, bool, str, None and unions of these,
enums, ``tuple[T, ...]``, ``tuple[T, U]``, ``Mapping[K, V]`` and dataclasses. Fields that are None are left out.
"""

import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, NewType, TypeVar, cast

from hil.errors import EvidenceError

T = TypeVar("T")
Reader = Callable[[Any, str], Any]
# Numbers of nodes are 64 bits wide, with or without a sign.
LEAST, MOST = -(1 << 63), (1 << 64) - 1
SHOWN_CHARACTERS = 60


def load(text: str, place: str) -> Any:
    """The data of a JSON text; ``place`` names it in messages.

    Raises EvidenceError for what is no JSON, is nested too deep, or holds NaN, Infinity or a number of too many digits.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise EvidenceError(f"{place}: nested too deep") from error
    except ValueError as error:
        raise EvidenceError(f"{place}: not JSON as the bench writes it: {error}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def read(kind: type[T], value: Any, place: str) -> T:
    """``value`` as a ``kind``. Raises EvidenceError that names the ``place`` of the first fact that is wrong."""
    return cast(T, reader(cast(Hashable, kind))(value, place))


def plain(value: Any) -> Any:
    """``value`` as plain data; ``read`` gives an equal value back."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        told = ((name, getattr(value, name)) for name in names(type(value)))
        kind = {"kind": value.kind.value} if type(value) in _FAMILIES else {}  # type: ignore[attr-defined]
        return kind | {name: plain(fact) for name, fact in told if fact is not None}
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(fact) for name, fact in value.items()}
    if isinstance(value, list | tuple):
        return [plain(fact) for fact in value]
    return value


_FAMILIES: dict[Hashable, Callable[[dict[str, Any]], type | None]] = {}


def teach(base: type, classes: Iterable[type], class_of: Callable[[dict[str, Any]], type | None]) -> None:
    """From now on read and write ``base`` as one of ``classes``, which "kind" and other facts tell apart.

    ``class_of`` is given the plain facts; None where there is no such class. Each class has its kind as ``kind``.
    """
    _FAMILIES.update(dict.fromkeys((base, *classes), class_of))


@cache
def names(kind: Hashable) -> tuple[str, ...]:
    """The names of a dataclass's fields."""
    return tuple(field.name for field in fields(cast(type, kind)))


@cache
def reader(kind: Any) -> Reader:
    """A function of (value, place) that checks and converts a value. Raises TypeError for a type that is not plain."""
    if isinstance(kind, NewType):
        return reader(kind.__supertype__)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(inner)
    if origin is tuple:
        return _sequence(reader(inner[0])) if inner[1:] == (...,) else _row([reader(one) for one in inner])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*inner)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind)
    if kind in _FAMILIES:
        return _family(kind, _FAMILIES[kind])
    if isinstance(kind, type) and is_dataclass(kind):
        return _object(kind)
    raise TypeError(f"{kind} is no type of plain data")


def _wrong(place: str, wanted: str, value: Any) -> EvidenceError:
    told = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return EvidenceError(f"{place}: {wanted} was expected, not {told[:SHOWN_CHARACTERS]}")


def _integer(value: Any, place: str) -> int:
    if type(value) is not int:
        raise _wrong(place, "a whole number", value)
    if not LEAST <= value <= MOST:
        raise EvidenceError(f"{place}: the number has more than 64 bits")
    return value


def _number(value: Any, place: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _wrong(place, "a number", value)
    return float(value)


def _boolean(value: Any, place: str) -> bool:
    if type(value) is not bool:
        raise _wrong(place, "true or false", value)
    return value


def _text(value: Any, place: str) -> str:
    if type(value) is not str:
        raise _wrong(place, "text", value)
    return value


def _nothing(value: Any, place: str) -> None:
    if value is not None:
        raise _wrong(place, "null", value)


_SIMPLE: dict[Any, Reader] = {int: _integer, float: _number, bool: _boolean, str: _text, type(None): _nothing}


def _union(kinds: tuple[Any, ...]) -> Reader:
    readers = [reader(kind) for kind in kinds]

    def read_one(value: Any, place: str) -> Any:
        for one in readers:
            try:
                return one(value, place)
            except EvidenceError as error:
                wrong = error
        raise wrong

    return read_one


def _sequence(item: Reader) -> Reader:
    def read_all(value: Any, place: str) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _wrong(place, "a list", value)
        return tuple(item(one, f"{place}[{n}]") for n, one in enumerate(value))

    return read_all


def _row(items: list[Reader]) -> Reader:
    def read_all(value: Any, place: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(items):
            raise _wrong(place, f"a list of {len(items)}", value)
        return tuple(item(one, f"{place}[{n}]") for n, (item, one) in enumerate(zip(items, value, strict=True)))

    return read_all


def _mapping(name_kind: Any, kind: Any) -> Reader:
    item = reader(kind)

    def name_of(name: str, place: str) -> Any:
        if name_kind is str:
            return name
        try:
            return _integer(int(name), place)
        except ValueError as error:
            raise _wrong(place, "a number as name", name) from error

    def read_all(value: Any, place: str) -> dict[Any, Any]:
        if type(value) is not dict:
            raise _wrong(place, "an object", value)
        return {name_of(name, place): item(one, f"{place}.{name[:SHOWN_CHARACTERS]}") for name, one in value.items()}

    return read_all


def _enum(kind: type[Enum]) -> Reader:
    members = {member.value: member for member in kind}

    def read_member(value: Any, place: str) -> Enum:
        if type(value) not in (str, int) or value not in members:
            raise _wrong(place, f"one of {', '.join(map(str, members))}", value)
        return members[value]

    return read_member


def _object(kind: type) -> Reader:
    hints = typing.get_type_hints(kind)
    known = {field.name: (reader(hints[field.name]), _default(field)) for field in fields(kind)}

    def read_facts(value: Any, place: str) -> Any:
        if type(value) is not dict:
            raise _wrong(place, "an object", value)
        for name in value:
            if name not in known:
                raise EvidenceError(
                    f"{place}: {name[:SHOWN_CHARACTERS]!r} is no fact of it; there are {', '.join(known)}"
                )
        facts = {}
        for name, (one, default) in known.items():
            if name in value:
                facts[name] = one(value[name], f"{place}.{name}")
            elif default is MISSING:
                raise EvidenceError(f"{place}: {name} is missing")
        return kind(**facts)

    return read_facts


def _family(base: Any, class_of: Callable[[dict[str, Any]], type | None]) -> Reader:
    readers: dict[type, Reader] = {}

    def read_one(value: Any, place: str) -> Any:
        if type(value) is not dict:
            raise _wrong(place, "an object", value)
        kind, cls = value.get("kind"), class_of(value) if isinstance(value.get("kind"), str) else None
        if cls is None:
            raise EvidenceError(
                f"{place}: there is no {base.__name__.lower()} of kind {str(kind)[:SHOWN_CHARACTERS]!r}"
            )
        if cls not in readers:
            readers[cls] = _object(cls)
        return readers[cls]({name: fact for name, fact in value.items() if name != "kind" and fact is not None}, place)

    return read_one


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else field.default_factory
