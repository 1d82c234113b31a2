"""Failures around a test: nodes that die, disks that fill, a bench that is killed. Each has one clear message.

The bench runs as a user runs it: in its own process, with tests in their own folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hil.labs.soft.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
STEP_TIMEOUT_S = 100.0

pytestmark = [
    pytest.mark.needs("clones"),
    pytest.mark.usefixtures("soft_snapshot"),
    pytest.mark.timeout(3 * STEP_TIMEOUT_S),
]

HEALTHY = """
def test_healthy(bench):
    closer, peer = bench.connect()
    closer.close()
    bench.judge(bench.hard_close(closer, peer))
"""
PANIC = """
def test_panic(bench):
    bench.connect()
    bench.pair.nodes["b"].system("panic")
"""
HANG = """
def test_hang(bench):
    closer, peer = bench.connect()
    bench.pair.nodes["b"].machine.freeze()
    bench.pair.nodes["b"].clock()
"""
NO_MEMORY = """
def test_no_memory(bench):
    closer, peer = bench.connect()
    hog = "kept = []\\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"
    done = bench.pair.nodes["b"].system("run", command=["python3", "-c", hog])
    assert done["status"] == -9, done
    closer.close()
    bench.judge(bench.hard_close(closer, peer))
"""
FULL_DISK = """
import pytest
@pytest.fixture
def results(results):
    (results / "wire.pcapng").symlink_to("/dev/full")
    return results
def test_full_disk(bench):
    closer, peer = bench.connect()
    closer.close()
    bench.judge(bench.hard_close(closer, peer))
"""
ENDLESS = """
import pytest
@pytest.mark.parametrize("n", range(50))
def test_endless(bench, n):
    closer, peer = bench.connect()
    closer.close()
    bench.judge(bench.hard_close(closer, peer))
"""


BROKEN_AND_INCOMPLETE = """
def test_fails_without_evidence(bench):
    bench.connect()
    bench.pair.wire._process.kill()
    assert False
"""
XFAIL = """
import pytest
@pytest.mark.xfail(strict=False)
def test_xfail(bench):
    closer, peer = bench.connect()
    assert closer.close() == (0, 1)
"""
UNJUDGED = """
def test_unjudged(bench):
    closer, peer = bench.connect()
    closer.close()
"""


class Run:
    """A bench in its own process, on the test file ``text``."""

    def __init__(self, tmp_path: Path, text: str) -> None:
        self.results = tmp_path / "evidence"
        self.temporary = tmp_path / "temporary"
        self.temporary.mkdir()
        tests = tmp_path / "test_it.py"
        tests.write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
        command += [f"--rootdir={tmp_path}", f"--hil-results={self.results}", str(tests)]
        self.output = tmp_path / "output"
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(self.temporary)},
                cwd=tmp_path,
            )

    def wait(self) -> int:
        try:
            return self.process.wait(STEP_TIMEOUT_S)
        finally:
            self.process.kill()
            self.process.wait()

    def verdicts(self) -> dict[str, tuple[str, str]]:
        """Test name to (verdict, reason)."""
        path = self.results / "verdicts.json"
        records = json.loads(path.read_text()) if path.exists() else []
        return {r["test"].split("::")[1]: (r["verdict"], r["reason"]) for r in records}

    def wait_for_verdicts(self, count: int) -> None:
        end_ns = time.monotonic_ns() + int(STEP_TIMEOUT_S * 1e9)
        while len(self.verdicts()) < count:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic_ns() < end_ns, self.output.read_text()
            time.sleep(0.02)

    def wait_for_machines(self) -> None:
        """Wait until both QEMUs and the wire of a test run."""
        end_ns = time.monotonic_ns() + int(STEP_TIMEOUT_S * 1e9)
        while len(self.children()) < 3:
            assert time.monotonic_ns() < end_ns, self.output.read_text()
            time.sleep(0.005)

    def children(self) -> list[int]:
        """Processes that still name this run's evidence folder: its QEMUs and its wire."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.process.pid:
                try:
                    command = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.results).encode() in command:
                    found.append(int(folder.name))
        return found

    def nothing_left(self) -> None:
        """Assert that no process and no temporary file of the run remains."""
        end_ns = time.monotonic_ns() + 5 * 10**9
        while self.children() and time.monotonic_ns() < end_ns:
            time.sleep(0.05)
        assert self.children() == []
        assert [p for p in self.temporary.rglob("*") if p.is_socket() or p.is_file()] == []


