"""A lab kept running for work by hand: its supervisor, and the supervisor's private folder and socket.

A request is a line of JSON, and so is its answer: ``{"do": "status"}``, ``{"do": "run", "node": ..., "command": ...}``,
``{"do": "down"}``. After ``{"do": "shell", ...}`` was answered, the connection carries a terminal's bytes.
"""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hil.agent.protocol import Message
from hil.errors import HilError, RemoteError, SetupError
from hil.interrupts import lose_none
from hil.labs.file import read_lab_file
from hil.labs.kinds import open_lab
from hil.labs.node import Node
from hil.labs.pair import Pair

MAX_REQUEST = 1 << 20
# The output of a program on a node comes in one line. At worst, every byte of it is escaped.
MAX_ANSWER = 1 << 28
CALL_TIMEOUT_S, RUN_TIMEOUT_S = 30.0, 30.0


def runtime_folder() -> Path:
    """The user's own folder for running labs. It is made if it is missing. Raises SetupError if it is not private."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(named) / "hil" if named else Path(f"/tmp/hil-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
        raise SetupError(f"{folder} is not a private folder of yours; remove it")
    return folder


def running() -> dict[str, Path]:
    """The running labs by name, each with its folder. Folders of supervisors that have ended are removed."""
    return {folder.name: folder for folder, runs in _known() if runs}


def labs() -> dict[str, Path]:
    """Like ``running``, but labs that are being made or ended are included."""
    return {folder.name: folder for folder, _ in _known()}


def killed() -> dict[Path, Path]:
    """The folders of labs on hosts whose supervisor was killed, each with its lab file.

    Such a lab may have left changes on its hosts. Call this before ``running`` and ``labs``, which remove the folders.
    """
    found = {}
    for folder in sorted(runtime_folder().iterdir()):
        # A supervisor that ended by itself has removed its file "pid", and has printed the changes it could not undo.
        if (folder / "pid").exists() and not lives(folder):
            # A lab of guests has no file "hosts": guests end with their supervisor.
            # Another command may remove the folder meanwhile.
            with suppress(OSError):
                found[folder] = Path(os.fsdecode((folder / "hosts").read_bytes()))
    return found


def _known() -> Iterator[tuple[Path, bool]]:
    for folder in sorted(runtime_folder().iterdir()):
        runs = answers(folder)
        if runs or lives(folder):
            yield folder, runs
        else:
            shutil.rmtree(folder, ignore_errors=True)


def answers(folder: Path) -> bool:
    """Whether the lab of ``folder`` runs."""
    try:
        ask(folder, {"do": "status"})
    except SetupError:
        return False
    return True


def end(folder: Path) -> None:
    """Ask a supervisor to end, even while it is making its lab. The supervisor removes its folder."""
    try:
        with connect(folder) as control:
            control.sendall(b'{"do": "down"}\n')
    except (SetupError, OSError):
        # The supervisor is still making its lab. SIGTERM ends it as "down" does.
        with suppress(OSError, ValueError):
            if lives(folder):
                os.kill(int((folder / "pid").read_text()), signal.SIGTERM)


def lives(folder: Path) -> bool:
    """Whether the supervisor of ``folder`` still runs. It may not be listening yet."""
    try:
        pid = int((folder / "pid").read_text())
        # Another process may have the same number by now. A zombie has an empty command line.
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def connect(folder: Path) -> socket.socket:
    """A connection to a supervisor. Raises SetupError when none answers."""
    control = socket.socket(socket.AF_UNIX)
    control.settimeout(CALL_TIMEOUT_S)
    try:
        control.connect(str(folder / "control"))
    except OSError as error:
        control.close()
        raise SetupError(f"no lab runs in {folder}: {error.strerror}") from error
    return control


def ask(folder: Path, request: dict[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
    """The supervisor's answer to a request. Raises SetupError when the supervisor has ended or refuses."""
    with connect(folder) as control:
        control.settimeout(timeout_s)
        return converse(control, request)


