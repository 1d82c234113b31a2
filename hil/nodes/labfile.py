"""Lab files: TOML, typed, every mistake reported with its place, unknown keys refused."""

import tomllib
from pathlib import Path
from typing import Any, Literal, NewType, get_args, get_origin

import attrs
import cattrs
from cattrs import transform_error
from cattrs.gen import make_dict_structure_fn

from hil.errors import LabFileError

MAX_LAB_FILE = 1 << 20
MTU_LIMITS = (1280, 9000)
MEMORY_LIMITS = (384, 16384)


Mtu = NewType("Mtu", int)
MemoryMib = NewType("MemoryMib", int)


@attrs.frozen
class LabSection:
    """``[lab]``: the lab's name, and what kind of lab it is."""

    name: str = "soft-pair"
    kind: Literal["soft-pair"] = "soft-pair"


@attrs.frozen
class Guest:
    """``[guest]``: what the nodes of a soft lab run. ``memory_mib`` is of each node."""

    suite: Literal["trixie", "bookworm"] = "trixie"
    memory_mib: MemoryMib = MemoryMib(640)
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"


@attrs.frozen
class Link:
    """``[link]``: the wire between the nodes. ``mtu`` in bytes; IPv6 needs 1280."""

    mtu: Mtu = Mtu(1500)


@attrs.frozen
class LabFile:
    """A whole lab file; every section and key has a default."""

    lab: LabSection = LabSection()
    guest: Guest = Guest()
    link: Link = Link()


def _strict(kind: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{value!r} is not {'an integer' if kind is int else 'a string'}")
        return value

    return structure


def _between(low: int, high: int) -> Any:
    def structure(value: Any, of: type) -> Any:
        number = _strict(int)(value, of)
        if not low <= number <= high:
            raise ValueError(f"{number} is out of range: {low} to {high}")
        return number

    return structure


def _choice(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, get_args(choices)))}")
    return value


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook_func(_is_literal, _choice)
    for kind in (int, str):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(Mtu, _between(*MTU_LIMITS))
    converter.register_structure_hook(MemoryMib, _between(*MEMORY_LIMITS))

    def factory(cls: type) -> Any:
        structure: Any = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

        def checked(value: Any, of: type) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"{value!r} is not a table")
            return structure(value, of)

        return checked

    converter.register_structure_hook_factory(attrs.has, factory)
    return converter


def read_lab_file(path: Path) -> LabFile:
    """The lab file at ``path``. Raises LabFileError that lists every mistake with its place."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_LAB_FILE:
            raise LabFileError(f"{path}: {len(data)} bytes are too many for a lab file")
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise LabFileError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LabFileError(f"{path}: not TOML: {error}") from error
    try:
        return _converter().structure(values, LabFile)
    except Exception as error:
        mistakes = [_place(text) for text in transform_error(error, format_exception=_described)]
        raise LabFileError(f"{path}: " + f"\n{path}: ".join(mistakes)) from error


def _described(error: BaseException, kind: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = ", ".join(a.name for a in attrs.fields(error.cl))
        return f"unknown {', '.join(sorted(error.extra_fields))}; known are {known}"
    return str(error)


def _place(text: str) -> str:
    message, _, where = text.rpartition(" @ $")
    return f"[{where.strip('.') or 'top level'}] {message}" if message else text
