"""WSPStartupEx: the results that loading and starting a provider give the switch, and refused starts."""

import pytest

from hil import Code
from hil.testing import Bench, Endpoint
from hil.winsock.codes import EXTENSIONS, SIO_ADDRESS_LIST_QUERY, SIO_GET_EXTENSION_FUNCTION_POINTER, WINSOCK_2_2

pytestmark = pytest.mark.used_pair

# The dispatch functions that a SAN provider must have, each with arguments for an unknown descriptor.
WITH_JUNK_DESCRIPTOR = {
    "WSPAccept": {},
    "WSPBind": {"address": "10.77.0.1", "port": 7000},
    "WSPCloseSocket": {},
    "WSPConnect": {"address": "10.77.0.2", "port": 5000},
    "WSPDuplicateSocket": {"pid": 1},
    "WSPEnumNetworkEvents": {"event": 0},
    "WSPEventSelect": {"event": 0, "mask": 0},
    "WSPGetOverlappedResult": {},
    "WSPGetQOSByName": {},
    "WSPGetSockOpt": {"level": 0xFFFF, "name": 0x2003},
    "WSPIoctl": {"code": SIO_ADDRESS_LIST_QUERY},
    "WSPListen": {"backlog": 1},
    "WSPRecv": {"buffers": [[8, 4096]]},
    "WSPSend": {"buffers": [[8, 4096]]},
    "WSPSetSockOpt": {"level": 0xFFFF, "name": 1},
}
REQUIRED = sorted([*WITH_JUNK_DESCRIPTOR, "WSPSocket", "WSPCleanup"])
OVERLAPPED = {"WSPGetOverlappedResult", "WSPRecv", "WSPSend"}
OPTIONAL = {"WSPRdmaRead", "WSPMemoryRegistrationCacheCallback"}


class Loaded(Endpoint):
    """A provider process before its WSPStartupEx. The bench ends and judges it."""

    def __init__(self, bench: Bench, name: str = "a") -> None:
        self.node, self.ip = bench.pair.nodes[name], bench.pair.place(name).ipv4
        self.worker, self.pid = self.node.channel.spawn("provider")
        self._provider = bench.provider
        bench.endpoints[name] = self

    def start(self, **arguments: object) -> Code:
        """Load the provider and call its first WSPStartupEx. Returns the code."""
        return Code(self.load(self._provider, **arguments))

    def start_again(self, **arguments: object) -> Code:
        """Call WSPStartupEx of the loaded provider again. Returns the code."""
        return Code(self.ask("start_again", **arguments))

    def extension(self, s: int, guid: str) -> tuple[Code, list[str]]:
        """The code of a query for the extension ``guid``, and the functions it gave."""
        answer = self.wsp("WSPIoctl", s=s, code=SIO_GET_EXTENSION_FUNCTION_POINTER, given=guid)
        return answer.code, answer.more["out"]


@pytest.mark.requirement("STARTUP-01", "STARTUP-02", "STARTUP-05")
def test_a_start_fills_wspdata_and_all_seventeen_slots(bench: Bench) -> None:
    """WSPStartupEx, the only export, returns 0 and version 2.2 when asked for 2.2, and fills every slot."""
    a = Loaded(bench)

    assert a.start(version=WINSOCK_2_2) is Code.OK

    assert a.ask("surface") == {"exports": ["WSPStartupEx"], "table": REQUIRED}
    overlapped = a.ask("overlapped")
    codes = {
        name: a.wsp(name, s=1, **arguments, **({"overlapped": overlapped} if name in OVERLAPPED else {})).code
        for name, arguments in WITH_JUNK_DESCRIPTOR.items()
    }
    assert codes == dict.fromkeys(WITH_JUNK_DESCRIPTOR, Code.WSAENOTSOCK)
    (start,) = bench.judge().of("a", "call", function="WSPStartupEx")
    assert (start.result, start.version) == (0, WINSOCK_2_2)