def test_a_guest_that_panics_makes_its_test_invalid_and_the_others_go_on(tmp_path: Path) -> None:
    """The reason carries the console's last lines, exit code 2; the next test gets a fresh pair and passes."""
    run = Run(tmp_path, PANIC + HEALTHY)
    assert run.wait() == 2, run.output.read_text()
    verdict, reason = run.verdicts()["test_panic"]
    assert verdict == "invalid"
    assert "NodeDied" in reason and "panic" in reason.lower() and "node b" in reason, reason
    assert run.verdicts()["test_healthy"][0] == "pass"
    run.nothing_left()


def test_a_guest_that_hangs_makes_its_test_invalid_and_the_others_go_on(tmp_path: Path) -> None:
    """A node whose agent does not answer for ten seconds hangs, and the reason says so."""
    run = Run(tmp_path, HANG + HEALTHY)
    assert run.wait() == 2, run.output.read_text()
    verdict, reason = run.verdicts()["test_hang"]
    assert verdict == "invalid" and "hangs" in reason, reason
    assert run.verdicts()["test_healthy"][0] == "pass"
    run.nothing_left()


def test_a_node_without_memory_makes_its_test_invalid_and_the_others_go_on(tmp_path: Path) -> None:
    """The kernel kills the process that took all of a node's memory, and the reason names it. The next test passes."""
    run = Run(tmp_path, NO_MEMORY + HEALTHY)
    assert run.wait() == 2, run.output.read_text()
    verdict, reason = run.verdicts()["test_no_memory"]
    assert verdict == "invalid" and "node b ran out of memory" in reason and "(python3)" in reason, reason
    assert run.verdicts()["test_healthy"][0] == "pass"
    run.nothing_left()


def test_a_test_that_judges_nothing_is_not_a_pass(tmp_path: Path) -> None:
    """A test that does not judge its close is invalid, and so is the exit code."""
    run = Run(tmp_path, UNJUDGED)
    assert run.wait() == 2, run.output.read_text()
    verdict, reason = run.verdicts()["test_unjudged"]
    assert verdict == "invalid" and "bench.judge" in reason


def test_a_failing_test_with_incomplete_evidence_is_invalid(tmp_path: Path) -> None:
    """A fail without complete evidence is invalid."""
    run = Run(tmp_path, BROKEN_AND_INCOMPLETE)
    assert run.wait() == 2, run.output.read_text()
    verdict, reason = run.verdicts()["test_fails_without_evidence"]
    assert verdict == "invalid" and "the evidence is incomplete" in reason, reason


def test_an_expected_failure_is_a_fail(tmp_path: Path) -> None:
    """Marking a test xfail does not turn the bench green."""
    run = Run(tmp_path, XFAIL)
    assert run.wait() == 1, run.output.read_text()
    assert run.verdicts()["test_xfail"][0] == "fail"


def test_a_full_disk_makes_the_capture_incomplete_and_the_test_invalid(tmp_path: Path) -> None:
    """A capture that could not be written is never judged."""
    run = Run(tmp_path, FULL_DISK)
    assert run.wait() == 2, run.output.read_text()
    verdict, reason = run.verdicts()["test_full_disk"]
    assert verdict == "invalid" and "No space left on device" in reason, reason
    run.nothing_left()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_bench_that_is_stopped_leaves_nothing_running_and_keeps_its_verdicts(tmp_path: Path, name: str) -> None:
    """After Ctrl-C, SIGTERM and kill -9 there is no QEMU, no wire and no temporary file; verdicts are kept."""
    run = Run(tmp_path, ENDLESS)
    run.wait_for_verdicts(1)
    run.wait_for_machines()
    run.process.send_signal(getattr(signal, name))
    status = run.wait()
    assert status == (-signal.SIGKILL if name == "SIGKILL" else 2), run.output.read_text()
    assert "Traceback" not in run.output.read_text()
    run.nothing_left()
    assert "pass" in {verdict for verdict, _ in run.verdicts().values()}
    assert (run.results / "wire.pcapng").stat().st_size > 1000


