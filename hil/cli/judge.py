"""``hil judge``: judge evidence again by the current rules."""

import json
import sys
from pathlib import Path

import click

from hil.cli.options import give_up
from hil.errors import HilError
from hil.progress import harmless
from hil.verdict import exit_code


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text; hil/report/judge.py gives its shape.")
@click.argument("folder", type=click.Path(path_type=Path))
def judge(as_json: bool, folder: Path) -> None:
    """Judge the evidence of a run, or of one test, again. FOLDER is a folder of hil run, or a test's folder in it.

    No lab is needed. For each test, the old and the new verdict are printed, and the findings that changed.

    Exit code 0: no test fails now. 1: a fail. 2: some evidence could not be judged or read.
    """
    from hil.report import judge as report

    try:
        judged = []
        for again in report.judge_folder(folder):
            judged.append(again)
            if not as_json:
                click.echo("\n".join(map(harmless, report.lines(again))))
    except HilError as error:
        give_up(harmless(str(error)))
    code = exit_code(again.after for again in judged)
    click.echo(json.dumps(report.as_json(judged, code), indent=1) if as_json else f"hil: {report.summary(judged)}")
    sys.exit(code)
