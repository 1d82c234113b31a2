"""Tokens of duplicated sockets: one file each, in a folder that only this user can read (DUP-02, DUP-03, DUP-24)."""

import contextlib
import json
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Any, TextIO

LIFETIME_S, FILLED_WITHIN_S = 600.0, 30.0
ATTEMPTS = 100
# tempfile is not used, because it writes a file to find its folder. A host without hand-overs must keep no trace.
FOLDER = Path(os.environ.get("TMPDIR", "/tmp")) / f"san-provider-{os.geteuid()}"


class BadToken(Exception):
    """The token belongs to no duplicated socket, was used before, or is for another process."""


def _check_folder() -> None:
    """Raises BadToken when another user owns or may read the folder of tokens, FileNotFoundError without a folder."""
    status = FOLDER.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BadToken(f"{FOLDER} is not a private folder of this user")


def _leave_folder() -> None:
    # The folder is removed with its last token; rmdir fails while it holds another.
    with contextlib.suppress(OSError):
        FOLDER.rmdir()


def reserve() -> tuple[int, TextIO]:
    """A new token, 1 to 2**32 - 1, and its open file; ``fill`` makes the token valid. Raises BadToken or OSError.

    A token is reserved before the socket is changed, so a process without free descriptors keeps its connection.
    """
    for _ in range(ATTEMPTS):
        token = secrets.randbelow((1 << 32) - 1) + 1
        try:
            FOLDER.mkdir(mode=0o700, exist_ok=True)
            _check_folder()
            _sweep()
            descriptor = os.open(_path(token), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except (FileExistsError, FileNotFoundError):
            # Another process may have removed the empty folder in between.
            continue
        return token, os.fdopen(descriptor, "w")
    raise BadToken(f"no token could be made in {FOLDER}")


def fill(file: TextIO, pid: int, state: dict[str, Any]) -> None:
    """Store ``state`` for process ``pid`` in the file of a reserved token. Raises OSError."""
    json.dump({"pid": pid, "state": state}, file)
    file.flush()


def _sweep() -> None:
    # A listener's token has no connection whose end would revoke it, so an unclaimed one expires.
    for path in FOLDER.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LIFETIME_S:
                path.unlink()


def forget_orphans() -> None:
    """Remove the tokens for processes that have ended, because no process can claim them."""
    with contextlib.suppress(OSError, BadToken):
        _check_folder()
        for path in FOLDER.iterdir():
            with contextlib.suppress(OSError):
                if not _alive(path):
                    path.unlink()
    _leave_folder()


def _alive(path: Path) -> bool:
    """Whether the process of a token lives. A token that is not filled yet counts as alive for FILLED_WITHIN_S."""
    try:
        return Path(f"/proc/{int(json.loads(path.read_text())['pid'])}").exists()
    except (ValueError, KeyError, TypeError):
        return time.time() - path.stat().st_mtime < FILLED_WITHIN_S


def claim(token: int) -> dict[str, Any]:
    """Claim ``token`` in the process that it was made for; returns its state. ``settle`` or ``put_back`` must follow.

    Raises BadToken, or OSError when the process has no descriptor left.
    """
    path = _path(token)
    try:
        _check_folder()
        kept = json.loads(path.read_text())
        if kept["pid"] != os.getpid():
            raise BadToken(f"token {token:#x} is for process {kept['pid']}")
        # The thread that renames the file has the token; of two threads only one succeeds.
        path.rename(_claimed(token))
        state: dict[str, Any] = kept["state"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise BadToken(f"token {token:#x} names no duplicated socket") from error
    return state


def settle(token: int) -> None:
    """End a claimed token whose socket was taken; it cannot be used again (DUP-24)."""
    _claimed(token).unlink(missing_ok=True)
    _leave_folder()


def put_back(token: int) -> None:
    """Return a claimed token whose socket could not be taken; it can be tried again."""
    with contextlib.suppress(FileNotFoundError):
        _claimed(token).rename(_path(token))


def revoke(token: int) -> None:
    """Remove a token that was not claimed."""
    _path(token).unlink(missing_ok=True)
    _leave_folder()


def _path(token: int) -> Path:
    return FOLDER / f"{token:08x}"


def _claimed(token: int) -> Path:
    return _path(token).with_suffix(".claimed")
