"""The contract's report tells kept, broken, not run, not observable and not yet tested apart."""

import subprocess
import sys
from pathlib import Path

import pytest

from hil.errors import ResultsError
from hil.evidence.bundle import VerdictRecord, read_verdicts, write_verdicts
from hil.evidence.disconnect import Finding
from hil.report.contract import (
    Standing,
    known_id,
    lists,
    not_observable,
    partly_observable,
    read_all,
    stand,
    table,
    unsettled,
)
from hil.verdict import Verdict
from hil.winsock.requirements import requirements

ROOT = Path(__file__).parents[2]


def record(test: str, verdict: str, *findings: Finding) -> VerdictRecord:
    return VerdictRecord(test, Verdict(verdict), findings=findings)


def finding(requirement: str, *, held: bool) -> Finding:
    return Finding("some", (requirement,), held, "what was seen")


def test_a_requirement_is_kept_when_every_test_that_names_it_passed() -> None:
    """One pass among two tests is not enough."""
    named = {"one": ["CLOSE-01", "CLOSE-06"], "two": ["CLOSE-06"]}
    shown = stand(named, [record("one", "pass")])
    assert shown["CLOSE-01"].standing is Standing.KEPT
    assert shown["CLOSE-06"].standing is Standing.NOT_RUN
    assert shown["CLOSE-11"].standing is Standing.NOT_TESTED
    shown = stand(named, [record("one", "pass"), record("two", "pass")])
    assert shown["CLOSE-06"].standing is Standing.KEPT


@pytest.mark.parametrize("verdict", ["invalid", "unsupported"])
def test_what_was_not_judged_is_not_kept(verdict: str) -> None:
    """An invalid or unsupported test shows nothing."""
    assert stand({"one": ["CLOSE-01"]}, [record("one", verdict)])["CLOSE-01"].standing is Standing.NOT_RUN


def test_a_failed_test_or_a_broken_link_breaks_the_requirement() -> None:
    """Also a requirement whose rule broke in a test that does not name it."""
    shown = stand({"one": ["CLOSE-01"]}, [record("one", "fail", finding("CLOSE-26", held=False))])
    assert shown["CLOSE-01"].standing is Standing.BROKEN
    assert shown["CLOSE-26"].standing is Standing.BROKEN


def test_a_link_broken_on_purpose_breaks_nothing() -> None:
    """A passing test of a broken provider names the finding that broke."""
    shown = stand({"one": ["CLOSE-01"]}, [record("one", "pass", finding("CLOSE-26", held=False))])
    assert shown["CLOSE-26"].standing is Standing.NOT_TESTED


def test_every_reason_belongs_to_a_requirement_no_test_names() -> None:
    """An unobservable requirement is one of the catalogue's and has a reason of some length."""
    assert not_observable().keys() <= requirements().keys()
    assert all(len(reason) > 40 for reason in (*not_observable().values(), *partly_observable().values()))
    assert partly_observable().keys() <= requirements().keys() - not_observable().keys()


def test_the_table_counts_every_untagged_requirement_once() -> None:
    """The line of all untagged rows adds up to the catalogue's count."""
    (line,) = [line for line in table(stand({}, [])) if line.startswith("untagged")]
    assert sum(map(int, line.split()[1:])) == sum(not r.tags for r in requirements().values())


def test_only_untagged_musts_are_owed() -> None:
    """A must that no test names is unsettled; a kept one, a should and a derived rule are not."""
    shown = stand({"one": ["CLOSE-01"]}, [record("one", "pass")])
    owed = set(unsettled(shown))
    assert "CLOSE-02" in owed and "CLOSE-01" not in owed
    assert requirements()["CLOSE-08"].level == "should" and "CLOSE-08" not in owed
    assert requirements()["CLOSE-14"].tags and "CLOSE-14" not in owed
    assert not owed & not_observable().keys()


