"""The package as a user installs it: a wheel in an empty environment, used in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.testing.options import lab_file_path

ROOT = Path(__file__).parents[2]
RUN_TIMEOUT_S = 250.0
OWN_TEST = '''
import pytest

from hil.testing import Bench
from hil import Code

@pytest.mark.requirement("CLOSE-31")
def test_mine(bench: Bench) -> None:
    """A receive that is pending at the peer ends with a reset."""
    closer, peer = bench.connect()
    receive = peer.recv()
    closer.close()
    assert peer.completion(receive) == (Code.WSAECONNRESET, 0)
    bench.judge(bench.hard_close(closer, peer))
'''
# Another project without the bench, which uses the same names as the bench.
STRANGERS = {
    "conftest.py": """
import signal, sys, pytest
def pytest_addoption(parser):
    parser.addoption("--provider", default="theirs")
    parser.addoption("--lab", default="theirs")
    parser.addoption("--results", default="theirs")
def pytest_configure(config):
    config.addinivalue_line("markers", "needs(what): theirs")
    config.addinivalue_line("markers", "requirement(id): theirs")
    config.addinivalue_line("markers", "thorough: theirs")
@pytest.fixture
def lab(): return "theirs"
@pytest.fixture
def bench(lab): return lab
""",
    "fixtures/__init__.py": "OURS = 1\n",
    "lab/__init__.py": "OURS = 1\n",
    "test_theirs.py": """
import signal, sys, pytest
from fixtures import OURS
import lab as own
@pytest.mark.needs("coffee")
@pytest.mark.requirement("REQ-1")
@pytest.mark.thorough
def test_theirs(bench, request):
    assert (bench, OURS, own.OURS) == ("theirs", 1, 1)
    assert request.config.getoption("--provider") == "theirs"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sys.unraisablehook.__module__ != "hil.interrupts"
    assert not {"scapy", "numpy", "hil.labs", "hil.testing.running"} & set(sys.modules)
""",
}
Command = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = [pytest.mark.needs("own nodes"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", f"--wheel-dir={folder}", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and its dependencies, and without the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=RUN_TIMEOUT_S)
    site = next((folder / "lib").glob("python*/site-packages"))
    # Use the packages of this environment, without an index.
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(("san_hil", "__editable__", "_virtualenv", "distutils-precedence", "__pycache__")):
            (site / entry.name).symlink_to(entry)
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    install += ["--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Command:
    """A function that runs a program of the environment in an empty folder, without the checkout."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}

    def call(*command: str) -> "subprocess.CompletedProcess[str]":
        program = [str(environment / command[0]), *command[1:]]
        return subprocess.run(program, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)

    return call


@pytest.fixture(scope="module")
def lab(pytestconfig: pytest.Config) -> str:
    """The name of this run's lab, which the package contains as an example."""
    return lab_file_path(pytestconfig).stem


