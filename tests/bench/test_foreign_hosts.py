"""The bench on hosts that it does not own, over real ssh: two guests with an sshd, which had soft-RoCE before a run."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from difflib import unified_diff
from pathlib import Path

import pytest
from foreign import ForeignHosts, make_key

from hil.capture.pcapng import read_pcapng
from hil.evidence.packets import roce_packets
from hil.labs.soft.file import Guest

ROOT = Path(__file__).parents[2]
RUN_TIMEOUT_S = 900.0
NOTICED_WITHIN_S = 40.0
# The guests' shell is busybox's, which prefers its own "ip" to iproute2's. Other hosts' shells do not.
NO_SHELL = (
    "ForceCommand exec /usr/bin/python3 -B -c "
    "'import os, shlex; run = shlex.split(os.environ[\"SSH_ORIGINAL_COMMAND\"]); os.execvp(run[0], run)'"
)

pytestmark = pytest.mark.timeout(RUN_TIMEOUT_S)
FOLDER_TIME = re.compile(r"(?<=\d) [A-Z][a-z]{2} +\d+ \d\d:\d\d(?= (run|netns|infiniband|\.|\.\.)$)", re.MULTILINE)
# All hard closes, and tests of other areas that run on hosts and that cannot.
AREAS = (
    "tests/contract/test_hard_close.py",
    "tests/contract/test_receiving.py::test_a_lost_connection_and_a_reset_have_different_codes",
    "tests/contract/test_startup.py::test_without_a_network_layer_nothing_starts",
    "tests/contract/test_connecting.py::test_a_connect_to_oneself_is_left_to_tcp",
    "tests/contract/test_many_nodes.py",
)

CLOSES = """
import pytest

@pytest.mark.parametrize("n", range(4))
def test_close(bench, n):
    closer, peer = bench.connect()
    receive = peer.recv()
    closer.close()
    assert peer.completion(receive) is not None
    bench.judge(bench.hard_close(closer, peer))
"""


# A program that uses the adapter. Its resources change all the time.
STRANGER = """
import time
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
context = Context(name="rxe0")
while True:
    held = MR(PD(context), 12288, 1)
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, lab_guest: Guest) -> Iterator[ForeignHosts]:
    """Both hosts in the state that their admin made: machines of the lab's kind."""
    with ForeignHosts(tmp_path_factory.mktemp("foreign"), lab_guest) as made:
        yield made


class Run:
    """``hil ...`` as a user runs it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "hil", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def wait(self) -> tuple[int, str]:
        """Exit status and output."""
        try:
            output, _ = self.process.communicate(timeout=RUN_TIMEOUT_S)
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode, output


def contract(lab: Path, results: Path, *tests: str) -> Run:
    return Run("run", f"--lab={lab}", f"--results={results}", "-p", "no:cacheprovider", *tests)


def verdicts(results: Path) -> dict[str, tuple[str, str]]:
    """Test to (verdict, reason)."""
    path = results / "verdicts.json"
    records = json.loads(path.read_text()) if path.exists() else []
    return {record["test"]: (record["verdict"], record["reason"]) for record in records}


def counted(results: Path) -> Counter[str]:
    return Counter(verdict for verdict, _ in verdicts(results).values())


def provisioned(text: str) -> str:
    """A lab file's text that asks for other IPv4 addresses and for an MTU."""
    return text.replace('ipv4 = "10.77.', 'provision = true\nmtu = 1400\nipv4 = "10.88.')


def settled_look(foreign: ForeignHosts) -> dict[str, str]:
    """The state of both hosts after the connection manager has forgotten the closed connections."""
    end_ns = time.monotonic_ns() + 30 * 10**9
    last: dict[str, str] = {}
    # An address stays tentative and without its route for longer than two looks take.
    while (looks := {name: host.look() for name, host in foreign.hosts.items()}) != last or "tentative" in str(looks):
        assert time.monotonic_ns() < end_ns
        last = looks
    return looks


def differences(before: dict[str, str], after: dict[str, str]) -> str:
    """The lines that have changed, with their host."""
    pairs = ((before[name].splitlines(), after[name].splitlines(), name) for name in before)
    lines = (unified_diff(was, now, f"{name} before", f"{name} after", n=1, lineterm="") for was, now, name in pairs)
    return "\n".join(itertools.chain.from_iterable(lines))


