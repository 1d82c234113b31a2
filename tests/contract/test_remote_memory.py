"""Memory for the peer's RDMA: a descriptor opens it to one peer, as its flags say, until it is deregistered."""

import hashlib
import time

import pytest

from hil import Code
from hil.testing import FD_CONNECT, Answer, Bench, End, Socket
from hil.testing.data import NAK_REMOTE_ACCESS, READ_RESPONSES, RESET, first_sent
from hil.testing.memory import (
    ACKS,
    WRITE_ONLY,
    answers,
    become_a_user,
    carried,
    forged,
    last_packet,
    no_more_objects,
    put_on_wire,
    regions,
    rewritten,
)
from hil.winsock.codes import MEM_READ, MEM_READWRITE, MEM_WRITE
from hil.wire.faults import Drop, Fault, Match, Span

pytestmark = pytest.mark.used_pair

LENGTH, LARGE = 0x7000, 0x150000
SECRET, FORGERY = b"the owner's secret, of 32 bytes.", b"written by an attacker, 32 bytes"
DONE = (Code.OK, len(SECRET))
BOTH = ("WSPRdmaWrite", "WSPRdmaRead")


class Exposed:
    """New memory of ``owner``, registered with ``flags``. It begins with SECRET."""

    def __init__(self, owner: End, flags: int = MEM_READWRITE, length: int = LENGTH) -> None:
        made = owner.at.ask("memory", size=length)
        self.owner, self.memory, self.address = owner, made["memory"], made["address"]
        self.descriptor = register(owner, length, flags, address=self.address).more["descriptor"]
        self.write(SECRET)

    def write(self, data: bytes, offset: int = 0) -> None:
        self.owner.at.ask("write_memory", memory=self.memory, offset=offset, data=data)

    def content(self, length: int = len(SECRET), offset: int = 0) -> bytes:
        return bytes(self.owner.at.ask("read_memory", memory=self.memory, offset=offset, length=length))

    def deregister(self) -> Code:
        return self.owner.wsp("WSPDeregisterRdmaMemory", descriptor=self.descriptor).code


def rdma(end: End, function: str, descriptor: bytes, offset: int = 0) -> tuple[Code, int] | None:
    """Write FORGERY to the peer, or read as many bytes from it. Returns the completion."""
    end.at.ask("write_memory", memory=end.socket.memory, offset=0, data=FORGERY)
    return end.completion(end.at.rdma(function, end.socket, descriptor, len(FORGERY), offset=offset))


def assert_repelled(bench: Bench, attacker: End, function: str, exposed: Exposed, descriptor: bytes = b"") -> None:
    """Check that the attack reaches the wire, gets a remote access NAK, and moves no byte either way."""
    code, _ = rdma(attacker, function, descriptor or exposed.descriptor) or (Code.OK, 0)

    assert code is not Code.OK
    assert answers(carried(bench), exposed.descriptor)[-1] == NAK_REMOTE_ACCESS
    assert exposed.content() == SECRET
    assert attacker.at.data(attacker.socket, len(FORGERY)) == FORGERY


def register(end: End, length: int = LENGTH, flags: int = MEM_READWRITE, **more: int) -> Answer:
    """WSPRegisterRdmaMemory of new memory, or of the address in ``more``."""
    address = more.pop("address", 0) or end.at.ask("memory", size=length)["address"]
    return end.wsp("WSPRegisterRdmaMemory", address=address, length=length, flags=flags, **more)


# --- the descriptor --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("RMEM-01", "RMEM-10", "RMEM-17")
@pytest.mark.parametrize("owner", ["connector", "acceptor"])
def test_the_peer_writes_and_reads_a_descriptors_memory(bench: Bench, owner: str) -> None:
    """With a descriptor that came as a message, the peer writes the buffer and reads its owner's bytes."""
    ends = bench.connect()
    own, peer = ends if owner == "connector" else ends[::-1]
    exposed = Exposed(own)
    receive = peer.recv()
    own.send(exposed.descriptor)
    assert peer.completion(receive) == (Code.OK, len(exposed.descriptor))
    descriptor = peer.at.data(peer.socket, len(exposed.descriptor))

    assert rdma(peer, "WSPRdmaWrite", descriptor, offset=100) == DONE
    assert exposed.content(LENGTH) == SECRET.ljust(100, b"\0") + FORGERY + bytes(LENGTH - 100 - len(FORGERY))
    exposed.write(b"the owner's own new words".ljust(len(SECRET)), offset=100)
    assert rdma(peer, "WSPRdmaRead", descriptor, offset=100) == DONE
    assert peer.at.data(peer.socket, len(SECRET)) == b"the owner's own new words".ljust(len(SECRET))
    assert {syndrome in ACKS for syndrome in answers(carried(bench), descriptor)} == {True}
    bench.judge()


