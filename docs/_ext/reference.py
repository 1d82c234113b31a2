"""Reference pages made from the code: lab files, requirements, public names; and places in the code that must exist."""

import ast
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

ROOT = Path(__file__).parents[2]
logger = logging.getLogger(__name__)


class Generated(SphinxDirective):
    """A directive that stands for Markdown made from the code."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)

    def lines(self) -> Iterable[str]:
        raise NotImplementedError


# --- lab files --------------------------------------------------------------------------------------------------------


class LabFileDirective(Generated):
    """Every section and key of each kind of lab file."""

    def lines(self) -> Iterator[str]:
        from hil.labs.kinds import LABS

        told: dict[type, str] = {}
        for kind in LABS.built_in:
            cls = LABS.load(kind).schema
            yield f'## `kind = "{kind}"`\n\n{inspect.getdoc(cls)}\n'
            for field in attrs.fields(cls):
                yield from _sections(f"[{field.name}]", field.type, field.default, told)


def _sections(place: str, kind: Any, default: Any, told: dict[type, str]) -> Iterator[str]:
    """A section of a lab file, and the sections in it. ``told``: where the keys of a class stand already."""
    if typing.get_origin(kind) is dict:
        yield from _sections(f"[{place.strip('[]')}.NAME]", typing.get_args(kind)[1], default, told)
        return
    from hil.labs.schema import schemas_of

    classes = [(which, cls) for part in _alternatives(kind) if attrs.has(part) for which, cls in schemas_of(part)]
    needed = "" if default is not attrs.NOTHING else " (must be there)"
    for which, cls in classes:
        heading = f"`{place}`{needed}" + (f' with `kind = "{which}"`' if which else "")
        yield f"### {heading}\n"
        if cls in told:
            yield f"Its keys are those of `{told[cls]}` above.\n"
            continue
        told[cls] = place
        yield f"{inspect.getdoc(cls)}\n"
        yield from _keys(cls)
        for field in attrs.fields(cls):
            if any(attrs.has(part) for part in _alternatives(field.type)):
                yield from _sections(f"[{place.strip('[]')}.{field.name}]", field.type, field.default, told)


def _keys(cls: type) -> Iterator[str]:
    yield "| key | type | default |\n|---|---|---|"
    for field in attrs.fields(cls):
        if not any(attrs.has(part) for part in _alternatives(field.type)):
            default = "must be there" if field.default is attrs.NOTHING else f"`{_toml(field.default)}`"
            yield f"| `{field.name}` | {_described(field.type)} | {'none' if field.default is None else default} |"
    yield ""


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(part for part in typing.get_args(kind) if part is not type(None))
    return (kind,)


def _described(kind: Any) -> str:
    """The type of a key in words."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if len(_alternatives(kind)) > 1 or _alternatives(kind) != (kind,):
        return " or ".join(map(_described, _alternatives(kind)))
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of: {_described(parts[0])}"
    if origin is dict:
        return f"table, {_described(parts[0])} to {_described(parts[1])}"
    if isinstance(kind, typing.NewType):
        plain = _described(kind.__supertype__)
        return f"{plain}{_limits(kind)} ({kind.__name__})"
    return {int: "integer", str: "string", bool: "boolean"}.get(kind, str(kind))


def _limits(kind: typing.NewType) -> str:
    """The numbers that a lab file may hold for a key, as its own message tells them, or an empty text."""
    from hil.labs.schema import lab_converter

    if kind.__supertype__ is not int:
        return ""
    try:
        lab_converter().structure(-1, kind)
    except ValueError as error:
        _, found, limits = str(error).partition("is out of range: ")
        return f", {limits.split(';')[0]}" if found else ""
    except Exception:
        pass
    return ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


# --- requirements -----------------------------------------------------------------------------------------------------