def converse(control: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    """One request and its answer on an open connection. Raises SetupError."""
    try:
        control.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(_line(control, MAX_ANSWER) or b"{}")
    except (OSError, ValueError) as error:
        raise SetupError(f"the lab's supervisor does not answer: {error}") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise SetupError(str(answer["error"] if isinstance(answer, dict) else answer))
    return answer


def _line(stream: socket.socket, most: int) -> bytes:
    """Read one line of at most ``most`` bytes. The bytes after it are left for the terminal. Raises OSError."""
    data = bytearray()
    while not data.endswith(b"\n"):
        waiting = stream.recv(1 << 16, socket.MSG_PEEK)
        if not waiting:
            break
        data += stream.recv(waiting.find(b"\n") + 1 or len(waiting))
        if len(data) > most:
            raise OSError(f"a line is longer than {most} bytes")
    return bytes(data)


class Supervisor:
    """Keeps one pair of a lab until a request ends it."""

    def __init__(self, file: Path, folder: Path) -> None:
        self._file, self._folder = file, folder
        self._terminals: dict[tuple[str, int], socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX)

    def serve(self) -> None:
        """Make the lab, answer until ``down`` or SIGTERM, take the lab apart. Raises HilError."""
        lab = open_lab(read_lab_file(self._file), self._file, self._folder)
        try:
            with lab.pair(self._folder / "pair") as pair:
                pair.observe(self._relay)
                self._since_ns = time.monotonic_ns()
                self._listener.bind(str(self._folder / "control"))
                self._listener.listen()
                self._answer_all(pair)
        finally:
            self._listener.close()
            # A further SIGTERM must not interrupt undoing the changes on hosts.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            lab.close()

    def _answer_all(self, pair: Pair) -> None:
        while True:
            control, _ = self._listener.accept()
            request = self._request(control)
            if request.get("do") == "down":
                control.close()
                return
            threading.Thread(target=self._answer, args=(control, request, pair), daemon=True).start()

    def _request(self, control: socket.socket) -> dict[str, Any]:
        try:
            control.settimeout(CALL_TIMEOUT_S)
            request = json.loads(_line(control, MAX_REQUEST))
        except (OSError, ValueError, RecursionError):
            return {}
        return request if isinstance(request, dict) else {}

    def _answer(self, control: socket.socket, request: dict[str, Any], pair: Pair) -> None:
        try:
            answer = self._act(control, request, pair)
        except (HilError, OSError, KeyError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with suppress(OSError):
            control.sendall(json.dumps(answer).encode() + b"\n")
        if request.get("do") == "shell" and "error" not in answer:
            self._type(control, request["node"], answer["worker"], pair)
        control.close()

    def _act(self, control: socket.socket, request: dict[str, Any], pair: Pair) -> dict[str, Any]:
        what = request.get("do")
        if what == "status":
            return self._status(pair)
        if what not in ("run", "shell"):
            raise SetupError(f"a supervisor cannot do {what!r}")
        nodes = pair.all_nodes()
        node = nodes.get(str(request.get("node")))
        if node is None:
            raise SetupError(f"there is no node {request.get('node')!r}; known are {', '.join(nodes)}")
        if what == "run":
            return self._run(node, request["command"])
        worker, _ = node.channel.spawn("terminal")
        self._terminals[node.name, worker] = control
        size = {name: int(request[name]) for name in ("rows", "columns")}
        node.channel.call(worker, "start", CALL_TIMEOUT_S, "terminal", term=str(request["term"]), **size)
        return {"worker": worker}

    def _run(self, node: Node, command: list[str]) -> dict[str, Any]:
        try:
            return dict(node.system("run", command=command, timeout_s=RUN_TIMEOUT_S))
        except RemoteError as error:
            if error.kind != "TimeoutExpired":
                raise
            what = f"{command[0]} did not end within {RUN_TIMEOUT_S:.0f} s and was killed"
            raise SetupError(f"{what}; run longer commands in a shell: hil lab shell {node.name}") from error

    def _status(self, pair: Pair) -> dict[str, Any]:
        nodes = {}
        for name, node in pair.all_nodes().items():
            try:
                node.check_alive()
                nodes[name] = "alive"
            except HilError as error:
                nodes[name] = str(error)
        for place in pair.places:
            addresses = ", ".join(ip for ip in (place.ipv4, place.ipv6) if ip)
            nodes[place.name] += f"; {place.device} on {place.netdev}, {addresses}"
        try:
            counts = pair.wire.counts()
            frames = counts.capture_error or f"{sum(counts.received.values())} frames in {pair.wire.path}"
        except HilError as error:
            frames = str(error)
        seconds = (time.monotonic_ns() - self._since_ns) // 10**9
        return {"lab": str(self._file), "pid": os.getpid(), "seconds": seconds, "nodes": nodes, "capture": frames}

    def _relay(self, node: str, worker: int, event: Message) -> None:
        """Forward a terminal's output to the command that shows it."""
        control = self._terminals.get((node, worker))
        if control is None:
            return
        with suppress(OSError):
            if event["kind"] == "output":
                control.sendall(event["data"])
            elif event["kind"] in ("ended", "exit"):
                control.shutdown(socket.SHUT_RDWR)

    def _type(self, control: socket.socket, name: str, worker: int, pair: Pair) -> None:
        """Forward typed input to the node until either side ends."""
        channel = pair.all_nodes()[name].channel
        control.settimeout(None)
        with suppress(OSError, HilError):
            while data := control.recv(1 << 16):
                channel.call(worker, "write", CALL_TIMEOUT_S, "terminal", data=data)
        self._terminals.pop((name, worker), None)
        with suppress(HilError):
            channel.kill(worker)


def main() -> None:
    """Run a supervisor. Arguments: the lab file, and the supervisor's folder, which is removed at the end."""
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lose_none(SystemExit, signal.SIGTERM)
    try:
        Supervisor(file, folder).serve()
    except SystemExit:
        # SIGTERM ends a lab as "down" does.
        pass
    except (HilError, OSError) as error:
        print(f"hil: error: {error}", file=sys.stderr, flush=True)
        # The command that waits for the lab reads the error from the folder. The next command removes the folder.
        (folder / "pid").unlink(missing_ok=True)
        sys.exit(2)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
