"""``hil faults``: the fault matrix."""

import os
import sys
import time
from pathlib import Path

import click

from hil.cli.options import LAB
from hil.cli.tests import exit_code, parallel, prepared, suite_arguments
from hil.errors import HilError
from hil.labs.kinds import MAX_JOBS
from hil.labs.kinds import jobs as jobs_on
from hil.suite import SUITE


@click.command()
@LAB
@click.option("--results", type=click.Path(path_type=Path), help="Show this run instead of running the matrix.")
@click.option("--cell", default="", help="Show one cell, such as DREQ/drop, of the newest run with it.")
@click.option("--run", "again", is_flag=True, help="With --cell: run the cell now.")
@click.option("--page", type=click.Path(path_type=Path), help="Also write the grid to this HTML page.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    default=lambda: min(2 * (os.cpu_count() or 1) + 1, MAX_JOBS),
    show_default=f"two for each core and one more, at most {MAX_JOBS}, as most cells wait for time-outs",
    help="How many cells run at once, each on its own pair.",
)
def faults(lab: Path, results: Path | None, cell: str, again: bool, page: Path | None, jobs: int) -> None:
    """Run the fault matrix and show it as a grid: each fault is applied to each kind of frame, then comes a hard close.

    Exit code 0: all shown cells passed. 1: a fail. 2: invalid, or no run was found.
    """
    from rich.console import Console

    from hil.report import grid

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
            raise HilError(f"{results} has no cell {chosen}; run it with: hil faults --cell {chosen} --run")
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
    """Run the matrix, or one cell by its pytest id. Returns the results' folder and the exit code."""
    import pytest

    from hil.report.grid import MATRIX, SCENARIOS

    jobs = jobs_on(prepared(lab), jobs)
    folder = Path(f"results/{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    options = [*suite_arguments(), f"--hil-results={folder}", f"--hil-lab={lab.absolute()}"]
    if chosen:
        name = "test_a_hard_close_ends_as_the_contract_says"
        return folder, exit_code(pytest.main([*options, f"{SUITE / MATRIX}::{name}{chosen}"]))
    return folder, exit_code(pytest.main([*options, *parallel(jobs), str(SUITE / MATRIX), str(SUITE / SCENARIOS)]))
