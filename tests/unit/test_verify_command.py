"""``hil verify`` as it is called: exit codes, text, JSON, page, choice of connections, and files that are none."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from captured import INTERFACES, TEARDOWNS, kind, later, made, moved, pcapng, place, recorded
from click.testing import CliRunner, Result

from hil import progress
from hil.cli.main import main
from hil.report.command import run_verify
from hil.report.verify import verify
from hil.report.verify_json import FORMAT
from hil.testing.roce import Side
from hil.verdict import Verdict


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A capture of two connections that pass."""
    path = tmp_path / "good.pcapng"
    frames = made((Side(0x0A000001, 0x11, 11), Side(0x0A000002, 0x12, 22)), 40)
    more = made((Side(0x0A000003, 0x13, 33), Side(0x0A000002, 0x14, 44)), 2)
    path.write_bytes(pcapng([*frames, *later(more, 10**9)]).getvalue())
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A capture in which a message follows the DREQ."""
    path = tmp_path / "bad.pcapng"
    frames = recorded("reset")
    data = next(n for n, frame in enumerate(frames) if kind(frame) == "RC" and frame.interface == INTERFACES[0])
    path.write_bytes(pcapng(moved(frames, data, place(frames, "DREQ"))).getvalue())
    return path


def test_the_exit_code_is_that_of_the_worst(good: Path, bad: Path, tmp_path: Path) -> None:
    """0 all passed, 1 a fail, 2 something could not be judged or read."""
    unsure = TEARDOWNS / "peer_gone.pcapng"
    codes = [run(*files).exit_code for files in ([good], [bad], [good, bad], [unsure], [bad, unsure], [good, "/none"])]
    assert codes == [0, 1, 1, 2, 2, 2]


def test_the_text_says_what_broke(bad: Path) -> None:
    """The statement, its requirement and the frame."""
    text = run(bad).stdout
    assert text.startswith("fail")
    assert "BROKE no data leaves the closer after its DREQ [CLOSE-36]" in text
    assert "CM disconnect by 10.77.0.1" in text


@pytest.mark.parametrize("content", [b"", b"GIF89a, not a capture", b"\x0a\x0d\x0d\x0a\x1c\x00\x00\x00"])
def test_a_file_that_is_no_capture_is_named(tmp_path: Path, content: bytes) -> None:
    """One sentence on standard error, exit code 2, no traceback."""
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    done = run(path)
    assert done.exit_code == 2
    assert str(path) in done.output and "Traceback" not in done.output


def test_a_capture_without_connections_is_no_pass(tmp_path: Path) -> None:
    """Nothing was judged, and it is said so."""
    path = tmp_path / "empty.pcapng"
    path.write_bytes(pcapng([]).getvalue())
    done = run(path)
    assert done.exit_code == 2 and "it holds no connection" in done.stdout


def test_a_damaged_capture_is_no_pass(good: Path) -> None:
    """What was read up to the damage is told, and not called a pass."""
    good.write_bytes(good.read_bytes()[:-50])
    done = run(good)
    assert done.exit_code == 2 and "the file is damaged" in done.stdout


def test_the_json_has_the_documented_shape(good: Path, bad: Path) -> None:
    """One document, with every field that the module's text names."""
    document = json.loads(run("--json", good, bad, "/none").stdout)
    assert (document["format"], document["exit_code"]) == (FORMAT, 2)
    first, second, third = document["files"]
    assert (first["verdict"], second["verdict"], third["verdict"]) == ("pass", "fail", "invalid")
    assert set(third) == {"name", "verdict", "exit_code", "error"}
    assert [file["exit_code"] for file in document["files"]] == [0, 1, 2]
    assert first["counts"] == {"pass": 2, "fail": 0, "invalid": 0}
    connection = first["connections"][0]
    assert set(connection) == {
        *(
            "number",
            "verdict",
            "ending",
            "closer",
            "at_frame",
            "at_ns",
            "how",
            "vlan",
            "vlans",
            "networks",
            "first_frame",
            "last_frame",
        ),
        *(
            "first_ns",
            "last_ns",
            "inferred",
            "doubts",
            "notes",
            "findings",
            "messages",
            "ends",
            "steps_elided",
            "steps",
        ),
    }
    assert [m["name"] for m in connection["messages"]] == ["REQ", "REP", "RTU", "DREQ", "DREP"]
    assert connection["ends"][0]["requests"]["messages_ended"] == 40
    broke = [f["statement"] for f in second["connections"][0]["findings"] if not f["held"]]
    assert broke == ["no data leaves the closer after its DREQ"]


