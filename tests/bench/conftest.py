"""Fixtures of the tests of the bench itself: the guests of the lab of this run.

They crash and misuse the nodes they have, so none of them runs on nodes that must be kept.
"""

from pathlib import Path

import pytest

from hil.labs.schema import LabFile
from hil.labs.soft.file import Guest, SoftBridgeFile, SoftPairFile
from hil.labs.soft.kinds import SoftGuest, soft_guest
from hil.testing.selection import IMPLIED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here with nodes needs nodes that belong to the bench, and power control."""
    for item in items:
        if HERE in item.path.parents and set(IMPLIED) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.needs("power control", "own nodes"))


@pytest.fixture(scope="session")
def lab_guest(chosen_lab: LabFile) -> Guest:
    """The guest section of the lab's node a."""
    if not isinstance(chosen_lab, SoftPairFile | SoftBridgeFile):
        pytest.skip("the lab has no guests")
    return chosen_lab.guest


@pytest.fixture(scope="session")
def soft_snapshot(prepared_lab: LabFile, lab_guest: Guest) -> SoftGuest:
    """The prepared guest that nodes are made from."""
    return soft_guest(lab_guest)
