"""``hil verify``: judge packet captures from any source."""

import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="JSON instead of text; hil/report/verify_json.py gives its shape."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page with ladder diagrams to this file.",
)
@click.option(
    "--connection",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Only this connection: a number in the report, an end's address or QP (0x11), or two joined by +. Repeatable.",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def verify(as_json: bool, html: Path | None, wanted: tuple[str, ...], files: tuple[Path, ...]) -> None:
    """Judge the teardown of each connection in captures from any source, pcap or pcapng.

    The file - is standard input. Exit code 0: every connection passes. 1: a fail. 2: a connection could not be judged,
    a file could not be read, or the report could not be written. 130: interrupted.
    """
    try:
        from hil.report.command import run_verify

        sys.exit(run_verify(files, as_json=as_json, html=html, wanted=wanted))
    except KeyboardInterrupt:
        # The interrupt came before run_verify began, which handles later ones itself.
        sys.exit(130)
