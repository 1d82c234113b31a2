"""Evidence judged again: the same findings, what changed is told, and hostile folders do no harm."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from golden import BUNDLES, PASSES, bundle, copied
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hil.errors import ResultsError
from hil.evidence.bundle import FORMAT, VerdictRecord, folder_of, read_bundle, write_evidence, write_verdicts
from hil.evidence.disconnect import Finding
from hil.evidence.evidence import Evidence
from hil.evidence.judgement import judge
from hil.evidence.rules import registry
from hil.evidence.rules.closes import HardClose
from hil.evidence.rules.registry import Registered
from hil.report.judge import Again, judge_folder
from hil.verdict import Verdict

# How many findings the bench's own rules yield of the first bundle.
OWN = 31
GOLDEN = sorted(path.name for path in BUNDLES.iterdir())


def hil_judge(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hil", "judge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def again(folder: Path) -> Again:
    (judged,) = judge_folder(folder)
    return judged


def edited(folder: Path, name: str = "evidence.json", **facts: Any) -> Path:
    """A bundle with other facts in one of its files."""
    told = json.loads((folder / name).read_text()) | facts
    (folder / name).write_text(json.dumps(told))
    return folder


# --- what was recorded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recorded_bundle_has_its_verdict_and_its_findings_again(name: str) -> None:
    """Whatever was found when it was recorded is found by today's rules, to the letter."""
    judged = again(BUNDLES / name)
    assert judged.changes == () and judged.before is judged.after is Verdict(name.partition("_")[0])


@pytest.mark.parametrize("name", PASSES)
def test_what_is_read_back_is_written_alike(name: str, tmp_path: Path) -> None:
    """A bundle that is read and written anew is equal, file by file."""
    read = bundle(name)
    write_evidence(tmp_path, read.evidence, read.judged, {})
    for file in ("evidence.json", "timeline.jsonl"):
        assert (tmp_path / file).read_text().strip() == (BUNDLES / name / file).read_text().strip()


def test_a_run_is_judged_test_by_test(tmp_path: Path) -> None:
    """Each test by its folder; one that recorded nothing keeps its verdict; the exit code is the worst verdict's."""
    records = []
    for name in ("pass_data", "fail"):
        record = read_bundle(BUNDLES / name).record
        assert record is not None
        shutil.copytree(BUNDLES / name, folder_of(tmp_path, record.test))
        records.append(record)
    records.append(VerdictRecord("tests/contract/test_x.py::test_y", Verdict.UNSUPPORTED))
    write_verdicts(tmp_path, records)
    done = hil_judge(str(tmp_path))
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if "tests/" in line] == ["pass", "fail", "unsupported"]
    assert lines[-1].startswith("hil: 1 pass, 1 fail, 0 invalid, 1 unsupported; 0 verdicts of 3 and 0 findings of")


# --- what changes ----------------------------------------------------------------------------------------------------


