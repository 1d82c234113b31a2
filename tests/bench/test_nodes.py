"""Real nodes, their channel, their adapters and the wire between them."""

import ipaddress
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hil.adapters.provision import gid_of
from hil.agent.protocol import encode
from hil.capture.pcapng import read_pcapng
from hil.errors import NodeDied, PhaseTimeout, RemoteError
from hil.labs.soft.pair import PLACES, SoftPair
from hil.testing.bench import Bench


def test_several_calls_run_at_a_time(pair: SoftPair) -> None:
    """A slow call does not hold up a quick one on the same worker."""
    node = pair.nodes["a"]
    slow = threading.Thread(target=lambda: node.system("run", command=["sleep", "15"]))
    slow.start()
    node.system("versions")
    assert slow.is_alive()
    slow.join()


def test_a_remote_error_carries_its_traceback(pair: SoftPair) -> None:
    """An exception on the node is raised here, with the node's own traceback."""
    with pytest.raises(RemoteError, match="no-such-netdev") as caught:
        pair.nodes["a"].system("counters", netdev="no-such-netdev")
    assert caught.value.kind == "FileNotFoundError"
    assert "provision.py" in caught.value.remote_traceback


def test_a_call_that_does_not_end_is_a_timeout_of_its_phase(pair: SoftPair) -> None:
    """The node is alive, only the answer is late: PhaseTimeout names call and phase, and the node stays usable."""
    node = pair.nodes["a"]
    worker, _ = node.channel.spawn("system")
    with pytest.raises(PhaseTimeout, match=r"run did not answer within 0.5 s \(napping\)"):
        node.channel.call(worker, "run", 0.5, "napping", command=["sleep", "20"])
    assert node.channel.call(worker, "versions", 10, "after it")["kernel"]


def test_a_workers_death_is_noticed_at_once(pair: SoftPair) -> None:
    """A running call fails with NodeDied as soon as its worker is killed, not at its time-out."""
    node = pair.nodes["a"]
    worker, _ = node.channel.spawn("system")
    threading.Timer(0.3, node.channel.kill, (worker, signal.SIGKILL)).start()
    started = time.monotonic_ns()
    with pytest.raises(NodeDied, match="ended with -9"):
        node.channel.call(worker, "run", 60, "sleeping", command=["sleep", "60"])
    assert time.monotonic_ns() - started < 20 * 10**9


def test_calls_to_a_dying_worker_do_not_end_the_agent(pair: SoftPair) -> None:
    """Hundreds of calls that arrive with the worker's death are answered, and the node lives."""
    node = pair.nodes["b"]
    for round_number in range(5):
        worker, _ = node.channel.spawn("system")
        burst = encode({"to": 0, "id": 10**6 + round_number, "call": "kill", "args": {"worker": worker}})
        for number in range(300):
            burst += encode({"to": worker, "id": 10**7 + number, "call": "versions", "args": {}})
        with node.channel._send_lock:
            node.channel._send_all(burst)
        assert node.channel.wait_exit(worker, 10) == -9
    assert node.system("versions")["kernel"]


def test_a_nodes_death_is_noticed_at_once(pair: SoftPair) -> None:
    """When its machine ends, a running call fails with NodeDied; the other node stays alive."""
    node = pair.nodes["a"]
    threading.Timer(0.3, os.kill, (node.machine.pid, signal.SIGKILL)).start()
    with pytest.raises(NodeDied):
        node.system("run", command=["sleep", "50"])
    assert pair.nodes["b"].system("versions")["kernel"]


def test_the_clock_relation_holds_within_its_uncertainty(pair: SoftPair) -> None:
    """Two relations measured a moment apart overlap, and an event's time falls between the calls around it."""
    node = pair.nodes["a"]
    first, second = node.clock(), node.clock()
    assert abs(first.offset_ns - second.offset_ns) <= first.uncertainty_ns + second.uncertainty_ns
    assert first.uncertainty_ns < 50_000_000


def test_provisioned_addresses_mtu_and_gids_are_the_kernels(pair: SoftPair) -> None:
    """MAC, addresses and MTU by the ip program; port ACTIVE and every GID by the rdma program and sysfs."""
    for place in PLACES:
        node = pair.nodes[place.name]
        (link,) = json.loads(node.system("run", command=["ip", "-j", "addr", "show", "eth0"])["stdout"])
        assert (link["address"], link["mtu"]) == (place.mac, 1500)
        addresses = {a["local"] for a in link["addr_info"]}
        assert {place.ipv4, place.ipv6} <= addresses
        (port,) = json.loads(node.system("run", command=["rdma", "-j", "link"])["stdout"])
        assert (port["ifname"], port["state"], port["netdev"]) == ("rxe0", "ACTIVE", "eth0")
        listing = node.system("run", command=["sh", "-c", "cat /sys/class/infiniband/rxe0/ports/1/gids/*"])["stdout"]
        assert {gid_of(place.ipv4), gid_of(place.ipv6)} <= set(listing.split())


