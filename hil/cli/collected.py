"""The tests that pytest collects of the suite, cached for each state of the code."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from hil.cache import cache_folder
from hil.cli.tests import suite_arguments
from hil.errors import HilError
from hil.files import passing_folder, write_whole
from hil.suite import CONTRACT, FAULTS, SUITE

PACKAGE = Path(__file__).parents[1]
# rglob does not follow links to folders, so each linked folder is listed.
FOLDERS = (PACKAGE, PACKAGE / "testing", CONTRACT, FAULTS)
KEPT = 8


def named_requirements() -> dict[str, list[str]]:
    """Each test of the suite with the requirements it names. Raises HilError.

    Collecting hundreds of tests takes seconds. So the result is cached under a key of every file's time and size, and
    the tests are collected again when a file changes.
    """
    kept = cache_folder() / "collected" / f"{_state()}.json"
    with suppress(OSError, ValueError):
        return _checked(json.loads(kept.read_text()))
    found = _collect()
    # A cache that cannot be written only costs time.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(found))
        for old in sorted(kept.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    return found


def _state() -> str:
    digest = hashlib.sha256(f"{sys.version}{SUITE}{os.environ.get('PYTEST_ADDOPTS')}".encode())
    digest.update((SUITE / "pytest.ini").read_bytes())
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            # An editor may make a broken link here. It has a size and a time, and may be removed at any moment.
            if path.suffix in (".py", ".csv") and (status := _status(path)) is not None:
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _checked(found: object) -> dict[str, list[str]]:
    """``found`` unchanged. Raises ValueError if this module cannot have written it."""
    if not isinstance(found, dict) or not all(isinstance(names, list) for names in found.values()):
        raise ValueError("not tests and their requirements")
    return found


def _collect() -> dict[str, list[str]]:
    with passing_folder("hil-") as folder:
        named = folder / "named.json"
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
        command += [*suite_arguments(), f"--hil-named-requirements={named}", str(CONTRACT), str(FAULTS)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise HilError(f"the tests could not be collected:\n{done.stdout}{done.stderr}")
        return _checked(json.loads(named.read_text()))
