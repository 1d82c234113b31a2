"""RDMA: WSPRdmaWrite and WSPRdmaRead move all data without the peer's processor, or end with an error."""

import hashlib

import pytest

from hil import Code, RocePacket
from hil.provider.descriptor import DESCRIPTOR
from hil.testing import FD_CONNECT, Bench, End
from hil.testing.data import (
    BROKEN,
    NAK_REMOTE_ACCESS,
    READ_REQUEST,
    WRITES,
    Exposed,
    completions,
    digest,
    expose,
    fill,
    local,
    rdma,
    refusal,
    sent,
    with_memory,
)
from hil.testing.memory import answers, forged
from hil.winsock.codes import MEM_READ, MEM_READWRITE, MEM_WRITE, SO_MAX_RDMA_SIZE, SOL_SOCKET
from hil.wire.faults import Drop, Fault, Match, Span

pytestmark = pytest.mark.used_pair

READ_EXTENSION = "C0B422FA-F58C-11D1-AD6C-00C04FA34A2D"
BOTH = ("WSPRdmaWrite", "WSPRdmaRead")
REQUESTS = (*WRITES, READ_REQUEST)
# Four parts, each a length and an offset. They neither lie in order nor touch.
PARTS = [(100, 30000), (3000, 200), (1, 10000), (899, 20000)]
TOTAL = sum(length for length, _ in PARTS)


either = pytest.mark.parametrize("function", BOTH)


def content(end: End, parts: list[tuple[int, int]]) -> bytes:
    """The content of the parts of the end's buffer, in their order."""
    return b"".join(end.at.data(end.socket, length, place) for length, place in parts)


def request(packets: list[RocePacket]) -> RocePacket:
    """The one packet with an RDMA request's header (RETH).

    The adapter repeats a request that was not acknowledged in time, inside the same range.
    """
    first, *again = [p for p in packets if p.rkey != -1]
    end = first.address + first.length
    assert all((p.rkey, p.address + p.length) == (first.rkey, end) and p.address >= first.address for p in again)
    return first


def move(function: str, end: End, target: Exposed, size: int) -> tuple[int, str]:
    """Begin a transfer of ``size`` new bytes. Returns the operation and the bytes' SHA-256."""
    read = function == "WSPRdmaRead"
    whole = target.fill(size, seed=1) if read else fill(end.at, end.socket.memory, size, seed=1)
    return rdma(end, function, target, (size, 0)), whole


def in_a_row(end: End, function: str, target: Exposed, size: int, count: int) -> list[int]:
    """Begin ``count`` transfers of ``size`` bytes with one call to the node. Returns the operations."""
    operations = [int(end.at.ask("overlapped")) for _ in range(count)]
    arguments = {"s": end.socket.s, "descriptor": target.descriptor, "buffers": local(end, (size, 0))}
    answers = end.at.ask("in_a_row", calls=[(function, arguments | {"overlapped": o}) for o in operations])
    assert {answer["code"] for answer in answers} == {Code.WSA_IO_PENDING}
    return operations


# --- placement of the data -------------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-01", "RDMA-08", "RDMA-10")
def test_a_write_puts_the_buffers_one_after_the_other_at_the_offset(bench: Bench) -> None:
    """A write of four local buffers lands without gaps at the byte offset, and changes nothing beside it.

    The completion counts their sum. The packet names the target's key, and its address plus the offset.
    """
    writer, peer = bench.connect()
    target, offset = expose(peer, MEM_WRITE), 1001
    fill(writer.at, writer.socket.memory, 65536, seed=1)
    around = target.fill(65536, seed=2) and peer.at.ask("read_memory", memory=target.memory, offset=0, length=65536)

    write = rdma(writer, "WSPRdmaWrite", target, *PARTS, offset=offset)

    assert writer.completion(write) == (Code.OK, TOTAL)
    written = around[:offset] + content(writer, PARTS) + around[offset + TOTAL :]
    assert target.digest(65536) == hashlib.sha256(written).hexdigest()
    packets = sent(bench.judge().packets, writer, REQUESTS)
    first = request(packets)
    assert (first.rkey, first.address, first.length) == (
        DESCRIPTOR.unpack(target.descriptor)[0],
        target.address + offset,
        TOTAL,
    )
    assert {p.opcode for p in packets} <= set(WRITES)


