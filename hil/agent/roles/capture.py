"""Calls of the ``capture`` role on a node: record a netdev's frames, and return them piece by piece.

Nothing is written to the node's disk. A piece is a series of records, each ``RECORD`` and the frame's bytes. From a
program a piece is a part of its standard output.
"""

import contextlib
import ctypes
import glob
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECORD = struct.Struct(">QIB")
"""The time (CLOCK_REALTIME, ns), the number of bytes that follow, and whether the node sent them."""
PIECE = 4 << 20
MAX_FRAME = 1 << 17
STOP_TIMEOUT_S, LAST_FRAMES_S = 10.0, 5.0
# libpcap delivers frames in blocks, a partly filled block after this time.
# Frames in a block at the program's end are lost without a report.
BLOCK_S = 0.6
CLOCK_READINGS = 7
# The part of free memory that a recording may use.
# A recording that is never collected must not stop the node or its programs.
KEPT_PART = 4
NETDEVS, DEVICES = Path("/sys/class/net"), Path("/sys/class/infiniband")
# An adapter's counters of incoming frames that no socket got (the kernel's sysfs-class-net-statistics).
# rx_dropped is left out: it also counts frames that the kernel has no use for.
LOST_BY_ADAPTER = ("rx_missed_errors", "rx_over_errors", "rx_fifo_errors", "rx_crc_errors", "rx_frame_errors")
# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h
ETH_P_ALL, SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_AUXDATA = 3, 263, 1, 6, 8
PACKET_MR_PROMISC, PACKET_OUTGOING, TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1, 4, 0x10, 0x40
SO_TIMESTAMPNS, SO_RCVBUFFORCE, SO_ATTACH_FILTER = 35, 33, 26
_AUXDATA = struct.Struct("=IIIHHHH")
_TIMESPEC = struct.Struct("=qq")
# TCP carries the recording to the controller. Recording TCP as well would make each piece larger than the last.
NO_TCP = "not (tcp or (vlan and tcp))"
# The same filter for the kernel: code, jump if true, jump if false, constant (linux/bpf_common.h).
# X is the length of a VLAN tag.
_NO_TCP = (
    (0x01, 0, 0, 0),  # ldx #0
    (0x28, 0, 0, 12),  # ldh EtherType
    (0x15, 1, 0, 0x8100),  # a VLAN tag
    (0x15, 0, 2, 0x88A8),
    (0x01, 0, 0, 4),  # ldx #4
    (0x28, 0, 0, 16),  # ldh EtherType behind the tag
    (0x15, 0, 2, 0x0800),
    (0x50, 0, 0, 23),  # ldb [x + IPv4's protocol]
    (0x05, 0, 0, 2),
    (0x15, 0, 3, 0x86DD),
    (0x50, 0, 0, 20),  # ldb [x + IPv6's next header]
    (0x15, 0, 1, 6),
    (0x06, 0, 0, 0),  # TCP: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # any other frame: keep all of it
)


def leave_tcp_out(of: socket.socket) -> None:
    """Filter TCP, tagged or not, out of a socket of Ethernet frames. Raises OSError."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _NO_TCP))
    of.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(_NO_TCP), ctypes.addressof(code)))


class Kept:
    """At most ``most`` bytes that wait for collection. Any thread may call."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self.written = 0

    def add(self, data: bytes) -> str:
        """Keep ``data`` as well. Returns the reason why no more data may come, or "" while it may."""
        with self._lock:
            self._waiting += data
            self.written += len(data)
            return too_much(len(self._waiting)) if len(self._waiting) > self._most else ""

    def piece(self, most: int) -> bytes:
        """Take the next bytes, at most ``most`` of them."""
        with self._lock:
            taken = bytes(self._waiting[:most])
            del self._waiting[:most]
        return taken