def test_long_ladders_leave_out_their_middle(good: Path) -> None:
    """The first and the last steps are kept, and how many are not."""
    connection = json.loads(run("--json", good).stdout)["files"][0]["connections"][0]
    assert connection["steps"][0]["what"] == "CM REQ" and connection["steps"][-1]["what"] == "CM DREP"
    assert len(connection["steps"]) == 64 and connection["steps_elided"] == 40 * 2 + 5 - 64


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("1", [1]), ("10.0.0.3", [2]), ("10.0.0.2", [1, 2]), ("0x14", [2]), ("10.0.0.2+0x11", [1])],
)
def test_a_connection_can_be_chosen(good: Path, name: str, numbers: list[int]) -> None:
    """By number, address or queue pair, or two of them."""
    found = json.loads(run("--json", "--connection", name, good).stdout)["files"][0]
    assert [c["number"] for c in found["connections"]] == numbers
    assert found["connections_found"] == 2


def test_a_choice_that_names_nothing_is_no_pass(good: Path) -> None:
    """Nothing chosen is nothing judged."""
    done = run("--connection", "10.9.9.9", good)
    assert done.exit_code == 2 and "none of its 2 connections is 10.9.9.9" in done.stdout


def test_the_page_is_whole_and_needs_nothing(good: Path, bad: Path, tmp_path: Path) -> None:
    """Every connection has its ladder; there is no script, and nothing is loaded from anywhere."""
    page = tmp_path / "page.html"
    assert run("--html", page, good, bad, TEARDOWNS / "cut_wire.pcapng").exit_code == 1
    text = page.read_text()
    ladders = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(ladders) == 4
    for ladder in ladders:
        ElementTree.fromstring(ladder)
    assert "SEND again" in text and "steps are not shown" in text
    assert not re.search(r"<script|src=|url\(|@import|href=\"(?!#)", text)


def test_names_from_outside_are_escaped(bad: Path, tmp_path: Path) -> None:
    """A file's name is text on the page and harmless on the terminal."""
    path = tmp_path / "<script>alert(1)<\x1b[31m.pcapng"
    path.write_bytes(bad.read_bytes())
    page = tmp_path / "page.html"
    done = run("--html", page, path)
    assert "\x1b" not in done.stdout and "\x1b" not in done.stderr
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text and "\x1b" not in text


def test_a_page_that_cannot_be_written_is_said(good: Path) -> None:
    """Exit code 2 and why."""
    done = run("--html", "/dev/null/page.html", good)
    assert done.exit_code == 2 and "the page cannot be written to /dev/null/page.html" in done.stderr


