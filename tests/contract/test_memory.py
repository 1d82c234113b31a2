"""Memory for local use: the access that WSPRegisterMemory grants, its sockets, its uses and its end."""

import pytest

from hil import Code
from hil.testing import FD_CONNECT, Answer, Bench, End
from hil.testing.data import NAK_REMOTE_ACCESS, RESET
from hil.testing.memory import (
    SEND_ONLY,
    answers,
    become_a_user,
    carried,
    descriptor_of_local,
    last_packet,
    no_more_objects,
    put_on_wire,
    refused,
    regions,
    rewritten,
)
from hil.winsock.codes import MEM_READ, MEM_READWRITE, MEM_WRITE

pytestmark = pytest.mark.used_pair

# No other buffer on a node has these lengths, so the kernel's list of regions can be searched for them.
UNIQUE_LENGTH, LARGE = 0x7000, 0x150000


def register(
    end: End, length: int = UNIQUE_LENGTH, flags: int = MEM_READWRITE, address: int = 0
) -> tuple[Answer, int, int]:
    """WSPRegisterMemory of new memory, or of the memory at ``address``: (answer, address, number of the memory)."""
    made = {"address": address, "memory": 0} if address else end.at.ask("memory", size=length)
    answer = end.wsp("WSPRegisterMemory", address=made["address"], length=length, flags=flags)
    return answer, made["address"], made["memory"]


def try_all(end: End, address: int, handle: int, descriptor: bytes, deliberately: list[str]) -> dict[str, Answer]:
    """Call every data function with 64 bytes at ``address``, by address alone or with ``handle``."""
    plain = {"buffers": [[64, address]]}
    remote = {"buffers": [[64, address, handle]], "descriptor": descriptor}
    calls = {"WSPSend": plain, "WSPRecv": plain, "WSPRdmaWrite": remote, "WSPRdmaRead": remote}
    return {
        name: end.wsp(name, **arguments, overlapped=end.at.ask("overlapped"), deliberately=deliberately)
        for name, arguments in calls.items()
    }


def exchange(sender: End, receiver: End, data: bytes = b"a message of sixty-four bytes".ljust(64, b".")) -> bytes:
    """Send ``data`` and return the bytes that arrived."""
    receive = receiver.recv(len(data))
    sender.send(data)
    assert receiver.completion(receive) == (Code.OK, len(data))
    return receiver.at.data(receiver.socket, len(data))


