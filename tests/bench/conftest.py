"""What tests of the bench itself hold in their hands: the guests of the lab of this run."""

import pytest

from hil.labs.schema import LabFile
from hil.labs.soft.file import Guest, SoftBridgeFile, SoftPairFile
from hil.labs.soft.kinds import SoftGuest, soft_guest


@pytest.fixture(scope="session")
def lab_guest(lab_file: LabFile) -> Guest:
    """What kind of guests the lab's nodes, node a at least, are."""
    if not isinstance(lab_file, SoftPairFile | SoftBridgeFile):
        pytest.skip("the lab has no guests")
    return lab_file.guest


@pytest.fixture(scope="session")
def soft_snapshot(prepared_lab: LabFile, lab_guest: Guest) -> SoftGuest:
    """What nodes are made from."""
    return soft_guest(lab_guest)