def test_a_report_that_cannot_be_written_is_no_fail(good: Path) -> None:
    """One line on standard error and exit code 2 on a full disk, not 1, which says that a capture fails."""
    command = [sys.executable, "-m", "hil", "verify", str(good)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "hil: error: the report cannot be written: No space left on device\n"


def test_where_nothing_can_be_told_the_exit_code_tells(good: Path) -> None:
    """Standard error is as full: 2, and not 1, which says that a capture fails."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-m", "hil", "verify", str(good)], stdout=full, stderr=full)
    assert done.returncode == 2


def test_standard_input_is_read_once(good: Path) -> None:
    """A second - has nothing left to read: it is refused before anything is."""
    command = [sys.executable, "-m", "hil", "verify", "-", "-"]
    done = subprocess.run(command, input=good.read_bytes(), capture_output=True)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr == b"hil: error: standard input can be read once only: name - once\n"


@pytest.mark.parametrize(
    ("stop", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "there is not enough memory"),
        (ZeroDivisionError("x"), 2, "a defect of hil: ZeroDivisionError in"),
    ],
)
def test_what_stops_it_is_no_fail(
    good: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int, told: str
) -> None:
    """One line and exit code 2, or 130 for Ctrl-C."""

    def stopped(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr("hil.report.command.verify", stopped)
    done = run(good)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"hil: error: {told}") and done.stderr.count("\n") == 1


def test_a_page_never_overwrites_a_capture(good: Path, bad: Path, tmp_path: Path) -> None:
    """Neither one that is judged, by whatever name, nor another."""
    link = tmp_path / "link"
    link.symlink_to(good)
    kept = good.read_bytes(), bad.read_bytes()
    for page, words in ((good, "one of the captures"), (link, "one of the captures"), (bad, "a capture")):
        done = run("--html", page, good)
        assert done.exit_code == 2 and words in done.stderr and done.stdout == ""
    assert (good.read_bytes(), bad.read_bytes()) == kept


@pytest.mark.parametrize("beginning", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"snoop\0"])
def test_a_page_never_overwrites_what_may_hold_a_capture(good: Path, tmp_path: Path, beginning: bytes) -> None:
    """A compressed file, or a capture of a kind that is not read."""
    kept = tmp_path / "kept"
    kept.write_bytes(beginning + bytes(20))
    done = run("--html", kept, good)
    assert done.exit_code == 2 and "is compressed, or a capture" in done.stderr
    assert kept.read_bytes() == beginning + bytes(20)


def test_the_page_and_the_report_do_not_go_to_one_file(good: Path, tmp_path: Path) -> None:
    """Standard output is a file, and named for the page too: nothing is written over the other."""
    out = tmp_path / "out.txt"
    with out.open("wb") as file:
        command = [sys.executable, "-m", "hil", "verify", "--html", "/dev/stdout", str(good)]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"standard output, where the report goes" in done.stderr
    assert out.read_bytes() == b""


def test_a_closed_standard_input_is_told() -> None:
    """No defect of ours: there is nothing to read."""
    command = f"exec {sys.executable} -m hil verify - <&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "hil: error: -: standard input is closed\n")


def test_a_page_is_written_whole(good: Path, tmp_path: Path) -> None:
    """An earlier page is replaced, and nothing is left beside it."""
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    page.write_text("earlier")
    assert run("--html", page, good).exit_code == 0
    assert page.read_text().startswith("<!DOCTYPE html>") and list(page.parent.iterdir()) == [page]


def test_standard_input_is_read(good: Path) -> None:
    """``-`` is what is piped in."""
    done = CliRunner().invoke(main, ["verify", "-"], input=good.read_bytes())
    assert done.exit_code == 0 and "2 connections: 2 pass" in done.stdout


def test_progress_is_told_in_plain_lines(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A large file that is read to no terminal says how far it is, on standard error."""
    monkeypatch.setattr(progress, "LARGE_FILE", 1)
    monkeypatch.setattr(progress, "EVERY_NS", 0)
    assert run_verify((good,), as_json=True, html=None, wanted=()) == 0
    told = capsys.readouterr()
    assert f"hil: {good.name}: 100% of 0 MiB" in told.err
    assert json.loads(told.out)["exit_code"] == 0


def test_small_files_say_nothing_of_progress(good: Path) -> None:
    """Only the report."""
    assert run(good).stderr == ""


def test_of_very_many_connections_some_are_only_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their verdicts count; a fail is told all the same, and so is what was asked for."""
    monkeypatch.setattr("hil.report.verify.CONNECTIONS_KEPT", 5)
    path = tmp_path / "many.pcapng"
    pairs = [(Side(0x0A000001, 0x100 + n, 10 + n), Side(0x0A000002, 0x800 + n, 5000 + n)) for n in range(9)]
    parts = [later(made(pair, 1), n * 10**9) for n, pair in enumerate(pairs)]
    data = next(n for n, frame in enumerate(parts[7]) if kind(frame) == "RC" and frame.interface == INTERFACES[0])
    parts[7] = moved(parts[7], data, place(parts[7], "DREQ"))
    path.write_bytes(pcapng(frame for part in parts for frame in part).getvalue())
    report = verify(path)
    assert (len(report.connections), report.found, report.verdict) == (6, 9, Verdict.FAIL)
    assert report.counts() == {"pass": 8, "fail": 1, "invalid": 0}
    assert "of 3 of its connections only the verdicts are told, they are so many" in report.notes
    asked = verify(path, wanted=("0x108",))
    assert [c.judged.facts.ends[0].qpn for c in asked.connections] == [0x108]


def test_many_passing_connections_are_counted_not_listed(tmp_path: Path) -> None:
    """The text stays readable; what fails is always listed."""
    path = tmp_path / "many.pcapng"
    pairs = [(Side(0x0A000001, 0x100 + n, 10 + n), Side(0x0A000002, 0x800 + n, 5000 + n)) for n in range(60)]
    path.write_bytes(pcapng(f for n, pair in enumerate(pairs) for f in later(made(pair, 1), n * 10**6)).getvalue())
    done = run(path)
    assert done.exit_code == 0
    assert done.stdout.count("CM disconnect by") == 50 and "and 10 more that pass" in done.stdout
