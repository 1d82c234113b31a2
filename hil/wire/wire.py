"""The controller's handle on the wire process."""

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hil.errors import CaptureError
from hil.nodes.machine import die_with_parent

ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class WireCounts:
    """Frames by side ("a", "b"): received from it, sent to it, dropped by a cut, lost because it was gone, queued."""

    received: dict[str, int]
    sent: dict[str, int]
    dropped: dict[str, int]
    lost: dict[str, int]
    queued: dict[str, int]
    capture_error: str
    epoch_ns: int


class Wire:
    """Joins two frame sockets and records to ``path``. Use as a context manager."""

    def __init__(self, side_a: socket.socket, side_b: socket.socket, path: Path) -> None:
        self.path = path
        self._stopped = False
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        fds = [side_a.fileno(), side_b.fileno(), theirs.fileno()]
        command = [sys.executable, "-m", "hil.wire.forwarder", *map(str, fds), str(path)]
        self._process = subprocess.Popen(
            command,
            pass_fds=fds,
            preexec_fn=die_with_parent,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def counts(self) -> WireCounts:
        """Counts now; the capture is flushed first. Raises CaptureError when the wire's process is gone."""
        return self._ask(b"counts\n")

    def cut(self) -> WireCounts:
        """Drop every frame of both sides from now on; each is still recorded where it came in."""
        return self._ask(b"cut\n")

    def mend(self) -> WireCounts:
        """Carry frames again."""
        return self._ask(b"mend\n")

    def stop(self) -> WireCounts | None:
        """End the wire; its last counts, or None when it was gone already. Safe to call twice."""
        if self._stopped:
            return None
        try:
            return self._ask(b"stop\n")
        except CaptureError:
            return None
        finally:
            self._stopped = True
            self._control.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ask(self, line: bytes) -> WireCounts:
        try:
            self._control.sendall(line)
            data = b""
            while not data.endswith(b"\n"):
                part = self._control.recv(65536)
                if not part:
                    raise CaptureError("the wire's process has ended")
                data += part
        except OSError as error:
            raise CaptureError(f"the wire's process does not answer: {error}") from error
        answer: dict[str, Any] = json.loads(data)
        return WireCounts(**answer)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()