@pytest.mark.requirement("STARTUP-03", "STARTUP-04", "STARTUP-05")
def test_a_version_below_winsock_2_2_is_refused(bench: Bench) -> None:
    """Versions 1.1, 1.9, 2.0 and 2.1 return WSAVERNOTSUPPORTED, and a request for 3.0 gets 2.2."""
    a = Loaded(bench)
    assert a.start(version=0x0101) is Code.WSAVERNOTSUPPORTED
    # The minor version is the high byte: 0x0901 is 1.9, not 9.1.
    for version in (0x0901, 0x0002, 0x0102):
        assert a.start_again(version=version) is Code.WSAVERNOTSUPPORTED

    assert a.start_again(version=0x0003) is Code.OK

    starts = bench.judge().of("a", "call", function="WSPStartupEx")
    assert [s.version for s in starts] == [0, 0, 0, 0, WINSOCK_2_2]


@pytest.mark.requirement("STARTUP-03", "STARTUP-06")
def test_a_missing_place_for_the_results_is_wsaefault(bench: Bench) -> None:
    """WSPStartupEx without lpWSPData or lpProcTable returns WSAEFAULT, and does not count as a start."""
    a = Loaded(bench)
    assert a.start(missing="lpWSPData") is Code.WSAEFAULT
    assert a.start_again(missing="lpProcTable") is Code.WSAEFAULT
    assert a.start_again() is Code.OK

    assert a.wsp("WSPCleanup").code is Code.OK
    assert a.wsp("WSPCleanup").code is Code.WSANOTINITIALISED
    assert a.start_again() is Code.OK
    bench.judge()


@pytest.mark.requirement("STARTUP-03", "STARTUP-07")
@pytest.mark.parametrize("missing", ["adapter", "connection manager"])
@pytest.mark.needs("own nodes")
def test_without_a_network_layer_nothing_starts(bench: Bench, missing: str) -> None:
    """WSPStartupEx without an RDMA adapter or connection manager returns WSASYSNOTREADY, and succeeds with both."""
    node, device = bench.pair.nodes["a"], "/dev/infiniband/rdma_cm"
    a = Loaded(bench)
    if missing == "adapter":
        node.system("delete_rdma", device="rxe0")
    else:
        bench.run("a", "mv", device, "/tmp")

    assert a.start() is Code.WSASYSNOTREADY
    descriptors = a.ask("process")["descriptors"]
    for _ in range(3):
        assert a.start_again() is Code.WSASYSNOTREADY
    # A refused start keeps no descriptor. The count may include one of the thread that counts.
    assert a.ask("process")["descriptors"] <= descriptors + 1

    if missing == "adapter":
        node.system("add_rxe", device="rxe0", netdev="eth0")
    else:
        bench.run("a", "mv", "/tmp/rdma_cm", device)
    assert a.start_again() is Code.OK
    assert a.wsp("WSPSocket").code is Code.OK
    bench.judge()


@pytest.mark.requirement("STARTUP-03", "STARTUP-08")
def test_one_client_too_many_is_wsaeproclim(bench: Bench) -> None:
    """A provider for two clients refuses a third with WSAEPROCLIM until one of the two has cleaned up."""
    a = Loaded(bench)
    assert [a.start(settings={"max_clients": 2}), a.start_again()] == [Code.OK] * 2

    assert a.start_again() is Code.WSAEPROCLIM

    a.must("WSPCleanup")
    assert a.start_again() is Code.OK
    a.must("WSPCleanup")
    bench.judge()


