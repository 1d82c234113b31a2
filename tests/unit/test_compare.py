"""Two runs side by side: what they were made with, and what they found differently."""

import json
from pathlib import Path

import pytest

from hil.errors import HilError
from hil.evidence.bundle import read_run
from hil.report.compare import differences, table, verdicts_that_differ


def results(folder: Path, kernel: str, **verdicts: str) -> Path:
    folder.mkdir()
    records = [{"test": t, "verdict": v, "reason": "" if v == "pass" else f"{t} broke"} for t, v in verdicts.items()]
    (folder / "verdicts.json").write_text(json.dumps(records))
    (folder / "versions.json").write_text(json.dumps({"host": folder.name, "nodes": {"a": {"kernel": kernel}}}))
    return folder


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    """A kernel and a verdict differ, a test ran once only; the host and the equal verdict are not spoken of."""
    one = read_run(results(tmp_path / "trixie", "6.12", x="pass", y="pass", z="pass"))
    other = read_run(results(tmp_path / "bookworm", "6.1", x="pass", y="fail"))
    assert differences(one, other) == {"nodes.a.kernel": ("6.12", "6.1")}
    assert verdicts_that_differ(one, other) == {"y": ("pass", "fail"), "z": ("pass", "not run")}
    assert table(one, other) == [
        "made with       trixie  bookworm",
        "nodes.a.kernel  6.12    6.1",
        "",
        "test  trixie  bookworm",
        "y     pass    fail",
        "z     pass    not run",
        "    bookworm: y: y broke",
        "",
        "1 tests ended alike, 2 did not",
    ]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"test": 1}]', "[" * 100000])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    """Whatever the files hold, the answer is an error that names the folder."""
    (tmp_path / "verdicts.json").write_text(text)
    (tmp_path / "versions.json").write_text("[" * 100000)
    with pytest.raises(HilError, match=str(tmp_path)):
        read_run(tmp_path)
