"""The journal of changes, and the changes in it, without a kernel."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.adapters.changes import KINDS, Address, LinkSetting, Moved, Setting, checked, in_namespace, noted, read
from hil.adapters.journal import Entry, Journal, Owner
from hil.adapters.provision import Wanted, _check_others
from hil.adapters.restore import pending, restore
from hil.errors import AdapterError, AtWork


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "hil" / "changes.jsonl")


def test_noted_changes_are_pending_last_first(journal: Journal) -> None:
    """Changes are undone in the reverse order of their making, and an undone change is not pending."""
    assert journal.pending() == []
    first, second = journal.note("Address", {"a": 1}), journal.note("Setting", {"b": 2})
    assert journal.pending() == [second, first]
    journal.undone(second)
    assert Journal(journal.path).pending() == [Entry(1, "Address", {"a": 1})]
    journal.discard()
    assert Journal(journal.path).pending() == [Entry(1, "Address", {"a": 1})], "it was removed with a change in it"
    journal.undone(first)
    journal.discard()
    assert journal.pending() == [] and not journal.path.parent.exists()
    journal.discard()


def test_numbers_go_on_after_others_were_undone(journal: Journal) -> None:
    """A number is never used twice in a file, because one line would then undo two changes."""
    journal.undone(journal.note("Address", {}))
    assert journal.note("Address", {}).number == 2
    assert [entry.number for entry in journal.pending()] == [2]


def test_changes_of_an_earlier_boot_are_not_pending(journal: Journal) -> None:
    """A reboot resets the settings, so earlier changes are not undone; numbers still go on."""
    Journal(journal.path, boot="before").note("LinkSetting", {})
    assert journal.pending() == []
    assert journal.note("Address", {}).number == 2
    assert [entry.number for entry in journal.pending()] == [2]


def test_each_namespace_undoes_its_own(journal: Journal) -> None:
    """The nodes of one machine share the file: changes of another namespace are neither undone nor removed."""
    other = Journal(journal.path, netns="another")
    theirs = other.note("LinkSetting", {"netdev": "lo", "setting": "state", "was": "down", "wanted": "up"})
    ours = journal.note(*noted(Setting("/proc/sys/net/no/such/setting", "2", "1")))
    assert journal.pending() == [ours] and other.pending() == [theirs]
    assert restore(journal.path) == [{"kind": "Setting", "facts": ours.facts}]
    assert other.pending() == [theirs]
    other.undone(theirs)
    assert restore(journal.path) == [] and not journal.path.exists()


def test_a_bench_undoes_its_own_changes_and_those_of_ended_benches(journal: Journal) -> None:
    """Of three benches on a host one has ended and one runs: the third leaves the changes of the running one."""
    lives, ended = Owner.through("lives", os.getpid()), Owner("ended", os.getpid(), 1)
    ours = Owner.through("ours", os.getpid())
    assert lives.alive() and not ended.alive() and not Owner.through("gone", 1 << 22).alive()
    facts = [
        noted(Setting(f"/proc/sys/net/no/such/{owner}", "2", "1")) for owner in ("lives", "ended", "ours", "nobody")
    ]
    for fact, owner in zip(facts, (lives, ended, ours, None), strict=True):
        Journal(journal.path, owner=owner).note(*fact)

    undone = restore(journal.path, bench="ours")

    assert [change["facts"] for change in undone] == [facts[n][1] for n in (3, 2, 1)]
    (left,) = Journal(journal.path).pending()
    assert left.owner == lives
    assert [change["facts"] for change in restore(journal.path)] == [facts[0][1]]


def test_an_adapter_that_a_running_bench_changed_is_refused(journal: Journal) -> None:
    """The first bench to end would undo settings that both use, so the second is refused; another adapter is free."""
    lives, ours = Owner.through("lives", os.getpid()), Owner.through("ours", os.getpid())
    Journal(journal.path, owner=lives).note(*noted(Address("eth0", "10.0.0.1/24", "")))
    pending = journal.pending()
    with pytest.raises(AtWork, match=f"another bench .process {os.getpid()}. works with eth0"):
        _check_others(Wanted("eth0"), pending, ours)
    _check_others(Wanted("eth1"), pending, ours)
    _check_others(Wanted("eth0"), pending, lives)
    _check_others(Wanted("eth0"), pending, None)


def in_children(count: int, work: Callable[[], None]) -> None:
    """Do the same in several processes at once; each must succeed."""
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


def test_processes_take_turns(journal: Journal) -> None:
    """Several processes that note at once get distinct numbers, and damage no line of another process."""

    def note() -> None:
        for _ in range(25):
            Journal(journal.path).note("Address", {"a": "x" * 2000})

    in_children(4, note)
    assert [entry.number for entry in journal.pending()] == list(range(100, 0, -1))


def test_a_change_noted_during_a_restore_stays_noted(journal: Journal) -> None:
    """A change that is noted during a restore waits for its end, and is not removed with the undone changes."""
    journal.note(*noted(Setting("/proc/sys/net/no/such/setting", "2", "1")))
    code = "import sys; from pathlib import Path; from hil.adapters.journal import Journal\n"
    code += "Journal(Path(sys.argv[1])).note('Address', {'late': 1})"
    noting: list[subprocess.Popen[bytes]] = []

    def pause() -> None:
        if not noting:
            noting.append(subprocess.Popen([sys.executable, "-c", code, str(journal.path)]))
            with pytest.raises(subprocess.TimeoutExpired):
                noting[0].wait(2)

    assert len(restore(journal.path, pause)) == 1
    assert noting[0].wait(20) == 0
    assert [entry.facts for entry in journal.pending()] == [{"late": 1}]


def test_a_folder_that_disappears_is_made_again(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another process that exists at first and is then removed is no error."""
    make, gone = os.mkdir, []

    def late(path: Path, mode: int = 0o777) -> None:
        try:
            make(path, mode)
        except FileExistsError:
            gone.append(path)
            path.rmdir()
            raise

    journal.path.parent.mkdir()
    monkeypatch.setattr(os, "mkdir", late)
    journal.note("Address", {})
    assert gone == [journal.path.parent]
    assert len(journal.pending()) == 1


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_a_file_in_place_of_the_folder_is_an_error(journal: Journal, kind: str) -> None:
    """A file with the folder's name is reported at once."""
    if kind == "file":
        journal.path.parent.touch()
    else:
        journal.path.parent.symlink_to("nowhere")
    with pytest.raises(AdapterError, match="cannot be written: File exists"):
        journal.note("Address", {})


