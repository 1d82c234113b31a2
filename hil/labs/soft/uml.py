"""A node that is a User-Mode Linux kernel: an ordinary process that boots to a working adapter in a second.

There is no snapshot: each node boots. Its frames go through a datagram socket, as those of a clone. Its agent is on a
serial line. Its root file system is that of the guest image, with compiled Python files added.
"""

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hil.agent.agent import UNDER_WAY
from hil.agent.parcel import code_key
from hil.cache import building, damage, in_use, keep_newest, seal, sweep
from hil.children import die_with_parent
from hil.errors import NodeDied, SetupError, SnapshotError
from hil.labs.console import console_tail, memory_kib
from hil.labs.findings import Finding
from hil.labs.node import Record
from hil.labs.soft.booting import wait_booted
from hil.labs.soft.cpio import CpioWriter
from hil.labs.soft.doctor import uml_kernel, uml_memory
from hil.labs.soft.file import Guest
from hil.labs.soft.image import INIT_BEGIN, Image, write_code
from hil.labs.soft.kinds import GuestKind
from hil.labs.soft.machine import Sockets, frame_sockets
from hil.labs.soft.memory import NO_MEMORY_FOLDER, memory_folder
from hil.labs.soft.node import SoftNode
from hil.labs.soft.umlkernel import Kernel, kernel_for
from hil.labs.soft.usernet import UserNet
from hil.progress import say, step

BOOT_TIMEOUT_S = 120.0
KEPT = 4
# The number of frames that the kernel may send or receive at once (Linux: Documentation/virt/uml, vector transports).
VECTOR_DEPTH = 64
# It runs like /init in a clone. HIL_COMPILE comes from the kernel's command line; then the node only compiles its code.
INIT = (
    INIT_BEGIN
    + """ip link set vec0 name eth0
[ ! -e /sys/class/net/vec1 ] || ip link set vec1 name eth1
ip link set lo up
ulimit -l unlimited
ulimit -n 65536
export PYTHONPATH=/hil-code:/hil-lib PYTHONUNBUFFERED=1 HOME=/tmp
cd /tmp
if [ -n "$HIL_COMPILE" ]; then
    HIL_COMPILES='import hil.agent.agent, hil.agent.worker as worker; worker.preload(); worker.compile_loaded()'
    mkdir /host && mount -t hostfs none /host && python3 -c "$HIL_COMPILES" \\
        && find /usr/lib /hil-code /hil-lib -name '*.pyc' -o -name __pycache__ | cpio -o -H newc > /host/compiled \\
        && touch /host/done
    poweroff -f
fi
exec python3 -m hil.agent.agent /dev/ttyS0
"""
)


@dataclass(frozen=True, slots=True)
class UmlGuest:
    """A kernel and the root file system of ``image`` as ``initrd``. Nodes of this kind boot both."""

    kind: ClassVar[str] = "uml"
    kernel: Kernel
    initrd: Path
    image: Image
    memory_mib: int

    def made_of(self) -> dict[str, object]:
        """The machine, for provenance."""
        kernel = f"User-Mode Linux {self.kernel.release}, from {self.kernel.source}"
        return {"suite": self.image.suite, "kernel": kernel, "memory_mib": self.memory_mib}


def uml_guest_for(image: Image, kernel: Kernel, cache: Path, memory_mib: int) -> UmlGuest:
    """The guest of ``image`` on ``kernel`` with the current node-side code. It is made if it is missing or outdated."""
    inputs = json.dumps([image.key, code_key(), INIT, kernel.program.parent.name])
    folder = cache / "uml" / f"{image.suite}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    sweep(folder.parent)
    if folder.is_dir() and (problem := damage(folder)) is not None:
        say(f"the cached root file system {folder.name} is damaged ({problem}): making it again")
        shutil.rmtree(folder)
    if not folder.is_dir():
        with step(f"making the root file system of {image.suite} nodes on User-Mode Linux {kernel.release}"):
            _make(image, kernel, folder, memory_mib)
        keep_newest(folder, KEPT)
    # The least recently used guests are removed first, so mark this one as used.
    os.utime(folder)
    in_use(folder)
    in_use(kernel.program.parent)
    return UmlGuest(kernel, folder / "initrd", image, memory_mib)


