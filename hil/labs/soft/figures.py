"""Measure the time to make a pristine pair, and its nodes' memory."""

import time
from collections.abc import Iterator

from hil.cache import building, cache_folder
from hil.capture.pcapng import read_pcapng
from hil.labs.soft.kinds import SoftGuest
from hil.labs.soft.pair import SoftPair


def measure(guest: SoftGuest, pairs: int, mtu: int) -> Iterator[str]:
    """Measure the time of ``pairs`` pristine provisioned pairs and their nodes' memory. Yields a line a figure."""
    times, first, memory, parts = [], [], {}, []
    for _ in range(pairs):
        with building(cache_folder()) as folder:
            started_ns = time.monotonic_ns()
            with SoftPair((guest, guest), folder, mtu) as pair:
                times.append((time.monotonic_ns() - started_ns) / 1e9)
                parts.append(pair.parts_s)
                frame = next(read_pcapng(pair.wire.path), None)
                if frame is not None:
                    first.append((frame.time_ns - pair.wire.counts().epoch_ns - started_ns) / 1e9)
                memory = {n: node.machine.memory_kib() for n, node in pair.clones.items()}
    yield f"pristine provisioned pair: {min(times):.2f} to {max(times):.2f} s over {pairs}"
    for name in parts[0]:
        yield f"  {name}: {min(part[name] for part in parts):.2f} to {max(part[name] for part in parts):.2f} s"
    if first:
        yield f"first packet on the wire: after {min(first):.2f} to {max(first):.2f} s"
    for node, kib in memory.items():
        yield f"node {node}: {kib['resident'] // 1024} MiB resident, {kib['private'] // 1024} MiB of its own"
