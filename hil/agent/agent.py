"""The agent on a node: routes frames between the controller and worker processes.

The agent makes no call that could block. Every job runs in a worker, which is forked from the agent and shares its
imports. So the agent answers the clock and notices a worker's death at once, and workers can be killed at any time.
"""

import contextlib
import ctypes
import gc
import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hil.agent.protocol import FrameBuffer, Message, decode, encode

AGENT = 0
READ_SIZE = 1 << 18
# A terminal line of the kernel holds 4096 bytes (n_tty, N_TTY_BUF_SIZE). All bytes on their way must fit into it.
TOLD_EVERY, UNDER_WAY = 1024, 3072
PR_SET_PDEATHSIG = 1
MCL_FUTURE = 2
MODULES_FOLDER = "/hil-uml-modules"
# System call number of x86-64 (Linux: arch/x86/entry/syscalls/syscall_64.tbl).
SYS_FINIT_MODULE = 313
# A host without memory kills workers first, so that the agent can report it (proc(5), oom_score_adj).
WORKER_OOM_SCORE = "500"


@dataclass(slots=True)
class _Worker:
    number: int
    pid: int
    sock: socket.socket
    frames: FrameBuffer = field(default_factory=FrameBuffer)


class Agent:
    """Serve one byte stream until it ends. It has a descriptor to read from, and maybe another to write to.

    With ``silence_limit_s`` the agent also ends when the controller sent nothing, or took nothing, for so many seconds.
    It has no other sign of a broken network. With ``told_every`` it reports the received bytes to the controller after
    each ``told_every`` bytes, because a serial line has no flow control.
    """

    def __init__(
        self,
        stream_fd: int,
        out_fd: int | None = None,
        silence_limit_s: float | None = None,
        told_every: int = 0,
    ) -> None:
        self._fd = stream_fd
        self._out = stream_fd if out_fd is None else out_fd
        self._silence_limit_s = silence_limit_s
        self._told_every, self._came, self._told = told_every, 0, 0
        self._frames = FrameBuffer()
        self._workers: dict[int, _Worker] = {}
        self._next_worker = 1
        self._selector = selectors.DefaultSelector()
        self._selector.register(stream_fd, selectors.EVENT_READ, None)

    def serve(self) -> None:
        self._send({"from": AGENT, "event": {"kind": "agent ready", "t_ns": time.monotonic_ns()}})
        heard_ns = time.monotonic_ns()
        while True:
            for key, _ in self._selector.select(self._silence_limit_s):
                if key.data is None:
                    if not self._read_controller():
                        return
                    heard_ns = time.monotonic_ns()
                elif key.data.number in self._workers:
                    self._read_worker(key.data)
            if self._silence_limit_s and time.monotonic_ns() - heard_ns > self._silence_limit_s * 1e9:
                return

    def end_workers(self) -> None:
        """End every worker, and wait until it has."""
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        self._workers.clear()

    def _read_controller(self) -> bool:
        data = os.read(self._fd, READ_SIZE)
        self._came += len(data)
        if self._told_every and self._came - self._told >= self._told_every:
            self._told = self._came
            self._send({"from": AGENT, "came": self._came})
        for body in self._frames.feed(data):
            message = decode(body)
            target = message.get("to", AGENT)
            if target == AGENT:
                self._answer(message)
            elif target in self._workers:
                try:
                    self._workers[target].sock.sendall(encode(message))
                except OSError as error:
                    # The worker has died and is not yet reaped. Its caller must get an error, and the agent must go on.
                    self._fail(message, "LookupError", f"worker {target} is gone: {error}")
            else:
                self._fail(message, "LookupError", f"worker {target} is not there")
        return bool(data)

    def _answer(self, message: Message) -> None:
        call = message.get("call")
        if call == "clock":
            value: object = time.monotonic_ns()
        elif call == "spawn":
            value = self._spawn(str(message["args"]["role"]), str(message["args"].get("jitter", "")))
        elif call == "kill":
            value = self._kill(message["args"]["worker"], message["args"].get("signal", signal.SIGKILL))
        else:
            self._fail(message, "LookupError", f"the agent has no call {call!r}")
            return
        self._send({"from": AGENT, "id": message["id"], "value": value})

    def _fail(self, message: Message, kind: str, text: str) -> None:
        error = {"kind": kind, "text": text, "traceback": ""}
        self._send({"from": message.get("to", AGENT), "id": message.get("id"), "error": error})

    def _spawn(self, role: str, seed: str) -> dict[str, int]:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become_worker(ours, theirs, role, seed)
        theirs.close()
        worker = _Worker(self._next_worker, pid, ours)
        self._next_worker += 1
        self._workers[worker.number] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return {"worker": worker.number, "pid": pid}

    def _become_worker(self, ours: socket.socket, theirs: socket.socket, role: str, seed: str) -> None:
        status = 1
        try:
            # A hanging worker must not outlive the agent.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            Path("/proc/self/oom_score_adj").write_text(WORKER_OOM_SCORE)
            ours.close()
            self._selector.close()
            for fd in {self._fd, self._out}:
                os.close(fd)
            for sibling in self._workers.values():
                sibling.sock.close()
            from hil import jitter
            from hil.agent.worker import work

            jitter.start(seed)
            work(theirs, role)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _kill(self, number: int, signal_number: int) -> bool:
        worker = self._workers.get(number)
        if worker is None:
            return False
        try:
            os.kill(worker.pid, signal_number)
        except ProcessLookupError:
            return False
        return True

    def _read_worker(self, worker: _Worker) -> None:
        try:
            data = worker.sock.recv(READ_SIZE)
        except ConnectionError:
            data = b""
        for body in worker.frames.feed(data):
            self._send(decode(body) | {"from": worker.number})
        if not data:
            self._reap(worker)

    def _reap(self, worker: _Worker) -> None:
        self._selector.unregister(worker.sock)
        worker.sock.close()
        del self._workers[worker.number]
        # A worker that closed its socket without ending is useless.
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _, status = os.waitpid(worker.pid, 0)
        ended = {"exit": os.waitstatus_to_exitcode(status), "t_ns": time.monotonic_ns()}
        self._send({"from": worker.number} | ended)

    def _send(self, message: Message) -> None:
        data = memoryview(encode(message))
        while data:
            data = data[self._write(data) :]

    def _write(self, data: memoryview) -> int:
        if self._silence_limit_s is None:
            return os.write(self._out, data)
        if not select.select([], [self._out], [], self._silence_limit_s)[1]:
            sys.exit(1)
        # A descriptor that polls writable takes this many bytes without blocking.
        return os.write(self._out, data[: select.PIPE_BUF])