def prepare(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``hil prepare`` with another cache."""
    return subprocess.run(
        [sys.executable, "-m", "hil", "prepare"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_TIMEOUT_S,
        env=os.environ | {"HIL_CACHE": str(cache)} | environment,
        cwd=ROOT,
    )


def test_a_results_folder_that_cannot_be_made_is_reported_before_any_test(tmp_path: Path) -> None:
    """A file where the folder should be: exit code 2 and its name."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "hil", "run", "--results", str(tmp_path / "file" / "x")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=STEP_TIMEOUT_S)
    assert done.returncode == 2
    assert "evidence cannot be written" in done.stderr and str(tmp_path / "file") in done.stderr


@pytest.fixture
def cache(tmp_path: Path, soft_snapshot: Snapshot) -> Path:
    """A separate cache with the current image (hard links if possible) and no snapshot."""
    folder = tmp_path / "cache"
    image = soft_snapshot.image.kernel.parent
    place = folder / "images" / image.name
    place.mkdir(parents=True)
    for file in image.iterdir():
        (place / file.name).symlink_to(file)
    for remembered in image.parents[1].glob("accelerator-*"):
        (folder / remembered.name).write_text(remembered.read_text())
    return folder


def test_a_damaged_snapshot_is_reported_and_made_again(cache: Path) -> None:
    """kill -9 during the making of a snapshot leaves no files. A damaged snapshot is reported and made again."""
    command = [sys.executable, "-m", "hil", "prepare"]
    killed = subprocess.Popen(command, env=os.environ | {"HIL_CACHE": str(cache)}, cwd=ROOT, stderr=subprocess.DEVNULL)
    end_ns = time.monotonic_ns() + int(STEP_TIMEOUT_S * 1e9)
    while not list(cache.glob("snapshots/building-*/snapshot/console")):
        assert time.monotonic_ns() < end_ns
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    end_ns = time.monotonic_ns() + 10 * 10**9
    # Do not search below them: a folder may be removed at the same time.
    while list(cache.glob("*/building-*")):
        assert time.monotonic_ns() < end_ns, "the killed bench's folder stays"
        time.sleep(0.05)
    abandoned = cache / "snapshots" / "building-0-after-a-power-failure"
    (abandoned / "snapshot").mkdir(parents=True)

    done = prepare(cache)
    assert done.returncode == 0, done.stderr
    assert f"removing {abandoned.name}, left by a bench that is gone" in done.stderr
    assert not abandoned.exists()
    (snapshot,) = (cache / "snapshots").iterdir()
    state = snapshot / "state"
    state.write_bytes(state.read_bytes()[:-1] + b"?")

    done = prepare(cache)
    assert done.returncode == 0, done.stderr
    assert "is damaged (state has the wrong content): making it again" in done.stderr


def test_no_room_for_a_snapshot_is_reported_before_it_is_made(cache: Path) -> None:
    """A full disk below the cache: exit code 2 and how much is missing."""
    script = 'mount -t tmpfs -o size=8m none "$1" && exec "$2" -m hil prepare'
    (cache / "snapshots").mkdir()
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        str(cache / "snapshots"),
        sys.executable,
    ]
    if subprocess.run([*command[:3], "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare --mount is not permitted here, so no small disk can be made")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HIL_CACHE": str(cache)}, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "no room for a snapshot" in done.stderr and "MiB are needed" in done.stderr


def test_no_network_for_the_packages(tmp_path: Path) -> None:
    """An empty cache and no network: exit code 2, and the question whether the network is there."""
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-m", "hil", "prepare"]
    if subprocess.run([*command[:3], "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare --net is not permitted here, so the network cannot be taken away")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"HIL_CACHE": str(tmp_path / "cache")},
        cwd=ROOT,
        timeout=STEP_TIMEOUT_S,
    )
    assert done.returncode == 2, done.stderr
    assert "is the network there" in done.stderr
    assert list((tmp_path / "cache").rglob("building-*")) == []


@pytest.mark.parametrize(("program", "package"), [("qemu-system-x86_64", "qemu-system-x86")])
def test_a_missing_program_is_named_with_its_package(cache: Path, program: str, package: str) -> None:
    """Without QEMU on the PATH: exit code 2 and the command that installs it."""
    done = prepare(cache, PATH="/nonexistent")
    assert done.returncode == 2
    assert f"{program} is missing; install it with: apt-get install {package}" in done.stderr


def test_mmdebstrap_missing_is_named(tmp_path: Path) -> None:
    """Without mmdebstrap and without a cached image: exit code 2 and the command that installs it."""
    done = prepare(tmp_path / "cache", PATH="/nonexistent")
    assert done.returncode == 2
    assert "mmdebstrap is missing; install it with: apt-get install mmdebstrap" in done.stderr


def test_whether_kvm_works_is_found_out_by_booting_and_remembered(cache: Path) -> None:
    """If /dev/kvm can be opened, a node is booted under it once. The result is cached, and a failure is reported."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is not there or not ours to open")
    for remembered in cache.glob("accelerator-*"):
        remembered.unlink()
    done = prepare(cache)
    assert done.returncode == 0, done.stderr
    assert "finding out whether KVM works here" in done.stderr
    (remembered,) = cache.glob("accelerator-*")
    answer = remembered.read_text().strip()
    assert answer == "kvm" or "KVM is present but does not work here, using TCG" in done.stderr
    assert "finding out" not in prepare(cache).stderr