@pytest.mark.requirement("RMEM-02", "RMEM-03")
def test_a_probe_tells_how_much_space_the_descriptor_needs(bench: Bench) -> None:
    """A call with too little space gives WSAEFAULT and the needed length, which is enough for every later call."""
    a, _ = bench.connect()
    probe = register(a, room=0)
    needed = probe.more["descriptor_length"]

    assert (probe.result, probe.code) == (-1, Code.WSAEFAULT)
    assert needed > 0
    short = register(a, room=needed - 1)
    assert (short.result, short.code, short.more["descriptor_length"]) == (-1, Code.WSAEFAULT, needed)
    assert regions(bench, "a", LENGTH) == []
    for length, flags in ((LENGTH, MEM_READWRITE), (1, MEM_READ), (LARGE, MEM_WRITE)):
        exact = register(a, length, flags, room=needed)
        assert (exact.result, exact.code, exact.more["descriptor_length"]) == (0, Code.OK, needed)
    bench.judge()


@pytest.mark.requirement("RMEM-04")
def test_a_range_outside_the_process_is_refused(bench: Bench) -> None:
    """Registering a range wholly or partly outside the process gives WSAEFAULT."""
    a, _ = bench.connect()
    ranges = [(0x1000, 4096), (0xFFFF888000000000, 4096), ((1 << 64) - 4096, 8192), (a.socket.address, 1 << 30)]

    answers = [register(a, length, address=address) for address, length in ranges]

    assert [(answer.result, answer.code) for answer in answers] == [(-1, Code.WSAEFAULT)] * len(ranges)
    bench.judge()


@pytest.mark.requirement("RMEM-04")
@pytest.mark.parametrize("short_of", ["pinned memory", "adapter objects"])
@pytest.mark.needs("own nodes")
def test_exhaustion_is_no_buffer_space(bench: Bench, short_of: str) -> None:
    """A registration beyond the limit gives WSAENOBUFS, and memory exposed before is still served."""
    a, _ = bench.start()
    if short_of == "pinned memory":
        become_a_user(a, pinned=1 << 20)
    owner, peer = bench.connect()
    exposed = Exposed(owner)
    if short_of == "adapter objects":
        no_more_objects(a)

    answer = register(owner, LARGE)

    assert (answer.result, answer.code) == (-1, Code.WSAENOBUFS)
    assert rdma(peer, "WSPRdmaWrite", exposed.descriptor) == DONE
    bench.judge()


@pytest.mark.requirement("RMEM-05")
def test_unknown_flags_and_unconnected_sockets_are_refused(bench: Bench) -> None:
    """Undefined flags give WSAEINVAL; a socket that is not connected, or no longer, gives WSAENOTCONN."""
    a, b = bench.connect()
    bad = [register(a, flags=flags) for flags in (0, 4, 5, 0xFF)]
    fresh = b.at.must("WSPSocket", af=2).result
    bound = b.at.socket(7000, FD_CONNECT).s
    listening = b.at.listen(7001).s
    pending = b.recv()
    a.close()
    assert b.completion(pending) == RESET
    arguments = {"address": b.socket.address, "length": 4096, "flags": MEM_READ}

    unconnected = [b.at.wsp("WSPRegisterRdmaMemory", s=s, **arguments) for s in (fresh, bound, listening, b.socket.s)]

    assert [(answer.result, answer.code) for answer in bad] == [(-1, Code.WSAEINVAL)] * 4
    assert [(answer.result, answer.code) for answer in unconnected] == [(-1, Code.WSAENOTCONN)] * 4
    bench.judge()