class RequirementsDirective(Generated):
    """Every requirement of the contract, by area."""

    def lines(self) -> Iterator[str]:
        from hil.report.contract import not_observable, partly_observable
        from hil.winsock.requirements import AREAS, requirements

        known = requirements().values()
        levels = [sum(r.level == level for r in known) for level in ("must", "should", "may")]
        yield f"## How many\n\n{len(known)} requirements: {levels[0]} must, {levels[1]} should, {levels[2]} may.\n"
        for area, subject in AREAS.items():
            yield f"## {area}: {subject}\n"
            yield "| id | requirement | source | level | how to verify |\n|---|---|---|---|---|"
            for r in known:
                if r.area == area:
                    cells = (r.id, r.sentence, r.source, r.level, r.verify)
                    yield "| " + " | ".join(map(_cell, cells)) + " |"
            yield ""
        yield from _reasons("Not observable", "No test on this bench can see these kept or broken.", not_observable())
        yield from _reasons("Observable in part", "Tests show these, but for one part each.", partly_observable())


def _reasons(title: str, told: str, reasons: dict[str, str]) -> Iterator[str]:
    yield f"## {title}\n\n{told}\n\n| id | reason |\n|---|---|"
    for name, reason in reasons.items():
        yield f"| {name} | {_cell(reason)} |"
    yield ""


def _cell(text: str) -> str:
    """Plain text in a cell of a Markdown table."""
    for character in "\\`*_[]<>{}|":
        text = text.replace(character, "\\" + character)
    return text


# --- public names -----------------------------------------------------------------------------------------------------


class PublicNamesDirective(Generated):
    """What a module lists in ``__all__``, each with its documentation."""

    required_arguments = 1

    def lines(self) -> Iterator[str]:
        module = importlib.import_module(self.arguments[0])
        names = sorted(getattr(module, "__all__", ()), key=str.lower)
        if not names:
            yield f"`{module.__name__}` lists no public names yet."
        for name in names:
            thing = getattr(module, name)
            yield f"```{{eval-rst}}\n.. {_directive(thing)}:: {module.__name__}.{name}"
            if inspect.isclass(thing):
                yield "   :members:\n   :show-inheritance:"
                yield "" if issubclass(thing, BaseException) else "   :undoc-members:"
            elif not callable(thing):
                # autodoc would tell of the constant's type.
                yield f"   :value: {thing!r}"
            yield "```\n"


class ErrorsDirective(Generated):
    """The tree of errors, and each of them."""

    def lines(self) -> Iterator[str]:
        from hil import errors

        yield f"```text\n{inspect.getdoc(errors)}\n```\n"
        for name, thing in vars(errors).items():
            if inspect.isclass(thing) and issubclass(thing, BaseException):
                yield f"```{{eval-rst}}\n.. autoexception:: hil.errors.{name}\n   :show-inheritance:\n```\n"


def _directive(thing: object) -> str:
    """The directive that documents a public name."""
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction" if callable(thing) else "py:data"


# --- places in the code -----------------------------------------------------------------------------------------------


class PlaceRole(SphinxRole):
    """``{place}`path``` or ``{place}`path name```: a file, and a class, function or ``Class.method`` in it.

    A place that does not exist is a warning, so a page that tells of code cannot outlive it.
    """

    known: ClassVar[dict[Path, set[str]]] = {}

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path, _, name = self.text.partition(" ")
        if not (ROOT / path).exists():
            logger.warning("there is no file %s", path, location=self.get_location())
        elif name and name not in self._names(ROOT / path):
            logger.warning("%s has no %s", path, name, location=self.get_location())
        where = nodes.literal("", path)
        if not name:
            return [where], []
        is_class = name.rpartition(".")[2].strip("_")[0].isupper() and not name.rpartition(".")[2].startswith("WSP")
        return [nodes.literal("", name if is_class else f"{name}()"), nodes.Text(" in "), where], []

    def _names(self, path: Path) -> set[str]:
        if path not in self.known:
            self.known[path] = set(_defined(ast.parse(path.read_text(encoding="utf-8")).body, ""))
        return self.known[path]


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{prefix}{node.name}.")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("lab-file", LabFileDirective)
    app.add_directive("requirements", RequirementsDirective)
    app.add_directive("public-names", PublicNamesDirective)
    app.add_directive("errors", ErrorsDirective)
    app.add_role("place", PlaceRole())
    return {"parallel_read_safe": True, "version": "1"}
