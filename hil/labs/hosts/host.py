"""A node that exists without the bench: a host reached by the user's own ssh, or this machine.

The node's Python runs the agent from memory. The node needs Python 3.11 and its distribution's python3-pyverbs. The
bench installs nothing on it and leaves nothing behind.
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
# An agent that receives nothing for this long ends itself: its connection is lost.
SILENCE_LIMIT_S = 30.0
# A socket's path has 107 bytes (unix(7)). Our folder's name takes some of them. The name of ssh's socket takes a digest
# of 40, and 17 more while it is made (ssh_config(5), ControlPath).
LONGEST_PARENT = 107 - len("/hil-abcdefgh/") - 40 - 17


def python_command(node: NodeSection) -> list[str]:
    """The command that starts the agent on the node."""
    command = ["sudo", "-n"] if node.sudo else []
    command += ["ip", "netns", "exec", node.namespace] if node.namespace else []
    return [*command, node.python, "-B", "-I", "-c", bootstrap(SILENCE_LIMIT_S)]


class Host(AgentNode):
    """A running agent on a host. ``console`` is the file with the messages of ssh and the errors of the agent.

    It must be made in the thread that lives longest: the kernel ends ssh with the thread that started it. Raises
    SetupError when the host cannot be reached or cannot run the agent.
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
        # The code is larger than the buffers of the connection, so a thread sends it while this one waits.
        threading.Thread(target=self._hand_over, args=(ours,), daemon=True).start()
        # A ready agent ends unless it receives calls, so a thread calls it regularly.
        threading.Thread(target=self._watch, name=f"heartbeat {name}", daemon=True).start()

    def _hand_over(self, stream: socket.socket) -> None:
        try:
            stream.sendall(parcel())
        except OSError:
            # The channel's reader gets the same error, and reports ssh's last output with it.
            pass

    def wait_ready(self) -> None:
        """Wait until the agent answers. Raises SetupError with the output of ssh or of the node's Python."""

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
                # A call of clock without an answer makes the channel treat the node as dead.
                return

    def alive(self) -> bool:
        """Whether the connection to the agent is open, as far as is known."""
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
        """ssh's exit status, if it has ended, and its last output."""
        try:
            # The stream ends a moment before the process.
            status: int | None = self._process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            status = None
        ended = f"its {self._kind.carrier} ended with {status}; " * (status is not None)
        return f"{ended}it said: {console_tail(self.console) or 'nothing'}"

    def stop(self) -> None:
        """End the agent with its processes, and the connection."""
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
    """A folder for ssh's sockets, which ``until_stop`` removes. Raises SetupError."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    # A socket's path has a limited length. If the user's own folder has a long name, /tmp is used instead.
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
    """A message about a host that cannot be a node, with advice if there is any."""
    host = node_kind(section).called(section)
    advice = [mend.format(host=host) for sign, mend in _MENDS if sign in said]
    hint = f" ({advice[0]})" if advice else ""
    return f"{printable(host)} could not be made a node: {printable(said)}{hint}"