def test_a_finding_that_breaks_now_is_told(tmp_path: Path) -> None:
    """held -> broke, the new verdict, and exit code 1; in JSON the finding before and after."""
    folder = copied("pass_data", tmp_path)
    lines = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "call" and line["function"] == "WSPCloseSocket":
            line["result"] = -1
    (folder / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = hil_judge(str(folder))
    assert done.returncode == 1
    assert done.stdout.startswith("pass -> fail ") and "held -> broke: WSPCloseSocket returns 0: 0 calls" in done.stdout
    told = json.loads(hil_judge("--json", str(folder)).stdout)
    change = next(c for c in told["tests"][0]["changes"] if c["after"]["statement"] == "WSPCloseSocket returns 0")
    assert (told["exit_code"], change["before"]["held"], change["after"]["held"]) == (1, True, False)


def test_findings_that_are_new_or_gone_are_told(tmp_path: Path) -> None:
    """As an older version would have left it: one statement had another name."""
    folder = copied("pass_data", tmp_path)
    judged = json.loads((folder / "evidence.json").read_text())["judged"]
    judged["findings"][0]["statement"] = "an old name"
    told = [str(change) for change in again(edited(folder, judged=judged)).changes]
    assert told[0] == "held -> absent: an old name" and told[1].startswith("absent -> held: the REQ's GIDs")


def test_what_a_test_asserts_itself_is_not_overruled(tmp_path: Path) -> None:
    """A fail without a broken finding stays one; findings that a test examined must not change."""
    folder = copied("pass_data", tmp_path)
    edited(folder, "verdict.json", verdict="fail")
    assert again(folder).after is Verdict.FAIL and "it was not the findings" in again(folder).note
    judged = json.loads((folder / "evidence.json").read_text())["judged"]
    edited(folder, judged=judged | {"asserted": False})
    assert again(folder).after is Verdict.FAIL and "they are the same" in again(folder).note
    edited(folder, judged=judged | {"asserted": False, "findings": judged["findings"][1:]})
    assert again(folder).after is Verdict.INVALID and "run it again" in again(folder).note


def test_a_fail_whose_findings_all_hold_now_says_what_it_does_not_know(tmp_path: Path) -> None:
    """Today's rules pass it; what its test asserts behind the findings did not run."""
    folder = copied("pass_data", tmp_path)
    judged = json.loads((folder / "evidence.json").read_text())["judged"]
    judged["findings"][0]["held"] = False
    edited(edited(folder, judged=judged), "verdict.json", verdict="fail")
    assert again(folder).after is Verdict.PASS and "was not reached" in again(folder).note


def test_incomplete_evidence_is_invalid_whatever_it_holds(tmp_path: Path) -> None:
    """Its problems are told, and no rule is asked."""
    judged = again(edited(copied("pass_data", tmp_path), problems=["a frame is missing"]))
    assert (judged.after, judged.findings) == (Verdict.INVALID, 0) and "a frame is missing" in judged.note


def test_a_test_that_judged_nothing_keeps_its_verdict(tmp_path: Path) -> None:
    """There is nothing to judge again; without any verdict it is invalid."""
    folder = edited(copied("pass_data", tmp_path), judged=None)
    edited(folder, "verdict.json", verdict="fail")
    assert again(folder).after is Verdict.FAIL
    edited(edited(folder, problems=["node b does not live"]), "verdict.json", verdict="pass")
    assert again(folder).after is Verdict.PASS and "node b does not live" in again(folder).note
    (folder / "verdict.json").unlink()
    assert again(folder).after is Verdict.INVALID


# --- rules of other packages -----------------------------------------------------------------------------------------


def fine(evidence: Evidence, close: HardClose | None) -> Iterable[Finding]:
    yield Finding(f"asked of {'a close' if close else 'the run'}", ("CLOSE-01",), True, f"{len(evidence.packets)}")


def breaks_down(evidence: Evidence, close: HardClose | None) -> Iterable[Finding]:
    yield Finding("before", (), True, "")
    raise KeyError("no such fact")


def yields_text(evidence: Evidence, close: HardClose | None) -> Iterable[Any]:
    yield "held"


def judged_with(rule: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The judgement of a bundle with one rule of a package installed beside the bench's own."""
    point = EntryPoint("odd", f"{rule.__module__}:{rule.__name__}", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "hil.rules" else [])
    read = bundle("pass_data")
    assert read.judged is not None
    return judge(read.evidence, read.judged.closes)


def test_a_rule_of_another_package_is_asked_behind_the_benchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each close, then once for the run."""
    judgement = judged_with(fine, monkeypatch)
    assert [f.statement for f in judgement.findings][-2:] == ["asked of a close", "asked of the run"]
    assert judgement.verdict is Verdict.PASS and len(judgement.findings) == OWN + 2


@pytest.mark.parametrize(
    ("rule", "told"),
    [(breaks_down, "KeyError: 'no such fact'"), (yields_text, "TypeError: it yielded a str, not a Finding")],
)
def test_a_rule_that_breaks_down_makes_the_verdict_invalid(
    rule: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with its package; the bench's own findings are there all the same."""
    judgement = judged_with(rule, monkeypatch)
    assert judgement.problems == (f"the rule odd of {__name__} broke: {told}",)
    assert judgement.verdict is Verdict.INVALID and len(judgement.findings) == OWN


def test_a_broken_finding_stays_a_fail_beside_a_rule_that_breaks_down() -> None:
    """What is proved is not undone by what is in doubt."""
    broke = Finding("it is so", (), False, "it is not")
    rules = [Registered("one", "p", lambda: lambda *_: [broke]), Registered("two", "p", lambda: breaks_down)]
    judgement = judge(Evidence({}), [], rules)
    assert judgement.verdict is Verdict.FAIL and judgement.problems


# --- hostile folders -------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000
FILES = ("evidence.json", "timeline.jsonl", "verdict.json", "wire.pcapng")


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', DEEP, '{"format": NaN}', "\udcff\x00", "1e999"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_anything_is_refused_by_its_name(name: str, content: str, tmp_path: Path) -> None:
    """No content of any file is more than an error that names the file."""
    folder = copied("pass_data", tmp_path)
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    if name == "timeline.jsonl" and not content:
        # A journal without an entry is one: then nothing that the provider did is known.
        assert again(folder).after is Verdict.FAIL
        return
    with pytest.raises(ResultsError, match=name):
        again(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": 1}, r"evidence\.json: another version of the bench wrote it, in format 1; this one reads format 2"),
        ({"format": None}, "in a format without a number"),
        ({"uncertainty_ns": 1 << 70}, r"evidence\.json\.uncertainty_ns: the number has more than 64 bits"),
        ({"uncertainty_ns": 1.5}, "a whole number was expected, not 1.5"),
        ({"late_frames": {"x": 1}}, "a number as name was expected, not 'x'"),
        ({"resources": {"a": [{"kind": "GPU"}]}}, r"resources\.a\[0\]: there is no resource of kind 'GPU'"),
        ({"resources": {"a": [{"kind": "QP", "device": "x"}]}}, "number is missing"),
        ({"processes": {"a": [[]]}}, "a list of 2 was expected, not a list"),
        ({"clocks": {"a": [[1, 2, 3]]}}, "a list of 2 was expected"),
        ({"addresses": {}}, "a close was judged at node 'a', whose addresses are not told"),
        ({"frames": 1 << 40}, r"wire\.pcapng: \d+ frames are there, 1099511627776 were judged"),
        ({"surprise": 1}, "'surprise' is no fact of it"),
    ],
)
def test_a_wrong_fact_is_named_with_its_place(facts: dict[str, Any], message: str, tmp_path: Path) -> None:
    """File, place and what was expected there."""
    with pytest.raises(ResultsError, match=message):
        again(edited(copied("pass_data", tmp_path), **facts))


@pytest.mark.parametrize("name", FILES)
def test_no_link_is_followed_and_no_pipe_waited_for(name: str, tmp_path: Path) -> None:
    """A link out of the folder, a pipe that nobody writes to, a folder, and a file that is not there."""
    folder = copied("pass_data", tmp_path)
    kept = (folder / name).rename(tmp_path / "elsewhere")
    makers = (lambda p: p.symlink_to(kept), os.mkfifo, Path.mkdir)
    for make in makers:
        make(folder / name)
        with pytest.raises(ResultsError, match=name):
            again(folder)
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    if name != "verdict.json":
        with pytest.raises(ResultsError, match=f"{name}: No such file"):
            again(folder)


def test_the_folder_of_a_test_is_no_link(tmp_path: Path) -> None:
    """A run whose test's folder leads elsewhere is refused, before anything there is read."""
    run, record = tmp_path / "run", VerdictRecord("tests/test_x.py::test_y", Verdict.PASS)
    write_verdicts(run, [record])
    folder_of(run, record.test).symlink_to(copied("pass_data", tmp_path))
    done = hil_judge(str(run))
    assert done.returncode == 2 and "is a symbolic link" in done.stderr


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_that_is_none_ends_with_2(folder: str, tmp_path: Path) -> None:
    """One that is not there, and one that holds no evidence."""
    done = hil_judge(str(tmp_path / folder))
    assert done.returncode == 2 and done.stderr.startswith("hil: error: ") and "Traceback" not in done.stderr


def test_a_run_of_an_older_version_says_so(tmp_path: Path) -> None:
    """Its records have findings by another name; running the tests again mends it."""
    (tmp_path / "verdicts.json").write_text('[{"test": "x", "verdict": "pass", "links": []}]')
    with pytest.raises(
        ResultsError, match=r"verdicts\.json: an older version of the bench wrote it; run the tests again$"
    ):
        again(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a whole nor by one line without an end."""
    folder = copied("pass_data", tmp_path)
    monkeypatch.setattr("hil.evidence.bundle.LONGEST_LINE_BYTES", 50)
    with pytest.raises(ResultsError, match=r"timeline\.jsonl, line 1: longer than the 50 bytes that are read"):
        again(folder)
    monkeypatch.setattr("hil.evidence.bundle.LARGEST_OTHER_BYTES", 50)
    with pytest.raises(ResultsError, match=r"evidence\.json: \d+ bytes, more than the 50 that are read"):
        again(folder)


VALUES = st.sampled_from([None, True, -1, 1 << 63, 1e308, "", "\x1b[2J", [], {}, [[]], {"a": []}, "WSPSend", 995])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), VALUES)
def test_any_fact_of_a_bundle_may_be_anything(tmp_path: Path, chance: random.Random, value: Any) -> None:
    """One value in one file is another: the answer is a judgement or a ResultsError."""
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BUNDLES / chance.choice(PASSES), folder)
    path = folder / chance.choice(["evidence.json", "timeline.jsonl"])
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    place = chance.randrange(len(lines))
    told = json.loads(lines[place])
    inner: Any = told
    while True:
        key = chance.choice(sorted(inner)) if isinstance(inner, dict) else chance.randrange(len(inner))
        if not isinstance(inner[key], dict | list) or not inner[key] or chance.random() < 0.2:
            break
        inner = inner[key]
    inner[key] = value
    lines[place] = json.dumps(told)
    path.write_text("\n".join(lines) + "\n")
    try:
        assert isinstance(again(folder).after, Verdict)
    except ResultsError as error:
        assert str(folder) in str(error)


def test_the_format_is_the_one_that_golden_bundles_have() -> None:
    """A new format needs new golden bundles, or a reader of the old one."""
    assert {json.loads((BUNDLES / name / "evidence.json").read_text())["format"] for name in GOLDEN} == {FORMAT}