def assert_as_before(foreign: ForeignHosts, before: dict[str, str]) -> None:
    """The state of hosts after provisioning: the journal's folder was made and removed, which changes the time of its
    parent folder."""
    looks = (before, settled_look(foreign))
    was, now = ({name: FOLDER_TIME.sub("", look) for name, look in look_of.items()} for look_of in looks)
    assert not (changed := differences(was, now)), changed


def test_the_contract_runs_unchanged_and_leaves_the_hosts_unchanged(foreign: ForeignHosts, tmp_path: Path) -> None:
    """Hard closes pass, other tests are unsupported with a reason. Then ip, rdma and ls print the same as before.

    The wire's own capture, which is unknown to the bench, has no RoCE packet that the capture on host a lacks.
    """
    before = settled_look(foreign)
    results = tmp_path / "results"

    status, output = contract(foreign.lab_file(), results, *AREAS).wait()

    found = verdicts(results)
    assert status == 0, output
    assert set(counted(results)) <= {"pass", "unsupported"} and counted(results)["pass"] >= 15, output
    assert all("needs" in reason for verdict, reason in found.values() if verdict == "unsupported")
    assert not (changed := differences(before, settled_look(foreign))), changed
    foreign.wire.counts()
    seen = {(p.psn, p.dest_qp, p.opcode, p.cm, p.local_comm_id) for p in roce_packets(read_pcapng(foreign.witness))}
    frames = [f for path in results.glob("*/wire.pcapng") for f in read_pcapng(path)]
    kept = {(p.psn, p.dest_qp, p.opcode, p.cm, p.local_comm_id) for p in roce_packets(frames)}
    assert seen and seen <= kept
    made_with = json.loads((results / "versions.json").read_text())
    assert made_with["nodes"]["a"]["packages"]["rdma-core"] and made_with["cabling"].startswith("internal")


def test_resources_of_other_programs_are_ignored(foreign: ForeignHosts, tmp_path: Path) -> None:
    """While another program uses the adapter of a host, closes still pass there."""
    host = foreign.hosts["a"]
    pid = host.run(f"setsid python3 -c '{STRANGER}' < /dev/null > /dev/null 2> /tmp/stranger & echo $!").strip()
    try:
        _wait(lambda: "mrlen 12288" in host.run("rdma resource show mr"))
        tests = tmp_path / "test_closes.py"
        tests.write_text(CLOSES)
        status, output = contract(foreign.lab_file(), tmp_path / "results", str(tests)).wait()
        assert "mrlen 12288" in host.run("rdma resource show mr; cat /tmp/stranger")
    finally:
        host.run(f"kill {pid}; rm -f /tmp/stranger")
    assert (status, dict(counted(tmp_path / "results"))) == (0, {"pass": 4}), output


