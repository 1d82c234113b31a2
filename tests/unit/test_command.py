"""Which tests ``hil run`` runs."""

import pytest
from click.testing import CliRunner

from hil.cli import ROOT, check_tests, default_tests, main

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

    monkeypatch.setattr("hil.cli.prepared", interrupted)
    done = CliRunner().invoke(main, ["prepare"])
    assert (done.exit_code, done.stderr) == (2, "hil: error: interrupted\n")