@pytest.mark.requirement("MEM-01", "MEM-18")
def test_one_registration_serves_every_data_function(bench: Bench) -> None:
    """One registration serves sends and receives by its address, and RDMA reads and writes by its handle."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)

    assert a.socket.region and b.socket.region
    assert exchange(a, b, b"by its address") == b"by its address"
    a.at.ask("write_memory", memory=a.socket.memory, offset=4096, data=b"by its handle")
    write = a.at.rdma("WSPRdmaWrite", a.socket, descriptor, 13, at=4096)
    assert a.completion(write) == (Code.OK, 13)
    read = a.at.rdma("WSPRdmaRead", a.socket, descriptor, 13, at=8192)
    assert a.completion(read) == (Code.OK, 13)
    assert a.at.data(a.socket, 13, 8192) == b"by its handle"

    bench.judge()


@pytest.mark.requirement("MEM-17")
def test_a_part_of_a_region_is_sent_and_received(bench: Bench) -> None:
    """100 bytes from the middle of 64 KiB arrive in the middle of another 64 KiB; the bytes around them stay."""
    a, b = bench.connect()
    a.at.ask("write_memory", memory=a.socket.memory, offset=0, data=b"x" * 65536)
    receive = b.recv(200, offset=30000)

    a.send(bytes(range(100)), offset=20000)

    assert b.completion(receive) == (Code.OK, 100)
    assert b.at.data(b.socket, 65536) == bytes(30000) + bytes(range(100)) + bytes(65536 - 30100)
    bench.judge()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("MEM-02", "MEM-03")
def test_unknown_flags_are_refused(bench: Bench) -> None:
    """WSPRegisterMemory takes only the three defined flags; any other gives NULL and WSAEINVAL."""
    a, _ = bench.connect()

    taken = {flags: register(a, flags=flags)[0] for flags in (0, 1, 2, 3, 4, 5, 0xFF)}

    assert all(taken[flags].result and taken[flags].code is Code.OK for flags in (1, 2, 3))
    assert {(taken[flags].result, taken[flags].code) for flags in (0, 4, 5, 0xFF)} == {(None, Code.WSAEINVAL)}
    bench.judge()


@pytest.mark.requirement("MEM-02", "MEM-04")
def test_a_range_outside_the_process_is_refused(bench: Bench) -> None:
    """Registering a range wholly or partly outside the process gives NULL and WSAEFAULT."""
    a, _ = bench.connect()
    below, kernel, last_page = 0x1000, 0xFFFF888000000000, (1 << 64) - 4096
    ranges = [(below, 4096), (kernel, 4096), (last_page, 4096), (last_page, 8192), (a.socket.address, 1 << 30)]

    answers = [register(a, length, address=address)[0] for address, length in ranges]

    assert [(answer.result, answer.code) for answer in answers] == [(None, Code.WSAEFAULT)] * len(ranges)
    bench.judge()


@pytest.mark.requirement("MEM-02", "MEM-05")
@pytest.mark.parametrize("short_of", ["pinned memory", "adapter objects"])
@pytest.mark.needs("own nodes")
def test_exhaustion_is_no_buffer_space(bench: Bench, short_of: str) -> None:
    """A registration beyond the limit gives NULL and WSAENOBUFS, and earlier registrations still work."""
    a, _ = bench.start()
    if short_of == "pinned memory":
        become_a_user(a, pinned=1 << 20)
    connector, acceptor = bench.connect()
    if short_of == "adapter objects":
        no_more_objects(a)

    answer, _, _ = register(connector, LARGE)

    assert (answer.result, answer.code) == (None, Code.WSAENOBUFS)
    assert exchange(connector, acceptor, b"still here") == b"still here"
    bench.judge()


@pytest.mark.requirement("MEM-10")
def test_a_deregistration_gives_back_the_right_to_pin(bench: Bench) -> None:
    """A user with a small limit of pinned memory registers far more than that, one piece after the other."""
    a, _ = bench.start()
    become_a_user(a, pinned=2 << 20)
    connector, _ = bench.connect()

    for _ in range(8):
        answer, _, memory = register(connector, LARGE)
        assert answer.code is Code.OK
        connector.wsp("WSPDeregisterMemory", handle=answer.result)
        connector.at.ask("free_memory", memory=memory)

    bench.judge()


@pytest.mark.requirement("MEM-06")
def test_only_a_connected_socket_takes_registrations(bench: Bench) -> None:
    """Registering for an unconnected or listening socket, or after the peer's close, gives NULL and WSAENOTCONN."""
    a, b = bench.connect()
    fresh = b.at.must("WSPSocket", af=2).result
    bound = b.at.socket(7000, FD_CONNECT).s
    listening = b.at.listen(7001).s
    pending = b.recv()
    assert a.close() == (0, Code.OK)
    assert b.completion(pending) == RESET

    sockets = (fresh, bound, listening, b.socket.s)
    arguments = {"address": b.socket.address, "length": 4096, "flags": MEM_READWRITE}
    answers = [b.at.wsp("WSPRegisterMemory", s=s, **arguments) for s in sockets]

    assert [(answer.result, answer.code) for answer in answers] == [(None, Code.WSAENOTCONN)] * 4
    bench.judge()


