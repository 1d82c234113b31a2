"""Example labs, which the package contains and which are chosen by name."""

from pathlib import Path

from hil.errors import LabFileError

EXAMPLES = Path(__file__).parent / "examples"
DEFAULT = "soft-pair"


def names() -> list[str]:
    """The names of the example labs."""
    return sorted(path.stem for path in EXAMPLES.glob("*.toml"))


def lab_path(text: str) -> Path:
    """The lab file for ``text``, a path or the name of an example. Raises LabFileError.

    An existing file takes precedence over an example of the same name.
    """
    path = Path(text)
    if path.exists():
        return path
    if path.parent == Path() and path.suffix in ("", ".toml") and path.stem in names():
        return EXAMPLES / f"{path.stem}.toml"
    raise LabFileError(f"{text}: there is no such file, and no example of this name; examples are {', '.join(names())}")