@pytest.mark.requirement("RMEM-13")
def test_an_unknown_descriptor_is_refused(bench: Bench) -> None:
    """Deregistering another socket's descriptor, a shortened one or a deregistered one gives WSAEINVAL."""
    a, b = bench.connect()
    other, _ = bench.connect(6001)
    mine, others = Exposed(a), Exposed(other)
    gone = Exposed(a)
    assert gone.deregister() is Code.OK
    wrong = [
        gone.descriptor,
        others.descriptor,
        b"",
        bytes(20),
        mine.descriptor[:-1],
        forged(mine.descriptor, beyond=1),
    ]
    answers = [a.wsp("WSPDeregisterRdmaMemory", descriptor=d) for d in wrong]

    assert [(answer.result, answer.code) for answer in answers] == [(-1, Code.WSAEINVAL)] * len(wrong)
    assert rdma(b, "WSPRdmaWrite", mine.descriptor) == DONE
    bench.judge()


@pytest.mark.requirement("RMEM-13", "RMEM-14")
@pytest.mark.parametrize("function", BOTH)
def test_memory_in_a_transfer_of_ones_own_is_not_taken_back(bench: Bench, function: str) -> None:
    """During an own transfer with memory exposed twice, only the first of two deregistrations succeeds.

    The second succeeds after the transfer.
    """
    a, b = bench.connect()
    length = 8 << 20
    own_memory = a.at.with_memory(a.socket, length)
    own = register(a, address=own_memory.address, length=length).more["descriptor"]
    assert register(a, address=own_memory.address, length=length).more["descriptor"] == own
    theirs, transfer = Exposed(b, length=length).descriptor, int(a.at.ask("overlapped"))
    buffers = [[length, own_memory.address, own_memory.region]]
    begin = {"s": a.socket.s, "overlapped": transfer, "descriptor": theirs, "buffers": buffers}
    take_back = ("WSPDeregisterRdmaMemory", {"s": a.socket.s, "descriptor": own})

    # Runs on the node, because a fast adapter needs less than a millisecond for the transfer.
    begun, counted, during = a.at.ask("in_a_row", calls=[(function, begin), take_back, take_back])

    assert begun["code"] == Code.WSA_IO_PENDING
    assert (counted["result"], counted["code"]) == (0, Code.OK)
    assert (during["result"], during["code"]) == (-1, Code.WSAEINVAL)
    assert a.completion(transfer, 60) == (Code.OK, length)
    assert a.wsp("WSPDeregisterRdmaMemory", descriptor=own).code is Code.OK
    bench.judge()


# --- access by other connections -------------------------------------------------------------------------------------


@pytest.mark.requirement("RMEM-06")
def test_other_connections_of_the_peer_are_repelled(bench: Bench) -> None:
    """The peer's process cannot use a descriptor on another connection, not even on one to the same owner."""
    peer, owner = bench.connect()
    exposed = Exposed(owner)

    for port, function in enumerate(BOTH, 6001):
        attacker, _ = bench.connect(port)
        assert_repelled(bench, attacker, function, exposed)

    assert rdma(peer, "WSPRdmaWrite", exposed.descriptor) == DONE
    bench.judge()


@pytest.mark.requirement("RMEM-07")
def test_another_process_is_repelled(bench: Bench) -> None:
    """Another process of the peer's node with its own connection to the owner cannot use the descriptor."""
    peer, owner = bench.connect()
    exposed = Exposed(owner)
    another = bench.another("a")
    assert bench.listener is not None

    for port, function in enumerate(BOTH, 6001):
        attacker, _ = bench.join(another, bench.endpoints["b"], bench.listener, port)
        assert_repelled(bench, attacker, function, exposed)

    assert rdma(peer, "WSPRdmaWrite", exposed.descriptor) == DONE
    bench.judge()


@pytest.mark.requirement("RMEM-07")
def test_another_host_is_ignored(bench: Bench) -> None:
    """A third host that knows queue pair, PSN, key and address cannot write; the peer's next packet still can."""
    peer, owner = bench.connect()
    exposed = Exposed(owner)
    assert rdma(peer, "WSPRdmaWrite", exposed.descriptor) == DONE
    written = last_packet(bench, WRITE_ONLY)
    stranger = rewritten(written, b"from a stranger".ljust(len(FORGERY)), source=bench.unused_address)
    genuine = rewritten(written, b"from the peer".ljust(len(FORGERY)))

    put_on_wire(bench, "a", stranger)
    put_on_wire(bench, "a", genuine)

    end = time.monotonic() + 15
    while (found := exposed.content()) == FORGERY and time.monotonic() < end:
        time.sleep(0.001)
    assert found == b"from the peer".ljust(len(FORGERY))
    writes = first_sent(p for p in carried(bench) if p.opcode == WRITE_ONLY)
    assert [p.source for p in writes] == [peer.at.ip, bench.unused_address, peer.at.ip]
    bench.judge()


