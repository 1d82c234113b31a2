"""The cache of registrations: it saves pinning, and changes neither the data nor the peer's access."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from hil import Code
from hil.testing import Bench, End
from hil.testing.data import NAK_REMOTE_ACCESS, held
from hil.testing.memory import answers, carried, no_more_objects, regions
from hil.winsock.codes import EXTENSIONS, MEM_READ, MEM_READWRITE, MEM_WRITE, SIO_GET_EXTENSION_FUNCTION_POINTER

pytestmark = pytest.mark.used_pair

LENGTH = 0x7000
CALLBACK = "WSPMemoryRegistrationCacheCallback"


class Buffer:
    """``LENGTH`` bytes of memory of an end's process. ``register`` and ``deregister`` are for local use."""

    def __init__(self, end: End, of: "Buffer | None" = None) -> None:
        made = {"memory": of.memory, "address": of.address} if of else end.at.ask("memory", size=LENGTH)
        self.end, self.memory, self.address = end, made["memory"], made["address"]
        self.handle = 0

    def register(self, flags: int = MEM_READWRITE) -> "Buffer":
        arguments = {"address": self.address, "length": LENGTH, "flags": flags}
        answer = self.end.wsp("WSPRegisterMemory", **arguments)
        assert (answer.code, answer.result is None) == (Code.OK, False)
        self.handle = answer.result
        return self

    def deregister(self) -> "Buffer":
        self.end.at.must("WSPDeregisterMemory", s=self.end.socket.s, handle=self.handle)
        return self

    def write(self, data: bytes) -> None:
        self.end.at.ask("write_memory", memory=self.memory, offset=0, data=data)

    def send(self, length: int = 64) -> int:
        return self.begin("WSPSend", length)

    def begin(self, function: str, length: int = 64) -> int:
        overlapped = int(self.end.at.ask("overlapped"))
        arguments = {"buffers": [[length, self.address]], "overlapped": overlapped}
        self.end.at.must(function, Code.WSA_IO_PENDING, s=self.end.socket.s, **arguments)
        return overlapped


def callback(end: End, address: int, size: int) -> Code:
    """Call the provider's callback, as the switch does before the application gives memory back."""
    answer = end.at.wsp(CALLBACK, address=address, size=size)
    assert answer.result == (0 if answer.code is Code.OK else -1)
    return answer.code


def pinned(end: End) -> int:
    return int(end.at.ask("process")["pinned"])


# --- that it caches --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("CACHE-02")
def test_a_deregistered_buffer_stays_pinned_and_registered(bench: Bench) -> None:
    """After WSPDeregisterMemory the kernel still lists the cached region, and its pages are still pinned."""
    a, _ = bench.connect()
    before = pinned(a)
    buffer = Buffer(a).register()
    during = regions(bench, "a", LENGTH)

    buffer.deregister()

    assert (len(during), regions(bench, "a", LENGTH)) == (1, during)
    assert pinned(a) == before + LENGTH
    bench.judge()


@pytest.mark.requirement("CACHE-01", "CACHE-03")
def test_the_same_range_is_registered_by_the_same_region(bench: Bench) -> None:
    """Registering a cached range again makes no new region; another range or other rights make their own."""
    a, b = bench.connect()
    buffer = Buffer(a).register().deregister()
    cached = regions(bench, "a", LENGTH)

    buffer.register()
    assert regions(bench, "a", LENGTH) == cached
    buffer.write(b"out of the cache")
    receive = b.recv()
    sent = buffer.send(16)
    assert b.completion(receive) == (Code.OK, 16)
    assert b.at.data(b.socket, 16) == b"out of the cache"

    assert a.completion(sent) == (Code.OK, 16)
    buffer.deregister()
    Buffer(a).register()
    assert len(regions(bench, "a", LENGTH)) == 2
    source = Buffer(a).register(MEM_READ).deregister().register(MEM_READWRITE)
    assert len(regions(bench, "a", LENGTH)) == 4
    receive = source.begin("WSPRecv")
    b.send(b"written to what was read-only")
    assert a.completion(receive) == (Code.OK, 29)
    bench.judge()


def test_a_provider_without_a_cache_registers_anew(bench: Bench) -> None:
    """With the cache off, deregistering frees the region at once and registering again makes a new one."""
    bench.start(settings_a={"cache": False})
    a, _ = bench.connect()
    buffer = Buffer(a).register()
    first = regions(bench, "a", LENGTH)

    buffer.deregister()
    assert regions(bench, "a", LENGTH) == []

    buffer.register()
    again = regions(bench, "a", LENGTH)
    assert (len(first), len(again), first == again) == (1, 1, False)
    bench.judge()


@pytest.mark.requirement("MEM-05")
@pytest.mark.needs("own nodes")
def test_the_cache_is_emptied_before_the_adapter_is_called_full(bench: Bench) -> None:
    """Regions that are only cached are released before a registration fails for lack of room."""
    a, _ = bench.connect()
    no_more_objects(a.at, spare=2)
    for _ in range(2):
        Buffer(a).register().deregister()

    Buffer(a).register()
    Buffer(a).register()

    third = a.wsp("WSPRegisterMemory", address=a.socket.address, length=4096, flags=MEM_READ)
    assert (third.result, third.code) == (None, Code.WSAENOBUFS)
    bench.judge()


