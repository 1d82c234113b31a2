"""What several commands share: where the project lies, and the option that names a lab file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from hil.errors import HilError
from hil.labs.file import read_lab_file
from hil.labs.schema import LabFile

ROOT = Path(__file__).parents[2]
DEFAULT_LAB = ROOT / "lab" / "soft-pair.toml"
T = TypeVar("T")

LAB = click.option(
    "--lab",
    type=click.Path(path_type=Path),
    default=DEFAULT_LAB,
    show_default="lab/soft-pair.toml",
    help="The lab file: which nodes, what joins them, who records.",
)


def give_up(error: object) -> NoReturn:
    """Say what is wrong, and end the program with 2: the set-up could not be made."""
    click.echo(f"hil: error: {error}", err=True)
    sys.exit(2)


def or_give_up(work: Callable[[], T]) -> T:
    """The result of ``work``; an error of the bench or the system ends the program with 2."""
    try:
        return work()
    except (HilError, OSError) as error:
        give_up(error)


def lab_of(path: Path) -> LabFile:
    """The lab file at ``path``; its mistakes end the program with 2."""
    return or_give_up(lambda: read_lab_file(path))
