"""Code nobody here wrote agrees with the bench: rdma-core's rping through the same wire, tshark on the same capture."""

import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fixtures.bench import Bench
from hil.evidence.packets import roce_packets
from hil.evidence.rules import broken, disconnect_links
from hil.nodes.softpair import SoftPair
from hil.wire.frames import CmAttribute
from hil.wire.pcapng import read_pcapng


def wait_for_listener(pair: SoftPair, node: str) -> None:
    """Until the node's kernel shows a CM_ID, which a server makes when it listens."""
    end_ns = time.monotonic_ns() + 10 * 10**9
    while not any(r["kind"] == "CM_ID" for r in pair.nodes[node].system("resources")):
        assert time.monotonic_ns() < end_ns, "the server did not listen within 10 s"
        time.sleep(0.05)


def test_rping_runs_through_the_wire_and_its_disconnect_is_judged(pair: SoftPair) -> None:
    """rping's data arrives, and its connection ends on the wire as the same rules demand."""
    ended: dict[str, Any] = {}
    address = "10.77.0.2"

    def rping(node: str, *role: str) -> None:
        ended[node] = pair.nodes[node].system("run", command=["rping", *role, "-a", address, "-C", "5", "-v"])

    server = threading.Thread(target=rping, args=("b", "-s"))
    server.start()
    wait_for_listener(pair, "b")
    rping("a", "-c")
    server.join(30)

    assert [ended[n]["status"] for n in "ab"] == [0, 0], ended
    assert ended["a"]["stdout"].count("ping data: rdma-ping-") == 5, ended
    evidence = pair.evidence()
    assert not evidence.problems
    (connection,) = evidence.connections()
    assert (connection.active, connection.passive) == ("10.77.0.1", address)
    closer = next(p.source for p in evidence.packets if p.cm == "DREQ")
    peer = next(p.source for p in evidence.packets if p.cm == "DREP")
    findings = list(disconnect_links(evidence, connection, [closer], [peer]))
    assert not broken(findings), "\n".join(map(str, findings))
    assert evidence.resources == {"a": [], "b": []}


def known_fields() -> set[str]:
    done = subprocess.run(["tshark", "-G", "fields"], capture_output=True, text=True, timeout=60, check=True)
    return {line.split("\t")[2] for line in done.stdout.splitlines() if line.startswith("F\t")}


def messages_by_tshark(capture: Path) -> list[tuple[int, str, int]]:
    """(frame, CM message, local comm id) of every CM message that tshark sees."""
    known = known_fields()
    # Wireshark gives the local comm id of REQ and REP the name of the message itself, and calls DREP drsp.
    names = [f"infiniband.cm.{name}" for name in ("req", "rep", "rtu", "dreq", "drsp")]
    local_ids = [f"{n}.localcommid" if f"{n}.localcommid" in known else n for n in names]
    command = ["tshark", "-r", str(capture), "-Y", "infiniband.mad.attributeid", "-T", "fields"]
    for field in ("frame.number", "infiniband.mad.attributeid", *local_ids):
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = []
    for line in done.stdout.splitlines():
        number, attribute, *ids = line.split("\t")
        local_id = next(int(i, 16) for i in ids if i)
        found.append((int(number), CmAttribute(int(attribute, 16)).name, local_id))
    return found


def test_tshark_sees_the_same_cm_messages(bench: Bench) -> None:
    """tshark reads the capture without complaint and finds the same CM messages in the same frames."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is missing; install it with: apt-get install tshark")
    closer, peer = bench.connect()
    closer.close()
    bench.judge(bench.hard_close(closer, peer))

    capture = bench.pair.folder / "wire.pcapng"
    ours = [(p.frame, p.cm, p.local_comm_id) for p in roce_packets(read_pcapng(capture)) if p.cm]
    theirs = messages_by_tshark(capture)

    assert [m for _, m, _ in ours] == ["REQ", "REP", "RTU", "DREQ", "DREP"]
    assert theirs == ours
