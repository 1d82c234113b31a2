"""Installation (INST): the provider's catalogue entry, and how the switch finds it. Both are emulated."""

import uuid
from typing import Any

import pytest

from hil import Code
from hil.testing import CONNECTOR_PORT, FD_ACCEPT, FD_CONNECT, PORT, Bench
from hil.winsock import codes as w
from hil.winsock.catalogue import TCP_ON_SAN

pytestmark = pytest.mark.used_pair


def published(bench: Bench) -> dict[str, Any]:
    """The catalogue entry and registry values that the installation on node a published."""
    a, _ = bench.start()
    found: dict[str, Any] = a.ask("catalogue")
    return found


@pytest.mark.requirement("INST-01")
def test_applications_do_not_see_the_provider(bench: Bench) -> None:
    """The provider is catalogued with PFL_HIDDEN, so that only the switch loads it."""
    entry = published(bench)

    assert entry["dwProviderFlags"] & w.PFL_HIDDEN
    assert entry["visible"] == 0
    bench.judge()


@pytest.mark.requirement("INST-02")
def test_the_switch_finds_the_provider_by_its_recorded_guid(bench: Bench) -> None:
    """The provider's GUID is recorded as 16 bytes, and the switch loads the running provider by it."""
    entry = published(bench)

    (value,) = entry["registry"][TCP_ON_SAN].values()
    assert uuid.UUID(bytes_le=value) == uuid.UUID(entry["ProviderId"])
    assert entry["loaded"]
    bench.judge()


@pytest.mark.requirement("INST-03", "INST-04", "INST-05")
def test_the_provider_claims_only_what_it_can(bench: Bench) -> None:
    """The entry claims no datagrams, no system handles, and quality of service only if its calls work."""
    flags = published(bench)["dwServiceFlags1"]
    a = bench.endpoints["a"]
    s = a.must("WSPSocket").result
    qos_works = a.wsp("WSPGetQOSByName", s=s).result is True

    assert not flags & w.XP1_CONNECTIONLESS
    assert not flags & w.XP1_IFS_HANDLES
    assert qos_works or not flags & w.XP1_QOS_SUPPORTED
    assert flags & w.XP1_GUARANTEED_DELIVERY and flags & w.XP1_GUARANTEED_ORDER
    bench.judge()


# A TCP/IP listener that outlives the program that made it.
TCP_LISTENER = """
import os, socket, time
listener = socket.create_server(("0.0.0.0", 5000))
if os.fork():
    os._exit(0)
os.closerange(0, 3)
time.sleep(300)
"""


@pytest.mark.requirement("INST-06")
def test_a_provider_installed_late_serves_the_listeners_that_are_there(bench: Bench) -> None:
    """A provider started after a TCP/IP wildcard listener listens beside it, and answers the next REQ over the SAN."""
    bench.run("b", "python3", "-c", TCP_LISTENER)
    a, b = bench.start()
    event = b.ask("event")

    made = b.wsp("WSPSocket")
    codes = [
        made.code,
        b.wsp("WSPBind", s=made.result, address="0.0.0.0", port=PORT).code,
        b.wsp("WSPEventSelect", s=made.result, event=event, mask=FD_ACCEPT).code,
        b.wsp("WSPListen", s=made.result, backlog=5).code,
    ]

    assert codes == [Code.OK] * 4
    socket = a.socket(CONNECTOR_PORT, FD_CONNECT)
    a.connect(socket, b.ip, PORT)
    assert b.ask("wait_event", event=event, timeout_s=10)
    assert b.wsp("WSPAccept", s=made.result).code is Code.OK
    assert a.connect_result(socket) is Code.OK
    (connection,) = bench.judge().connections()
    assert (connection.active, connection.passive) == (a.ip, b.ip)
