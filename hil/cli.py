"""The ``hil`` command."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from hil import __version__
from hil.collected import named_requirements
from hil.errors import HilError
from hil.interrupts import end_by_any
from hil.lab_cli import lab as lab_group
from hil.nodes.lab import MAX_JOBS
from hil.nodes.lab import jobs as jobs_on
from hil.nodes.labfile import HostsFile, LabFile, SoftPairFile, SoftSwitchFile
from hil.nodes.softlab import SoftLab
from hil.nodes.softnodes import soft_guest
from hil.options import LAB, ROOT, give_up, lab_of, or_give_up
from hil.progress import harmless, step


class _Commands(click.Group):
    """The verbs. One that is told to end, and does not end in its own way, ends with 2: nothing was judged."""

    def invoke(self, ctx: click.Context) -> Any:
        end_by_any()
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            # click's own answer is exit code 1, which is a fail here.
            give_up("interrupted")


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """Test bench for SAN adapters: closes Winsock Direct sockets the hard way and proves the reset on the wire."""


main.add_command(lab_group)


@main.command()
@click.option(
    "--lab",
    type=click.Path(path_type=Path),
    help="A lab file: the adapters of each of its nodes, provisioned (default: those of this machine).",
)
@click.option("--gids", is_flag=True, help="With each port's GID table.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: node to its adapters.")
@click.argument("which", required=False)
def adapters(lab: Path | None, gids: bool, as_json: bool, which: str | None) -> None:
    """The RDMA adapters there are, or only WHICH: a device, netdev, PCI address, GUID or IP address.

    Exit code 2 when there is no RDMA, no such adapter, or a node of the lab that does not tell; the others are shown.
    """
    from hil.adapters.find import adapters as of_this_machine
    from hil.adapters.find import plain
    from hil.report.adapters import chosen, of_lab, table

    try:
        found, failed = of_lab(lab_of(lab), lab.absolute().parent) if lab else ({"this machine": of_this_machine()}, {})
        if which and (found or not failed):
            found = chosen(found, which)
    except (HilError, OSError) as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps({node: plain(known) for node, known in found.items()}, indent=1))
    else:
        for node, known in found.items():
            click.echo(f"{node}:" if known else f"{node}: no RDMA adapters")
            click.echo("\n".join(f"  {harmless(line)}" for line in table(known, gids=gids)) if known else "")
    for node, why in failed.items():
        click.echo(f"hil: error: node {node}: {why}", err=True)
    if failed:
        sys.exit(2)


JOBS = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    show_default=f"one for each core, on User-Mode Linux two and one more, at most {MAX_JOBS}",
    help="How many tests run at once, each on a pair of its own.",
)


def prepared(path: Path) -> LabFile:
    """The lab file at ``path``, and the snapshots of its guests built when needed; ends the program with 2."""
    file = lab_of(path)
    if isinstance(file, SoftPairFile):
        or_give_up(SoftLab(file).guests)
    elif isinstance(file, SoftSwitchFile):
        or_give_up(lambda: soft_guest(file.guest))
    return file


@main.command()
@LAB
def prepare(lab: Path) -> None:
    """Build or reuse the guest images and snapshots of a soft lab."""
    file = prepared(lab)
    told = "needs no preparation" if isinstance(file, HostsFile) else f"({file.guest.suite}) is ready"
    click.echo(f"hil: {lab.name} {told}")


@main.command(context_settings={"ignore_unknown_options": True})
@LAB
@click.option("--results", default="", help="Folder for evidence (default: results/<time>).")
@click.option("--all", "whole", is_flag=True, help="The whole contract, not only the teardown.")
@JOBS
@click.argument("tests", nargs=-1, type=click.UNPROCESSED)
def run(lab: Path, results: str, whole: bool, jobs: int | None, tests: tuple[str, ...]) -> None:
    """Run the teardown contract on a lab, or with --all the whole contract; TESTS are pytest arguments.

    With --requirement CLOSE-17 (or an area) among them: the tests of the whole contract that name it.

    Exit code 0: nothing failed and nothing was invalid. 1: a fail. 2: invalid, or the set-up could not be made.
    """
    import pytest

    chosen = [*tests, *default_tests(tests, whole=whole)]
    jobs = jobs_on(prepared(lab), jobs)
    folder = Path(results or f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        click.echo(f"hil: error: the evidence cannot be written to {folder}: {error.strerror}", err=True)
        sys.exit(2)
    options = [f"--rootdir={ROOT}", f"--results={folder}", f"--lab={lab.absolute()}"]
    options += [f"--junit-xml={folder / 'junit.xml'}", *parallel(jobs)]
    status = exit_code(pytest.main([*options, *chosen]))
    if status == 2 and not (folder / "verdicts.json").exists():
        check_tests(chosen)
    sys.exit(status)


def check_tests(arguments: list[str]) -> None:
    """End the program with 2 unless pytest can collect these tests: of several processes none would say why."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", f"--rootdir={ROOT}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        click.echo(f"{reason}\nhil: error: these tests cannot be run: {' '.join(arguments)}", err=True)
        sys.exit(2)