# --- the peer's access -----------------------------------------------------------------------------------------------


@pytest.mark.requirement("CACHE-04", "CACHE-05")
def test_the_peers_access_to_a_cached_buffer_is_closed_and_opened_again(bench: Bench) -> None:
    """The peer cannot reach a deregistered buffer; once it is registered again, the peer reads its new bytes."""
    a, b = bench.connect()
    made = b.at.ask("memory", size=LENGTH)
    arguments = {"address": made["address"], "length": LENGTH, "flags": MEM_READWRITE}
    old = b.at.must("WSPRegisterRdmaMemory", s=b.socket.s, **arguments).more["descriptor"]
    assert b.wsp("WSPDeregisterRdmaMemory", descriptor=old).code is Code.OK
    new = b.at.must("WSPRegisterRdmaMemory", s=b.socket.s, **arguments).more["descriptor"]
    a.at.ask("write_memory", memory=a.socket.memory, offset=0, data=b"reached")

    assert a.completion(a.at.rdma("WSPRdmaWrite", a.socket, new, 7)) == (Code.OK, 7)
    assert b.at.ask("read_memory", memory=made["memory"], offset=0, length=8) == b"reached\0"
    assert b.wsp("WSPDeregisterRdmaMemory", descriptor=new).code is Code.OK
    attack = a.at.rdma("WSPRdmaWrite", a.socket, new, 7, offset=100)
    code, _ = a.completion(attack) or (Code.OK, 0)

    assert code is not Code.OK
    assert answers(carried(bench), new)[-1] == NAK_REMOTE_ACCESS
    assert b.at.ask("read_memory", memory=made["memory"], offset=100, length=8) == bytes(8)
    bench.judge()


@pytest.mark.requirement("CACHE-10")
def test_a_close_empties_the_cache(bench: Bench) -> None:
    """After WSPCloseSocket the kernel holds no cached region of the socket, and none of its pages is pinned."""
    a, b = bench.connect()
    with_socket = pinned(a)
    for _ in range(3):
        Buffer(a).register().deregister()

    assert a.close() == (0, Code.OK)

    assert regions(bench, "a", LENGTH) == []
    assert pinned(a) == with_socket - 65536 == 0
    bench.judge(bench.hard_close(a, b))


@pytest.mark.requirement("CACHE-10")
def test_the_cache_is_empty_before_the_connection_is_closed(bench: Bench) -> None:
    """Inside the first up-call of a close, for an aborted receive, the kernel holds no cached region."""
    a, b = bench.connect()
    Buffer(a).register().deregister()
    receive = a.recv()
    assert len(regions(bench, "a", LENGTH)) == 1

    with ThreadPoolExecutor(1) as pool, held(a.at, "WPUCompleteOverlappedRequest") as held_upcall:
        closing = pool.submit(a.close)
        held_upcall.wait()
        during = regions(bench, "a", LENGTH)

    assert (closing.result(), during) == ((0, Code.OK), [])
    assert a.completion(receive) == (Code.WSA_OPERATION_ABORTED, 0)
    bench.judge(bench.hard_close(a, b))


# --- memory that is given back ---------------------------------------------------------------------------------------


@pytest.mark.requirement("CACHE-06")
@pytest.mark.parametrize("cache", [True, False], ids=["caching", "not caching"])
def test_a_caching_provider_offers_the_callback(bench: Bench, cache: bool) -> None:
    """A provider with a cache answers the callback's GUID with a pointer, one without a cache with WSAEOPNOTSUPP."""
    bench.start(settings_a={"cache": cache})
    a, _ = bench.connect()
    guid = next(guid for guid, name in EXTENSIONS.items() if name == CALLBACK)

    answer = a.wsp("WSPIoctl", code=SIO_GET_EXTENSION_FUNCTION_POINTER, given=guid)

    found = answer.result, answer.code, answer.more["out"]
    assert found == ((0, Code.OK, [CALLBACK]) if cache else (-1, Code.WSAEOPNOTSUPP, []))
    bench.judge()


@pytest.mark.requirement("CACHE-07")
def test_the_callback_releases_the_range_for_every_socket(bench: Bench) -> None:
    """The callback releases both sockets' cached regions of the range and unpins it; other ranges stay cached."""
    a, _ = bench.connect()
    other, _ = bench.connect(6001)
    kept = Buffer(a).register().deregister()
    before = pinned(a)
    buffer = Buffer(a).register().deregister()
    Buffer(other, buffer).register().deregister()
    assert (len(regions(bench, "a", LENGTH)), pinned(a)) == (3, before + 2 * LENGTH)

    assert callback(a, buffer.address + 4096, 1) is Code.OK

    left = regions(bench, "a", LENGTH)
    assert (len(left), pinned(a)) == (1, before)
    kept.register()
    assert regions(bench, "a", LENGTH) == left
    bench.judge()


