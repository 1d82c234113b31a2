"""The option that names a lab file, and functions that end a command with an error."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from hil.errors import HilError, LabFileError
from hil.labs.file import read_lab_file
from hil.labs.named import DEFAULT, lab_path
from hil.labs.schema import LabFile

T = TypeVar("T")


class LabType(click.ParamType[Path]):
    """A lab file, given by its path or by the name of an example. The value is its path."""

    name = "lab"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if isinstance(value, Path):
            return value
        try:
            return lab_path(str(value))
        except LabFileError as error:
            give_up(error)


LAB = click.option(
    "--lab",
    type=LabType(),
    default=DEFAULT,
    show_default=True,
    help="The lab file: a path, or the name of an example.",
)


def give_up(error: object) -> NoReturn:
    """Print an error, and end the program with 2."""
    click.echo(f"hil: error: {error}", err=True)
    sys.exit(2)


def or_give_up(work: Callable[[], T]) -> T:
    """The result of ``work``. An error of the bench or the system ends the program with 2."""
    try:
        return work()
    except (HilError, OSError) as error:
        give_up(error)


def lab_of(path: Path) -> LabFile:
    """The lab file at ``path``. Mistakes in it end the program with 2."""
    return or_give_up(lambda: read_lab_file(path))
