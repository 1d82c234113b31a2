"""Power control of hosts by commands: programs that switch a socket, a BMC or a virtual machine."""

# RUF009: the defaults are a NewType and a frozen section, and neither can change.
# ruff: noqa: RUF009

import subprocess
from pathlib import Path

import attrs

from hil.errors import NodeError
from hil.labs.hosts.file import PowerSection
from hil.labs.hosts.kinds import PowerKind
from hil.labs.power import Power
from hil.labs.schema import Seconds, Words
from hil.progress import printable


@attrs.frozen(kw_only=True)
class CommandPowerSection(PowerSection):
    """``kind = "command"``: each key is a command for this machine, a list of a program and its arguments.

    ``halt`` stops the machine, ``cut`` cuts its power, and ``resume`` makes it run again after either.
    ``timeout_s``: how many seconds each may take.
    """

    halt: Words
    cut: Words
    resume: Words
    timeout_s: Seconds = Seconds(60)


class CommandPowerKind:
    """Power control by commands, run in the lab file's folder."""

    schema = CommandPowerSection

    def connect(self, section: CommandPowerSection, node: str, folder: Path) -> Power:
        return CommandPower(section, node, folder)


class CommandPower:
    """Power control of one node."""

    def __init__(self, section: CommandPowerSection, node: str, folder: Path) -> None:
        self._section, self._node, self._folder = section, node, folder

    def halt(self) -> None:
        self._run("halt", self._section.halt)

    def cut(self) -> None:
        self._run("cut", self._section.cut)

    def resume(self) -> None:
        self._run("resume", self._section.resume)

    def _run(self, what: str, command: Words) -> None:
        where = f"power control of node {self._node}, {what}: {command[0]}"
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=self._folder,
                timeout=self._section.timeout_s,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise NodeError(f"{where}: {error}") from error
        if done.returncode != 0:
            raise NodeError(f"{where} ended with {done.returncode}: {printable(done.stdout.strip()[-300:])}")


COMMAND: PowerKind = CommandPowerKind()
