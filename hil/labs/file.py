"""Lab files: TOML, typed, every mistake reported with its place, unknown keys refused.

``[lab] kind`` names the kind of lab (hil.labs.kinds). The kind defines the sections and keys of the file.
"""

# RUF009: the defaults are a NewType and a frozen section, and neither can change.
# ruff: noqa: RUF009

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import cattrs
from cattrs import transform_error

from hil.errors import LabFileError, SeamError
from hil.labs.kinds import LABS, LabKind
from hil.labs.schema import STAND_IN, LabFile, LabKindName, LabSection, lab_converter, value_of
from hil.progress import harmless

MAX_LAB_FILE = 1 << 20
DEFAULT_KIND, KIND_WITH_NODES = "soft-pair", "hosts"


@attrs.frozen
class _OnlyLab:
    """A file of an unknown kind: only its section ``lab`` can be checked."""

    lab: LabSection = LabSection()


def _lab_kind(value: Any, _: Any) -> str:
    if not isinstance(value, str) or value not in LABS.names():
        raise ValueError(LABS.unknown(value))
    return value


value_of(LabKindName, _lab_kind)


def read_lab_file(path: Path) -> LabFile:
    """The lab file at ``path``. Raises LabFileError that lists every mistake with its place."""
    values = _read(path)
    section = values.get("lab")
    name = section.get("kind", DEFAULT_KIND) if isinstance(section, dict) else DEFAULT_KIND
    mistakes: list[str] = []
    if "nodes" in values and (section is None or (isinstance(section, dict) and "kind" not in section)):
        name = KIND_WITH_NODES
        mistakes = [f"[lab.kind] it is missing: a lab with nodes is of kind {name}"]
        values["lab"] = section or {}
    kind = _kind(path, name)
    if kind is None:
        values = {"lab": section}
    cls: type = kind.schema if kind is not None else _OnlyLab
    try:
        lab: LabFile = lab_converter().structure(values, cls)
    except Exception as error:
        mistakes += [_place(text) for text in transform_error(error, format_exception=_described)]
        # The correct sections can still contradict each other.
        if kind is not None and (rest := _right_part(values, cls)) is not None:
            mistakes += kind.mistakes(rest, values)
        raise LabFileError(_listed(path, mistakes)) from error
    assert kind is not None
    if mistakes := [*mistakes, *kind.mistakes(lab, values)]:
        raise LabFileError(_listed(path, mistakes))
    placed: LabFile = kind.placed(lab, path.absolute().parent)
    return placed


def _kind(path: Path, name: object) -> LabKind[Any] | None:
    """The kind of lab called ``name``, or None if there is none. Raises LabFileError if the kind cannot be loaded."""
    if not isinstance(name, str) or name not in LABS.names():
        return None
    try:
        return LABS.load(name)
    except SeamError as error:
        raise LabFileError(_listed(path, [f"[lab.kind] {error}"])) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            # Reading a device may never end. Reading a pipe may never begin.
            raise LabFileError(f"{path}: it is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_LAB_FILE + 1)
        if len(data) > MAX_LAB_FILE:
            raise LabFileError(f"{path}: more than {MAX_LAB_FILE} bytes are too many for a lab file")
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise LabFileError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LabFileError(f"{path}: not TOML: {harmless(str(error))}") from error


def _right_part(values: dict[str, Any], cls: type) -> LabFile | None:
    """The file without its wrong parts, or None if no part is correct."""
    try:
        values = copy.deepcopy(values)
    except RecursionError:
        # No lab file needs values nested so deeply.
        return None
    converter = lab_converter(strict=False)
    while True:
        try:
            lab: LabFile = converter.structure(values, cls)
            return lab
        except Exception as error:
            places = [_keys(text) for text in transform_error(error, format_exception=_described)]
        if not any([_drop(values, keys, cls) for keys in places]):
            return None


def _keys(text: str) -> list[str]:
    """The keys that lead to a mistake. A mistake in an item of a list leads to the list."""
    where = text.rpartition(" @ $")[2].partition("[0")[0]
    return [quoted or plain for quoted, plain in re.findall(r"\['([^']*)'\]|\.([A-Za-z0-9_-]+)", where)]


def _drop(values: dict[str, Any], keys: list[str], cls: type) -> bool:
    """Remove the value at ``keys``, or the table that lacks it. Returns whether a value was removed."""
    for depth in range(len(keys), 0, -1):
        table: Any = values
        for key in keys[: depth - 1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and keys[depth - 1] in table:
            del table[keys[depth - 1]]
            return True
    field = attrs.fields_dict(cls).get(keys[0]) if len(keys) == 1 else None
    if field is not None and STAND_IN in field.metadata:
        values[keys[0]] = field.metadata[STAND_IN]
        return True
    return False


def _listed(path: Path, mistakes: list[str]) -> str:
    # Keys and values come from a file, so they may hold control characters.
    return f"{path}: " + f"\n{path}: ".join(map(harmless, mistakes))


def _described(error: BaseException, kind: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = ", ".join(a.name for a in attrs.fields(error.cl))
        return f"unknown {', '.join(sorted(error.extra_fields))}; known are {known}"
    if isinstance(error, KeyError):
        return "it is missing"
    return str(error)


def _place(text: str) -> str:
    message, _, where = text.rpartition(" @ $")
    where = re.sub(r"\['([^']*)'\]", r".\1", where)
    return f"[{where.strip('.') or 'top level'}] {message}" if message else text
