"""Calls of the ``terminal`` role on a node: a shell on a pseudo-terminal, for people."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DEVPTS = Path("/dev/pts")


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role. The shell's output comes as events of kind ``output``, its end as ``ended``."""
    master: list[int] = []

    def start(rows: int, columns: int, term: str) -> int:
        """Start the shell. Returns its process id. Raises OSError if the node has no pseudo-terminals."""
        if not DEVPTS.is_mount():
            # A guest of the bench has not mounted them yet.
            DEVPTS.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "devpts", "devpts", str(DEVPTS)], check=True)
        pid, fd = pty.fork()
        if pid == 0:
            environment = {
                "TERM": term,
                "HOME": "/root",
                "PATH": os.environ.get("PATH", os.defpath),
                "PS1": r"\h:\w\$ ",
            }
            os.execve("/bin/sh", ["sh", "-i"], environment)
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        master.append(fd)
        threading.Thread(target=relay, args=(pid, fd), daemon=True).start()
        return pid

    def relay(pid: int, fd: int) -> None:
        while data := _read(fd):
            emit({"kind": "output", "data": data})
        _, status = os.waitpid(pid, 0)
        emit({"kind": "ended", "status": os.waitstatus_to_exitcode(status)})

    def write(data: bytes) -> None:
        os.write(master[0], data)

    return {"start": start, "write": write}


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        # A pseudo-terminal whose other side was closed gives EIO.
        return b""
