"""How much the wire costs: ib_send_bw and ib_send_lat over the wire, and between two clones joined by a QEMU socket.

    .venv/bin/python benchmarks/wire.py [--rounds 3] [--faults]

Rounds alternate, so that a busy machine is as busy for both; printed are the medians and their ratio (1: the wire costs
nothing; below 1 it costs). ``--faults`` sets a fault on the wire that looks at every frame and picks none.
"""

import re
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from hil.cache import building, cache_folder
from hil.labs.file import read_lab_file
from hil.labs.named import DEFAULT, lab_path
from hil.labs.node import Node
from hil.labs.soft.clone import Clone
from hil.labs.soft.file import SoftPairFile
from hil.labs.soft.kinds import soft_guest
from hil.labs.soft.machine import frame_sockets
from hil.labs.soft.pair import PLACES, SoftPair
from hil.labs.soft.snapshot import Snapshot
from hil.wire.faults import Drop, Fault, Match

PORT = 18515
# A line of /proc/net/tcp in state LISTEN: an earlier connection's end may wait at the same port.
LISTENING = re.compile(rf":{PORT:04X} [0-9A-F]+:0000 0A ")
STEP_TIMEOUT_S = 100.0
Nodes = Mapping[str, Node]


def run(node: Node, *command: str) -> dict[str, Any]:
    done: dict[str, Any] = node.system("run", command=list(command), timeout_s=STEP_TIMEOUT_S / 2)
    return done


def gid_index(node: Node, ipv4: str) -> str:
    """The index of the GID that stands for the address."""
    octets = [int(part) for part in ipv4.split(".")]
    wanted = f"ffff:{octets[0]:02x}{octets[1]:02x}:{octets[2]:02x}{octets[3]:02x}"
    folder = "/sys/class/infiniband/rxe0/ports/1/gids"
    listed = run(node, "sh", "-c", f"for n in 0 1 2 3 4 5 6 7; do cat {folder}/$n; done")["stdout"].split()
    return str(next(index for index, gid in enumerate(listed) if gid.endswith(wanted)))


def measure(nodes: Nodes, program: str, *options: str) -> list[str]:
    """Run one of perftest's programs between both nodes; the figures in its last line."""
    indexes = {place.name: gid_index(nodes[place.name], place.ipv4) for place in PLACES}
    common = [program, "-d", "rxe0", "-F", "-p", str(PORT), *options]
    server = threading.Thread(target=run, args=(nodes["b"], *common, "-x", indexes["b"]))
    server.start()
    end = time.monotonic() + STEP_TIMEOUT_S
    while not LISTENING.search(run(nodes["b"], "cat", "/proc/net/tcp", "/proc/net/tcp6")["stdout"]):
        if time.monotonic() > end:
            raise TimeoutError(f"{program} does not listen")
        time.sleep(0.05)
    done = run(nodes["a"], *common, "-x", indexes["a"], PLACES[1].ipv4)
    server.join(STEP_TIMEOUT_S)
    if done["status"]:
        raise RuntimeError(f"{program}: {done['stdout']}{done['stderr']}")
    lines = [line for line in done["stdout"].splitlines() if line.split() and line.split()[0].isdigit()]
    return list(lines[-1].split())


def figures(nodes: Nodes) -> tuple[float, float]:
    """MiB/s of 64 KiB messages (average), and microseconds one way of small ones (typical)."""
    bandwidth = measure(nodes, "ib_send_bw", "-s", "65536", "-n", "200")
    latency = measure(nodes, "ib_send_lat", "-s", "64", "-n", "2000")
    return float(bandwidth[3]), float(latency[4])


@contextmanager
def joined_directly(snapshot: Snapshot, folder: Path, mtu: int) -> Iterator[Nodes]:
    """Two provisioned clones with a socket between them and nothing else."""
    ends = frame_sockets()
    clones = [
        Clone(place.name, snapshot, folder / f"console-{place.name}", lambda *_: None, joined=end)
        for place, end in zip(PLACES, ends, strict=True)
    ]
    try:
        for place, clone in zip(PLACES, clones, strict=True):
            addresses = [f"{place.ipv4}/24", f"{place.ipv6}/64"]
            clone.system("provision", netdev="eth0", mac=place.mac, addresses=addresses, mtu=mtu, device="rxe0")
        yield {clone.name: clone for clone in clones}
    finally:
        for clone in clones:
            clone.stop()


@contextmanager
def on_the_wire(snapshot: Snapshot, folder: Path, mtu: int, faults: bool) -> Iterator[Nodes]:
    """The soft pair, as tests have it."""
    with SoftPair((snapshot, snapshot), folder, mtu) as pair:
        if faults:
            pair.wire.add_fault(Fault("never", Drop(), Match(qpns=(0xFFFFFF,))))
        yield pair.nodes


def told(how: str, row: tuple[float, float]) -> tuple[float, float]:
    """Print a round's figures; the same."""
    click.echo(f"{how:>6}: {row[0]:.2f} MiB/s, {row[1]:.0f} us")
    return row


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--faults", is_flag=True, help="With a fault on the wire that never picks a frame.")
def main(rounds: int, faults: bool) -> None:
    """Compare the wire with two clones joined directly."""
    lab = read_lab_file(lab_path(DEFAULT))
    assert isinstance(lab, SoftPairFile)
    snapshot, mtu = soft_guest(lab.guest), lab.link.mtu
    assert isinstance(snapshot, Snapshot)
    found: dict[str, list[tuple[float, float]]] = {"direct": [], "wire": []}
    for _ in range(rounds):
        with building(cache_folder()) as folder, joined_directly(snapshot, folder, mtu) as nodes:
            found["direct"].append(told("direct", figures(nodes)))
        with building(cache_folder()) as folder, on_the_wire(snapshot, folder, mtu, faults) as nodes:
            found["wire"].append(told("wire", figures(nodes)))
    middle = {how: [statistics.median(column) for column in zip(*rows, strict=True)] for how, rows in found.items()}
    (bandwidth, latency), (wire_bandwidth, wire_latency) = middle["direct"], middle["wire"]
    click.echo(f"ib_send_bw: wire {wire_bandwidth:.2f} of {bandwidth:.2f} MiB/s: {wire_bandwidth / bandwidth:.2f}")
    click.echo(f"ib_send_lat: wire {wire_latency:.0f}, direct {latency:.0f} us: {latency / wire_latency:.2f}")


if __name__ == "__main__":
    main()