class PacketSocket:
    """Records one netdev's frames by an AF_PACKET socket with a kernel buffer of ``buffer`` bytes.

    It ends once it keeps ``most`` bytes. ``everything``: record TCP too. ``problem`` says why it ended before ``stop``.
    Raises OSError without CAP_NET_RAW.
    """

    def __init__(self, netdev: str, buffer: int, most: int, *, everything: bool = True) -> None:
        self._kept = Kept(most)
        self.piece = self._kept.piece
        # A socket of protocol 0 gets no frame before it is bound, so none of another netdev.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        if not everything:
            leave_tcp_out(self._socket)
        self._socket.bind((netdev, ETH_P_ALL))
        membership = struct.pack("=iHH8s", socket.if_nametoindex(netdev), PACKET_MR_PROMISC, 0, b"")
        self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
        self._lock = threading.Lock()
        self.frames = self._seen = self._drops = 0
        self.problem = ""
        self._ending = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._ending.is_set():
            if select.select([self._socket], [], [], 0.1)[0]:
                self._take()
        # Frames in the kernel's buffer by then are recorded. Later frames are not waited for.
        had, end_ns = self.counts()["seen"], time.monotonic_ns() + int(LAST_FRAMES_S * 1e9)
        while not self.problem and self.frames + self._drops < had:
            if time.monotonic_ns() > end_ns:
                self.problem = f"{had - self.frames - self._drops} frames were not read in {LAST_FRAMES_S} s"
            elif select.select([self._socket], [], [], 0.1)[0]:
                self._take()

    def _take(self) -> None:
        try:
            data, ancillary, _, address = self._socket.recvmsg(MAX_FRAME, 256)
        except OSError as error:
            self.problem = f"the capture broke: {error}"
            self._ending.set()
            return
        stamp_ns, data = with_ancillary(data, ancillary)
        self.problem = self._kept.add(RECORD.pack(stamp_ns, len(data), address[2] == PACKET_OUTGOING) + data)
        # A frame is counted when it is kept, so a piece taken after a count has every counted frame.
        self.frames += 1
        if self.problem:
            self._ending.set()

    def counts(self) -> dict[str, int]:
        """The number of frames the kernel had for the socket, of dropped frames, of frames read, and of bytes read."""
        with self._lock:
            # The kernel restarts its counters from 0 after each answer.
            seen, drops = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self._seen, self._drops = self._seen + seen, self._drops + drops
            return {"seen": self._seen, "drops": self._drops, "frames": self.frames, "written": self._kept.written}

    def said(self) -> str:
        return ""

    def stop(self) -> None:
        """End the recording. ``problem`` then says what went wrong."""
        self._ending.set()
        self._reader.join()