def test_a_folder_that_comes_and_goes_keeps_its_lock(journal: Journal) -> None:
    """Six processes that note, undo and remove at once never interfere, and leave nothing."""

    def work() -> None:
        own = Journal(journal.path)
        for _ in range(30):
            with own.alone():
                entry = own.note("Address", {"pid": os.getpid()})
                assert [e.facts for e in own.pending()] == [{"pid": os.getpid()}]
                own.undone(entry)
                own.discard()

    in_children(6, work)
    assert not journal.path.parent.exists()


def test_one_bad_entry_stops_no_other(journal: Journal) -> None:
    """An unknown change stays noted and is named; all other changes are undone."""
    settings = [Setting(f"/proc/sys/net/no/such/{number}", "2", "1") for number in range(2)]
    journal.note(*noted(settings[0]))
    bad = journal.note("Teleport", {"netdev": "eth0"})
    journal.note(*noted(settings[1]))
    with pytest.raises(AdapterError, match="does not know: Teleport"):
        restore(journal.path)
    assert journal.pending() == [bad]


def test_a_torn_line_is_ignored(journal: Journal) -> None:
    """The writer of a torn line died before its change, and the next line begins on a line of its own."""
    journal.note("Address", {"a": 1})
    with journal.path.open("a") as file:
        file.write('{"number": 2, "kind": "Sett')
    assert [entry.number for entry in journal.pending()] == [1]
    assert journal.note("Setting", {"c": 3}).number == 2
    assert [entry.kind for entry in journal.pending()] == ["Setting", "Address"]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"number": "x"}', "{}", '{"undone": null}', "[" * 100000])
def test_a_line_that_is_no_change_is_named(journal: Journal, line: str) -> None:
    """Any other line in the file stops the undo with its place, because a part of an undo would be worse."""
    journal.note("Address", {"a": 1})
    with journal.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(AdapterError, match=r"changes\.jsonl, line 2 is no change of this bench"):
        journal.pending()


def test_a_change_of_another_version_is_named(journal: Journal) -> None:
    """Changes with an unknown kind or unknown facts stay noted."""
    for facts in (
        {"colour": "red"},
        {"netdev": "eth0"},
        {"netdev": 5, "address": "10.0.0.1/24"},
        {"netdev": "eth0", "address": ["10.0.0.1/24"]},
    ):
        journal.note("Address", facts)
        with pytest.raises(AdapterError, match="does not know: Address"):
            restore(journal.path)
        assert pending(journal.path) == [{"kind": "Address", "facts": facts}]
        journal.path.unlink()
    journal.note("LinkSetting", {"netdev": "eth0", "setting": "colour", "was": "red", "wanted": "blue"})
    with pytest.raises(AdapterError, match="does not know: LinkSetting"):
        restore(journal.path)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_named(content: bytes) -> None:
    """A damaged file is an AdapterError or, up to a torn end, a list of changes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "changes.jsonl"
        path.write_bytes(content)
        try:
            assert isinstance(pending(path), list)
        except AdapterError:
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_journal_that_cannot_be_written_stops_the_change(tmp_path: Path) -> None:
    """A change that cannot be noted is not made."""
    tmp_path.chmod(0o500)
    with pytest.raises(AdapterError, match="cannot be written: Permission denied"):
        Journal(tmp_path / "changes.jsonl").note("Address", {})


def test_changes_survive_the_journal(journal: Journal) -> None:
    """Each kind of change is read back equal."""
    changes = [
        LinkSetting("eth0", "mtu", 1500, 9000),
        Address("eth0", "fd77::1/64", netns="hil-a"),
        Moved("eth1", "hil-a", True, ("10.0.0.1/24 broadcast 10.0.0.255", "fd00::1/64 nodad")),
        Setting("/proc/sys/net/ipv4/tcp_ecn", "2", "1"),
    ]
    for change in changes:
        journal.note(*noted(change))
    assert [read(entry.kind, entry.facts) for entry in reversed(journal.pending())] == changes
    assert {type(change).__name__ for change in changes} <= KINDS.keys()


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/sys/net/../kernel/core_pattern", "proc/sys/net/x", ""])
def test_only_settings_of_the_network_are_written(path: str) -> None:
    """A journal or lab file with another path writes nothing."""
    with pytest.raises(AdapterError, match="is no setting of the network"):
        checked(path)


def test_nothing_to_undo_is_no_error(journal: Journal) -> None:
    """Restoring a node without changes does nothing."""
    assert restore(journal.path) == []


def test_work_without_a_namespace_runs_here() -> None:
    """Without a name the work runs in this process's own namespace; an unknown name is an error."""
    assert in_namespace("", lambda: 5) == 5
    with pytest.raises(AdapterError, match="hil-nowhere is no network namespace"):
        in_namespace("hil-nowhere", lambda: 5)
