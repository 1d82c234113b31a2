"""``hil contract``: the state of each requirement by the newest results."""

import sys
from pathlib import Path

import click

from hil.cli.collected import named_requirements
from hil.cli.options import or_give_up
from hil.errors import HilError


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The run with the verdicts (default: the newest below results/). Of several, the last that ran a test counts.",
)
@click.option("--strict", is_flag=True, help="Fail also when an untagged must is neither kept nor not observable.")
@click.option(
    "--compare",
    type=(click.Path(path_type=Path), click.Path(path_type=Path)),
    help="Two results folders: show the differences in their provenance and their verdicts.",
)
@click.argument("which", nargs=-1)
def contract(
    results: tuple[Path, ...], strict: bool, compare: tuple[Path, Path] | None, which: tuple[str, ...]
) -> None:
    """Show the state of the contract: a count for each area, or all details of WHICH (ids like CLOSE-17, or areas).

    "kept": every test that names the requirement passed in that run. Exit code 1 when a requirement is broken.
    """
    from hil.evidence.bundle import read_run
    from hil.report import compare as comparison
    from hil.report import contract as report

    if compare is not None:
        one, other = or_give_up(lambda: [read_run(folder) for folder in compare])
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
        click.echo(f"hil: error: musts without a test that shows them kept: {', '.join(left)}", err=True)
        sys.exit(1)
    sys.exit(int(any(s.standing is report.Standing.BROKEN for s in chosen)))