def find_port(name: str) -> Path:
    """The device of the virtio-serial port called ``name``. Raises FileNotFoundError."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return Path("/dev") / entry.name
    raise FileNotFoundError(f"no virtio-serial port is called {name!r}")


@contextlib.contextmanager
def populated() -> Iterator[None]:
    """Populate memory that is mapped inside the context, instead of on first touch.

    In User-Mode Linux a first touch costs 18 us, and loading Python code touches thousands of pages.
    """
    libc = ctypes.CDLL(None)
    libc.mlockall(MCL_FUTURE)
    try:
        yield
    finally:
        libc.munlockall()


def load_modules(folder: Path) -> None:
    """Load the kernel modules in ``folder`` in the order of its file ``order``. Raises OSError.

    One program for each module would take longer than the rest of a boot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for module in (folder / "order").read_text().split():
        with (folder / f"{module}.ko").open("rb") as file:
            if libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0):
                raise OSError(ctypes.get_errno(), f"module {module} does not load")


def open_serial(path: str) -> int:
    """Open a serial line that carries every byte unchanged."""
    line = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    return line


def main() -> None:
    """Entry point in a guest: import the workers' modules once, then serve the port or serial line named in argv."""
    import hil.agent.worker

    name = sys.argv[1]
    serial = name.startswith("/dev/")
    with populated() if serial else contextlib.nullcontext():
        hil.agent.worker.preload()
    # Objects of now live as long as the agent.
    # Garbage collections in workers need not visit them and so copy their pages.
    gc.collect()
    gc.freeze()
    if serial:
        load_modules(Path(MODULES_FOLDER))
        Agent(open_serial(name), told_every=TOLD_EVERY).serve()
    else:
        Agent(os.open(find_port(name), os.O_RDWR)).serve()


def serve_host(silence_limit_s: float) -> None:
    """Entry point on a host: serve standard input and output. No other code may write to them from now on."""
    import hil.agent.worker
    from hil.provider.tokens import forget_orphans

    stream, out, nothing = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    hil.agent.worker.preload_present()
    agent = Agent(stream, out, silence_limit_s)
    try:
        agent.serve()
    finally:
        # Sockets that were handed over and never taken leave token files.
        agent.end_workers()
        forget_orphans()


if __name__ == "__main__":
    main()
