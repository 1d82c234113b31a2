"""Hosts as the user's own ssh reaches them."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from hil.errors import SetupError
from hil.labs.findings import Finding, program
from hil.labs.hosts.file import SshNode
from hil.labs.hosts.kinds import NodeKind

CONNECT_TIMEOUT_S = 20
# Override options of the user's configuration that would print to the stream or replace the agent's command.
ONLY_THE_AGENT = ("-o", "RemoteCommand=none", "-o", "PermitLocalCommand=no", "-o", "ClearAllForwardings=yes")
# ssh notices a dead network after three unanswered messages (ssh_config(5), ServerAliveInterval).
ALIVE = ("-o", "ServerAliveInterval=2", "-o", "ServerAliveCountMax=3", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}")


class SshKind:
    """The kind of node that is reached by ssh without a password prompt."""

    schema = SshNode
    carrier = "ssh"
    here = False

    def command(self, section: SshNode, agent: Sequence[str], folder: Path, control: Path) -> list[str]:
        ssh = ssh_command(section, folder, None if _is_open(section, folder) else control)
        return [ssh[0], "-T", "-o", "BatchMode=yes", *ssh[1:], shlex.join(agent)]

    def called(self, section: SshNode) -> str:
        return section.host

    def where(self, section: SshNode) -> str:
        return f"ssh {section.host}"

    def machine(self, section: SshNode) -> tuple[str, ...]:
        return section.host, str(section.port), section.config

    def examine(self, section: SshNode) -> Iterator[Finding]:
        yield program("ssh", "openssh-client", "no host can be reached")


def ssh_command(node: SshNode, folder: Path, control: Path | None = None) -> list[str]:
    """The ssh command up to the host's name. Paths are relative to ``folder``; ``control`` is a folder for sockets."""
    program = shutil.which("ssh")
    if program is None:
        raise SetupError("ssh is missing; install it with: apt-get install openssh-client")
    command = [program, *ALIVE, *ONLY_THE_AGENT]
    if control is not None:
        path = _literal(control, "/%C")
        command += ["-o", "ControlMaster=auto", "-o", f"ControlPath={path}", "-o", "ControlPersist=no"]
    else:
        command += ["-o", "ControlMaster=no"]
    if node.config:
        command += ["-F", str(folder / Path(node.config).expanduser())]
    if node.identity:
        command += ["-o", f"IdentityFile={_literal(folder / Path(node.identity).expanduser())}"]
        command += ["-o", "IdentitiesOnly=yes"]
    if node.known_hosts:
        command += ["-o", f"UserKnownHostsFile={_literal(folder / Path(node.known_hosts).expanduser())}"]
        command += ["-o", "GlobalKnownHostsFile=/dev/null"]
    command += ["-p", str(node.port)] if node.port else []
    command += ["-l", node.user] if node.user else []
    return [*command, "--", node.host]


def _is_open(node: SshNode, folder: Path) -> bool:
    """Whether the user has an open connection that can be shared. It may be the only way in (ssh(1), -O)."""
    command = ssh_command(node, folder)
    asked = [*command[:-2], "-O", "check", *command[-2:]]
    try:
        done = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        # The later use of ssh reports the error.
        return False
    return done.returncode == 0


def _literal(path: Path, expanded: str = "") -> str:
    """A path as a value of ssh_config(5). It is quoted because of blanks, and escaped so that ssh expands only the
    suffix ``expanded``."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + expanded + '"'


SSH: NodeKind = SshKind()
