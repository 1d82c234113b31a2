"""INST: what the provider publishes of itself, and how the switch finds it. Catalogue and registry are emulated."""

import uuid
from typing import Any

import pytest

from fixtures.bench import Bench
from hil.winsock import codes as w
from hil.winsock.catalogue import TCP_ON_SAN


def published(bench: Bench) -> dict[str, Any]:
    """What the installation on node a published."""
    a, _ = bench.start()
    found: dict[str, Any] = a.ask("catalogue")
    return found


@pytest.mark.requirement("INST-01")
def test_applications_do_not_see_the_provider(bench: Bench) -> None:
    """It is catalogued with PFL_HIDDEN, so that only the switch loads it."""
    entry = published(bench)

    assert entry["dwProviderFlags"] & w.PFL_HIDDEN
    assert entry["visible"] == 0
    bench.judge()


@pytest.mark.requirement("INST-02")
def test_the_switch_finds_the_provider_by_its_recorded_guid(bench: Bench) -> None:
    """The GUID is recorded as 16 bytes for the switch, and what runs was loaded by it."""
    entry = published(bench)

    (value,) = entry["registry"][TCP_ON_SAN].values()
    assert uuid.UUID(bytes_le=value) == uuid.UUID(entry["ProviderId"])
    assert entry["loaded"]
    bench.judge()


@pytest.mark.requirement("INST-03", "INST-04", "INST-05")
def test_the_provider_claims_only_what_it_can(bench: Bench) -> None:
    """No datagrams, no handles of the system's, and quality of service only if its calls worked."""
    flags = published(bench)["dwServiceFlags1"]
    a = bench.endpoints["a"]
    s = a.must("WSPSocket").result
    qos_works = a.wsp("WSPGetQOSByName", s=s).result is True

    assert not flags & w.XP1_CONNECTIONLESS
    assert not flags & w.XP1_IFS_HANDLES
    assert qos_works or not flags & w.XP1_QOS_SUPPORTED
    assert flags & w.XP1_GUARANTEED_DELIVERY and flags & w.XP1_GUARANTEED_ORDER
    bench.judge()