def free_memory() -> int:
    """The memory that programs can take without swapping, in bytes (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10


def too_much(kept: int) -> str:
    """The reason why a recording that keeps ``kept`` bytes ends."""
    return f"{kept >> 20} MiB waited to be taken, and the node has no memory for more"


def with_ancillary(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> tuple[int, bytes]:
    """The kernel's time stamp, and the frame with the VLAN tag that the kernel removed."""
    stamp_ns = 0
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            stamp_ns = seconds * 10**9 + nanoseconds
        elif (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tag, protocol = _AUXDATA.unpack_from(value)
            if status & TP_STATUS_VLAN_VALID:
                protocol = protocol if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                data = data[:12] + struct.pack(">HH", protocol, tag) + data[12:]
    return stamp_ns, data


class Program:
    """Keeps the standard output of dumpcap or tcpdump until it is collected.

    It ends once it keeps ``most`` bytes. ``problem`` says why it ended before ``stop``, or with which status. Raises
    FileNotFoundError when the node has no such program.
    """

    # The program ends with this process: its shell's standard input is then closed.
    # The shell closes its own copy of the program's output, so that this process sees the output's end.
    _SHELL = '"$@" & child=$!; exec > /dev/null; cat; kill -TERM $child 2> /dev/null; wait $child'

    def __init__(self, command: list[str], most: int) -> None:
        self._kept = Kept(most)
        self.piece = self._kept.piece
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(f"{command[0]} is not installed")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", self._SHELL, "sh", *command], stdin=pipe, stdout=pipe, stderr=pipe
        )
        self._lock = threading.Lock()
        self._said = bytearray()
        self.problem, self._stopping = "", False
        self._readers = [threading.Thread(target=work, daemon=True) for work in (self._read, self._listen)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        while data := self._process.stdout.read1(1 << 16):  # type: ignore[union-attr]
            self.problem = self._kept.add(data)
            if self.problem:
                # Without a reader the program would wait for ever.
                self._process.stdout.close()  # type: ignore[union-attr]
                return
        if not self._stopping:
            self.problem = "it ended too early"

    def _listen(self) -> None:
        while data := self._process.stderr.read1(1 << 16):  # type: ignore[union-attr]
            with self._lock:
                self._said += data

    def counts(self) -> dict[str, int]:
        """The number of bytes the program wrote. These programs count frames only when they end."""
        return {"written": self._kept.written}

    def stop(self) -> None:
        """End the program. ``problem`` then says what went wrong. Raises TimeoutExpired."""
        time.sleep(BLOCK_S)
        self._stopping = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        status = self._process.wait(STOP_TIMEOUT_S)
        for reader in self._readers:
            reader.join(STOP_TIMEOUT_S)
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()  # type: ignore[union-attr]
        if self.problem or status:
            self.problem = f"{self.problem or 'it failed'}, with status {status}"

    def said(self) -> str:
        with self._lock:
            return self._said.decode(errors="replace")


def program(method: str, interface: str, *, everything: bool = False) -> list[str]:
    """The command line of a capture program that writes pcap to its standard output. Raises LookupError."""
    if method == "dumpcap":
        command = ["dumpcap", "-q", "-i", interface, "-P", "-B", "64", "-w", "-"]
        return command if everything else [*command, "-f", NO_TCP]
    if method == "tcpdump":
        # On RDMA devices libpcap has only microseconds, and refuses nanoseconds.
        nano = ["--time-stamp-precision=nano"] * (NETDEVS / interface).exists()
        precise = [*nano, "--immediate-mode"]
        command = ["tcpdump", "-i", interface, "-n", "-U", "-s", "0", "-B", "65536", *precise, "-w", "-"]
        return command if everything else [*command, NO_TCP]
    raise LookupError(f"there is no capture method {method!r}")


def lost_by_adapter(interface: str) -> dict[str, int]:
    """Lost frames of the adapters below an interface, by counter, for the counters that the kernel has.

    The interface is a netdev or an RDMA device.
    """
    found: dict[str, int] = {}
    for below in _netdevs_of(interface):
        for name in LOST_BY_ADAPTER:
            with contextlib.suppress(OSError, ValueError):
                found[name] = found.get(name, 0) + int((NETDEVS / below / "statistics" / name).read_text())
    return found


def _netdevs_of(interface: str) -> set[str]:
    """The netdev and those below it, as for a VLAN; for an RDMA device its netdevs."""
    if not (NETDEVS / interface).exists():
        # libpcap names the second port of a device NAME:2.
        device = interface.partition(":")[0]
        return {path.name for path in DEVICES.glob(f"{glob.escape(device)}/device/net/*")}
    lower = [path.name.removeprefix("lower_") for path in (NETDEVS / interface).glob("lower_*")]
    return {interface}.union(*map(_netdevs_of, lower))


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    running: list[PacketSocket | Program] = []
    recorded: dict[str, dict[str, int]] = {}

    def start(method: str, interface: str, buffer: int, *, everything: bool) -> dict[str, int]:
        """Begin a recording in place of any earlier one. TCP is left out unless ``everything``."""
        made: PacketSocket | Program
        lost_before, most = lost_by_adapter(interface), free_memory() // KEPT_PART
        if method == "packet-socket":
            made = PacketSocket(interface, buffer, most, everything=everything)
        else:
            made = Program(program(method, interface, everything=everything), most)
        for other in running:
            other.stop()
        running[:] = [made]
        recorded.clear()
        recorded[interface] = lost_before
        return {"epoch_ns": epoch_ns(), "most": most}

    def state() -> dict[str, str]:
        (made,) = running
        return {"said": made.said(), "problem": made.problem}

    def pull(most: int) -> dict[str, Any]:
        # The count comes before the piece, so every counted frame is in this piece or in another one.
        (made,) = running
        counts = made.counts()
        told = {"piece": made.piece(min(most, PIECE)), "epoch_ns": epoch_ns(), "problem": made.problem, "lost": lost()}
        return counts | told

    def lost() -> dict[str, int]:
        ((interface, before),) = recorded.items()
        return {name: count - before.get(name, 0) for name, count in lost_by_adapter(interface).items()}

    def stop() -> dict[str, str]:
        (made,) = running
        made.stop()
        return state()

    def counts() -> dict[str, int]:
        (made,) = running
        return made.counts()

    return {"start": start, "pull": pull, "stop": stop, "state": state, "counts": counts}


def epoch_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC now, in ns: the best of a few readings, because a reading may be delayed."""
    readings = []
    for _ in range(CLOCK_READINGS):
        before_ns, real_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after_ns - before_ns, real_ns - before_ns - (after_ns - before_ns) // 2))
    return min(readings)[1]
