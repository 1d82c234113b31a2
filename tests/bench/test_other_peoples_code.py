"""Programs of other projects: rdma-core's talk to the provider and through the wire, tshark reads the capture."""

import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hil.capture.pcapng import read_pcapng
from hil.evidence.disconnect import broken
from hil.evidence.packets import roce_packets
from hil.evidence.rules.wire import disconnect_findings
from hil.labs.soft.pair import SoftPair
from hil.roce.frames import CmAttribute
from hil.testing.bench import Bench
from hil.winsock.codes import CF_REJECT, MEM_READ, MEM_WRITE, Code


def wait_for_listener(pair: SoftPair, node: str, port: int = 0) -> None:
    """Wait until the node's kernel shows a listening CM_ID, on ``port`` if it is given."""
    end_ns = time.monotonic_ns() + 10 * 10**9
    command, wanted = ["rdma", "res", "show", "cm_id"], f":{port} " if port else ":"
    # An id that is bound is shown too, before it listens.
    while not any(
        wanted in line and "LISTEN" in line
        for line in pair.nodes[node].system("run", command=command)["stdout"].splitlines()
    ):
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
    findings = list(disconnect_findings(evidence, connection, [closer], [peer]))
    assert not broken(findings), "\n".join(map(str, findings))
    assert evidence.resources == {"a": [], "b": []}


class Program:
    """A program of rdma-core's running on a node; ``result`` waits for its end."""

    def __init__(self, pair: SoftPair, node: str, *command: str) -> None:
        self._ended: dict[str, Any] = {}
        work = pair.nodes[node].system

        def run() -> None:
            self._ended.update(work("run", command=list(command), timeout_s=50.0))

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self) -> dict[str, Any]:
        self._thread.join(55)
        assert self._ended, "the program did not end within 55 s"
        return self._ended


def disconnect_holds(bench: Bench, closer: str, peer: str) -> None:
    """Judge the run, and the one connection's end on the wire."""
    evidence = bench.judge()
    (connection,) = evidence.connections()
    findings = list(disconnect_findings(evidence, connection, [closer], [peer]))
    assert not broken(findings), "\n".join(map(str, findings))


def test_ucmatose_connects_exchanges_messages_and_is_reset(bench: Bench) -> None:
    """A librdmacm client gets our messages, answers them, and its connection ends when our socket is closed."""
    a, b = bench.start()
    listener = b.listen(7471)
    client = Program(bench.pair, "a", "ucmatose", "-s", b.ip, "-c", "1", "-C", "3", "-S", "100")
    ours = b.accept(listener)
    receives = [b.recv(ours, offset=256 * i) for i in range(3)]
    sends = [b.send(ours, bytes(100), offset=32768 + 128 * i) for i in range(3)]
    assert [b.completion(s) for s in sends] == [(Code.OK, 100)] * 3
    assert [b.completion(r) for r in receives] == [(Code.OK, 100)] * 3

    assert b.close(ours).code is Code.OK

    ended = client.result()
    assert ended["status"] == 0, ended
    assert "data transfers complete" in ended["stdout"] and "return status 0" in ended["stdout"], ended
    assert a.ip
    disconnect_holds(bench, b.ip, a.ip)


def test_ucmatose_serves_our_connector_and_disconnects(bench: Bench) -> None:
    """A librdmacm server accepts us, messages cross, and its disconnect is our WSAECONNRESET."""
    a, b = bench.start()
    server = Program(bench.pair, "b", "ucmatose", "-c", "1", "-C", "3", "-S", "100")
    wait_for_listener(bench.pair, "b", port=7471)
    socket = a.socket(6000, 0x10)
    a.connect(socket, b.ip, 7471)
    ours = a.connected(socket)
    receives = [a.recv(ours, offset=256 * i) for i in range(4)]
    assert [a.completion(r) for r in receives[:3]] == [(Code.OK, 100)] * 3
    sends = [a.send(ours, bytes(100), offset=32768 + 128 * i) for i in range(3)]
    assert [a.completion(s) for s in sends] == [(Code.OK, 100)] * 3

    assert a.completion(receives[3]) == (Code.WSAECONNRESET, 0)
    late = a.wsp("WSPRecv", s=ours.s, buffers=[[8, ours.address]], overlapped=a.ask("overlapped"))
    assert late.code is Code.WSAECONNRESET
    ended = server.result()
    assert ended["status"] == 0, ended
    disconnect_holds(bench, b.ip, a.ip)


@pytest.mark.parametrize(
    ("command", "port", "says"),
    [
        (("ucmatose", "-s", "10.77.0.2", "-c", "1"), 7471, "RDMA_CM_EVENT_REJECTED, error: 28"),
        (("rping", "-c", "-a", "10.77.0.2", "-C", "1"), 7174, "RDMA_CM_EVENT_REJECTED, error 28"),
        (("rstream", "-s", "10.77.0.2", "-T", "b"), 7471, "Connection refused"),
    ],
    ids=["ucmatose", "rping", "rstream"],
)
def test_programs_report_our_rejection(bench: Bench, command: tuple[str, ...], port: int, says: str) -> None:
    """CF_REJECT reaches a librdmacm or rsockets client as a rejection by the consumer."""
    _, b = bench.start()
    listener = b.listen(port)
    client = Program(bench.pair, "a", *command)
    b.wait_request(listener)

    answer = b.wsp("WSPAccept", s=listener.s, decision=CF_REJECT)

    assert answer.code is Code.WSAECONNREFUSED
    ended = client.result()
    assert says in ended["stdout"] + ended["stderr"], ended
    bench.judge()


def test_rping_reads_and_writes_memory_that_we_expose(bench: Bench) -> None:
    """Playing rping's client: its server pulls our buffer by RDMA READ and pushes it back by RDMA WRITE."""
    a, b = bench.start()
    server = Program(bench.pair, "b", "rping", "-s", "-a", b.ip, "-C", "1", "-v", "-S", "64")
    wait_for_listener(bench.pair, "b", port=7174)
    socket = a.socket(6000, 0x10)
    a.connect(socket, b.ip, 7174)
    ours = a.connected(socket)
    source, source_descriptor = a.expose(ours, MEM_READ, size=4096)
    sink, sink_descriptor = a.expose(ours, MEM_WRITE, size=4096)
    ping = b"rdma-ping-0: from a SAN socket".ljust(63, b".") + b"\0"
    a.ask("write_memory", memory=source, offset=0, data=ping)

    for descriptor in (source_descriptor, sink_descriptor):
        go_ahead = a.recv(ours, length=16)
        rkey, address, _ = struct.unpack("!IQQ", descriptor)
        send = a.send(ours, struct.pack("!QII", address, rkey, 64))
        assert a.completion(send) == (Code.OK, 16)
        assert a.completion(go_ahead) == (Code.OK, 16)

    assert a.ask("read_memory", memory=sink, offset=0, length=64) == ping
    assert a.close(ours).code is Code.OK
    assert "server ping data: rdma-ping-0: from a SAN socket" in server.result()["stdout"]
    disconnect_holds(bench, a.ip, b.ip)


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

    # The kernel may send "please wait" (MRA), and may repeat any message.
    assert list(dict.fromkeys(m for _, m, _ in ours if m != "MRA")) == ["REQ", "REP", "RTU", "DREQ", "DREP"]
    assert theirs == ours
