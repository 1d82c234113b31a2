"""How fast captures are read: the bulk path against ``tshark -T fields`` of the same fields on the same file.

    python benchmarks/bulk.py --packets 1000000

Builds its capture in a temporary folder: RC traffic over IPv4 with sends, writes, reads, atomics and their answers,
MTU 1024, right ICRCs; a few thousand different packets again and again, each with a time of its own.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hil.capture.bulk import scan
from hil.capture.pcapng import PcapngWriter
from hil.capture.reader import open_capture
from hil.roce.icrc import icrc
from hil.roce.opcodes import LAYOUTS

DIFFERENT = 4096
START_NS = 1_700_000_000_000_000_000
# One round of traffic: opcode and payload in bytes.
ROUND = (
    *((0x00, 1024), (0x01, 1024), (0x01, 1024), (0x02, 512), (0x11, 0)),
    *((0x04, 64), (0x11, 0), (0x04, 256), (0x11, 0), (0x05, 16), (0x11, 0)),
    *((0x06, 1024), (0x07, 1024), (0x08, 100), (0x11, 0), (0x0A, 64), (0x11, 0)),
    *((0x0C, 0), (0x0D, 1024), (0x0E, 1024), (0x0F, 300), (0x0C, 0), (0x10, 64), (0x14, 0), (0x12, 0)),
)
FIELDS = (
    *("frame.number", "frame.time_epoch", "frame.interface_id", "frame.cap_len", "frame.len", "vlan.id"),
    *("ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "ip.dsfield.ecn", "udp.srcport"),
    *(f"infiniband.bth.{name}" for name in ("opcode", "se", "m", "padcnt", "tver", "p_key", "destqp", "a", "psn")),
    *("infiniband.aeth.syndrome", "infiniband.aeth.msn"),
    *("infiniband.reth.va", "infiniband.reth.r_key", "infiniband.reth.dmalen"),
    *("infiniband.deth.q_key", "infiniband.deth.srcqp", "infiniband.immdt", "infiniband.ieth"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One reading in a process of its own: seconds on the clock, seconds of the CPU, most memory held in MiB."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def frame(number: int) -> bytes:
    """One of the capture's packets."""
    opcode, payload = ROUND[number % len(ROUND)]
    transport = struct.pack("!BBHII", opcode, 0x40, 0xFFFF, 0x11 + number % 64, 0x80000000 | number & 0xFFFFFF)
    for header in LAYOUTS[opcode]:
        transport += os.urandom(header.size)
    transport += bytes(payload + -payload % 4)
    udp = struct.pack("!HHHH", 49152 + number % 64, 4791, len(transport) + 12, 0)
    ip = struct.pack(
        "!BBHHHBBHII", 0x45, 2, len(transport) + 32, number & 0xFFFF, 0x4000, 64, 17, 0, 0x0A4D0001, 0x0A4D0002
    )
    whole = b"\x02\0\0\0\0\1\x02\0\0\0\0\2\x08\0" + ip + udp + transport
    return whole + icrc(whole, len(whole)).to_bytes(4, "little")


def build(path: Path, packets: int) -> None:
    """Write the capture of ``packets`` to ``path``."""
    frames = [frame(number) for number in range(DIFFERENT)]
    with path.open("wb", buffering=1 << 20) as out:
        writer = PcapngWriter(out, ["side-a", "side-b"])
        for number in range(packets):
            writer.write(number & 1, START_NS + number * 700, frames[number % DIFFERENT])


def read(path: Path, packets: int, check_icrc: bool) -> None:
    """Read ``path`` by the bulk path. Raises SystemExit when it does not find there what was written."""
    found = 0
    with open_capture(path) as capture:
        for chunk in capture:
            batch = scan(chunk, check_icrc=check_icrc)
            found += int(((batch.malformed == 0) & (batch.icrc == (1 if check_icrc else -1))).sum())
    if found != packets:
        raise SystemExit(f"the bulk path found {found} sound packets of {packets}")


def measured(command: list[str]) -> Run:
    """Run ``command`` to its end. Raises SystemExit when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(time.perf_counter() - started, cpu, usage.ru_maxrss / 1024)


def ourselves(path: Path, packets: int, check_icrc: bool) -> Run:
    """The bulk path over ``path``, interpreter start and imports included."""
    return measured([sys.executable, __file__, "--read", str(path), str(packets), str(int(check_icrc))])


def tshark(path: Path) -> Run:
    """``tshark -T fields`` over ``path``, without name resolution, its output thrown away."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    return measured(command + [part for name in FIELDS for part in ("-e", name)])


def median(runs: list[Run]) -> Run:
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def line(name: str, run: Run, packets: int, base: Run) -> str:
    rate, times, cpu = packets / run.seconds, base.seconds / run.seconds, base.cpu_seconds / run.cpu_seconds
    return f"{name:<28}{rate:>12,.0f} packets/s {times:>6.1f} times {cpu:>6.1f} by CPU {run.peak_mib:>7.0f} MiB"


def compare(path: Path, packets: int, repeat: int) -> list[str]:
    """A line of figures for tshark and for the bulk path without and with the ICRC check."""
    build(path, packets)
    plain = median([ourselves(path, packets, False) for _ in range(repeat)])
    base = tshark(path)
    checked = median([ourselves(path, packets, True) for _ in range(repeat)])
    names = ("tshark -T fields", "bulk path", "bulk path with ICRC check")
    return [line(name, run, packets, base) for name, run in zip(names, (base, plain, checked), strict=True)]


def grown(path: Path, packets: int) -> str:
    """A line of the memory that a file four times as large takes."""
    build(path, 4 * packets)
    run = ourselves(path, 4 * packets, True)
    size = path.stat().st_size / 2**20
    return f"{4 * packets:,} packets, {size:,.0f} MiB: {run.peak_mib:.0f} MiB of memory with ICRC check"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3, help="runs of the bulk path, of which the median counts")
    parser.add_argument("--read", nargs=3, metavar=("FILE", "PACKETS", "ICRC"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        path, packets, check = arguments.read
        read(Path(path), int(packets), check == "1")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "capture.pcapng"
        for text in (*compare(path, arguments.packets, arguments.repeat), grown(path, arguments.packets)):
            print(text, flush=True)


if __name__ == "__main__":
    main()