@pytest.mark.requirement("MEM-16")
def test_a_buffer_outside_every_registration_is_refused(bench: Bench) -> None:
    """A data call with a buffer that is not fully registered gives WSAEFAULT, and sends nothing."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE, 1 << 17)
    end = a.socket.address + 65536
    foreign = a.at.ask("memory", size=4096)["address"]
    more = {"overlapped": a.at.ask("overlapped"), "deliberately": ["SWITCH-02"]}
    wrong: list[list[list[int]]] = [
        [[64, foreign]],
        [[64, a.socket.address - 1]],
        [[64, end - 63]],
        [[65537, a.socket.address]],
        [[64, a.socket.address], [64, foreign]],
    ]

    with_handle = [[[*buffer, a.socket.region] for buffer in buffers] for buffers in wrong]
    plain = [a.wsp(name, buffers=buffers, **more) for name in ("WSPSend", "WSPRecv") for buffers in wrong]
    rdma = [
        a.wsp(name, buffers=buffers, descriptor=descriptor, **more)
        for name in ("WSPRdmaWrite", "WSPRdmaRead")
        for buffers in with_handle
    ]

    assert {(answer.result, answer.code) for answer in [*plain, *rdma]} == {(-1, Code.WSAEFAULT)}
    assert carried(bench) == []
    bench.judge()


# --- owners and permitted uses ---------------------------------------------------------------------------------------


@pytest.mark.requirement("MEM-07")
def test_a_handle_is_good_for_its_own_socket_only(bench: Bench) -> None:
    """Another socket of the process can neither use nor deregister the memory; its own socket goes on using it."""
    a, b = bench.connect()
    other, others_peer = bench.connect(6001)
    _, descriptor = others_peer.at.expose(others_peer.socket, MEM_READWRITE)
    foreign = {"buffers": [[64, a.socket.address]], "overlapped": a.at.ask("overlapped")}

    tried = try_all(other, a.socket.address, a.socket.region, descriptor, ["SWITCH-02"])
    mixed = other.wsp(
        "WSPRdmaWrite", **foreign | {"buffers": [[64, other.socket.address, a.socket.region]]}, descriptor=descriptor
    )
    stolen = other.wsp("WSPDeregisterMemory", handle=a.socket.region)

    assert {name for name, answer in tried.items() if not refused(answer)} == set()
    assert refused(mixed)
    assert (stolen.result, stolen.code) == (-1, Code.WSAEINVAL)
    assert carried(bench) == []
    assert exchange(a, b, b"still mine") == b"still mine"
    bench.judge()


@pytest.mark.requirement("MEM-13")
def test_the_peer_cannot_reach_memory_registered_for_local_use(bench: Bench) -> None:
    """The peer's RDMA to local memory ends with a remote access NAK, even with the right key and address."""
    for port, function in enumerate(("WSPRdmaWrite", "WSPRdmaRead"), 6001):
        attacker, owner = bench.connect(port)
        owner.at.ask("write_memory", memory=owner.socket.memory, offset=0, data=b"private!" * 8)
        descriptor = descriptor_of_local(owner, 64)

        attack = attacker.at.rdma(function, attacker.socket, descriptor, 64)

        code, _ = attacker.completion(attack) or (Code.OK, 0)
        assert code is not Code.OK
        assert answers(carried(bench), descriptor) == [NAK_REMOTE_ACCESS]
        assert owner.at.data(owner.socket, 64) == b"private!" * 8
        assert attacker.at.data(attacker.socket, 64) == bytes(64)
    bench.judge()