@pytest.mark.requirement("CACHE-07")
def test_after_the_callback_new_memory_is_registered_afresh(bench: Bench) -> None:
    """After the callback, the application maps new memory at the same address, and a send carries the new bytes."""
    a, b = bench.connect()
    buffer = Buffer(a).register()
    buffer.write(b"the old pages")
    buffer.deregister()
    cached = regions(bench, "a", LENGTH)

    assert callback(a, buffer.address, LENGTH) is Code.OK
    a.at.ask("remap_memory", memory=buffer.memory)
    buffer.register().write(b"the new pages")

    assert set(regions(bench, "a", LENGTH)).isdisjoint(cached)
    receive = b.recv()
    buffer.send(13)
    assert b.completion(receive) == (Code.OK, 13)
    assert b.at.data(b.socket, 13) == b"the new pages"
    bench.judge()


@pytest.mark.requirement("CACHE-08")
def test_the_callback_tells_what_was_not_cached_and_what_is_in_use(bench: Bench) -> None:
    """A range that is not cached gives WSAEINVAL; a registered range gives WSAEFAULT and stays usable.

    Ruling: the cache cannot release a live registration, even one that was never cached, so the code is WSAEFAULT.
    The switch asks because the pages are about to go. Only WSAEFAULT says that an adapter still reaches them.
    """
    a, b = bench.connect()
    unknown = Buffer(a)
    receiving = Buffer(b).register()
    receive = receiving.begin("WSPRecv")
    released = Buffer(b).register().deregister()

    assert callback(a, unknown.address, LENGTH) is Code.WSAEINVAL
    assert callback(b, receiving.address, LENGTH) is Code.WSAEFAULT
    assert callback(b, released.address, LENGTH) is Code.OK
    assert callback(b, released.address, LENGTH) is Code.WSAEINVAL
    a.send(b"still in use")
    assert b.completion(receive) == (Code.OK, 12)
    assert b.at.ask("read_memory", memory=receiving.memory, offset=0, length=12) == b"still in use"
    bench.judge()


@pytest.mark.requirement("CACHE-09", "CACHE-11")
@pytest.mark.parametrize("flags", [MEM_READ, MEM_WRITE, MEM_READWRITE], ids=["MEM_READ", "MEM_WRITE", "MEM_READWRITE"])
def test_memory_mapped_anew_behind_the_providers_back_is_noticed(bench: Bench, flags: int) -> None:
    """New memory mapped at a cached address without a callback is noticed: sends and receives use the new pages."""
    a, b = bench.connect()
    buffer = Buffer(a).register(flags)
    buffer.write(b"old content")
    buffer.deregister()

    a.at.ask("remap_memory", memory=buffer.memory)
    buffer.write(b"new content")
    buffer.register(flags)

    if flags & MEM_READ:
        receive = b.recv()
        buffer.send(11)
        assert b.completion(receive) == (Code.OK, 11)
        assert b.at.data(b.socket, 11) == b"new content"
    if flags & MEM_WRITE:
        receive = buffer.begin("WSPRecv")
        b.send(b"received it")
        assert a.completion(receive) == (Code.OK, 11)
        assert a.at.ask("read_memory", memory=buffer.memory, offset=0, length=11) == b"received it"
    bench.judge()


@pytest.mark.requirement("CACHE-09", "CACHE-11", "PROXY-04")
@pytest.mark.parametrize("page", [0, 3, 6], ids=["first", "middle", "last"])
def test_a_single_page_mapped_anew_is_noticed(bench: Bench, page: int) -> None:
    """One of a cached buffer's seven pages is mapped anew, and a send carries the new page's content."""
    a, b = bench.connect()
    buffer = Buffer(a).register()
    buffer.write(b"old" * (LENGTH // 3))
    buffer.deregister()
    offset = page * 4096

    a.at.ask("remap_memory", memory=buffer.memory, offset=offset, length=4096)
    a.at.ask("write_memory", memory=buffer.memory, offset=offset, data=b"new content")
    content = a.at.ask("read_memory", memory=buffer.memory, offset=0, length=LENGTH)
    buffer.register()

    receive = b.recv(LENGTH)
    buffer.send(LENGTH)
    assert b.completion(receive) == (Code.OK, LENGTH)
    assert b.at.data(b.socket, LENGTH) == content
    bench.judge()


@pytest.mark.requirement("CACHE-09", "CACHE-11")
def test_memory_given_back_is_not_found_in_the_cache(bench: Bench) -> None:
    """The application gives a cached buffer back without a callback, and registering it again gives WSAEFAULT."""
    a, _ = bench.connect()
    buffer = Buffer(a)
    # The mapping below keeps the gap as small as the buffer, so that nothing else is mapped into it.
    Buffer(a)
    buffer.register().deregister()

    a.at.ask("free_memory", memory=buffer.memory)
    answer = a.wsp("WSPRegisterMemory", address=buffer.address, length=LENGTH, flags=MEM_READWRITE)

    assert (answer.result, answer.code) == (None, Code.WSAEFAULT)
    assert regions(bench, "a", LENGTH) == []
    bench.judge()
