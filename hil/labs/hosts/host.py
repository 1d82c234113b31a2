"""A node that exists without the bench: a host reached by the user's own ssh, or this machine.

Its Python runs the agent from memory; the node needs Python 3.11 and its distribution's python3-pyverbs, and nothing
of ours is installed there or stays.
"""

import os
import signal
import socket
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from hil.agent.parcel import bootstrap, parcel
from hil.children import die_with_parent
from hil.errors import NodeDied, NodeError, SetupError
from hil.files import passing_folder
from hil.labs.channel import STRANGE, Channel
from hil.labs.console import console_tail
from hil.labs.hosts.file import NodeSection
from hil.labs.hosts.kinds import node_kind
from hil.labs.node import AgentNode, Record
from hil.progress import printable
from hil.waiting import wait_until

# An emulated host needs a minute to import the code.
READY_TIMEOUT_S = 240.0
END_TIMEOUT_S, LAST_WORDS_S = 5.0, 0.5
HEARTBEAT_S, HEARTBEAT_TIMEOUT_S = 2.0, 8.0
# An agent that hears nothing for so long ends itself: its host lost the way to us.
SILENCE_LIMIT_S = 30.0
# Of the 107 bytes of a socket's path (unix(7)) these are left beside our folder's name and ssh's: a digest of 40, and
# 17 while it is made (ssh_config(5), ControlPath).
LONGEST_PARENT = 107 - len("/hil-abcdefgh/") - 40 - 17


def python_command(node: NodeSection) -> list[str]:
    """How the agent is started on the node itself."""
    command = ["sudo", "-n"] if node.sudo else []
    command += ["ip", "netns", "exec", node.namespace] if node.namespace else []
    return [*command, node.python, "-B", "-I", "-c", bootstrap(SILENCE_LIMIT_S)]


class Host(AgentNode):
    """A running agent on a host. ``console`` keeps what ssh and the agent's own errors say.

    Made in the thread that lives longest: the kernel ends ssh with the thread that started it. Raises SetupError when
    the host cannot be reached or cannot run the agent.
    """

    def __init__(self, name: str, section: NodeSection, folder: Path, console: Path, record: Record) -> None:
        super().__init__()
        self.name, self.console, self._section = name, console, section
        self._kind = node_kind(section)
        self._until_stop = ExitStack()
        self._control = _control_folder(name, self._until_stop)
        ours, theirs = socket.socketpair()
        self._stream = ours
        try:
            with console.open("ab") as said:
                self._process = subprocess.Popen(
                    self._kind.command(section, python_command(section), folder, self._control),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=said,
                    preexec_fn=die_with_parent,
                    start_new_session=True,
                )
        except BaseException as error:
            ours.close()
            self._until_stop.close()
            if isinstance(error, SetupError):
                raise SetupError(f"node {name}: {error}") from error
            # A NUL in an argument is a ValueError, the home of an unknown user a RuntimeError.
            if isinstance(error, OSError | ValueError | RuntimeError | subprocess.SubprocessError):
                raise SetupError(f"node {name}: {explain(section, str(error))}") from error
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours, f"node {name}", lambda worker, event: record(name, worker, event), self.last_words)
        self._ending = threading.Event()
        self._workers_end = threading.Lock()
        # The code is larger than what the way to the node holds: it is handed over beside the wait for the answer.
        threading.Thread(target=self._hand_over, args=(ours,), daemon=True).start()
        # From the moment that it is ready, its agent ends where it hears nothing, whomever else we wait for.
        threading.Thread(target=self._watch, name=f"heartbeat {name}", daemon=True).start()

    def _hand_over(self, stream: socket.socket) -> None:
        try:
            stream.sendall(parcel())
        except OSError:
            # The channel's reader learns of it too, and has ssh's last words.
            pass

    def wait_ready(self) -> None:
        """Wait until the agent answers. Raises SetupError that says what ssh or the node's Python said."""

        def ready_or_gone() -> bool:
            return self.channel.ready.wait(0.1) or not self.alive()

        wait_until(ready_or_gone, READY_TIMEOUT_S, f"start of node {self.name}", strict=False, poll_s=0)
        if not self.channel.ready.is_set():
            heard = self.channel.strange()
            self.stop()
            said = f"{self.last_words()}; {heard}" if heard else self.last_words()
            raise SetupError(f"node {self.name}: {explain(self._section, said)}")

    def _watch(self) -> None:
        while not self.channel.ready.wait(HEARTBEAT_S):
            if self._ending.is_set():
                return
        while not self._ending.wait(HEARTBEAT_S):
            try:
                self.channel.call(0, "clock", HEARTBEAT_TIMEOUT_S, "heartbeat")
            except NodeError:
                # A call of clock that is not answered has told the channel that the node is gone.
                return

    def alive(self) -> bool:
        """Whether the way to the agent is open, as far as is known."""
        return self._process.poll() is None and self.channel.alive()

    def check_alive(self) -> None:
        if self._process.poll() is not None:
            raise NodeDied(f"node {self.name}: {self.last_words()}")
        self.channel.clock()

    def end_workers(self) -> None:
        """End every worker, so that the next test finds none. Raises NodeError."""
        with self._workers_end:
            self._system = None
            for worker in self.channel.workers():
                self.channel.kill(worker, signal.SIGKILL)
                self.channel.wait_exit(worker, END_TIMEOUT_S)

    def last_words(self) -> str:
        """How ssh ended, if it has, and what it said."""
        try:
            # Its stream ends a moment before it does.
            status: int | None = self._process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            status = None
        ended = f"its {self._kind.carrier} ended with {status}; " * (status is not None)
        return f"{ended}it said: {console_tail(self.console) or 'nothing'}"

    def stop(self) -> None:
        """End the agent and all it started, and the way to it."""
        self._ending.set()
        self.channel.close()
        self._stream.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._until_stop.close()


