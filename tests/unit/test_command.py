"""Which tests ``hil run`` runs."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hil.cli.main import main
from hil.cli.options import ROOT
from hil.cli.tests import check_tests, default_tests

CONTRACT = ROOT / "tests" / "contract"


def test_without_arguments_it_is_the_teardown() -> None:
    """The main job is a close and its reset."""
    assert default_tests((), whole=False) == [str(CONTRACT / "test_hard_close.py")]
    assert default_tests(("-x",), whole=False) == [str(CONTRACT / "test_hard_close.py")]


def test_the_whole_contract_is_asked_for() -> None:
    """By --all, or by naming a requirement, whose tests may be anywhere."""
    assert default_tests((), whole=True) == [str(CONTRACT)]
    assert default_tests(("--requirement", "DUP"), whole=False) == [str(CONTRACT)]


def test_named_tests_are_all_there_is() -> None:
    """A path, or one test in it."""
    path = str(CONTRACT / "test_duplication.py")
    assert default_tests((path,), whole=True) == []
    assert default_tests(("-x", f"{path}::test_a_listener_is_handed_over"), whole=False) == []


def test_tests_that_cannot_be_collected_are_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A requirement or a file that does not exist is named, and the exit code is 2, whatever runs in parallel."""
    for arguments, reason in (
        (("--requirement", "NOPE-1"), "there is no requirement and no area NOPE-1"),
        (("tests/nope.py",), "file or directory not found: tests/nope.py"),
    ):
        with pytest.raises(SystemExit) as ended:
            check_tests([*arguments, *default_tests(arguments, whole=False)])
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err


def test_a_command_that_is_told_to_end_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that no verb has an answer to is no fail: the exit code is 2, and not click's 1."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hil.cli.prepare.kind_of", interrupted)
    done = CliRunner().invoke(main, ["prepare"])
    assert (done.exit_code, done.stderr) == (2, "hil: error: interrupted\n")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--requirement=NOPE-1", "there is no requirement and no area NOPE-1"),
        ("--needing=clone", "there is no need clone"),
    ],
)
def test_a_name_that_nothing_has_is_one_line(option: str, reason: str) -> None:
    """Also of several processes: the reason comes before any of them is started."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        option,
        "tests/unit/test_command.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 4 and reason in done.stderr and "INTERNALERROR" not in done.stdout + done.stderr


def test_repetition_runs_only_when_it_is_asked_for(tmp_path: Path) -> None:
    """A test marked thorough is left out and counted, runs with --thorough, and a mark without a reason is refused."""
    tests = tmp_path / "test_it.py"
    tests.write_text("import pytest\n@pytest.mark.thorough('again')\ndef test_a(): pass\ndef test_b(thorough): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--results={tmp_path}", str(tests)]
    one = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    both = subprocess.run([*command, "--thorough"], capture_output=True, text=True, cwd=ROOT)
    assert "1 passed, 1 deselected" in one.stdout and "2 passed" in both.stdout
    tests.write_text("import pytest\n@pytest.mark.thorough\ndef test_a(): pass\n")
    silent = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert silent.returncode != 0 and "the marker thorough needs a reason" in silent.stderr + silent.stdout
