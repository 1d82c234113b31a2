"""One QEMU machine: its command line, process and monitor. QEMU gets its sockets as open descriptors.

No socket has a name on disk, and the kernel kills QEMU when the bench dies (PR_SET_PDEATHSIG). So even kill -9 of the
bench leaves nothing behind.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp.legacy import QEMUMonitorProtocol

from hil.children import die_with_parent
from hil.errors import NodeError, SetupError
from hil.labs.console import console_tail, memory_kib

PORT_NAME = "hil"
QMP_TIMEOUT_S = 20.0
# The CPU with the fewest features. With "max", five-level page tables and similar features made a warm test take 1.7
# times as long under TCG. cmpxchg16b is off: after it QEMU 7.2 sometimes leaves wrong flags, and the kernel dies of a
# double fault.
EMULATED_CPU = "qemu64,cx16=off"
# QEMU's user networking gives the first guest of each of its networks this address (qemu-doc, "-netdev user").
GUEST_ADDRESS = "10.0.2.15"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware that a snapshot and its clones must have in common.

    ``user_net``: a second netdev on a network of QEMU's own. Only a port on the bench's loopback leads into it.
    """

    kernel: Path
    initrd: Path
    memory_mib: int
    accelerator: str
    user_net: bool = False


@dataclass(slots=True)
class Sockets:
    """Our ends of a machine's sockets. ``agent`` is a byte stream; each datagram of ``frames`` is an Ethernet frame."""

    agent: socket.socket
    frames: socket.socket
    monitor: socket.socket

    def close(self) -> None:
        for end in (self.agent, self.frames, self.monitor):
            end.close()


def qemu_program() -> str:
    """Path of the QEMU program. Raises SetupError."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise SetupError("qemu-system-x86_64 is missing; install it with: apt-get install qemu-system-x86")
    return program


def qemu_version() -> str:
    """The first line of ``--version``."""
    done = subprocess.run([qemu_program(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def command_line(
    hardware: Hardware,
    ram: Path,
    console: Path,
    agent: int,
    frames: int,
    monitor: int,
    *,
    share: bool,
    incoming: bool,
    ssh_port: int = 0,
) -> list[str]:
    """QEMU's arguments, without the program. ``agent``, ``frames`` and ``monitor`` are descriptors.

    ``ssh_port``: the port on 127.0.0.1 that leads to the guest's port 22, with ``user_net``.
    """
    size = f"{hardware.memory_mib}M"
    on = "on" if share else "off"
    cpu = "host" if hardware.accelerator == "kvm" else EMULATED_CPU
    command = ["-accel", hardware.accelerator, "-cpu", cpu, "-smp", "1", "-m", size]
    command += ["-object", f"memory-backend-file,id=m0,size={size},mem-path={ram},share={on}"]
    command += [
        "-M",
        "q35,memory-backend=m0",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]
    command += ["-kernel", str(hardware.kernel), "-initrd", str(hardware.initrd)]
    command += ["-append", "console=ttyS0 quiet mitigations=off rdinit=/init panic=-1 oops=panic"]
    command += [
        "-chardev",
        f"file,id=console,path={console},append=on",
        "-serial",
        "chardev:console",
    ]
    command += ["-chardev", f"socket,id=agent,fd={agent}", "-device", "virtio-serial-pci"]
    command += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    command += ["-netdev", f"dgram,id=net0,local.type=fd,local.str={frames}"]
    command += [
        "-device",
        "virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:00:00:01,guest_announce=off,ctrl_rx=off,ctrl_rx_extra=off,romfile=",
    ]
    if hardware.user_net:
        forward = f",hostfwd=tcp:127.0.0.1:{ssh_port}-{GUEST_ADDRESS}:22" * bool(ssh_port)
        command += ["-netdev", f"user,id=net1,restrict=on,ipv6=off{forward}"]
        command += ["-device", "virtio-net-pci,netdev=net1,id=nic1,mac=52:54:00:00:02:01,guest_announce=off,romfile="]
    command += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]
    return command + (["-incoming", "defer"] if incoming else [])


def frame_sockets() -> tuple[socket.socket, socket.socket]:
    """Two joined sockets for Ethernet frames. Each datagram is one frame."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return pair


class Machine:
    """A running QEMU. ``ram`` is the file behind its memory: shared while a snapshot is made, private in clones.

    ``frames``: QEMU's own end of the datagram socket for its frames, to join two machines without a wire. By default a
    new pair of sockets is made, and ``sockets`` has the other end.
    """

    def __init__(
        self,
        hardware: Hardware,
        ram: Path,
        console: Path,
        *,
        share: bool,
        incoming: bool,
        ssh_port: int = 0,
        frames: socket.socket | None = None,
    ) -> None:
        self.console = console
        pairs = [socket.socketpair() for _ in range(3)]
        pairs[1][0].close()
        pairs[1][1].close()
        pairs[1] = frame_sockets() if frames is None else (frames, frames.dup())
        self.sockets = Sockets(*(ours for ours, _ in pairs))
        theirs = [end.fileno() for _, end in pairs]
        command = command_line(hardware, ram, console, *theirs, share=share, incoming=incoming, ssh_port=ssh_port)
        try:
            self._process = subprocess.Popen(
                [qemu_program(), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=theirs,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        finally:
            for _, end in pairs:
                end.close()
        self._lock = threading.Lock()
        self._monitor: QEMUMonitorProtocol | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Run one monitor command. Raises NodeError when QEMU is gone or refuses."""
        with self._lock:
            try:
                if self._monitor is None:
                    self._monitor = QEMUMonitorProtocol(self.sockets.monitor)
                    self._monitor.settimeout(QMP_TIMEOUT_S)
                    self._monitor.connect()
                return self._monitor.cmd(command, **arguments)
            except KeyboardInterrupt:
                # The command's task remains and fails when QEMU ends. No caller needs that error.
                asyncio.get_event_loop().set_exception_handler(lambda *_: None)
                raise
            except Exception as error:
                raise NodeError(f"QEMU's monitor failed at {command}: {error}; {self.last_words()}") from error

    def freeze(self) -> None:
        """Stop the machine and its clock until ``thaw``. Raises NodeError."""
        self.monitor("stop")

    def thaw(self) -> None:
        """Let a frozen machine continue. Raises NodeError."""
        self.monitor("cont")

    def move_console(self, console: Path) -> None:
        """Write the further console output to another file. Raises NodeError."""
        backend = {"type": "file", "data": {"out": str(console), "append": True}}
        self.monitor("chardev-change", id="console", backend=backend)
        self.console = console

    def alive(self) -> bool:
        return self._process.poll() is None

    def memory_kib(self) -> dict[str, int]:
        """Resident and private memory of this machine's process in KiB."""
        return memory_kib(self.pid)

    def last_words(self) -> str:
        """QEMU's own message if it has ended, and the last lines of the console."""
        words = []
        if not self.alive() and self._process.stderr and not self._process.stderr.closed:
            message = self._process.stderr.read().decode(errors="replace").strip()
            words.append(f"QEMU ended with {self._process.returncode}: {message or 'no message'}")
        lines = console_tail(self.console)
        return "; ".join([*words, f"console ends: {lines or 'nothing'}"])

    def stop(self) -> None:
        """End QEMU and close every descriptor. Safe to call twice."""
        if self._monitor is not None:
            with self._lock:
                monitor, self._monitor = self._monitor, None
                self._process.kill()
                try:
                    monitor.close()
                except Exception:
                    pass
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()
        self.sockets.close()


def fresh_file(path: Path, size: int) -> None:
    """Make a sparse file of ``size`` bytes."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
