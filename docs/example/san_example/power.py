"""Power control of hosts that are virtual machines on this machine: QEMU wrote its process id to a file.

In a lab file::

    [nodes.b.power]
    kind = "pidfile"
    pidfile = "/run/nic-b.pid"
    start = ["systemctl", "start", "nic-b"]
"""

import os
import signal
import subprocess
from pathlib import Path

import attrs

from hil.errors import NodeError
from hil.labs.hosts.file import PowerSection
from hil.labs.power import Power
from hil.labs.schema import Words

START_TIMEOUT_S = 60


@attrs.frozen(kw_only=True)
class PidfileSection(PowerSection):
    """``pidfile``: the file, relative to the lab file's folder. ``start``: the command that starts the machine anew."""

    pidfile: str
    start: Words


class PidfileKind:
    """What the entry point names: the bench calls it without arguments once."""

    schema = PidfileSection

    def connect(self, section: PidfileSection, node: str, folder: Path) -> Power:
        """Power control of ``node``; nothing is touched yet."""
        return Pidfile(section, node, folder)


class Pidfile:
    """Power control of one node, by signals to the process of its virtual machine."""

    def __init__(self, section: PidfileSection, node: str, folder: Path) -> None:
        self._section, self._node, self._folder = section, node, folder
        self._was_cut = False

    def halt(self) -> None:
        """Stop the process: the machine stands still and keeps its memory."""
        self._signal(signal.SIGSTOP)

    def cut(self) -> None:
        """Kill the process: the machine loses its memory."""
        self._signal(signal.SIGKILL)
        self._was_cut = True

    def resume(self) -> None:
        """Let a stopped process go on, or start the machine anew."""
        if not self._was_cut:
            self._signal(signal.SIGCONT)
            return
        try:
            subprocess.run(self._section.start, cwd=self._folder, check=True, timeout=START_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            raise NodeError(f"node {self._node} cannot be started: {error}") from error
        self._was_cut = False

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.kill(int((self._folder / self._section.pidfile).read_text()), number)
        except (OSError, ValueError) as error:
            raise NodeError(
                f"node {self._node}, {number.name} to the process in {self._section.pidfile}: {error}"
            ) from error