def test_the_lists_name_what_is_open_and_why_it_cannot_be_seen() -> None:
    """Broken, not run and not yet tested by id, with a star for an untagged must; each reason of the unobservable."""
    named = {"one": ["CLOSE-01"], "two": ["CLOSE-06"]}
    text = "\n".join(lists(stand(named, [record("one", "fail")])))
    assert "broken (* an untagged must): CLOSE-01*" in text
    assert "not run (* an untagged must): CLOSE-06*" in text
    assert "CLOSE-14, " in text
    assert all(f"not observable {name}" in text for name in not_observable())


@pytest.mark.parametrize("text", ["close-17", "CLOSE-17", "CLOSE-017", "Close"])
def test_ids_may_be_written_loosely(text: str) -> None:
    """Case and leading zeros do not matter; an area is as good."""
    assert known_id(text) in ("CLOSE-17", "CLOSE")


def test_of_two_runs_of_a_test_the_last_counts(tmp_path: Path) -> None:
    """A second try overrides the first; what it did not run stays."""
    for name, records in (
        ("first", [record("one", "fail"), record("two", "pass")]),
        ("again", [record("one", "pass")]),
    ):
        write_verdicts(tmp_path / name, records)
    found = {r.test: r.verdict for r in read_all([tmp_path / "first", tmp_path / "again"])}
    assert found == {"one": "pass", "two": "pass"}


@pytest.mark.parametrize("content", ["", "{", "[]x", '{"a": 1}', "[1]", '[{"test": 1, "verdict": "pass"}]', "[" * 9999])
def test_damaged_verdicts_are_refused(tmp_path: Path, content: str) -> None:
    """The file is named and what to do instead."""
    (tmp_path / "verdicts.json").write_text(content)
    with pytest.raises(ResultsError, match=r"holds no verdicts: .*verdicts\.json"):
        read_verdicts(tmp_path)


def test_the_command_shows_one_requirement_with_its_tests(tmp_path: Path) -> None:
    """Sentence, level, source, and each test with its verdict; exit code 1 because one of them failed."""
    test = "tests/contract/test_hard_close.py::test_no_event_object_is_signalled"
    write_verdicts(tmp_path, [record(test, "fail")])
    command = [sys.executable, "-m", "hil", "contract", f"--results={tmp_path}", "CLOSE-01"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert requirements()["CLOSE-01"].sentence in done.stdout
    assert f"fail        {test}" in done.stdout


def test_strict_fails_when_a_must_was_not_seen_kept(tmp_path: Path) -> None:
    """One passing test does not keep a whole contract; the missing are named."""
    test = "tests/contract/test_hard_close.py::test_no_event_object_is_signalled"
    write_verdicts(tmp_path, [record(test, "pass")])
    command = [sys.executable, "-m", "hil", "contract", f"--results={tmp_path}"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    done = subprocess.run([*command, "--strict"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "musts without a test that shows them kept: " in done.stderr and "CLOSE-02" in done.stderr


def test_tests_can_be_chosen_by_requirement() -> None:
    """--hil-requirement takes ids and areas, and refuses what is neither."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests", "--hil-requirement"]
    done = subprocess.run([*command, "CLOSE-46"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "test_duplication.py" in done.stdout and "test_hard_close.py" not in done.stdout
    assert subprocess.run([*command, "CLOSE-99"], capture_output=True, cwd=ROOT).returncode == 4


def test_an_unknown_requirement_is_an_error() -> None:
    """It is named, with the areas there are; exit code 2."""
    command = [sys.executable, "-m", "hil", "contract", "CLOSE-99"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'CLOSE-99' is no requirement and no area" in done.stderr


def test_what_can_be_seen_in_part_only_is_kept_in_part() -> None:
    """A requirement with a row in partly_observable.csv is never simply kept, and the gate lets it pass."""
    rule = next(iter(partly_observable()))
    shown = stand({"test": [rule]}, [record("test", "pass")])
    assert shown[rule].standing is Standing.IN_PART
    assert unsettled({rule: shown[rule]}) == []
