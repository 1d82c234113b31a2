"""The contract suite and the fault matrix, as they come along with the package.

``tests/contract`` and ``tests/faults`` lie below this folder, with a ``pytest.ini`` of their own, so that tests have
the same ids wherever the package is installed. In a checkout they are links to the folders of the same names.
"""

from pathlib import Path

SUITE = Path(__file__).parent
CONTRACT = SUITE / "tests" / "contract"
FAULTS = SUITE / "tests" / "faults"


def in_suite(path: Path) -> Path | None:
    """The path below ``SUITE`` of a file or folder of the suite, by whichever name it was reached; None of others."""
    real = path.resolve()
    for folder in (CONTRACT, FAULTS):
        there = folder.resolve()
        if real == there or real.is_relative_to(there):
            return folder / real.relative_to(there)
    return None
