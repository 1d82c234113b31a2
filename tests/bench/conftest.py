"""Tests of the bench itself crash and misuse the nodes they have, so none of them runs on nodes that must be kept."""

from pathlib import Path

import pytest

from hil.testing.selection import IMPLIED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here that has nodes needs nodes of the bench's own, and power over them."""
    for item in items:
        if HERE in item.path.parents and set(IMPLIED) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.needs("power control", "own nodes"))
