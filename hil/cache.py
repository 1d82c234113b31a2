"""Cache folders: built under another name, sealed with a manifest, checked, locked while in use, removed when old."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hil.files import passing_folder
from hil.progress import say


@contextmanager
def building(parent: Path) -> Iterator[Path]:
    """A folder to build in below ``parent``, removed at the end, also when this process is killed.

    Its name holds this process's id. ``sweep`` removes the folders that a power failure left.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with passing_folder(f"building-{os.getpid()}-", parent) as folder:
        yield folder


def sweep(parent: Path) -> None:
    """Remove the folders below ``parent`` that were being built by processes that have ended."""
    for left in parent.glob("building-*"):
        owner = left.name.split("-")[1]
        if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
            say(f"removing {left.name}, left by a bench that is gone")
            shutil.rmtree(left, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """The damage of a sealed cache folder in words, or None. Sizes and digests are compared with its manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, (size, digest) in manifest["files"].items():
            if (folder / name).stat().st_size != size:
                return f"{name} has the wrong size"
            if file_digest(folder / name) != digest:
                return f"{name} has the wrong content"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest: {error}"
    return None


def seal(folder: Path, final: Path, extra: dict[str, object]) -> None:
    """Write the manifest of ``folder`` and move it to its ``final`` place in one step."""
    files = {p.name: (p.stat().st_size, file_digest(p)) for p in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"files": files} | extra, indent=1))
    if final.exists():
        shutil.rmtree(final)
    folder.rename(final)


def in_use(folder: Path) -> None:
    """Mark a cache folder as used by this process until the process ends; the kernel then releases the lock."""
    # The descriptor stays open on purpose.
    fcntl.flock(os.open(folder / "in-use", os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)


def keep_newest(folder: Path, keep: int) -> None:
    """Remove the oldest cache folders beside ``folder``, so that ``keep`` are left. Folders in use stay."""
    others = [p for p in folder.parent.iterdir() if p.is_dir() and p != folder and not p.name.startswith("building-")]
    for old in sorted(others, key=lambda p: p.stat().st_mtime)[: max(0, len(others) - keep + 1)]:
        with (old / "in-use").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Another bench uses this folder.
                continue
            shutil.rmtree(old, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-1 of the whole file, in hex; it is meant to detect damage."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def cache_folder() -> Path:
    """The folder of images and snapshots: HIL_CACHE, else the user's cache folder."""
    if named := os.environ.get("HIL_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hil"