@main.command()
@LAB
@click.option("--results", type=click.Path(path_type=Path), help="Show this run instead of running anything.")
@click.option("--cell", default="", help="One cell, as DREQ/drop: what happened in the newest run that holds it.")
@click.option("--run", "again", is_flag=True, help="With --cell: run it now.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the grid as a page here as well.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    default=lambda: min(2 * (os.cpu_count() or 1) + 1, MAX_JOBS),
    show_default=f"two for each core and one, at most {MAX_JOBS}: most cells wait for time-outs",
    help="How many cells run at once, each on a pair of its own.",
)
def faults(lab: Path, results: Path | None, cell: str, again: bool, page: Path | None, jobs: int) -> None:
    """Run the fault matrix and show it as a grid: each kind of frame suffers each fault, then comes a hard close.

    Exit code as hil run, also of what is only shown: 0 all passed, 1 a fail, 2 invalid, or no run was found.
    """
    from rich.console import Console

    from hil.faults import grid

    try:
        chosen = grid.find(cell) if cell else None
        ran = None
        if results is None and (again or chosen is None):
            results, ran = _run_faults(lab, jobs, f"[{chosen.frame.name}-{chosen.fault}]" if chosen else "")
        results = results or grid.newest(Path("results"))
        if results is None:
            raise HilError("no run of the matrix below results/; start one with: hil faults")
        found = grid.outcomes(results.absolute())
        if chosen and str(chosen) not in found:
            raise HilError(f"{results} holds no {chosen}; run it with: hil faults --cell {chosen} --run")
    except HilError as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    if chosen:
        click.echo(grid.story(found[str(chosen)]))
    else:
        grid.show(found, Console())
    if page:
        grid.save(found, page)
    shown = [found[str(chosen)]] if chosen else list(found.values())
    sys.exit(grid.status(shown) if ran is None else ran)


def _run_faults(lab: Path, jobs: int, chosen: str) -> tuple[Path, int]:
    """Run the matrix, or one cell by its pytest id; the results' folder and the exit code."""
    import pytest

    from hil.faults.grid import MATRIX, SCENARIOS

    jobs = jobs_on(prepared(lab), jobs)
    folder = Path(f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    options = [f"--rootdir={ROOT}", f"--results={folder}", f"--lab={lab.absolute()}"]
    if chosen:
        name = "test_a_hard_close_ends_as_the_contract_says"
        return folder, exit_code(pytest.main([*options, f"{ROOT / MATRIX}::{name}{chosen}"]))
    return folder, exit_code(pytest.main([*options, *parallel(jobs), str(ROOT / MATRIX), str(ROOT / SCENARIOS)]))


def parallel(jobs: int) -> list[str]:
    """pytest's arguments for so many tests at once."""
    return [f"--numprocesses={jobs}", "--dist=worksteal"] if jobs > 1 else []


def default_tests(tests: tuple[str, ...], *, whole: bool) -> list[str]:
    """What ``hil run`` adds to pytest's arguments: nothing when they name tests."""
    if any(not test.startswith("-") and (Path(test.split("::")[0]).exists() or ".py" in test) for test in tests):
        return []
    contract = ROOT / "tests" / "contract"
    whole = whole or any(test.startswith("--requirement") for test in tests)
    return [str(contract if whole else contract / "test_hard_close.py")]


def exit_code(status: int) -> int:
    """pytest's exit status as the bench's: whatever is neither all right nor a fail is a set-up that broke."""
    return status if status in (0, 1) else 2


@main.command()
@LAB
def doctor(lab: Path) -> None:
    """Look at this machine and at the lab's nodes: what is missing, what would fail, and what mends it.

    Exit code 0: the lab will work. 2: something is bad. Nothing is changed.
    """
    from hil.doctor import examine, report

    if not report(examine(lab_of(lab), lab.absolute().parent), click.echo):
        sys.exit(2)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, seconds.")
@click.option("--most", default=15, show_default=True, type=click.IntRange(1), help="Rows of each table.")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def times(folder: Path | None, as_json: bool, most: int) -> None:
    """Where the time of a run went: by folder, file and phase, the slowest tests, long waits, how busy the cores were.

    FOLDER is a results folder (default: the newest below results/). A phase's seconds are the wall's; processor is the
    time that all processes worked for the test, as far as they live on this machine; waiting is what is left.
    """
    from rich.console import Console

    from hil.report import times as report

    if folder is None:
        folder = report.newest(Path("results"))
        if folder is None:
            give_up("no run that kept its times below results/")
    try:
        found = report.read(folder)
    except HilError as error:
        give_up(error)
    if as_json:
        click.echo(json.dumps(report.as_json(found), indent=1))
    else:
        # A file or a pipe has no width: there the tables are as wide as they must be.
        report.show(found, Console() if sys.stdout.isatty() else Console(width=report.WIDTH), most)


@main.command()
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="How many pristine pairs to time.")
@LAB
def figures(lab: Path, pairs: int) -> None:
    """Measure on this machine: time of a pristine provisioned pair, and memory of each node."""
    from hil.nodes.softpair import measure

    file = prepared(lab)
    if not isinstance(file, SoftPairFile):
        give_up(f"{lab}: only a soft pair can be measured")
    try:
        for line in measure(soft_guest(file.guest), pairs, file.link.mtu):
            click.echo(line)
    except (HilError, OSError) as error:
        give_up(error)