def _make(image: Image, kernel: Kernel, folder: Path, memory_mib: int) -> None:
    with building(folder.parent) as place:
        try:
            write_code(place / "code")
            with (place / "init").open("wb") as raw:
                cpio = CpioWriter(raw)
                cpio.add_file("uml-init", INIT.encode(), 0o755)
                cpio.close()
            work = place / "guest"
            work.mkdir()
            _join(work / "initrd", image.initrd, place / "code", kernel.modules, place / "init")
            compiled = _compiled(UmlGuest(kernel, work / "initrd", image, memory_mib), place)
            with (work / "initrd").open("ab") as joined:
                joined.write(compiled.read_bytes())
        except OSError as error:
            raise SnapshotError(f"the root file system could not be written to {folder.parent}: {error}") from error
        seal(work, folder, {})


def _join(out: Path, *parts: Path) -> None:
    with out.open("wb") as joined:
        for part in parts:
            joined.write(part.read_bytes())


def _compiled(guest: UmlGuest, place: Path) -> Path:
    """An archive of the Python files compiled at a node's start. Only the guest's own Python can compile them."""
    shared = place / "shared"
    shared.mkdir()
    machine = UmlMachine(guest, place / "console", f"hostfs={shared}", "HIL_COMPILE=yes")
    try:
        if not machine.wait(BOOT_TIMEOUT_S) or not (shared / "done").exists():
            raise SnapshotError(f"the node did not compile its code; {machine.last_words()}")
    finally:
        machine.stop()
    return shared / "compiled"


