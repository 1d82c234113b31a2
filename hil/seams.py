"""Seams: what the bench finds by name, its own or from an installed package's entry points (importlib.metadata).

A package adds something by an entry point in its group, such as ``[project.entry-points."hil.labs"]``. The entry point
names an object, or a class that is called without arguments to make one. Nothing is imported before it is asked for.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from hil.errors import SeamError

T = TypeVar("T")


class UnknownName(SeamError):
    """Nothing at this seam has that name; the message lists the names there are, and says how another is added."""


class Seam(Generic[T]):
    """Objects by name. May be asked from any thread.

    ``group``: of entry points. ``noun``: what such an object is, in words. ``protocol``: the class whose members it
    must have. ``built_in``: the bench's own, each as "module:attribute".
    """

    def __init__(self, group: str, noun: str, protocol: Any, built_in: Mapping[str, str]) -> None:
        self.group, self.noun, self.built_in = group, noun, built_in
        self._members = members(protocol)
        self._loaded: dict[str, T] = {}

    def names(self) -> list[str]:
        """Every name: the bench's own, then those of installed packages."""
        added = {point.name for point in entry_points(group=self.group)}
        return [*self.built_in, *sorted(added - self.built_in.keys())]

    def load(self, name: str) -> T:
        """The object called ``name``. Raises UnknownName, and SeamError that names the package that is at fault."""
        if name not in self._loaded:
            self._loaded[name] = self._found(name)
        return self._loaded[name]

    def unknown(self, name: object) -> str:
        """That nothing has this name, what has which, and the mend."""
        return f"{name!r} is not one of {self.choices()}"

    def choices(self) -> str:
        """The names there are, and how another is added."""
        known = ", ".join(self.names()) or "none"
        return f"{known}; a package can add a {self.noun} (entry points, group {self.group})"

    def _found(self, name: str) -> T:
        points = list(entry_points(group=self.group, name=name))
        if name in self.built_in:
            points.append(EntryPoint(name, self.built_in[name], self.group))
        if not points:
            raise UnknownName(self.unknown(name))
        if len(points) > 1:
            raise SeamError(f"{self.noun} {name} is there more than once: {_listed(points)}; uninstall all but one")
        return self._made(points[0])

    def _made(self, point: EntryPoint) -> T:
        where = f"{self.noun} {point.name}, {point.value}, {_from(point)}"
        try:
            found: Any = point.load()
            made = found() if isinstance(found, type) else found
        # Whatever another package's code raises, the bench says whose it was.
        except Exception as error:
            raise SeamError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if missing := [member for member in self._members if not hasattr(made, member)]:
            raise SeamError(f"{where} is none: it lacks {', '.join(missing)}")
        return made  # type: ignore[no-any-return]


def members(protocol: Any) -> list[str]:
    """The public members that a Protocol asks for, its bases' as well."""
    found: dict[str, None] = {}
    for base in reversed(protocol.__mro__):
        if base.__module__ not in ("typing", "builtins"):
            found |= dict.fromkeys((*vars(base).get("__annotations__", {}), *vars(base)))
    return [name for name in found if not name.startswith("_")]


def _from(point: EntryPoint) -> str:
    return f"of package {point.dist.name} {point.dist.version}" if point.dist is not None else "of the bench itself"


def _listed(points: Iterable[EntryPoint]) -> str:
    return ", ".join(f"{point.value} {_from(point)}" for point in points)