@pytest.mark.requirement("RDMA-02", "RDMA-08", "RDMA-10")
def test_a_read_fills_the_buffers_one_after_the_other_from_the_offset(bench: Bench) -> None:
    """A read from the byte offset fills four local buffers in their order, and changes nothing beside them.

    The completion counts their sum, and the wire carries one read request.
    """
    reader, peer = bench.connect()
    source, offset = expose(peer, MEM_READ), 1001
    source.fill(65536, seed=1)
    blank = b"\xee" * 65536
    reader.at.ask("write_memory", memory=reader.socket.memory, offset=0, data=blank)

    read = rdma(reader, "WSPRdmaRead", source, *PARTS, offset=offset)

    assert reader.completion(read) == (Code.OK, TOTAL)
    assert hashlib.sha256(content(reader, PARTS)).hexdigest() == source.digest(TOTAL, offset=offset)
    buffer = bytearray(reader.at.data(reader.socket, 65536))
    for length, place in PARTS:
        buffer[place : place + length] = blank[:length]
    assert buffer == blank
    packets = sent(bench.judge().packets, reader, REQUESTS)
    asked = request(packets)
    assert (asked.opcode, asked.address, asked.length) == (READ_REQUEST, source.address + offset, TOTAL)
    assert {p.opcode for p in packets} == {READ_REQUEST}


@pytest.mark.requirement("RDMA-03")
def test_the_peer_takes_no_notice(bench: Bench) -> None:
    """A transfer consumes no receive, sets no event object and causes no up-call at the peer."""
    end, peer = bench.connect()
    target, receives = expose(peer), [peer.recv(), peer.recv(offset=256)]
    journal = len(bench.pair.journal("b"))
    event = peer.at.ask("event_state", event=peer.socket.event)

    for function in BOTH:
        operation, whole = move(function, end, target, 65536)
        assert end.completion(operation) == (Code.OK, 65536)
        assert target.digest(65536) == whole

    assert completions(peer, receives, 0) == [None, None]
    assert peer.at.ask("event_state", event=peer.socket.event) == event
    assert len(bench.pair.journal("b")) == journal
    bench.judge()


@pytest.mark.requirement("RDMA-09")
@either
def test_a_transfer_pends_and_completes_once(bench: Bench, function: str) -> None:
    """A transfer returns WSA_IO_PENDING and ends by one up-call, or by none if it is polled."""
    end, peer = bench.connect()
    target = expose(peer)

    notified = rdma(end, function, target, (5000, 0))
    polled = rdma(end, function, target, (6000, 0), hEvent=1)

    assert end.completion(notified) == (Code.OK, 5000)
    answer = end.wsp("WSPGetOverlappedResult", overlapped=polled, wait=True)
    assert (answer.result, answer.code, answer.more["transferred"]) == (True, Code.OK, 6000)
    upcalls = bench.judge().of("a", "upcall", function="WPUCompleteOverlappedRequest")
    assert [e.overlapped for e in upcalls] == [notified]


# --- how large, how long ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-07")
@either
def test_the_largest_transfer_succeeds(bench: Bench, function: str) -> None:
    """A transfer of SO_MAX_RDMA_SIZE bytes in one call arrives intact."""
    end, peer = bench.connect()
    most = end.wsp("WSPGetSockOpt", level=SOL_SOCKET, name=SO_MAX_RDMA_SIZE).more["value"]
    own, target = with_memory(end, most), expose(peer, size=most)

    operation, whole = move(function, own, target, most)

    assert end.completion(operation, 25) == (Code.OK, most)
    assert digest(end.at, own.socket.memory, most) == target.digest(most) == whole
    bench.judge()


@pytest.mark.requirement("RDMA-16")
def test_other_operations_go_on_during_a_long_write(bench: Bench) -> None:
    """During writes of 8 MiB a receive is posted and gets its message, a send is posted, and no call waits."""
    size = 8 << 20
    # A fast adapter finishes a few writes before the peer's message arrives.
    for port, count in ((6001, 4), (6002, 32)):
        writer, peer = bench.connect(port)
        own, target = with_memory(writer, size), expose(peer, MEM_WRITE, size)
        last = peer.recv()

        writes = in_a_row(own, "WSPRdmaWrite", target, size, count)
        receive = writer.recv()
        peer.send(b"meanwhile")
        assert writer.completion(receive) == (Code.OK, 9)
        send = writer.send(b"after it")
        during = completions(writer, [writes[-1], send], 0)

        assert completions(writer, [*writes, send], 25) == [(Code.OK, size)] * count + [(Code.OK, 8)]
        assert peer.completion(last) == (Code.OK, 8)
        if during == [None, None]:
            break
    else:
        pytest.fail("the writes were over before a message came and another was sent")
    bench.judge()