def test_a_wheel_takes_no_name_that_is_not_its_own(wheel: Path) -> None:
    """Only ``hil`` and its metadata are installed beside other packages, with the suite, the labs and the types."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hil", "san_hil"}
    assert {"hil/py.typed", "hil/labs/examples/soft-pair.toml", "hil/testing/plugin.py"} <= set(names)
    suite = {path.name for area in ("contract", "faults") for path in (ROOT / "tests" / area).glob("*.py")}
    assert suite == {name.rpartition("/")[2] for name in names if name.startswith("hil/suite/tests/")}


def test_a_project_that_is_not_the_bench_s_is_left_alone(run: Command, tmp_path: Path) -> None:
    """Its options, markers, fixtures and folders may have the same names. No handler is set, and no module imported."""
    for name, text in STRANGERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for options in ((), ("-n", "2")):
        done = run("python", "-m", "pytest", "-W", "error", "--strict-markers", *options)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
        assert "verdict" not in done.stdout
    assert not (tmp_path / "results").exists()


def test_verbs_that_need_no_lab_work_in_an_empty_folder(run: Command, lab: str) -> None:
    """The contract, the check of a lab and the doctor print the same as in the checkout."""
    done = run("hil", "contract", "CLOSE-17")
    assert done.returncode == 0 and "tests/contract/" in done.stdout, done.stdout + done.stderr
    done = run("hil", "lab", "check", "two-hosts-mirror")
    assert done.returncode == 0 and "tests of contract and faults will run" in done.stdout, done.stdout + done.stderr
    done = run("hil", "doctor", f"--lab={lab}")
    assert done.returncode == 0 and "0 bad" in done.stdout, done.stdout + done.stderr
    done = run("hil", "run", "--lab=no-such-lab")
    assert done.returncode == 2 and "examples are one-host-two-ports" in done.stderr


def test_the_suite_runs_in_an_empty_folder(run: Command, lab: str, tmp_path: Path) -> None:
    """A test of the contract and a cell of the matrix, on an example lab chosen by name, with the checkout's ids."""
    assert run("hil", "prepare", f"--lab={lab}").returncode == 0
    chosen = "contract/test_hard_close.py::test_close_with_nothing_pending"
    done = run("hil", "run", f"--lab={lab}", "--results=r", chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("hil", "verdicts", "r")
    assert done.stdout == f"pass\ttests/{chosen}\n"
    done = run("hil", "faults", f"--lab={lab}", "--cell=DREQ/drop", "--run")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("hil", "contract", "--results=r", "CLOSE-43")
    assert f"pass        tests/{chosen}" in done.stdout, done.stdout


def test_a_test_of_one_s_own_is_judged(run: Command, lab: str, tmp_path: Path) -> None:
    """A test in the user's own folder runs by ``hil run``, and by pytest alone with a blank before the lab's name."""
    (tmp_path / "test_mine.py").write_text(OWN_TEST)
    done = run("hil", "run", f"--lab={lab}", "--results=r", "test_mine.py")
    assert done.returncode == 0 and "1 pass" in done.stdout, done.stdout + done.stderr
    done = run("python", "-m", "pytest", "--hil-lab", lab, "--hil-results=s", "test_mine.py")
    assert done.returncode == 0 and "1 pass" in done.stdout, done.stdout + done.stderr
    for folder in ("r", "s"):
        assert run("hil", "verdicts", folder).stdout == "pass\ttest_mine.py::test_mine\n"


HOSTS = """
[lab]
name = "hosts"
kind = "hosts"
[nodes.a]
kind = "local"
adapter = {device = "rxe0", netdev = "eth0", ipv4 = "10.0.0.1"}
power = {kind = "pidfile", pidfile = "pid", start = ["true"]}
[nodes.b]
kind = "local"
adapter = {device = "rxe1", netdev = "eth1", ipv4 = "10.0.0.2"}
power = {kind = "pidfile", pidfile = "pid", start = ["true"]}
[capture]
kind = "none"
"""
SIGNALLED = """
import subprocess, time
from pathlib import Path
from hil import read_lab_file
from hil.labs.hosts.kinds import POWERS
section = read_lab_file(Path("hosts.toml")).nodes["b"].power
process = subprocess.Popen(["sleep", "60"])
Path("pid").write_text(str(process.pid))
power = POWERS.load(section.kind).connect(section, "b", Path("."))
def state():
    time.sleep(0.2)
    return Path(f"/proc/{process.pid}/stat").read_text().split()[2]
power.halt(); halted = state()
power.resume(); running = state()
power.cut()
print(halted, running, process.wait())
"""


@pytest.fixture(scope="module")
def example(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The example package, installed beside the bench."""
    install = [sys.executable, "-m", "pip", "--python", str(environment / "python"), "install", "--quiet"]
    install += ["--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    copy = shutil.copytree(ROOT / "docs" / "example", tmp_path_factory.mktemp("theirs") / "example")
    done = subprocess.run([*install, str(copy)], capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("example")
def test_a_provider_of_one_s_own_is_run_through_the_contract(run: Command, lab: str) -> None:
    """It keeps the contract, and breaks it with a setting that makes it slow. An unknown setting is not a pass."""
    chosen = ["contract/test_hard_close.py", "contract/test_installation.py"]
    done = run("hil", "run", f"--lab={lab}", "--results=r", "-j2", "--provider=example", *chosen)
    assert done.returncode == 0 and " 0 fail, 0 invalid, 0 unsupported" in done.stdout, done.stdout + done.stderr
    one = f"{chosen[0]}::test_close_with_nothing_pending"
    for settings, status, reason in (("close_late_s=3", 1, "BROKE"), ("nothing=3", 2, "nothing: the provider has no")):
        done = run("hil", "run", f"--lab={lab}", "--provider=example", f"--set={settings}", one)
        assert done.returncode == status and reason in done.stdout, done.stdout + done.stderr


@pytest.mark.usefixtures("example")
def test_a_mutant_of_one_s_own_is_listed_and_runs(run: Command, lab: str) -> None:
    """It is found in the same way as the bench's own mutants."""
    listed = run("hil", "mutants", "--list").stdout.splitlines()[-1].split()
    assert listed[:3] == ["ExampleIsLate", "provider", "Resets"] and listed[-1] == "[CLOSE-07]"
    one = "contract/test_hard_close.py::test_close_with_nothing_pending"
    done = run("hil", "run", f"--lab={lab}", "--provider=ExampleIsLate", one)
    assert done.returncode == 1 and "BROKE" in done.stdout, done.stdout + done.stderr


@pytest.mark.usefixtures("example")
def test_power_control_of_one_s_own_is_used(run: Command, tmp_path: Path) -> None:
    """A lab of hosts uses it. It stops, continues and kills the process that it is given."""
    (tmp_path / "hosts.toml").write_text(HOSTS)
    told = run("hil", "lab", "check", "hosts.toml").stdout
    assert "it needs power control" not in told and "it needs capture" in told, told
    done = run("python", "-c", SIGNALLED)
    assert done.stdout.split() == ["T", "S", "-9"], done.stdout + done.stderr


@pytest.mark.usefixtures("example")
def test_a_rule_of_one_s_own_judges_fresh_and_old_evidence(run: Command, lab: str, tmp_path: Path) -> None:
    """Its finding is among those of a test, and ``hil judge`` finds the same again without a lab."""
    one = "contract/test_hard_close.py::test_close_with_nothing_pending"
    done = run("hil", "run", f"--lab={lab}", "--results=r", one)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every DREP follows its DREQ within one second" in (tmp_path / "r" / "verdicts.json").read_text()
    done = run("hil", "judge", "r")
    assert done.returncode == 0 and "0 verdicts of 1 and 0 findings of" in done.stdout, done.stdout + done.stderr