def _control_folder(name: str, until_stop: ExitStack) -> Path:
    """A folder for ssh's sockets, until then. Raises SetupError."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    # A socket's path has an end: where the user's own folder has a long name, ours is elsewhere.
    parents = [Path(named) if named else Path(tempfile.gettempdir()), Path("/tmp")]
    parent = next((parent for parent in parents if len(os.fsencode(parent)) <= LONGEST_PARENT), parents[0])
    try:
        return until_stop.enter_context(passing_folder("hil-", parent))
    except OSError as error:
        raise SetupError(f"node {name}: ssh's sockets have no place, is XDG_RUNTIME_DIR right? {error}") from error


_MENDS = (
    (STRANGE, "something prints there at each login, terminal or not: look into its ~/.bashrc"),
    ("Host key verification failed", "its key is not the known one; if that is right, take the new one: ssh-keyscan"),
    ("Permission denied", "no key of yours opens it; try: ssh-copy-id {host}, or name the key as identity"),
    ("Could not resolve hostname", "the name is not known; write [nodes.NAME] host, or ~/.ssh/config"),
    ("Connection refused", "nothing listens there; try: systemctl start ssh, on that host"),
    ("timed out", "it does not answer; is it on, and is the way open?"),
    ("No route to host", "it does not answer; is it on, and is the way open?"),
    ("'sudo'", "install sudo, or be root and leave sudo = true out"),
    ("sudo:", "sudo asks for a password; allow it without, or log in as root"),
    ("Python 3.11", "install a newer python3, or name it in [nodes.NAME] python"),
    ("Cannot open network namespace", "it is not there: ip netns add NAME, or set make_namespace = true"),
    ("not found", "a program is missing on the node; is [nodes.NAME] python right?"),
    ("No such file", "a program is missing on the node; is [nodes.NAME] python right?"),
)


def explain(section: NodeSection, said: str) -> str:
    """What a host's refusal means, and what mends it where that is known."""
    host = node_kind(section).called(section)
    advice = [mend.format(host=host) for sign, mend in _MENDS if sign in said]
    hint = f" ({advice[0]})" if advice else ""
    return f"{printable(host)} could not be made a node: {printable(said)}{hint}"
