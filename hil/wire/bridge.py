"""The controller's handle on the process of a bridge, a layer-2 switch in user space, which joins many nodes."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from hil.children import die_with_parent
from hil.errors import CaptureError
from hil.wire.counts import PlainCounts
from hil.wire.point import Onlooker

ANSWER_TIMEOUT_S = 20.0


class Bridge(Onlooker):
    """Joins the nodes' frame sockets, given by node name, and records each received frame once to ``path``.

    A port named ``~NAME`` gets a copy of every frame of the others. Frames received from it are dropped.
    """

    def __init__(self, ports: dict[str, socket.socket], path: Path) -> None:
        self.path, self.sides = path, tuple(ports)
        self._stopped = False
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        command = [sys.executable, "-m", "hil.wire.bridge_process", str(theirs.fileno()), str(path)]
        self._process = subprocess.Popen(
            command + [f"{name}={end.fileno()}" for name, end in ports.items()],
            pass_fds=[theirs.fileno(), *(end.fileno() for end in ports.values())],
            preexec_fn=die_with_parent,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id of the bridge."""
        return self._process.pid

    def counts(self) -> PlainCounts:
        """Counts now; the capture is flushed first. Raises CaptureError when the bridge's process is gone."""
        return self._ask(b"counts\n")

    def stop(self) -> PlainCounts | None:
        """End the bridge. Returns its last counts, or None if it had ended before. Safe to call twice."""
        if self._stopped:
            return None
        self._stopped = True
        try:
            return self._ask(b"stop\n")
        except CaptureError:
            return None
        finally:
            self._control.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ask(self, line: bytes) -> PlainCounts:
        try:
            self._control.sendall(line)
            data = b""
            while not data.endswith(b"\n"):
                part = self._control.recv(65536)
                if not part:
                    raise CaptureError("the bridge's process has ended")
                data += part
        except OSError as error:
            raise CaptureError(f"the bridge's process does not answer: {error}") from error
        answer: dict[str, Any] = json.loads(data)
        return PlainCounts(**answer)
