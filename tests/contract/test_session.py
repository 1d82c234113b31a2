"""The session of the switch: byte streams over a provider that knows messages, RDMA and a hard close only.

Each test runs on a fresh pair of nodes, and ends by judging what the provider and the switch did and left behind.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from fixtures.bench import Bench
from hil.evidence.packets import RocePacket
from hil.nodes.softpair import PLACES
from hil.nodes.stream import Stream, StreamEndpoint, at_once, join
from hil.winsock.codes import Code

PORT, CONNECTOR_PORT = 5000, 6000
MIB = 1 << 20
WRITES, READS, READ_RESPONSES = range(0x06, 0x0C), (0x0C,), range(0x0D, 0x11)
NO_READ = {"rdma_read": False}


def start(bench: Bench, settings: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})) -> list[StreamEndpoint]:
    """A switch on each node, whose providers have these settings."""
    made = [
        StreamEndpoint(bench.pair.nodes[place.name], place.ipv4, bench.provider, **given)
        for place, given in zip(PLACES, settings, strict=True)
    ]
    bench.endpoints.update(zip("ab", made, strict=True))
    return made


def connect(bench: Bench, *settings: Mapping[str, Any], **options: Any) -> tuple[Stream, Stream]:
    """(connector's, acceptor's) stream; ``options`` are both sessions'."""
    a, b = start(bench, settings or ({}, {}))
    listener = b.listen(PORT, **options)
    bench.pair.note_baseline()
    ends = join(a, b, listener, CONNECTOR_PORT, PORT, **options)
    bench.pair.note_resources()
    return ends


def data_packets(bench: Bench) -> list[RocePacket]:
    """The packets so far of all connections, without the connection manager's."""
    return [p for p in bench.pair.evidence(audit=False).packets if not p.cm and p.opcode < 0x20]


@pytest.mark.parametrize("settings", [({}, {}), (NO_READ, NO_READ), (NO_READ, {})], ids=["read", "write", "mixed"])
def test_streams_both_ways_at_once_arrive_whole(bench: Bench, settings: tuple[Any, Any]) -> None:
    """Two MiB each way."""
    one, two = connect(bench, *settings)

    sent_1, sent_2, read_1, read_2 = at_once(
        lambda: one.send_pattern(2 * MIB, 1, 300_000),
        lambda: two.send_pattern(2 * MIB, 2, 300_000),
        lambda: one.recv_digest(2 * MIB),
        lambda: two.recv_digest(2 * MIB),
    )

    assert (read_1.digest, read_2.digest) == (sent_2.digest, sent_1.digest)
    assert [one.close(), two.close()] == [Code.OK, Code.OK]
    bench.judge()