@pytest.mark.parametrize("end", ["down", "kill -9", "kill -9 in the middle"])
def test_provisioning_is_undone(
    foreign: ForeignHosts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    end: str,
) -> None:
    """Both hosts get addresses and an MTU. After "down", and after kill -9 and "restore", their state is as before.

    The controller may be killed while it has provisioned one host and not the other.
    A third node, such as a recording node, can be used by hand too.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before = settled_look(foreign)
    lab = foreign.lab_file(name="provisioned.toml")
    lab.write_text(provisioned(lab.read_text()) + '[nodes.m]\nkind = "local"\n')

    # If the test fails, its lab must not continue to run.
    request.addfinalizer(lambda: Run("lab", "down").wait())
    supervisor = tmp_path / "hil" / "foreign" / "pid"
    if end == "kill -9 in the middle":
        making = Run("lab", "up", str(lab))
        # The first change is noted. The others are still to come.
        _wait(lambda: foreign.hosts["a"].run("ls /run/hil 2> /dev/null; true") != "", making)
        os.kill(int(supervisor.read_text()), signal.SIGKILL)
        status, output = making.wait()
        assert status == 2 and f"hil lab restore {lab}" in output, output
        status, output = Run("lab", "restore", str(lab)).wait()
        assert "changes undone" in output, output
    else:
        status, output = Run("lab", "up", str(lab)).wait()
        assert status == 0, output
        given = {name: host.look() for name, host in foreign.hosts.items()}
        for n, name in enumerate("ab", 1):
            assert f"inet 10.88.0.{n}/24" in given[name] and "mtu 1400" in given[name], given[name][:2000]
        assert Run("lab", "status").wait()[1].count("alive") == 3
        assert Run("lab", "shell", "m", "sh", "-c", "exit 5").wait()[0] == 5
    if end == "down":
        status, output = Run("lab", "down").wait()
    elif end == "kill -9":
        os.kill(int(supervisor.read_text()), signal.SIGKILL)
        status, output = Run("lab", "restore", str(lab)).wait()
        assert output.count("2 changes undone") == 2, output

    assert status == 0, output
    assert_as_before(foreign, before)
    # Restoring has removed the folder of the killed supervisor.
    assert Run("lab", "status").wait() == (0, "")
    assert list((tmp_path / "hil").iterdir()) == []


def test_namespaces_are_made_for_a_run_and_taken_back(
    foreign: ForeignHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On both hosts a netdev is moved into a namespace, with soft-RoCE on it; the nodes are inside. Then all is undone.

    A netdev with another user's soft-RoCE is not moved: its device would end.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    request.addfinalizer(lambda: Run("lab", "down").wait())
    for host in foreign.hosts.values():
        # The folder with the names of namespaces. "ip netns" leaves it behind.
        host.run("mkdir -p /var; ln -sfn /run /var/run; /usr/bin/ip netns add some; /usr/bin/ip netns delete some")
        host.run("/usr/bin/ip link add link eth0 name eth9 type macvlan mode bridge")
    try:
        with foreign.sshd(NO_SHELL):
            before = settled_look(foreign)
            lab = foreign.lab_file('kind = "none"', "apart.toml")
            text = lab.read_text().replace(
                'user = "root"', 'user = "root"\nnamespace = "hil-apart"\nmake_namespace = true'
            )
            lab.write_text(text.replace('netdev = "eth0"', 'netdev = "eth0"\nprovision = true'))
            status, output = Run("lab", "up", str(lab)).wait()
            assert status == 2 and "eth0 cannot move to another namespace: rxe0 on it would end" in output, output

            lab.write_text(
                text.replace('netdev = "eth0"', 'netdev = "eth1"\nprovision = true\nsoft_roce = true').replace(
                    "rxe0", "rxe9"
                )
            )
            status, output = Run("doctor", f"--lab={lab}").wait()
            assert status == 2 and output.count("the way to this machine leads over it") == 2, output
            status, output = Run("lab", "up", str(lab)).wait()
            assert status == 2 and "eth1 cannot move to another namespace: the way to this machine" in output, output

            text = text.replace('netdev = "eth0"', 'netdev = "eth9"\nprovision = true\nsoft_roce = true')
            lab.write_text(
                text.replace('device = "rxe0"', 'device = "rxe9"').replace('ipv4 = "10.77.', 'ipv4 = "10.88.')
            )
            status, output = Run("lab", "up", str(lab)).wait()
            assert status == 0 and output.count("alive; rxe9 on eth9, 10.88.0.") == 2, output
            assert "rxe9" in Run("lab", "shell", "a", "ls", "/sys/class/infiniband").wait()[1]
            assert Run("lab", "shell", "a", "ping", "-c", "1", "-W", "5", "10.88.0.2").wait()[0] == 0
            assert "hil-apart" in foreign.hosts["a"].run("/usr/bin/ip netns")
            assert "eth9" not in foreign.hosts["a"].run("/usr/bin/ip -o link")
            os.kill(int((tmp_path / "hil" / "foreign" / "pid").read_text()), signal.SIGKILL)
            status, output = Run("lab", "restore", str(lab)).wait()
            assert status == 0 and output.count("changes undone") == 2, output

            assert_as_before(foreign, before)
    finally:
        for host in foreign.hosts.values():
            host.run("/usr/bin/ip link delete eth9; umount /run/netns; rmdir /run/netns; rm /var/run")
        Run("lab", "status").wait()


def test_a_lab_that_records_nothing_is_for_work_by_hand(
    foreign: ForeignHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The lab starts and ends, and reports that it records nothing. A contract test is unsupported on it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    lab = foreign.lab_file('kind = "none"', "none.toml")
    request.addfinalizer(lambda: Run("lab", "down").wait())
    status, output = Run("lab", "up", str(lab)).wait()
    assert status == 0 and "nothing is recorded: [capture] kind is none" in output, output
    assert Run("lab", "shell", "b", "sh", "-c", "exit 5").wait()[0] == 5
    assert Run("lab", "down").wait()[0] == 0

    (tmp_path / "test_it.py").write_text(CLOSES)
    status, output = contract(lab, tmp_path / "results", str(tmp_path / "test_it.py")).wait()
    assert counted(tmp_path / "results") == Counter({"unsupported": 4}), output
    assert "[capture] kind is none" in verdicts(tmp_path / "results").popitem()[1][1]


@pytest.mark.parametrize("method", ["tcpdump", "dumpcap"])
def test_a_capture_program_takes_the_packet_sockets_place(foreign: ForeignHosts, tmp_path: Path, method: str) -> None:
    """It records the same closes on host b, and reports no losses."""
    lab = foreign.lab_file(f'kind = "host"\non = "b"\nmethod = "{method}"', f"{method}.toml")
    (tmp_path / "test_it.py").write_text(CLOSES)
    status, output = contract(lab, tmp_path / "results", str(tmp_path / "test_it.py")).wait()
    assert (status, counted(tmp_path / "results")) == (0, Counter({"pass": 4})), output


@pytest.mark.parametrize("interface", ["", "eth0"])
def test_a_lab_may_be_in_a_vlan(foreign: ForeignHosts, tmp_path: Path, interface: str) -> None:
    """Both adapters' netdevs are VLANs on their port's netdev. Addresses and MTU are set and restored, and closes pass.
    Frames recorded on the port's netdev are tagged."""
    for host in foreign.hosts.values():
        host.run("/usr/bin/ip link add link eth0 name eth0.5 type vlan id 5; /usr/bin/ip link set eth0.5 up")
    try:
        before = settled_look(foreign)
        lab = foreign.lab_file(f'kind = "host"\non = "a"\ninterface = "{interface}"', "vlan.toml")
        text = lab.read_text().replace('netdev = "eth0"', 'netdev = "eth0.5"').replace("fd77::", "fd88::")
        lab.write_text(provisioned(text))
        (tmp_path / "test_it.py").write_text(CLOSES)
        status, output = contract(lab, tmp_path / "results", str(tmp_path / "test_it.py")).wait()
        assert (status, counted(tmp_path / "results")) == (0, Counter({"pass": 4})), output
        frames = [f for path in (tmp_path / "results").glob("*/wire.pcapng") for f in read_pcapng(path)]
        types = {f.data[12:16] if interface else f.data[12:14] for f in frames if next(roce_packets([f]), None)}
        assert types == ({b"\x81\x00\x00\x05"} if interface else {b"\x08\x00"})
        assert_as_before(foreign, before)
    finally:
        for host in foreign.hosts.values():
            host.run("/usr/bin/ip link delete eth0.5")