@pytest.mark.requirement("MEM-14")
def test_memory_is_used_only_as_its_flags_permit(bench: Bench) -> None:
    """MEM_READ memory is refused for receives and RDMA reads, MEM_WRITE memory for sends and RDMA writes."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)
    b.recv()
    source, source_at, source_memory = register(a, flags=MEM_READ)
    target, target_at, _ = register(a, flags=MEM_WRITE)

    reading = try_all(a, source_at, source.result, descriptor, [])
    b.send(b"not for the source")
    writing = try_all(a, target_at, target.result, descriptor, [])

    assert {name for name, answer in reading.items() if refused(answer)} == {"WSPRecv", "WSPRdmaRead"}
    assert {name for name, answer in writing.items() if refused(answer)} == {"WSPSend", "WSPRdmaWrite"}
    assert a.at.ask("read_memory", memory=source_memory, offset=0, length=64) == bytes(64)
    bench.judge()


# --- how often, and until when ---------------------------------------------------------------------------------------


@pytest.mark.requirement("MEM-08")
def test_a_range_is_registered_again_and_for_another_socket(bench: Bench) -> None:
    """Memory registered three times for one socket and once for another serves both sockets."""
    a, b = bench.connect()
    other, others_peer = bench.connect(6001)
    _, address, memory = register(a)
    a.at.ask("write_memory", memory=memory, offset=0, data=b"shared")

    again = [register(end, address=address)[0] for end in (a, a, other)]

    assert all(answer.result and answer.code is Code.OK for answer in again)
    for sender, receiver in ((a, b), (other, others_peer)):
        receive = receiver.recv()
        sender.at.must(
            "WSPSend",
            Code.WSA_IO_PENDING,
            s=sender.socket.s,
            buffers=[[6, address]],
            overlapped=sender.at.ask("overlapped"),
        )
        assert receiver.completion(receive) == (Code.OK, 6)
        assert receiver.at.data(receiver.socket, 6) == b"shared"
    bench.judge()


@pytest.mark.requirement("MEM-09", "MEM-10")
def test_only_the_last_deregistration_frees(bench: Bench) -> None:
    """Two of three deregistrations leave the memory usable; the third frees the adapter's region."""
    bench.start(settings_a={"cache": False})
    a, b = bench.connect()
    first, address, _ = register(a)
    handles = [first.result, *(register(a, address=address)[0].result for _ in range(2))]
    used = []

    for handle in handles:
        b.recv()
        listed = bool(regions(bench, "a", UNIQUE_LENGTH))
        sent = a.at.ask("overlapped")
        send = a.wsp("WSPSend", buffers=[[64, address]], overlapped=sent)
        done = a.completion(sent) if send.code is Code.WSA_IO_PENDING else None
        used.append((listed, done, a.wsp("WSPDeregisterMemory", handle=handle).code))

    assert used == [(True, (Code.OK, 64), Code.OK)] * 3
    assert regions(bench, "a", UNIQUE_LENGTH) == []
    bench.judge()


@pytest.mark.requirement("MEM-11")
def test_an_unknown_handle_is_refused(bench: Bench) -> None:
    """Deregistering an unknown or already deregistered handle gives WSAEINVAL."""
    a, _ = bench.connect()
    handle = register(a)[0].result
    assert a.wsp("WSPDeregisterMemory", handle=handle).code is Code.OK

    answers = [a.wsp("WSPDeregisterMemory", handle=h) for h in (handle, 0, 1, a.socket.region + 1, (1 << 64) - 1)]

    assert [(answer.result, answer.code) for answer in answers] == [(-1, Code.WSAEINVAL)] * 5
    bench.judge()


@pytest.mark.requirement("MEM-12")
def test_memory_in_use_stays_registered(bench: Bench) -> None:
    """Deregistering the memory of a pending receive gives WSAEINVAL, and the receive still takes its message."""
    a, b = bench.connect()
    receive = b.recv()

    answer = b.wsp("WSPDeregisterMemory", handle=b.socket.region, deliberately=["SWITCH-10"])

    assert (answer.result, answer.code) == (-1, Code.WSAEINVAL)
    a.send(b"undisturbed")
    assert b.completion(receive) == (Code.OK, 11)
    assert b.at.data(b.socket, 11) == b"undisturbed"
    assert b.wsp("WSPDeregisterMemory", handle=b.socket.region).code is Code.OK
    bench.judge()


@pytest.mark.requirement("MEM-10", "MEM-12")
def test_of_memory_in_use_only_the_last_registration_stays(bench: Bench) -> None:
    """While a receive is pending, only the last deregistration of its memory is refused, with WSAEINVAL.

    An earlier one only lowers the count, so it succeeds. The receive still takes its message.
    """
    a, b = bench.connect()
    again = b.wsp("WSPRegisterMemory", address=b.socket.address, length=65536, flags=MEM_READWRITE)
    assert again.result == b.socket.region
    receive = b.recv()

    counted = b.wsp("WSPDeregisterMemory", handle=b.socket.region)
    last = b.wsp("WSPDeregisterMemory", handle=b.socket.region, deliberately=["SWITCH-10"])

    assert (counted.result, counted.code) == (0, Code.OK)
    assert (last.result, last.code) == (-1, Code.WSAEINVAL)
    a.send(b"undisturbed")
    assert b.completion(receive) == (Code.OK, 11)
    assert b.wsp("WSPDeregisterMemory", handle=b.socket.region).code is Code.OK
    bench.judge()


