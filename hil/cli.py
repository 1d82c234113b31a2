"""The ``hil`` command."""

import sys
from pathlib import Path

import click

from hil import __version__
from hil.errors import HilError
from hil.nodes.image import cache_folder, image_for
from hil.nodes.snapshot import snapshot_for

ROOT = Path(__file__).parents[1]


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Test bench for SAN adapters: closes Winsock Direct sockets the hard way and proves the reset on the wire."""


@main.command()
@click.option("--suite", default="trixie", help="Debian suite of the guests: trixie or bookworm.")
def prepare(suite: str) -> None:
    """Build or reuse the guest image and the snapshot of the soft pair."""
    try:
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        snapshot = snapshot_for(image_for(suite, cache), cache)
    except (HilError, OSError) as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    click.echo(f"hil: the soft pair ({suite}, {snapshot.hardware.accelerator}) is ready in {cache}")


@main.command()
@click.option("--suite", default="trixie", help="Debian suite of the guests: trixie or bookworm.")
@click.option("--results", default="", help="Folder for evidence (default: results/<time>).")
@click.argument("tests", nargs=-1)
def run(suite: str, results: str, tests: tuple[str, ...]) -> None:
    """Run the teardown contract on the soft pair; TESTS are pytest arguments (default: all of the contract).

    Exit code 0: nothing failed and nothing was invalid. 1: a fail. 2: invalid, or the set-up could not be made.
    """
    import time

    import pytest

    try:
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        snapshot_for(image_for(suite, cache), cache)
    except (HilError, OSError) as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    folder = Path(results or f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    arguments = [
        f"--rootdir={ROOT}",
        f"--results={folder}",
        f"--suite={suite}",
        f"--junit-xml={folder / 'junit.xml'}",
    ]
    sys.exit(int(pytest.main([*arguments, *(tests or [str(ROOT / "tests" / "contract")])])))
