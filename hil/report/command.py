"""What ``hil verify`` does with its files: judge each, and tell it in the form that was asked for."""

import contextlib
import os
import sys
import traceback
from pathlib import Path

import click

from hil.errors import CaptureError
from hil.files import write_whole
from hil.progress import harmless, reading
from hil.report import verify_json, verify_text
from hil.report.page_file import overwritten
from hil.report.verify import STANDARD_INPUT, FileReport, verify
from hil.verdict import Verdict, exit_code

INTERRUPTED = 130
_UNDONE = 2


def run_verify(files: tuple[Path, ...], *, as_json: bool, html: Path | None, wanted: tuple[str, ...]) -> int:
    """Judge the files, print the report, write the page; the exit code.

    What keeps it from being done is told in one line and is no fail: 2, and 130 when the user interrupts it.
    """
    try:
        code = _run(files, as_json=as_json, html=html, wanted=wanted)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _stopped("interrupted", INTERRUPTED)
    except MemoryError:
        return _stopped("there is not enough memory", _UNDONE)
    except OSError as error:
        return _stopped(f"the report cannot be written: {error.strerror or error}", _UNDONE)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}, line {where.lineno}"
        return _stopped(f"a defect of hil: {type(error).__name__} in {place}: {error}", _UNDONE)
    return code


def _stopped(why: str, code: int) -> int:
    # Python would try once more to write what standard output still holds, and end with a code of its own.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Where it cannot be told either, the code is to tell it.
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"hil: error: {harmless(why)}", err=True)
    return code


def _run(files: tuple[Path, ...], *, as_json: bool, html: Path | None, wanted: tuple[str, ...]) -> int:
    if files.count(STANDARD_INPUT) > 1:
        click.echo("hil: error: standard input can be read once only: name - once", err=True)
        return _UNDONE
    if html is not None and (capture := overwritten(html, files)):
        click.echo(f"hil: error: {harmless(str(html))} is {capture}: the page is not written over it", err=True)
        return _UNDONE
    reports: list[FileReport | tuple[str, str]] = [_judged(path, wanted) for path in files]
    code = exit_code([r.verdict if isinstance(r, FileReport) else Verdict.INVALID for r in reports])
    if html is not None and not _write_page(html, reports):
        code = _UNDONE
    if as_json:
        objects = [
            verify_json.file_object(r) if isinstance(r, FileReport) else verify_json.unreadable(*r) for r in reports
        ]
        click.echo(verify_json.document(objects, code))
        return code
    for report in reports:
        if isinstance(report, FileReport):
            click.echo("\n".join(verify_text.lines(report)) + "\n")
    return code


def _judged(path: Path, wanted: tuple[str, ...]) -> FileReport | tuple[str, str]:
    try:
        with reading(path) as progress:
            return verify(path, wanted=wanted, progress=progress)
    except (CaptureError, OSError) as error:
        click.echo(f"hil: error: {harmless(str(error))}", err=True)
        return str(path), str(error)


def _write_page(html: Path, reports: list[FileReport | tuple[str, str]]) -> bool:
    from hil.report.verify_page import page

    good = [r for r in reports if isinstance(r, FileReport)]
    errors = [r for r in reports if not isinstance(r, FileReport)]
    try:
        write_whole(html, page(good, errors))
    except OSError as error:
        click.echo(f"hil: error: the page cannot be written to {harmless(str(html))}: {error.strerror}", err=True)
        return False
    click.echo(f"hil: the page is in {harmless(str(html))}", err=True)
    return True
