"""The requirement catalogue is complete, and every marker names a requirement."""

from pathlib import Path

import pytest

from hil.winsock.requirements import AREAS, requirements

pytest_plugins = ["pytester"]


def test_the_catalogue_has_every_row() -> None:
    """411 requirements in 27 areas, numbered without a gap, with the counts of the catalogue's own table."""
    catalogue = requirements()
    assert len(catalogue) == 411
    levels = [r.level for r in catalogue.values()]
    assert [levels.count(level) for level in ("must", "should", "may")] == [315, 78, 18]
    assert sum(bool(r.tags) for r in catalogue.values()) == 100
    for area in AREAS:
        numbers = [int(r.id.rpartition("-")[2]) for r in catalogue.values() if r.area == area]
        assert numbers == list(range(1, len(numbers) + 1)), area
    assert {r.area for r in catalogue.values()} == set(AREAS)


def test_a_marker_that_names_no_requirement_is_an_error(pytester: pytest.Pytester) -> None:
    """A misspelt id stops the run at collection and is named with its test."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.requirement("CLOSE-01", "CLOSE-99")
        def test_it():
            pass
        """
    )
    result = pytester.runpytest_subprocess(f"--hil-results={pytester.path / 'results'}")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*test_it: there is no requirement CLOSE-99*"])


def test_rules_name_requirements() -> None:
    """Every id in the rules over evidence is in the catalogue."""
    import re

    folder = Path(__file__).parents[2] / "hil" / "evidence"
    sources = [path.read_text() for path in (*folder.glob("rules/*.py"), folder / "disconnect.py")]
    named = {name for source in sources for name in re.findall(r'"([A-Z]+-\d+)"', source)}
    assert named and named <= requirements().keys()


def test_no_test_names_a_requirement_that_is_not_observable() -> None:
    """A requirement is either shown by a test or listed as not observable, never both."""
    from hil.cli.collected import named_requirements
    from hil.report.contract import not_observable

    named = {name for ids in named_requirements().values() for name in ids}
    assert named and not named & not_observable().keys()