# --- permitted uses --------------------------------------------------------------------------------------------------


def both_ways(bench: Bench) -> list[tuple[End, End]]:
    """(owner, peer) of two connections: the connector owns the memory on the first, the acceptor on the second."""
    return [bench.connect(6001), bench.connect(6002)[::-1]]


@pytest.mark.requirement("RMEM-08")
def test_a_source_is_read_and_not_written(bench: Bench) -> None:
    """MEM_READ memory of either end serves RDMA reads, and a write gets a remote access NAK."""
    for owner, peer in both_ways(bench):
        exposed = Exposed(owner, MEM_READ)

        assert rdma(peer, "WSPRdmaRead", exposed.descriptor) == DONE
        assert peer.at.data(peer.socket, len(SECRET)) == SECRET
        assert_repelled(bench, peer, "WSPRdmaWrite", exposed)
    bench.judge()


@pytest.mark.requirement("RMEM-09")
def test_a_target_is_written_and_not_read(bench: Bench) -> None:
    """MEM_WRITE memory of either end takes RDMA writes, and a read gets a remote access NAK."""
    for owner, peer in both_ways(bench):
        exposed = Exposed(owner, MEM_WRITE)

        assert rdma(peer, "WSPRdmaWrite", exposed.descriptor) == DONE
        assert exposed.content() == FORGERY
        exposed.write(SECRET)
        assert_repelled(bench, peer, "WSPRdmaRead", exposed)
    bench.judge()


@pytest.mark.requirement("RMEM-11")
@pytest.mark.parametrize("function", BOTH)
def test_one_byte_outside_the_range_is_repelled(bench: Bench, function: str) -> None:
    """A transfer that begins one byte before the registered range or ends one byte beyond it moves no byte."""
    for port, side in enumerate(("before", "beyond"), 6001):
        peer, owner = bench.connect(port)
        exposed = Exposed(owner, length=len(FORGERY))
        wider = forged(exposed.descriptor, **{side: 1})
        attack = peer.at.rdma(function, peer.socket, wider, len(FORGERY), offset=0 if side == "before" else 1)

        code, _ = peer.completion(attack) or (Code.OK, 0)

        assert code is not Code.OK
        assert answers(carried(bench), wider) == [NAK_REMOTE_ACCESS]
        assert exposed.content(4096) == SECRET.ljust(4096, b"\0")
        assert peer.at.data(peer.socket, len(FORGERY)) == bytes(len(FORGERY))
    bench.judge()


# --- until when ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("RMEM-12")
@pytest.mark.parametrize("cache", [True, False], ids=["caching", "not caching"])
def test_deregistration_ends_the_peers_access(bench: Bench, cache: bool) -> None:
    """After WSPDeregisterRdmaMemory the peer's RDMA is refused, with a cache in the provider or without."""
    bench.start(settings_b={"cache": cache})
    for port, function in enumerate(BOTH, 6001):
        peer, owner = bench.connect(port)
        exposed = Exposed(owner)
        assert rdma(peer, "WSPRdmaRead", exposed.descriptor) == DONE

        assert exposed.deregister() is Code.OK

        assert_repelled(bench, peer, function, exposed)
    bench.judge()


LONG = 8 << 20


def begin_reading(bench: Bench, port: int = 6001) -> tuple[End, Exposed, Socket, int]:
    """(peer, memory it reads, its socket, the read) of a read of LONG bytes that has begun to arrive."""
    peer, owner = bench.connect(port)
    exposed = Exposed(owner, length=LONG)
    target = peer.at.with_memory(peer.socket, LONG)
    before = bench.pair.wire.counts().received["b"]
    read = peer.at.rdma("WSPRdmaRead", target, exposed.descriptor, LONG)
    while bench.pair.wire.counts().received["b"] < before + 20:
        time.sleep(0.001)
    return peer, exposed, target, read


