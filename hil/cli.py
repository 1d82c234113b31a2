"""The ``hil`` command."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from hil import __version__
from hil.errors import HilError
from hil.nodes.labfile import read_lab_file
from hil.nodes.snapshot import Snapshot, lab_snapshot

ROOT = Path(__file__).parents[1]
DEFAULT_LAB = ROOT / "lab" / "soft-pair.toml"


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Test bench for SAN adapters: closes Winsock Direct sockets the hard way and proves the reset on the wire."""


LAB = click.option(
    "--lab",
    type=click.Path(path_type=Path),
    default=DEFAULT_LAB,
    show_default="lab/soft-pair.toml",
    help="The lab file: which kernel, how much memory, which MTU.",
)


def ready_snapshot(lab: Path) -> Snapshot:
    """The snapshot of a lab file's guests, built when needed; ends the program with 2 when it cannot be made."""
    try:
        return lab_snapshot(read_lab_file(lab))
    except (HilError, OSError) as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)


@main.command()
@LAB
def prepare(lab: Path) -> None:
    """Build or reuse the guest image and the snapshot of a soft lab."""
    snapshot = ready_snapshot(lab)
    click.echo(f"hil: {lab.name} ({snapshot.image.suite}, {snapshot.hardware.accelerator}) is ready")


@main.command(context_settings={"ignore_unknown_options": True})
@LAB
@click.option("--results", default="", help="Folder for evidence (default: results/<time>).")
@click.option("--all", "whole", is_flag=True, help="The whole contract, not only the teardown.")
@click.argument("tests", nargs=-1, type=click.UNPROCESSED)
def run(lab: Path, results: str, whole: bool, tests: tuple[str, ...]) -> None:
    """Run the teardown contract on a lab, or with --all the whole contract; TESTS are pytest arguments.

    With --requirement CLOSE-17 (or an area) among them: the tests of the whole contract that name it.

    Exit code 0: nothing failed and nothing was invalid. 1: a fail. 2: invalid, or the set-up could not be made.
    """
    import pytest

    ready_snapshot(lab)
    folder = Path(results or f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        click.echo(f"hil: error: the evidence cannot be written to {folder}: {error.strerror}", err=True)
        sys.exit(2)
    options = [f"--rootdir={ROOT}", f"--results={folder}", f"--lab={lab.absolute()}"]
    options += [f"--junit-xml={folder / 'junit.xml'}"]
    sys.exit(exit_code(pytest.main([*options, *tests, *default_tests(tests, whole=whole)])))


def default_tests(tests: tuple[str, ...], *, whole: bool) -> list[str]:
    """What ``hil run`` adds to pytest's arguments: nothing when they name tests."""
    if any(not test.startswith("-") and Path(test.split("::")[0]).exists() for test in tests):
        return []
    contract = ROOT / "tests" / "contract"
    whole = whole or any(test.startswith("--requirement") for test in tests)
    return [str(contract if whole else contract / "test_hard_close.py")]


def exit_code(status: int) -> int:
    """pytest's exit status as the bench's: whatever is neither all right nor a fail is a set-up that broke."""
    return status if status in (0, 1) else 2


@main.command()
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="How many pristine pairs to time.")
@LAB
def figures(lab: Path, pairs: int) -> None:
    """Measure on this machine: time of a pristine provisioned pair, and memory of each node."""
    from hil.nodes.softpair import measure

    snapshot = ready_snapshot(lab)
    try:
        for line in measure(snapshot, pairs, read_lab_file(lab).link.mtu):
            click.echo(line)
    except (HilError, OSError) as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)


@main.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The run whose verdicts count (default: the newest below results/); of several, the last that ran a test.",
)
@click.option("--strict", is_flag=True, help="Fail also when an untagged must is neither kept nor not observable.")
@click.argument("which", nargs=-1)
def contract(results: tuple[Path, ...], strict: bool, which: tuple[str, ...]) -> None:
    """How the contract stands: a count for each area, or all about each of WHICH (ids like CLOSE-17, or areas).

    "kept": every test that names the requirement passed in that run. Exit code 1 when a requirement is broken.
    """
    from hil.report import contract as report

    try:
        wanted = [report.known_id(text) for text in which]
        newest = report.newest_results(Path("results"))
        folders = results or ((newest,) if newest else ())
        shown = report.stand(_named_requirements(), report.read_all(folders))
    except HilError as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    told = ", ".join(map(str, folders))
    click.echo(f"hil: verdicts of {told}" if told else "hil: no results yet; run hil run first", err=True)
    if wanted:
        chosen = [s for s in shown.values() if {s.requirement.id, s.requirement.area} & set(wanted)]
        click.echo("\n\n".join("\n".join(report.details(s)) for s in chosen))
    else:
        chosen = list(shown.values())
        click.echo("\n".join([*report.table(shown), *report.lists(shown)]))
    if strict and (left := report.unsettled(shown)):
        click.echo(f"hil: error: musts that were not seen kept: {', '.join(left)}", err=True)
        sys.exit(1)
    sys.exit(int(any(s.standing is report.Standing.BROKEN for s in chosen)))


def _named_requirements() -> dict[str, list[str]]:
    """Each test of the project with the requirements it names, as pytest collects them. Raises HilError."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "named.json"
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", f"--rootdir={ROOT}"]
        command += [f"--named-requirements={named}", str(ROOT / "tests")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            raise HilError(f"the tests could not be collected:\n{done.stdout}{done.stderr}")
        found: dict[str, list[str]] = json.loads(named.read_text())
        return found
