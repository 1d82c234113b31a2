"""The provider under test: found by its name, with its settings and the code that is sent to the nodes."""

import functools
import importlib.util
import io
import re
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from hil.errors import SetupError
from hil.mutants.catalogue import Layer, mutants

GROUP = "hil.providers"
OWN = "hil.provider.provider:Provider"
# A fixed time makes archives of equal content equal.
_WHEN = (1980, 1, 1, 0, 0, 0)
CODE_LIMIT_BYTES = 32 << 20
_PLACE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ProviderUnderTest:
    """``name`` is the name that the user gave; ``factory`` is ``MODULE:NAME`` as a worker loads it; ``code`` is a zip
    archive of the Python files that the nodes lack, empty for the bench's own providers; ``settings`` apply to every
    test, and a test's own settings override them."""

    name: str
    factory: str
    code: bytes = b""
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name or "the bench's own provider"


@functools.cache
def provider_under_test(text: str) -> ProviderUnderTest:
    """The provider for ``text``: empty for the bench's own provider, ``MODULE:FACTORY``, the name of an installed
    provider (entry point group ``hil.providers``), or the name of a mutant. Raises SetupError that lists the names.

    The provider is not imported here: it may need libraries that only nodes have.
    """
    if not text:
        return ProviderUnderTest("", OWN)
    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    place = installed.get(text, text)
    if not _PLACE.fullmatch(place):
        # Only now: a package whose mutant cannot be loaded must not keep another's provider from a run.
        known = {name: mutant.home for name, mutant in mutants().items() if mutant.layer is Layer.PROVIDER}
        place = known.get(text, text)
    if not _PLACE.fullmatch(place):
        names = f"installed providers: {', '.join(sorted(installed)) or 'none'}; mutants: {', '.join(known)}"
        raise SetupError(f"there is no provider {text}: write PACKAGE.MODULE:FACTORY, or one of these names. {names}")
    module = place.partition(":")[0]
    top = module.partition(".")[0]
    return ProviderUnderTest(text, place, b"" if top == "hil" else _archive(top, module))


def _archive(top: str, module: str) -> bytes:
    """The Python files of a top-level package or module, as a zip archive. Raises SetupError."""
    found = importlib.util.find_spec(top)
    if found is None or not (found.submodule_search_locations or found.origin):
        raise SetupError(f"there is no module {module} in this environment: install its package, or set PYTHONPATH")
    out, total = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        names = set()
        for name, path in _files(top, found.submodule_search_locations, found.origin):
            data = path.read_bytes()
            total += len(data)
            if total > CODE_LIMIT_BYTES:
                raise SetupError(f"the package {top} is larger than {CODE_LIMIT_BYTES >> 20} MiB: nodes cannot take it")
            archive.writestr(zipfile.ZipInfo(name, _WHEN), data, zipfile.ZIP_DEFLATED)
            names.add(name)
    stem = module.replace(".", "/")
    if not names & {f"{stem}.py", f"{stem}/__init__.py"}:
        raise SetupError(f"the package {top} has no Python module {module}")
    return out.getvalue()


def _files(top: str, folders: Iterable[str] | None, origin: str | None) -> Iterator[tuple[str, Path]]:
    """(name in the archive, path) of each Python file."""
    if folders is None:
        yield f"{top}.py", Path(str(origin))
        return
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.py")):
            yield f"{top}/{path.relative_to(folder)}", path


def setting(text: str) -> tuple[str, Setting]:
    """Parse ``NAME=VALUE`` as a provider's setting. VALUE is a TOML value, or else a plain text.

    Raises SetupError.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise SetupError(f"{text!r} is no setting: write NAME=VALUE")
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
    return name, found if isinstance(found, bool | int | float | str) else value