@pytest.mark.requirement("RMEM-12")
@pytest.mark.needs("inline wire")
def test_deregistration_cuts_off_a_running_read(bench: Bench) -> None:
    """The owner deregisters while the peer reads 8 MiB, and bytes that it writes afterwards never reach the peer."""
    for port in range(6001, 6011):
        peer, exposed, target, read = begin_reading(bench, port)

        # Verbs do not report incoming transfers, so the provider cannot refuse this as memory in use (RMEM-13).
        assert exposed.deregister() is Code.OK
        exposed.write(b"!" * 65536, offset=LONG - 65536)

        code, transferred = peer.completion(read) or (Code.OK, 0)
        got = peer.at.ask("digest_memory", memory=target.memory, offset=0, length=LONG)
        assert got == hashlib.sha256(SECRET.ljust(LONG, b"\0")).hexdigest()
        if NAK_REMOTE_ACCESS in [packet.syndrome for packet in carried(bench)]:
            break
        # A software adapter may send everything before the deregistering thread gets the processor.
        assert (code, transferred) == (Code.OK, LONG)
    else:
        pytest.fail("each of ten reads was over before its memory was deregistered")
    assert (code is not Code.OK, transferred) == (True, 0)
    assert [p for p in carried(bench) if p.source == exposed.owner.at.ip][-1].syndrome == NAK_REMOTE_ACCESS
    bench.judge()


@pytest.mark.requirement("RDMA-12", "RDMA-13")
@pytest.mark.needs("inline wire")
def test_a_read_whose_rest_is_refused_is_not_complete(bench: Bench) -> None:
    """A read whose lost responses are refused on the repeat, after deregistration, ends with an error.

    Soft-RoCE of Linux 6.1 reports success without the data.
    """
    lost = bench.pair.wire.add_fault(Fault("lost", Drop(), Match(opcodes=READ_RESPONSES, occurrences=Span(16))))
    peer, exposed, _, read = begin_reading(bench)

    assert exposed.deregister() is Code.OK
    bench.pair.wire.remove_fault(lost)

    code, transferred = peer.completion(read) or (Code.OK, 0)
    assert (code is not Code.OK, transferred) == (True, 0)
    assert NAK_REMOTE_ACCESS in [packet.syndrome for packet in carried(bench)]
    bench.judge()


@pytest.mark.requirement("RMEM-14")
def test_only_the_last_deregistration_ends_access(bench: Bench) -> None:
    """The peer still writes after the first of two deregistrations of a range, and is refused after the second."""
    bench.start(settings_b={"cache": False})
    peer, owner = bench.connect()
    exposed = Exposed(owner)
    again = register(owner, address=exposed.address).more["descriptor"]

    assert exposed.deregister() is Code.OK
    assert len(regions(bench, "b", LENGTH)) == 1
    assert rdma(peer, "WSPRdmaWrite", again) == DONE
    exposed.write(SECRET)
    assert owner.wsp("WSPDeregisterRdmaMemory", descriptor=again).code is Code.OK
    assert regions(bench, "b", LENGTH) == []
    exposed.descriptor = again
    assert_repelled(bench, peer, "WSPRdmaWrite", exposed)
    bench.judge()


@pytest.mark.requirement("RMEM-16")
def test_the_peers_reset_ends_its_access(bench: Bench) -> None:
    """After the peer's close a late write does not change the buffer, although the owner has not deregistered it."""
    peer, owner = bench.connect()
    bystander, bystanders_peer = bench.connect(6001)
    exposed = Exposed(owner)
    assert rdma(peer, "WSPRdmaWrite", exposed.descriptor) == DONE
    late = rewritten(last_packet(bench, WRITE_ONLY), SECRET)
    pending = owner.recv()
    assert peer.close() == (0, Code.OK)
    assert owner.completion(pending) == RESET

    put_on_wire(bench, "a", late)
    assert rdma(bystander, "WSPRdmaWrite", Exposed(bystanders_peer).descriptor) == DONE

    assert exposed.content() == FORGERY
    bench.judge()


@pytest.mark.requirement("RMEM-16")
def test_the_owners_close_ends_all_access(bench: Bench) -> None:
    """A close without deregistration leaves no region, and the key is refused on a new connection."""
    peer, owner = bench.connect()
    exposed = Exposed(owner)

    assert owner.wsp("WSPCloseSocket", deliberately=["SWITCH-10"]).code is Code.OK

    assert regions(bench, "b", LENGTH) == []
    for port, function in enumerate(BOTH, 6001):
        attacker, _ = bench.connect(port)
        assert_repelled(bench, attacker, function, exposed)
    assert peer.close() == (0, Code.OK)
    bench.judge()