def test_a_connection_manager_that_receives_nothing_is_noticed(pair: SoftPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of its own queue pair is the same as in rdma's output. If it is not RTS, the evidence is incomplete."""
    assert pair.nodes["a"].system("general_services", device="rxe0") == ["RTS"]
    shown = pair.nodes["a"].system("run", command=["rdma", "-j", "resource", "show", "qp"])["stdout"]
    assert [qp["state"] for qp in json.loads(shown) if qp["type"] == "GSI"] == ["RTS"]
    assert pair.nodes["a"].system("general_services", device="no such device") == []
    assert not [problem for problem in pair.evidence(last=True).problems if "connection manager" in problem]

    asked = pair.nodes["b"].system
    monkeypatch.setattr(
        pair.nodes["b"], "system", lambda call, **facts: ["ERR"] if call == "general_services" else asked(call, **facts)
    )
    (problem,) = [problem for problem in pair.evidence(last=True).problems if "connection manager" in problem]
    assert problem.startswith("node b: the connection manager's own queue pair of rxe0 is ERR, not RTS")


@pytest.mark.parametrize("kind", ["qp", "cq", "mr", "pd", "cm_id"])
def test_the_audit_agrees_with_the_rdma_program(bench: Bench, kind: str) -> None:
    """While a connection is open, our dump names the same resources as ``rdma -j resource show``."""
    closer, peer = bench.connect()
    node = bench.pair.nodes["b"]
    text = node.system("run", command=["rdma", "-j", "resource", "show", kind])["stdout"]
    number = {"qp": "lqpn", "cq": "cqn", "mr": "mrn", "pd": "pdn", "cm_id": "cm-idn"}[kind]
    # A kernel owner has a name and no pid; a resource whose thread has ended has neither.
    theirs = {r[number] for r in json.loads(text) if not ("comm" in r and "pid" not in r)}
    ours = {r["number"] for r in node.system("resources") if r["kind"] == kind.upper()}
    assert theirs and theirs == ours
    closer.close()
    bench.judge(bench.hard_close(closer, peer))


def _icmp_counts(pair: SoftPair, node: str) -> dict[str, int]:
    """The kernel's own ICMP counters (``InEchos``, ``OutEchoReps``, ...) of a node."""
    text = pair.nodes[node].system("run", command=["grep", "^Icmp:", "/proc/net/snmp"])["stdout"]
    names, values = (line.split()[1:] for line in text.splitlines())
    return dict(zip(names, map(int, values), strict=True))


def test_the_wire_loses_nothing_under_load(pair: SoftPair) -> None:
    """A thousand large pings both ways: every frame the adapters count is captured, in order of time."""
    sent = dict.fromkeys(("a", "b"), "")

    # The kernels count the replies, because a ping that is not scheduled for some ms loses them in its small buffer.
    def flood(node: str, address: str) -> None:
        command = ["busybox", "ping", "-c", "500", "-i", "0.002", "-s", "1400", "-q", address]
        sent[node] = pair.nodes[node].system("run", command=command)["stdout"]

    before = {node: _icmp_counts(pair, node) for node in sent}
    threads = [threading.Thread(target=flood, args=pair_) for pair_ in (("a", "10.77.0.2"), ("b", "10.77.0.1"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for node in sent:
        assert "500 packets transmitted" in sent[node], sent[node]
    after = {node: _icmp_counts(pair, node) for node in sent}
    more = {node: {name: after[node][name] - count for name, count in before[node].items()} for node in sent}
    for node, other in (("a", "b"), ("b", "a")):
        assert more[node]["InEchos"] == more[other]["OutEchos"] == 500
        # A kernel whose own buffer is full sends no reply.
        assert more[node]["InEchoReps"] == more[other]["OutEchoReps"] > 400
    evidence = pair.evidence()
    assert not evidence.problems
    counts = pair.wire.stop()
    assert counts is not None
    frames = list(read_pcapng(pair.wire.path))
    assert len(frames) == sum(counts.received.values()) >= 1800
    assert counts.received["a"] == counts.sent["b"] and counts.received["b"] == counts.sent["a"]
    assert [f.time_ns for f in frames] == sorted(f.time_ns for f in frames)
    assert {f.interface for f in frames} == {"side-a", "side-b"}


def test_a_frame_missing_from_the_capture_makes_the_evidence_incomplete(pair: SoftPair) -> None:
    """The adapters' counters reveal a frame that bypassed the wire, so the check can fail."""
    broadcast = b"\xff" * 6 + bytes.fromhex("525400000102") + b"\x88\xb5" + b"round the wire".ljust(50, b"\0")
    pair.nodes["a"].frames.send(broadcast)
    problems = pair.evidence().problems
    assert any("capture incomplete on side a" in p for p in problems), problems


def test_each_nodes_console_is_kept(pair: SoftPair) -> None:
    """A kernel's messages are in the node's console file."""
    pair.nodes["b"].system("run", command=["sh", "-c", "echo hello from b > /dev/kmsg; echo spoken > /dev/console"])
    end_ns = time.monotonic_ns() + 15 * 10**9
    while "spoken" not in Path(pair.folder / "console-b").read_text(errors="replace"):
        assert time.monotonic_ns() < end_ns
        time.sleep(0.02)


def test_gid_of_an_ipv4_address_is_mapped() -> None:
    """10.77.0.1 is ::ffff:10.77.0.1 in full notation."""
    assert gid_of("10.77.0.1") == "0000:0000:0000:0000:0000:ffff:0a4d:0001"
    assert ipaddress.ip_address(gid_of("fd77::2")) == ipaddress.ip_address("fd77::2")