def test_a_mirror_port_on_a_third_host_takes_the_packet_sockets_place(tmp_path: Path, lab_guest: Guest) -> None:
    """A bridge copies the frames of both hosts to a host without an adapter, which records them. The same closes pass.
    A mirror without its cable makes the next closes invalid."""
    (tmp_path / "test_it.py").write_text(CLOSES)
    with ForeignHosts(tmp_path / "hosts", lab_guest, mirrored=True) as hosts:
        before = settled_look(hosts)
        lab = hosts.lab_file('kind = "mirror"\nnode = "m"\nnetdev = "eth0"')
        status, output = contract(lab, tmp_path / "results", str(tmp_path / "test_it.py")).wait()
        assert (status, counted(tmp_path / "results")) == (0, Counter({"pass": 4})), output
        assert not (changed := differences(before, settled_look(hosts))), changed
        hosts.hosts["m"].run("ip link set eth0 down")
        status, output = contract(lab, tmp_path / "deaf", str(tmp_path / "test_it.py")).wait()
        assert (status, set(counted(tmp_path / "deaf"))) == (2, {"invalid"}), output


def test_a_wrong_key_is_no_node(foreign: ForeignHosts, tmp_path: Path) -> None:
    """The bench refuses a host with an unknown key: the doctor reports it, and the tests are invalid."""
    lab, known = foreign.lab_file(), foreign.folder / "known_hosts"
    make_key(tmp_path / "other")
    foreign_key, stranger = known.read_text(), " ".join((tmp_path / "other.pub").read_text().split()[:2])
    known.write_text("".join(f"{line.split()[0]} {stranger}\n" for line in foreign_key.splitlines()))
    (tmp_path / "test_it.py").write_text(CLOSES)
    try:
        status, said = Run("doctor", f"--lab={lab}").wait()
        run_status, output = contract(lab, tmp_path / "results", str(tmp_path / "test_it.py")).wait()
    finally:
        known.write_text(foreign_key)
    assert status == 2 and "its key is not the known one" in said
    assert (run_status, counted(tmp_path / "results")) == (2, Counter({"invalid": 4})), output
    assert "Host key verification failed" in output


