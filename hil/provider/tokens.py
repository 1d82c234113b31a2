"""Tokens of duplicated sockets: one file each, in a folder that only this user can read (DUP-02, DUP-03, DUP-24)."""

import contextlib
import json
import os
import secrets
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

LIFETIME_S = 600.0


class BadToken(Exception):
    """The token names no duplicated socket, was used before, or is another process's."""


def folder() -> Path:
    """The folder of all tokens, made when missing. Raises BadToken when somebody else owns it."""
    path = Path(tempfile.gettempdir()) / f"san-provider-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BadToken(f"{path} is not a private folder of ours")
    return path


def make(pid: int, state: dict[str, Any]) -> int:
    """Keep ``state`` for process ``pid``; the token, 1 to 2**32 - 1. Raises BadToken or OSError."""
    _sweep()
    while True:
        token = secrets.randbelow((1 << 32) - 1) + 1
        try:
            descriptor = os.open(folder() / f"{token:08x}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "w") as file:
            json.dump({"pid": pid, "state": state}, file)
        return token


def _sweep() -> None:
    # A listener's token that nobody ever claimed has no connection whose end would revoke it.
    for path in folder().iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LIFETIME_S:
                path.unlink()


def claim(token: int) -> dict[str, Any]:
    """The state behind ``token``, once, in the process it was made for. Raises BadToken."""
    path = folder() / f"{token:08x}"
    try:
        kept = json.loads(path.read_text())
        if kept["pid"] != os.getpid():
            raise BadToken(f"token {token:#x} is for process {kept['pid']}")
        # Whoever removes the file has the token: of two threads only one does.
        path.unlink()
        state: dict[str, Any] = kept["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadToken(f"token {token:#x} names no duplicated socket") from error
    return state


def revoke(token: int) -> None:
    """Forget a token that nobody claimed."""
    (folder() / f"{token:08x}").unlink(missing_ok=True)
