"""WSPCloseSocket is a hard close: its effect on the closer, the peer and the wire.

Each test runs on a fresh pair of nodes. It ends by judging all evidence: calls, up-calls, CM events, completions,
packets, and the resources both kernels still hold.
"""

import threading

import pytest

from hil import Code
from hil.testing import Bench

RESET = (Code.WSAECONNRESET, 0)
ABORTED = (Code.WSA_OPERATION_ABORTED, 0)

pytestmark = pytest.mark.requirement("CLOSE-01", "CLOSE-06", "CLOSE-11", "CLOSE-23", "CLOSE-35", "CLOSE-36")


@pytest.mark.requirement("CLOSE-31", "RECV-13")
@pytest.mark.parametrize("by", ["connector", "acceptor"])
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.needs("IPv6"))])
def test_receives_pending_at_the_peer_end_with_reset(bench: Bench, by: str, family: str) -> None:
    """A close by either end, over IPv4 or IPv6, ends the peer's pending receives with WSAECONNRESET."""
    bench.start(ipv6=family == "ipv6")
    ends = bench.connect()
    closer, peer = ends if by == "connector" else ends[::-1]
    receives = [peer.recv(offset=256 * i) for i in range(3)]

    assert closer.close() == (0, Code.OK)

    assert [peer.completion(r) for r in receives] == [RESET] * 3
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-12", "CLOSE-13", "CLOSE-14", "CLOSE-16", "CLOSE-26")
def test_pending_receives_of_the_closer_are_aborted(bench: Bench) -> None:
    """Each of the closer's own receives completes once, aborted with zero bytes, before the last up-call."""
    closer, peer = bench.connect()
    receives = [closer.recv(offset=256 * i) for i in range(5)]

    assert closer.close() == (0, Code.OK)

    assert [closer.completion(r, 1) for r in receives] == [ABORTED] * 5
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-10", "CLOSE-19")
def test_pending_sends_of_the_closer_are_aborted(bench: Bench) -> None:
    """Sends without a receive at the peer are aborted, and none of their packets follows the reset."""
    closer, peer = bench.connect()
    sends = [closer.send(b"never received", offset=32768 + 64 * i) for i in range(4)]

    assert closer.close() == (0, Code.OK)

    assert [closer.completion(s, 1) for s in sends] == [ABORTED] * 4
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-43", "ACC-20")
def test_close_with_nothing_pending(bench: Bench) -> None:
    """A close of an idle connection sends the DREQ and shows at the peer as any other close."""
    closer, peer = bench.connect()

    assert closer.close() == (0, Code.OK)

    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("RECV-14")
def test_data_that_landed_first_is_delivered_first(bench: Bench) -> None:
    """Three messages before the close complete three receives in order, and then the reset comes."""
    closer, peer = bench.connect()
    receives = [peer.recv(offset=256 * i) for i in range(4)]
    messages = [b"one", b"two", b"three"]
    sends = [closer.send(m, offset=32768 + 64 * i) for i, m in enumerate(messages)]
    assert all(closer.completion(s) for s in sends)

    assert closer.close() == (0, Code.OK)

    assert [peer.completion(r) for r in receives[:3]] == [(Code.OK, len(m)) for m in messages]
    assert [peer.at.data(peer.socket, len(m), 256 * i) for i, m in enumerate(messages)] == messages
    assert peer.completion(receives[3]) == RESET
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("RECV-12", "RECV-16", "CLOSE-28", "CLOSE-29", "CLOSE-32", "CLOSE-33", "SEND-08")
def test_the_peer_keeps_its_descriptor_and_every_new_call_says_reset(bench: Bench) -> None:
    """After the reset the peer's WSPRecv and WSPSend fail with WSAECONNRESET, and its own close succeeds."""
    closer, peer = bench.connect()
    pending = peer.recv()
    closer.close()
    assert peer.completion(pending) == RESET

    overlapped = peer.at.ask("overlapped")
    buffers = [[64, peer.socket.address]]
    for function in ("WSPRecv", "WSPSend", "WSPRecv"):
        answer = peer.at.wsp(function, s=peer.socket.s, buffers=buffers, overlapped=overlapped)
        assert (answer.result, answer.code) == (-1, Code.WSAECONNRESET)
    before = bench.pair.evidence(audit=False)
    assert not before.of("b", "upcall", function="WPUCloseSocketHandle")

    assert peer.close() == (0, Code.OK)
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-02", "CLOSE-08", "ERR-05")
def test_every_function_on_the_closed_descriptor_fails_with_wsaenotsock(bench: Bench) -> None:
    """Every function that takes a descriptor gives WSAENOTSOCK for the closed one."""
    closer, peer = bench.connect()
    s, address, event = closer.socket.s, closer.socket.address, closer.socket.event
    overlapped = closer.at.ask("overlapped")
    closer.close()

    calls = {
        "WSPCloseSocket": {},
        "WSPBind": {"address": closer.at.ip, "port": 7000},
        "WSPListen": {"backlog": 1},
        "WSPEventSelect": {"event": event, "mask": 0x10},
        "WSPEnumNetworkEvents": {"event": event},
        "WSPConnect": {"address": peer.at.ip, "port": 5000},
        "WSPAccept": {},
        "WSPRegisterMemory": {"address": address, "length": 4096, "flags": 1},
        "WSPDeregisterMemory": {"handle": 1},
        "WSPSend": {"buffers": [[8, address]], "overlapped": overlapped},
        "WSPRecv": {"buffers": [[8, address]], "overlapped": overlapped},
        "WSPGetOverlappedResult": {"overlapped": overlapped},
        "WSPIoctl": {"code": 0x48000016},
    }
    codes = {name: closer.at.wsp(name, s=s, **arguments).code for name, arguments in calls.items()}

    assert codes == dict.fromkeys(calls, Code.WSAENOTSOCK)
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-21", "CLOSE-22", "EVT-14")
def test_no_event_object_is_signalled(bench: Bench) -> None:
    """A close sets neither the closer's event object nor the peer's."""
    closer, peer = bench.connect()
    events = [(closer.at, closer.socket.event), (peer.at, peer.socket.event)]
    before = [at.ask("event_state", event=event) for at, event in events]
    pending = peer.recv()

    closer.close()
    assert peer.completion(pending) == RESET

    assert [at.ask("event_state", event=event) for at, event in events] == before
    bench.judge(bench.hard_close(closer, peer))


@pytest.mark.requirement("CLOSE-30")
def test_both_sides_close_at_once(bench: Bench) -> None:
    """When both sides close at once, each aborts its own operations and closes its own handle."""
    one, two = bench.connect()
    for end in (one, two):
        end.recv()
    results = {}

    def close(name: str) -> None:
        results[name] = {"one": one, "two": two}[name].close()

    threads = [threading.Thread(target=close, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == {"one": (0, Code.OK), "two": (0, Code.OK)}
    bench.judge(bench.hard_close(one, two, both=True))


@pytest.mark.requirement("CLOSE-11", "CLOSE-23", "CLOSE-26", "OVL-25")
def test_close_from_inside_a_completion_upcall(bench: Bench) -> None:
    """A close inside the up-call of a completion aborts the other pending operations before the last up-call."""
    closer, peer = bench.connect()
    receives = [closer.recv(offset=256 * i) for i in range(3)]
    closer.at.ask("close_in_next_completion", s=closer.socket.s)

    peer.send(b"hello")

    assert closer.completion(receives[0]) == (Code.OK, 5)
    assert [closer.completion(r, 5) for r in receives[1:]] == [ABORTED] * 2
    bench.judge(bench.hard_close(closer, peer))