@pytest.mark.requirement("STARTUP-09", "STARTUP-13", "STARTUP-14", "STARTUP-15", "STARTUP-16")
@pytest.mark.parametrize("offered", ["everything", "only what is required"])
def test_extensions_come_by_guid_from_a_socket_that_is_only_created(bench: Bench, offered: str) -> None:
    """A new socket gives addresses and extensions by GUID, and WSAEOPNOTSUPP for an absent optional extension.

    The provider was started with TCP/IP's protocol info. No extension is in the dispatch table.
    """
    a = Loaded(bench)
    optional = offered == "everything"
    assert a.start(settings={"rdma_read": optional, "cache": optional}) is Code.OK
    assert not set(a.ask("surface")["table"]) & set(EXTENSIONS.values())

    s = a.wsp("WSPSocket").result

    assert a.wsp("WSPIoctl", s=s, code=SIO_ADDRESS_LIST_QUERY).more["out"] == [a.ip]
    for guid, name in EXTENSIONS.items():
        absent = name in OPTIONAL and not optional
        assert a.extension(s, guid) == ((Code.WSAEOPNOTSUPP, []) if absent else (Code.OK, [name]))
    bench.judge()


@pytest.mark.requirement("STARTUP-18")
def test_an_unknown_extension_is_refused(bench: Bench) -> None:
    """An unknown or missing GUID gives an error and no pointer."""
    a, _ = bench.start()
    s = a.must("WSPSocket").result

    for guid in ("00112233-4455-6677-8899-AABBCCDDEEFF", ""):
        answer = a.wsp("WSPIoctl", s=s, code=SIO_GET_EXTENSION_FUNCTION_POINTER, given=guid)
        assert (answer.result, answer.more["out"]) == (-1, [])
        assert answer.code in (Code.WSAEINVAL, Code.WSAEFAULT, Code.WSAEOPNOTSUPP)
    bench.judge()


@pytest.mark.requirement("STARTUP-11")
def test_every_upcall_goes_through_the_table_of_the_start(bench: Bench) -> None:
    """The provider makes a socket's handle, completes its operations and closes it through the switch's own table."""
    bench.start()
    connector, acceptor = bench.connect()
    receive, left = connector.recv(), connector.recv(offset=256)
    acceptor.send(b"news")
    assert connector.completion(receive) == (Code.OK, 4)
    assert connector.close() == (0, Code.OK)
    assert connector.completion(left) == (Code.WSA_OPERATION_ABORTED, 0)

    evidence = bench.judge()

    assert [e.function for e in evidence.of("a", "upcall")] == [
        "WPUCreateSocketHandle",
        "WPUCompleteOverlappedRequest",
        "WPUCompleteOverlappedRequest",
        "WPUCloseSocketHandle",
    ]


@pytest.mark.requirement("STARTUP-12", "CLEAN-03")
def test_starts_are_counted(bench: Bench) -> None:
    """After two starts and one clean-up connections stay, and new sockets can be made."""
    a = Loaded(bench)
    Loaded(bench, "b").start()
    assert [a.start(), a.start_again()] == [Code.OK] * 2
    connector, acceptor = bench.connect()
    left = connector.recv()

    assert a.wsp("WSPCleanup", deliberately=["SWITCH-14"]).code is Code.OK

    assert a.wsp("WSPSocket").code is Code.OK
    assert a.completion(left, 0) is None
    acceptor.send(b"still here")
    assert a.completion(left) == (Code.OK, 10)
    bench.judge()


@pytest.mark.requirement("STARTUP-17")
def test_after_the_last_cleanup_it_can_be_started_again(bench: Bench) -> None:
    """After the last clean-up a provider can be started again, and connects as before."""
    a = Loaded(bench)
    Loaded(bench, "b").start()
    assert a.start() is Code.OK
    first, _ = bench.connect()
    first.close()
    a.must("WSPCleanup")

    assert a.start_again() is Code.OK

    connector, acceptor = bench.connect(port=6001)
    receive = acceptor.recv()
    connector.send(b"again")
    assert acceptor.completion(receive) == (Code.OK, 5)
    assert connector.close() == (0, Code.OK)
    bench.judge(bench.hard_close(connector, acceptor))
