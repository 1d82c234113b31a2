"""The selection of tests by ``hil run``."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hil.cli.main import main
from hil.cli.tests import arguments, check_tests, suite_arguments
from hil.suite import CONTRACT, SUITE

ROOT = Path(__file__).parents[2]


def test_without_arguments_the_teardown_runs() -> None:
    """The default is the test file of the hard close."""
    assert arguments((), whole=False)[-1] == str(CONTRACT / "test_hard_close.py")
    assert arguments(("-x", "-k", "contract"), whole=False)[-4:] == [
        "-x",
        "-k",
        "contract",
        *arguments((), whole=False)[-1:],
    ]


def test_the_whole_contract_can_be_chosen() -> None:
    """It is one folder of the suite."""
    assert arguments((), whole=True) == [*suite_arguments(cache=True), str(CONTRACT)]


@pytest.mark.parametrize("folder", [SUITE / "tests" / "contract", ROOT / "tests" / "contract", Path("contract")])
def test_tests_of_the_suite_are_named_by_any_path(folder: Path) -> None:
    """A path in the suite, in a checkout, or below the suite leads to the same test."""
    name = "test_duplication.py::test_a_listener_is_handed_over"
    found = arguments(("-x", f"{folder}/{name}"), whole=True)
    assert found == [*suite_arguments(cache=True), "-x", f"{CONTRACT}/{name}"]


def test_the_users_own_tests_keep_their_settings(tmp_path: Path) -> None:
    """They run as pytest runs them in their own project, even together with tests of the suite."""
    own = tmp_path / "test_own.py"
    own.write_text("")
    assert arguments((str(own),), whole=False) == [str(own)]
    both = arguments((str(own), "contract/test_duplication.py"), whole=False)
    assert both == [str(own), str(CONTRACT / "test_duplication.py")]


def test_tests_that_cannot_be_collected_are_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unknown requirement or file is named, and the exit code is 2, also with several processes."""
    for given, reason in (
        (["--hil-requirement=NOPE-1"], "there is no requirement and no area NOPE-1"),
        (["tests/nope.py"], "file or directory not found: tests/nope.py"),
    ):
        with pytest.raises(SystemExit) as ended:
            check_tests(arguments(given, whole=False))
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err


def test_an_interrupted_command_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that no verb handles is not a fail: the exit code is 2, and not click's 1."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hil.cli.prepare.kind_of", interrupted)
    done = CliRunner().invoke(main, ["prepare"])
    assert (done.exit_code, done.stderr) == (2, "hil: error: interrupted\n")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--hil-requirement=NOPE-1", "there is no requirement and no area NOPE-1"),
        ("--hil-needing=clone", "there is no need clone"),
    ],
)
def test_an_unknown_name_gives_one_line(option: str, reason: str) -> None:
    """With several processes, the reason is printed before any of them is started."""
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


def test_repetition_runs_only_with_its_option(tmp_path: Path) -> None:
    """A test marked thorough is deselected and counted. It runs with the option. A mark without a reason is refused."""
    tests = tmp_path / "test_it.py"
    tests.write_text("import pytest\n@pytest.mark.thorough('again')\ndef test_a(): pass\ndef test_b(thorough): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--hil-results={tmp_path}", str(tests)]
    one = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    both = subprocess.run([*command, "--hil-thorough"], capture_output=True, text=True, cwd=ROOT)
    assert "1 passed, 1 deselected" in one.stdout and "2 passed" in both.stdout
    tests.write_text("import pytest\n@pytest.mark.thorough\ndef test_a(): pass\n")
    silent = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert silent.returncode != 0 and "the marker thorough needs a reason" in silent.stderr + silent.stdout