def next_core() -> int:
    """The core for the next machine. Machines use the cores in turn; each process of the bench starts at another core.

    A User-Mode Linux is one processor made of several processes that wake each other at every system call. Measured on
    two cores: a node that is kept on one core boots with 1.3 s of processor time instead of 2.5, and is provisioned in
    a fifth of the time.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[(os.getpid() + next(_turns)) % len(allowed)]


_turns = itertools.count()


def _alone_on(core: int) -> None:
    """In a child before exec: stay on one core, and be killed when the parent dies."""
    die_with_parent()
    os.sched_setaffinity(0, {core})


class UmlMachine:
    """A running User-Mode Linux. It leaves nothing behind: its processes are one group, its memory file has no name.

    ``mtu``: the largest MTU of its netdev in bytes. ``user_net``: the network of a second netdev. ``more``: further
    words for the kernel's command line.
    """

    def __init__(
        self, guest: UmlGuest, console: Path, *more: str, mtu: int = 1500, user_net: UserNet | None = None
    ) -> None:
        self.console = console
        ours, theirs = socket.socketpair()
        frames, their_frames = frame_sockets()
        # This machine has no monitor. Signals stop and continue its processes.
        self.sockets = Sockets(ours, frames, ours)
        memory = memory_folder()
        if memory is None:
            raise SetupError(NO_MEMORY_FOLDER)
        self.user_net, self._ended = user_net, False
        second = f"vec1:transport=bess,dst={user_net.frames},depth={VECTOR_DEPTH},gro=0" if user_net else ""
        out, into = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                [
                    str(guest.kernel.program),
                    f"mem={guest.memory_mib}M",
                    f"initrd={guest.initrd}",
                    "rdinit=/uml-init",
                    "con0=null,fd:1",
                    "con=null",
                    "ssl=null",
                    f"ssl0=fd:{theirs.fileno()},fd:{theirs.fileno()}",
                    f"vec0:transport=fd,fd={their_frames.fileno()},depth={VECTOR_DEPTH},gro=0,mtu={mtu}",
                    *([second] if second else []),
                    # seccomp is faster than ptrace if kernel and host have it. Older kernels ignore this option.
                    "seccomp=auto",
                    # The kernel would leave a folder for its control socket. In /proc it cannot make one.
                    "uml_dir=/proc/",
                    "umid=hil",
                    # Do not make netdevs that no test needs.
                    "bonding.max_bonds=0",
                    "dummy.numdummies=0",
                    "quiet",
                    "panic=-1",
                    *(more or ("hostfs=/proc/none",)),
                ],
                pass_fds=[theirs.fileno(), their_frames.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=into,
                stderr=into,
                env=os.environ
                | {"LD_PRELOAD": str(guest.kernel.preload), "HIL_KEEP_OPEN": str(their_frames.fileno())}
                | {"TMPDIR": str(memory)},
                preexec_fn=functools.partial(_alone_on, next_core()),
                start_new_session=True,
            )
        except BaseException:
            os.close(out)
            self.sockets.close()
            raise
        finally:
            os.close(into)
            theirs.close()
            their_frames.close()
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._keep_console, args=(out,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _keep_console(self, out: int) -> None:
        # A kernel blocks if its console output is not read. On a full disk the output is dropped.
        while data := os.read(out, 1 << 16):
            with suppress(OSError), self._lock, self.console.open("ab") as file:
                file.write(data)
        os.close(out)

    def move_console(self, console: Path) -> None:
        """Write the further console output to another file."""
        with self._lock:
            self.console = console

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> bool:
        """Wait until the machine ends by itself. Returns whether it has ended."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def freeze(self) -> None:
        """Stop the machine until ``thaw``. Its clock, which is this machine's, continues. Raises NodeDied."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen machine continue. Raises NodeDied."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if not self.alive():
            raise NodeDied(f"the machine is gone: {self.last_words()}")
        os.killpg(self.pid, number)

    def memory_kib(self) -> dict[str, int]:
        """Resident and private memory of the machine's kernel in KiB. It holds the whole memory of the node."""
        return memory_kib(self.pid)

    def last_words(self) -> str:
        """The exit status, if the machine has ended, and the last lines of the console."""
        ended = "" if self.alive() else f"User-Mode Linux ended with {self._process.returncode}; "
        return f"{ended}console ends: {console_tail(self.console) or 'nothing'}"

    def stop(self) -> None:
        """End every process of the machine and close every descriptor. Safe to call twice."""
        if self._ended:
            return
        # After the end, the process id may belong to another process.
        self._ended = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        self.sockets.close()
        if self.user_net is not None:
            self.user_net.stop()


class UmlNode(SoftNode):
    """A running User-Mode Linux with its agent."""

    def __init__(
        self,
        name: str,
        guest: UmlGuest,
        console: Path,
        on_event: Record,
        mtu: int = 1500,
        user_net: UserNet | None = None,
    ) -> None:
        super().__init__(name, UmlMachine(guest, console, mtu=mtu, user_net=user_net), on_event, UNDER_WAY)

    def wait_ready(self) -> None:
        """Wait until the node has booted. Messages sent before are lost. Raises NodeDied and PhaseTimeout."""
        wait_booted(f"node {self.name}", self.machine, self.channel, BOOT_TIMEOUT_S)


class UmlKind:
    """The kind of guest that is a User-Mode Linux process."""

    schema = Guest
    noun = "User-Mode Linux"
    own_kernel = False
    waits = True

    def prepare(self, guest: Guest, image: Image, cache: Path, *, second_net: bool) -> UmlGuest:
        return uml_guest_for(image, kernel_for(guest.kernel, cache), cache, guest.memory_mib)

    def start(self, name: str, made_from: Any, console: Path, record: Record, mtu: int) -> SoftNode:
        return UmlNode(name, made_from, console, record, mtu)

    def examine(self, guest: Guest, count: int) -> Iterator[Finding]:
        yield uml_kernel(guest)
        yield uml_memory(count, guest.memory_mib)

    def made_with(self) -> dict[str, Any]:
        return {}


UML: GuestKind = UmlKind()