# --- guarantees of a completion --------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-11")
@pytest.mark.parametrize("peer_is", ["out of reach", "killed"])
@pytest.mark.needs("inline wire")
def test_a_write_that_is_not_placed_is_no_success(bench: Bench, peer_is: str) -> None:
    """A write whose peer goes away in the middle ends with an error and zero bytes."""
    writer, peer = bench.connect()
    size = 4 << 20
    own, target = with_memory(writer, size), expose(peer, MEM_WRITE, size)

    stopped = bench.pair.wire.add_fault(Fault("stopped", Drop(), Match(opcodes=WRITES, occurrences=Span(64))))
    write = rdma(own, "WSPRdmaWrite", target, (size, 0))
    bench.wait_packets(lambda p: p.opcode in WRITES, count=64)
    if peer_is == "killed":
        peer.at.node.channel.kill(peer.at.worker)
    else:
        bench.pair.wire.cut()
    bench.pair.wire.remove_fault(stopped)

    code, transferred = writer.completion(write, 15) or (Code.WSA_IO_PENDING, 0)
    assert code in (Code.WSAECONNRESET, Code.WSAECONNABORTED) and transferred == 0
    if peer_is == "killed":
        peer.at.node.channel.wait_exit(peer.at.worker, 10)
        del bench.endpoints["b"]
    bench.pair.wire.mend()
    assert len(sent(bench.judge().packets, writer, WRITES[2:])) == 0


@pytest.mark.requirement("RDMA-12")
@pytest.mark.needs("inline wire")
def test_a_read_is_complete_when_all_of_it_has_come(bench: Bench) -> None:
    """Inside a read's up-call the local buffer holds all its data, although the wire was cut for a while."""
    reader, peer = bench.connect()
    size = 256 * 1024
    own, source = with_memory(reader, size), expose(peer, MEM_READ, size)
    look = {"memory": own.socket.memory, "offset": 0, "length": size}
    reader.at.ask("in_next_completion", call="digest_memory", arguments=look)

    bench.pair.wire.cut()
    read, whole = move("WSPRdmaRead", own, source, size)
    bench.wait_packets(lambda p: p.opcode == READ_REQUEST, count=2)
    bench.pair.wire.mend()

    assert reader.at.ask("answer_in_completion") == whole
    assert reader.completion(read) == (Code.OK, size)
    bench.judge()


# --- refusals by the target ------------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-13")
@either
def test_a_transfer_without_the_targets_grant_ends_with_an_error(bench: Bench, function: str) -> None:
    """A transfer without the right, beyond the range or after deregistration gets a remote access NAK and an error.

    Neither end's memory changes. Each case has its own connection, because the NAK may end it.
    """
    wrong = MEM_READ if function == "WSPRdmaWrite" else MEM_WRITE
    for port, because in enumerate(("rights", "range", "deregistered"), 6000):
        end, peer = bench.connect(port)
        target = expose(peer, wrong if because == "rights" else MEM_READWRITE)
        descriptor, offset = target.descriptor, 0
        if because == "range":
            descriptor, offset = forged(descriptor, beyond=1), 65536 - 63
        elif because == "deregistered":
            peer.wsp("WSPDeregisterRdmaMemory", descriptor=descriptor)
        before = target.fill(65536, seed=1), fill(end.at, end.socket.memory, 65536, seed=2)

        operation = end.at.rdma(function, end.socket, descriptor, 64, offset=offset)

        assert end.completion(operation) == BROKEN, because
        assert (target.digest(65536), digest(end.at, end.socket.memory, 65536)) == before
        assert NAK_REMOTE_ACCESS in answers(bench.pair.packets(), descriptor)
    bench.judge()


@pytest.mark.requirement("RDMA-04")
@either
def test_a_descriptor_of_another_connection_is_worth_nothing(bench: Bench, function: str) -> None:
    """The target refuses another connection's descriptor, even between the same processes, and that one goes on."""
    end, _ = bench.connect()
    other, its_peer = bench.connect(port=6001)
    target = expose(its_peer)
    before = target.fill(65536, seed=1), fill(end.at, end.socket.memory, 65536, seed=2)

    operation = rdma(end, function, target, (64, 0))

    assert end.completion(operation) == BROKEN
    assert (target.digest(65536), digest(end.at, end.socket.memory, 65536)) == before
    assert NAK_REMOTE_ACCESS in answers(bench.pair.packets(), target.descriptor)
    assert other.completion(rdma(other, function, target, (64, 0))) == (Code.OK, 64)
    bench.judge()