@main.command()
@click.option("--only", type=click.Choice(["pass", "fail", "invalid", "unsupported"]), help="Only these.")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def verdicts(only: str | None, folder: Path | None) -> None:
    """The verdicts of a run, FOLDER or the newest below results/: a line each, verdict and test with a tab between."""
    from hil.report import contract as report

    found = folder or report.newest_results(Path("results"))
    if found is None:
        click.echo("hil: error: there are no results yet; run hil run first", err=True)
        sys.exit(2)
    try:
        records = report.read_verdicts(found)
    except HilError as error:
        click.echo(f"hil: error: {error}", err=True)
        sys.exit(2)
    for record in records:
        if only in (None, record["verdict"]):
            click.echo(f"{record['verdict']}\t{record['test']}")


@main.command()
@LAB
@JOBS
@click.option("--all", "whole", is_flag=True, help="Every test of the contract, not only those of the areas broken.")
@click.argument("names", nargs=-1)
def broken(lab: Path, jobs: int | None, whole: bool, names: tuple[str, ...]) -> None:
    """Run the contract against providers broken on purpose (default: all of them), and say which tests fail.

    Exit code 1 when some requirement is broken and no failed test names it. Evidence lies in results/broken/NAME.
    """
    from hil.report import broken_providers as report

    known = report.broken_providers()
    if unknown := set(names) - known.keys():
        click.echo(
            f"hil: error: no broken provider {', '.join(sorted(unknown))}; there are {', '.join(known)}", err=True
        )
        sys.exit(2)
    jobs = jobs_on(prepared(lab), jobs)
    chosen = [known[name] for name in names or known if known[name].breaks]
    missed = 0
    for provider in chosen:
        folder = Path("results") / "broken" / provider.name
        seen = report.sight(provider, _broken_run(provider.name, () if whole else provider.areas, folder, lab, jobs))
        click.echo("\n".join(report.told(seen)))
        missed += not seen.found
    click.echo(f"hil: {len(chosen) - missed} of {len(chosen)} broken providers were found")
    sys.exit(int(missed > 0))


def _broken_run(name: str, areas: tuple[str, ...], folder: Path, lab: Path, jobs: int) -> list[dict[str, Any]]:
    from hil.report.contract import read_verdicts

    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={ROOT}", f"--lab={lab.absolute()}", *parallel(jobs)]
    command += [f"--provider={name}", f"--results={folder.absolute()}", *(f"--requirement={area}" for area in areas)]
    with step(f"the contract's tests against {name}"):
        subprocess.run([*command, str(ROOT / "tests" / "contract")], capture_output=True, cwd=ROOT)
    try:
        return read_verdicts(folder)
    except HilError as error:
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
@click.option(
    "--compare",
    type=(click.Path(path_type=Path), click.Path(path_type=Path)),
    help="Two results folders: a table of what differs, in what they were made with and in what they found.",
)
@click.argument("which", nargs=-1)
def contract(
    results: tuple[Path, ...], strict: bool, compare: tuple[Path, Path] | None, which: tuple[str, ...]
) -> None:
    """How the contract stands: a count for each area, or all about each of WHICH (ids like CLOSE-17, or areas).

    "kept": every test that names the requirement passed in that run. Exit code 1 when a requirement is broken.
    """
    from hil.report import compare as comparison
    from hil.report import contract as report

    if compare is not None:
        one, other = or_give_up(lambda: [comparison.read_run(folder) for folder in compare])
        click.echo("\n".join(comparison.table(one, other)))
        return
    try:
        wanted = [report.known_id(text) for text in which]
        newest = report.newest_results(Path("results"))
        folders = results or ((newest,) if newest else ())
        shown = report.stand(named_requirements(), report.read_all(folders))
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
    if strict and (left := report.unsettled({s.requirement.id: s for s in chosen})):
        click.echo(f"hil: error: musts that were not seen kept: {', '.join(left)}", err=True)
        sys.exit(1)
    sys.exit(int(any(s.standing is report.Standing.BROKEN for s in chosen)))


@main.command()
@click.option(
    "--json", "as_json", is_flag=True, help="JSON instead of text; hil/report/verify_json.py gives its shape."
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with ladder diagrams here.")
@click.option(
    "--connection",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Only these: a number in the report, an end's address or QP (0x11), or two of them joined by +. Repeatable.",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def verify(as_json: bool, html: Path | None, wanted: tuple[str, ...], files: tuple[Path, ...]) -> None:
    """Judge captures from anywhere, pcap or pcapng: how each connection was torn down, and what followed.

    A file - is standard input. Exit code 0: every connection passes. 1: a fail. 2: something could not be judged, a
    file not be read, the report not be written. 130: interrupted.
    """
    try:
        from hil.report.command import run_verify

        sys.exit(run_verify(files, as_json=as_json, html=html, wanted=wanted))
    except KeyboardInterrupt:
        # Before it began; later run_verify tells.
        sys.exit(130)