@pytest.mark.requirement("MEM-15")
def test_access_ends_with_the_deregistration(bench: Bench) -> None:
    """Every data function refuses deregistered memory, and none of its bytes is sent."""
    a, b = bench.connect()
    _, descriptor = b.at.expose(b.socket, MEM_READWRITE)
    assert a.wsp("WSPDeregisterMemory", handle=a.socket.region).code is Code.OK

    tried = try_all(a, a.socket.address, a.socket.region, descriptor, ["SWITCH-02"])

    assert {name for name, answer in tried.items() if not refused(answer)} == set()
    assert carried(bench) == []
    bench.judge()


@pytest.mark.requirement("MEM-15")
def test_access_ends_with_the_connection(bench: Bench) -> None:
    """After the peer's reset every data function refuses the memory, and a late message does not reach it."""
    a, b = bench.connect()
    bystander, bystanders_peer = bench.connect(6001)
    _, descriptor = a.at.expose(a.socket, MEM_READWRITE)
    exchange(a, b, b"in time!")
    late = rewritten(last_packet(bench, SEND_ONLY), b"too late")
    pending = b.recv()
    assert a.close() == (0, Code.OK)
    assert b.completion(pending) == RESET

    put_on_wire(bench, "a", late)
    exchange(bystander, bystanders_peer)
    tried = try_all(b, b.socket.address, b.socket.region, descriptor, [])

    assert b.at.data(b.socket, 8) == b"in time!"
    assert {name for name, answer in tried.items() if not refused(answer)} == set()
    bench.judge()


@pytest.mark.requirement("MEM-19")
def test_memory_is_pinned_and_known_to_the_adapter_while_it_is_used(bench: Bench) -> None:
    """While a receive of 1.3 MiB is pending, its pages are pinned and the kernel lists one region of that length."""
    bench.start(settings_b={"cache": False})
    a, b = bench.connect()
    pinned = b.at.ask("process")["pinned"]
    answer, address, _ = register(b, LARGE)
    receive = b.at.ask("overlapped")
    b.at.must("WSPRecv", Code.WSA_IO_PENDING, s=b.socket.s, buffers=[[LARGE, address]], overlapped=receive)

    during = b.at.ask("process")["pinned"] - pinned, len(regions(bench, "b", LARGE))
    a.send(b"done")
    assert b.completion(receive) == (Code.OK, 4)
    assert b.wsp("WSPDeregisterMemory", handle=answer.result).code is Code.OK
    after = b.at.ask("process")["pinned"] - pinned, len(regions(bench, "b", LARGE))

    assert (during, after) == ((LARGE, 1), (0, 0))
    bench.judge()


@pytest.mark.requirement("MEM-21")
def test_the_memory_of_running_operations_is_released_by_the_close(bench: Bench) -> None:
    """The switch deregisters idle memory, the close releases the memory of pending receives, and no region is left."""
    a, b = bench.connect()
    register(a)
    _, address, _ = register(a, LARGE)
    buffers = [[LARGE, address]]
    a.at.must("WSPRecv", Code.WSA_IO_PENDING, s=a.socket.s, buffers=buffers, overlapped=a.at.ask("overlapped"))

    assert a.close() == (0, Code.OK)

    assert regions(bench, "a", LARGE) == []
    calls = bench.pair.evidence(audit=False).of("a", "call", function="WSPDeregisterMemory", socket=a.socket.s)
    assert [call.code for call in calls] == [0, 0]
    bench.judge(bench.hard_close(a, b))