# --- calls refused at once -------------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-05")
def test_a_descriptor_of_the_wrong_length_is_refused(bench: Bench) -> None:
    """A descriptor one byte too short, one byte too long or empty gives WSAEINVAL, and sends nothing."""
    end, peer = bench.connect()
    right = expose(peer).descriptor

    codes = [refusal(end, f, descriptor=wrong) for f in BOTH for wrong in (right[:-1], right + b"\0", b"")]

    assert codes == [Code.WSAEINVAL] * 6
    assert not sent(bench.judge().packets, end, REQUESTS)


@pytest.mark.requirement("RDMA-06")
def test_a_handle_that_is_not_the_sockets_is_refused(bench: Bench) -> None:
    """Junk, a deregistered handle and another socket's handle for the same memory are refused, the right one works."""
    end, peer = bench.connect()
    other, _ = bench.connect(port=6001)
    target, address = expose(peer), end.socket.address
    memory = {"address": address, "length": 65536, "flags": MEM_READWRITE}
    others = other.wsp("WSPRegisterMemory", **memory).result
    old = end.wsp("WSPRegisterMemory", **memory | {"length": 4096}).result
    end.wsp("WSPDeregisterMemory", handle=old)
    handles = (0x12345678, 0, others, old)
    assert end.socket.region not in handles

    wrong = [{"buffers": [[8, address, handle]], "descriptor": target.descriptor} for handle in handles]
    assert [refusal(end, f, **arguments) for f in BOTH for arguments in wrong] == [Code.WSAEINVAL] * 8
    assert not sent(bench.pair.packets(), end, REQUESTS)

    assert [end.completion(rdma(end, f, target, (8, 0))) for f in BOTH] == [(Code.OK, 8)] * 2
    bench.judge()


@pytest.mark.requirement("RDMA-18")
def test_a_socket_that_is_not_connected_cannot_transfer(bench: Bench) -> None:
    """A transfer on a bound socket gives WSAENOTCONN, and on an unknown descriptor WSAENOTSOCK."""
    end, peer = bench.connect()
    bound = end.at.socket(7000, FD_CONNECT).s
    arguments = {"buffers": local(end, (8, 0)), "descriptor": expose(peer).descriptor, "deliberately": ["SWITCH-02"]}
    arguments["overlapped"] = end.at.ask("overlapped")

    codes = [end.at.wsp(f, s=s, **arguments).code for f in BOTH for s in (bound, 0x1234)]

    assert codes == [Code.WSAENOTCONN, Code.WSAENOTSOCK] * 2
    bench.judge()


# --- optional behaviour ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("RDMA-14")
def test_without_reads_the_data_is_written(bench: Bench) -> None:
    """A provider without WSPRdmaRead answers its GUID with WSAEOPNOTSUPP, and WSPRdmaWrite moves the data."""
    bench.start(settings_a={"rdma_read": False}, settings_b={"rdma_read": False})
    writer, peer = bench.connect()

    for end in (writer, peer):
        answer = end.wsp("WSPIoctl", code=0xC8000006, given=READ_EXTENSION)
        assert (answer.result, answer.code, answer.more["out"]) == (-1, Code.WSAEOPNOTSUPP, [])
    target = expose(peer, MEM_WRITE)
    write, whole = move("WSPRdmaWrite", writer, target, 65536)

    assert writer.completion(write) == (Code.OK, 65536)
    assert target.digest(65536) == whole
    bench.judge()


@pytest.mark.requirement("RDMA-19")
@either
def test_a_transfer_of_nothing_does_no_harm(bench: Bench, function: str) -> None:
    """A transfer of no buffer or of zero bytes is refused or completes with zero bytes, and later transfers succeed."""
    end, peer = bench.connect()
    target = expose(peer)

    for buffers in ([], local(end, (0, 0))):
        overlapped = end.at.ask("overlapped")
        answer = end.wsp(function, buffers=buffers, descriptor=target.descriptor, overlapped=overlapped)
        if answer.code is Code.WSA_IO_PENDING:
            assert end.completion(overlapped) == (Code.OK, 0)

    operation, whole = move(function, end, target, 4096)
    assert end.completion(operation) == (Code.OK, 4096)
    assert target.digest(4096) == whole
    bench.judge()
