"""Tests declare needs. If a lab does not meet one, the verdict is unsupported with the reason. No node is touched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Its hosts do not exist, so any use of them is an error.
LAB = ROOT / "lab" / "two-hosts-mirror.toml"
UNSUPPORTED = """
import pytest

@pytest.mark.needs("inline wire")
@pytest.mark.requirement("CLOSE-01")
def test_cut(bench):
    bench.pair.wire.cut()

@pytest.mark.parametrize("network", ["up", pytest.param("down", marks=pytest.mark.needs("own nodes"))])
@pytest.mark.requirement("CLOSE-01")
def test_network(network):
    pass
"""


FOUND_OUT = """
import pytest
from hil.errors import NodeDied, Unsupported

@pytest.fixture
def pair():
    raise {error}("dumpcap is not installed")

@pytest.mark.requirement("CLOSE-01")
@pytest.mark.needs()
def test_it(pair):
    pass

@pytest.mark.requirement("CLOSE-01")
def test_later():
    raise {error}("no inline wire")
"""


def run(tmp_path: Path, text: str, *options: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-q"]
    command += [f"--rootdir={tmp_path}", f"--hil-results={tmp_path / 'results'}", f"--hil-lab={LAB}", *options]
    return subprocess.run([*command, str(tmp_path / "test_it.py")], capture_output=True, text=True, cwd=tmp_path)


def test_an_unmet_need_is_unsupported_with_the_reason(tmp_path: Path) -> None:
    """A test that needs an inline wire on hosts, and one case of another that needs the bench's own nodes."""
    done = run(tmp_path, UNSUPPORTED)
    assert done.returncode == 0, done.stdout
    records = json.loads((tmp_path / "results" / "verdicts.json").read_text())
    found = {record["test"].split("::")[1]: (record["verdict"], record["reason"]) for record in records}
    assert {name: verdict for name, (verdict, _) in found.items()} == {
        "test_cut": "unsupported",
        "test_network[up]": "pass",
        "test_network[down]": "unsupported",
    }
    assert "it needs inline wire: frames go from adapter to adapter" in found["test_cut"][1]


def test_a_need_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Otherwise every lab would meet a misspelt need."""
    done = run(tmp_path, UNSUPPORTED.replace("inline wire", "in-line wire"))
    assert done.returncode == 4
    assert "'in-line wire' is not a valid Need; needs are pair, capture, inline wire" in done.stdout + done.stderr


def test_a_lab_of_hosts_is_not_shared_by_processes(tmp_path: Path) -> None:
    """Hosts carry one pair at a time, so a run with several processes is refused."""
    pytest.importorskip("xdist")
    done = run(tmp_path, UNSUPPORTED, "-n", "2")
    assert done.returncode != 0
    assert "run without -n" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "verdict", "status"), [("Unsupported", "unsupported", 0), ("NodeDied", "invalid", 2)]
)
def test_an_unmet_need_that_is_found_during_the_test_is_unsupported_too(
    tmp_path: Path, error: str, verdict: str, status: int
) -> None:
    """In a fixture and in the test it is no error, and the exit code is 0. A node that died is an error."""
    done = run(tmp_path, FOUND_OUT.replace("{error}", error))
    assert done.returncode == status, done.stdout
    records = json.loads((tmp_path / "results" / "verdicts.json").read_text())
    assert [record["verdict"] for record in records] == [verdict] * 2
    assert "dumpcap is not installed" in records[0]["reason"]
