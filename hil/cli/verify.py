"""``hil verify``: captures from anywhere, judged."""

import sys
from pathlib import Path

import click


@click.command()
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