def test_a_refused_key_is_reported(foreign: ForeignHosts, tmp_path: Path) -> None:
    """The host refuses the key: the doctor names the command that authorises it."""
    lab = foreign.lab_file()
    make_key(tmp_path / "mine")
    lab.write_text(lab.read_text().replace('identity = "key"', f'identity = "{tmp_path / "mine"}"'))
    status, said = Run("doctor", f"--lab={lab}").wait()
    assert status == 2 and "Permission denied" in said and "ssh-copy-id" in said, said


OWN_CONFIGURATION = """
Host *
    ControlPath "{folder}/%C"
    RemoteCommand echo remote
    PermitLocalCommand yes
    LocalCommand echo local
    LocalForward {folder}/forwarded 127.0.0.1:1
    ExitOnForwardFailure yes
"""


def test_an_open_connection_is_shared(foreign: ForeignHosts, tmp_path: Path) -> None:
    """The user's ssh has open connections, which are the only way in. Other settings for terminals are ignored."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    own = folder / "config"
    own.write_text(OWN_CONFIGURATION.format(folder=folder))
    lab = foreign.lab_file()
    with ExitStack() as until_end:
        until_end.callback(shutil.rmtree, folder)
        text = lab.read_text().replace('config = "/dev/null"', f'config = "{own}"')
        # The host accepts another key only, so no new connection can be made.
        make_key(folder / "other")
        lab.write_text(text.replace('identity = "key"', f'identity = "{folder / "other"}"'))
        status, said = Run("doctor", f"--lab={lab}").wait()
        assert status == 2 and said.count("Permission denied") == 2, said
        for host in foreign.hosts.values():
            known = ["-o", f"UserKnownHostsFile={foreign.folder / 'known_hosts'}", "-i", str(foreign.folder / "key")]
            master = ["ssh", "-F", str(own), *known, "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes"]
            master += ["-M", "-N", "-l", "root", "-p", str(host.port), "127.0.0.1"]
            process = until_end.enter_context(subprocess.Popen(master, stdin=subprocess.DEVNULL))
            until_end.callback(process.terminate)
        _wait(lambda: len([path for path in folder.iterdir() if path.is_socket()]) == 2)
        (tmp_path / "test_it.py").write_text(CLOSES)
        status, output = contract(lab, tmp_path / "results", str(tmp_path / "test_it.py")).wait()
        assert (status, counted(tmp_path / "results")) == (0, Counter({"pass": 4})), output


def test_a_login_that_prints_is_reported_at_once(foreign: ForeignHosts) -> None:
    """The output of a host's ~/.bashrc comes before the agent's first message. It is shown with advice."""
    with foreign.sshd("ForceCommand echo 'welcome, stranger'; exec sh -c \"$SSH_ORIGINAL_COMMAND\""):
        began_ns = time.monotonic_ns()
        status, said = Run("doctor", f"--lab={foreign.lab_file()}").wait()
        took_s = (time.monotonic_ns() - began_ns) / 1e9
    assert status == 2 and said.count("welcome, stranger") == 2 and said.count("~/.bashrc") == 2, said
    assert took_s < NOTICED_WITHIN_S


def test_a_host_without_pyverbs_is_reported(foreign: ForeignHosts, tmp_path: Path) -> None:
    """The doctor names the missing package, and a run ends before a test runs on the host."""
    packages = "/usr/lib/python3/dist-packages"
    foreign.hosts["b"].run(f"mv {packages}/pyverbs {packages}/away")
    (tmp_path / "test_it.py").write_text(CLOSES)
    try:
        status, said = Run("doctor", f"--lab={foreign.lab_file()}").wait()
        _, output = contract(foreign.lab_file(), tmp_path / "results", str(tmp_path / "test_it.py")).wait()
    finally:
        foreign.hosts["b"].run(f"mv {packages}/away {packages}/pyverbs")
    assert status == 2 and "pyverbs is missing" in said and "apt-get install python3-pyverbs" in said, said
    assert counted(tmp_path / "results") == Counter({"invalid": 4}) and "pyverbs is missing" in output


def test_missing_rights_of_an_ordinary_user_are_reported(foreign: ForeignHosts) -> None:
    """Logged in without CAP_NET_ADMIN: the doctor names the missing capability and how to get it."""
    lab = foreign.lab_file()
    lab.write_text(lab.read_text().replace('user = "root"', 'user = "user"'))
    for host in foreign.hosts.values():
        host.run("mkdir -p /tmp/.ssh; cp /root/.ssh/authorized_keys /tmp/.ssh; chown -R 1000 /tmp/.ssh")
    try:
        with foreign.sshd("AuthorizedKeysFile /tmp/.ssh/authorized_keys"):
            status, said = Run("doctor", f"--lab={lab}").wait()
    finally:
        for host in foreign.hosts.values():
            host.run("rm -r /tmp/.ssh")
    assert status == 2 and "CAP_NET_ADMIN and CAP_NET_RAW is missing" in said, said


def test_a_node_pulled_out_in_the_middle_costs_its_own_tests_only(foreign: ForeignHosts, tmp_path: Path) -> None:
    """Host b stops in the middle of a suite: within seconds tests are invalid. When it is back, tests pass."""
    (tmp_path / "test_it.py").write_text(CLOSES.replace("range(4)", "range(12)"))
    results = tmp_path / "results"
    run = contract(foreign.lab_file(), results, str(tmp_path / "test_it.py"))
    _wait(lambda: counted(results)["pass"] >= 2, run)
    foreign.hosts["b"].clone.machine.freeze()
    stopped_ns = time.monotonic_ns()
    _wait(lambda: counted(results)["invalid"] >= 1, run)
    noticed_s = (time.monotonic_ns() - stopped_ns) / 1e9
    foreign.hosts["b"].clone.machine.thaw()
    status, output = run.wait()
    assert status == 2 and noticed_s < NOTICED_WITHIN_S, output
    assert "fail" not in counted(results)
    assert list(verdicts(results).values())[-1][0] == "pass", output


@pytest.mark.parametrize("ends", ["INT INT INT", "TERM", "HUP TERM INT"])
def test_an_interrupted_run_restores_the_hosts(foreign: ForeignHosts, tmp_path: Path, ends: str) -> None:
    """After repeated Ctrl-C, SIGTERM, or the end of the terminal, the hosts are restored and the exit code is 2."""
    before = settled_look(foreign)
    lab = foreign.lab_file(name="provisioned.toml")
    lab.write_text(provisioned(lab.read_text()))
    (tmp_path / "test_it.py").write_text(CLOSES.replace("range(4)", "range(99)"))
    run = contract(lab, results := tmp_path / "results", str(tmp_path / "test_it.py"))
    _wait(lambda: counted(results)["pass"] >= 1, run)
    assert "mtu 1400" in foreign.hosts["a"].look()

    for name in ends.split():
        run.process.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.7)

    status, output = run.wait()
    assert status == 2 and "Traceback" not in output, output
    assert_as_before(foreign, before)


def _wait(reached: Callable[[], bool], run: Run | None = None) -> None:
    end_ns = time.monotonic_ns() + 300 * 10**9
    while not reached():
        assert run is None or run.process.poll() is None, run.wait()
        assert time.monotonic_ns() < end_ns
        time.sleep(0.1)
