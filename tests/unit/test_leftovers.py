"""What the audit says of what is left over: pure functions over what nodes recorded."""

import errno
import os
import signal
import subprocess
from typing import Any

import pytest

from hil.adapters.processes import KernelLog, descends, is_verbs, log_record
from hil.evidence.disconnect import broken
from hil.evidence.evidence import Evidence
from hil.evidence.journal import Call, Entry, entry_of
from hil.evidence.origins import named, origin
from hil.evidence.resources import KernelMessage, Process, Resource, resources_of
from hil.evidence.rules.kernel_log import complaints, starved
from hil.evidence.rules.leaks import leak_findings
from hil.evidence.rules.processes import ended_processes, grown_processes
from hil.evidence.rules.resources import held, of_sockets, others
from hil.netlink.audit import owners
from hil.netlink.requests import Requests
from hil.netlink.survey import hardware_counters

SOCKET, HANDLE = 1000, 77
MS = 10**6


def entry(kind: str, at_ms: int, thread: int = 5, **facts: Any) -> Entry:
    place = {"node": "a", "worker": 2, "pid": 311, "thread": thread, "t_ns": 0}
    ended = {"code": 0, "begun_ns": 0} if kind == "call" else {}
    return entry_of({"kind": kind, "at_ns": at_ms * MS} | place | ended | facts, "the test")


def evidence(*more: Entry) -> Evidence:
    """A socket whose queue pair the provider's thread made, and that registered memory in thread 5."""
    events = [
        entry("call", 100, thread=4, function="WSPStartupEx"),
        entry("upcall", 110, function="WPUCreateSocketHandle", handle=HANDLE, context=SOCKET),
        entry("qp", 120, thread=9, handle=HANDLE, qp_num=17),
        entry("begin", 130, function="WSPRegisterMemory", socket=SOCKET),
        entry("mr", 131, event="registered", handle=HANDLE, key=0x1C2, length=4096),
        entry("call", 132, function="WSPRegisterMemory", socket=SOCKET),
    ]
    made = Evidence({"a": ["10.0.0.1"]}, sorted([*events, *more], key=lambda e: e.at_ns))
    made.during["a"] = [resource("PD", 3, context=1), resource("QP", 17, pd=3), resource("MR", 0, pd=3, key=0x1C2)]
    return made


def resource(kind: str, number: int, **facts: Any) -> Resource:
    told = {"kind": kind, "device": "rxe0", "number": number, "pid": None, "command": "its thread has ended"} | facts
    return resources_of([told], "the test")[0]


def message(text: str) -> KernelMessage:
    return KernelMessage(text, 4, 1, 1)


def test_a_region_is_named_by_the_call_that_registered_it() -> None:
    """Key, size, process, function, socket and time, as the timeline shows it, though the kernel forgot the owner."""
    left = resource("MR", 0, pd=3, key=0x1C2, length=4096)
    assert named([left], evidence(), "a") == (
        "MR 0x1c2, 4096 bytes, rxe0, pid 311 (its thread has ended), "
        "opened by WSPRegisterMemory for socket 1000 at 31.000 ms"
    )


def test_a_key_that_was_used_before_names_the_last_registration() -> None:
    """An adapter gives keys again: what is left is from the last time."""
    again = entry("mr", 200, thread=6, event="registered", handle=HANDLE, key=0x1C2, length=4096)
    begun = entry("begin", 199, thread=6, function="WSPRegisterRdmaMemory", socket=SOCKET)
    found = origin(evidence(again, begun), "a", resource("MR", 0, key=0x1C2))
    assert found is not None
    assert (found.function, found.at_ns) == ("WSPRegisterRdmaMemory", 200 * MS)


def test_a_call_that_had_ended_made_nothing() -> None:
    """A thread serves many calls: only one that was under way is named."""
    later = entry("mr", 140, event="registered", handle=HANDLE, key=0x2C2, length=1)
    found = origin(evidence(later), "a", resource("MR", 1, key=0x2C2))
    assert found is not None
    assert (found.function, found.socket) == (None, SOCKET)


def test_a_queue_pair_is_the_sockets_it_was_made_for() -> None:
    """By its number; made by the provider's own thread, it still names the socket and the state it is in."""
    assert named([resource("QP", 17, pd=3, state=6)], evidence(), "a") == (
        "QP 17, ERR, rxe0, pid 311 (its thread has ended), "
        "opened by the provider's own thread for socket 1000 at 20.000 ms"
    )


def test_a_domain_is_known_by_what_was_in_it() -> None:
    """Queue pair and region may be gone: what the kernel listed while the connection was open tells."""
    found = origin(evidence(), "a", resource("PD", 3, context=1))
    assert found is not None
    assert (found.pid, found.socket, found.at_ns) == (311, SOCKET, 120 * MS)


def test_what_nothing_tells_of_has_at_least_a_process_and_an_age() -> None:
    """A domain in the same context is the same process's; it was not there when the connection opened."""
    assert named([resource("PD", 9, context=1)], evidence(), "a") == (
        "PD 9, rxe0, pid 311 (its thread has ended), made when the connection was open already"
    )
    assert "there when the connection was open" in named(
        [resource("PD", 3, context=9)], Evidence({}, during={"a": [resource("PD", 3)]}), "a"
    )


def test_an_id_of_the_connection_manager_shows_its_ends() -> None:
    """State, addresses and ports, and through its queue pair who made it."""
    left = resource("CM_ID", 4, qp=17, state=5, source="10.0.0.1 port 6000", destination="10.0.0.2 port 5000")
    text = named([left], evidence(), "a")
    assert text.startswith("CM_ID 4, CONNECT, 10.0.0.1 port 6000 to 10.0.0.2 port 5000, rxe0, pid 311")
    assert "for socket 1000 at 20.000 ms" in text


@pytest.mark.timeout(20)
def test_of_very_many_leaks_the_first_are_described() -> None:
    """The journal and the lists are looked through once, however much was left."""
    left = [resource("PD", number, context=9) for number in range(20_000)]
    text = named(left, evidence(*(entry("qp", 1, handle=1, qp_num=n) for n in range(20_000))), "a")
    assert text.startswith("PD 0, rxe0") and text.endswith("; and 19950 more")


def test_without_evidence_only_the_kernels_word_is_told() -> None:
    """Owner as the kernel names it, and nothing for an empty list."""
    assert named([resource("CQ", 2, entries=511, pid=5, command="x")]) == "CQ 2, 511 entries, rxe0, pid 5 (x)"
    assert named([]) == "nothing left"


def test_an_opened_device_counts_when_it_carried_a_connection() -> None:
    """librdmacm's own context and idle domain stay; the provider's are left over."""
    during = evidence().during["a"]
    ours, theirs = resource("CTX", 1), resource("CTX", 0)
    assert held([ours, theirs, resource("PD", 1, context=0, use_count=0)], during) == [ours]
    assert of_sockets([ours], [], during) == []


def test_what_others_have_is_not_ours() -> None:
    """On a host where other programs use the adapter, theirs was there before the test and is not left over."""
    theirs, ours = resource("QP", 5), resource("QP", 6)
    assert others([theirs, ours], [resource("QP", 5), resource("CQ", 6)]) == [ours]
    made = evidence()
    made.processes["a"] = ([], [process(9, command="opensm", pinned=4096)])
    assert broken(leak_findings(made)) == []


def process(pid: int = 311, **facts: Any) -> Process:
    known: dict[str, Any] = {"command": "python3", "threads": 3, "locked": 0, "pinned": 0}
    return Process(**{"pid": pid, "descriptors": {"/dev/infiniband/rdma_cm": 1, "socket": 2}} | known | facts)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (process(threads=5), "pid 311 (python3): 2 threads"),
        (process(pinned=65536), "pid 311 (python3): 65536 bytes of pinned memory"),
        (process(locked=4096), "pid 311 (python3): 4096 bytes of locked memory"),
        (process(descriptors={"socket": 5}), "pid 311 (python3): 3 descriptors of socket"),
        (
            process(descriptors={"/dev/infiniband/rdma_cm": 2}),
            "pid 311 (python3): 1 descriptors of /dev/infiniband/rdma_cm",
        ),
        (process(9, pinned=4096, descriptors={}), "pid 9 (python3): 4096 bytes of pinned memory"),
    ],
)
def test_what_a_process_has_more_of_is_named(now: Process, text: str) -> None:
    """Threads, memory and descriptors beyond those it had before the first connection."""
    assert grown_processes([process()], [now]) == [text]


def test_what_librdmacm_keeps_is_no_leak() -> None:
    """One device opened by the library, with its event descriptor; a second one is the provider's."""
    event = "anon_inode:[infinibandevent]"
    held_by_library = {"/dev/infiniband/uverbs0": 1, event: 1}
    assert grown_processes([process(descriptors={})], [process(descriptors=held_by_library)]) == []
    twice = {target: 2 for target in held_by_library}
    assert len(grown_processes([process(descriptors={})], [process(descriptors=twice)])) == 2
    assert grown_processes([process(descriptors={})], [process(descriptors={event: 1})]) != []


def test_fewer_than_before_is_no_leak() -> None:
    """A process that gave things back, one that is gone, and one that opens ordinary files later."""
    assert grown_processes([process()], [process(threads=1, descriptors={})]) == []
    assert grown_processes([process()], []) == []
    assert grown_processes([], [process(9, threads=80, descriptors={"socket": 9})]) == []


def test_the_thread_of_a_provider_that_ended_is_gone() -> None:
    """As many threads as before are one too many when the provider's own has ended; a running provider keeps it."""
    told = (entry("call", 1, function="WSPStartupEx"), entry("call", 9, function="WSPCleanup"))
    calls = [call for call in told if isinstance(call, Call)]
    assert ended_processes(calls) == {311}
    assert ended_processes(calls[:1]) == ended_processes([]) == set()
    assert grown_processes([process()], [process()], {311}) == ["pid 311 (python3): 1 threads"]
    assert grown_processes([process()], [process(threads=2)], {311}) == []


def test_only_faults_of_the_kernel_are_complaints() -> None:
    """A driver's ordinary messages and errors are recorded, not judged."""
    fault = "WARNING: CPU: 0 PID: 5 at drivers/infiniband/core/restrack.c:122"
    texts = ["infiniband rxe0: set active", fault, "rdma_rxe: rxe_qp_chk_cap: invalid max_send_wr", "Call Trace:"]
    assert complaints(map(message, texts)) == [fault, "Call Trace:"]


def test_a_machine_without_memory_is_no_fault_of_its_adapter() -> None:
    """What the kernel ended for want of memory is told apart; a control group's own limit concerns nobody else."""
    ended = "Out of memory: Killed process 233 (python3) total-vm:1234kB"
    texts = [ended, "Memory cgroup out of memory: Killed process 234 (cc1)"]
    log = [message(text) for text in texts]
    assert (starved(log), complaints(log)) == ([ended], [])


def test_a_complaint_and_a_grown_process_break_a_finding() -> None:
    """Both are judged with what the kernel still holds."""
    made = evidence()
    made.processes["a"] = ([process()], [process(threads=4)])
    made.kernel_log["a"] = [message("BUG: sleeping function called from invalid context")]
    assert [finding.seen for finding in broken(leak_findings(made))] == [
        "pid 311 (python3): 1 threads",
        "BUG: sleeping function called from invalid context",
    ]


def test_a_kernel_message_is_read_with_its_level() -> None:
    """Facility and level share a number; details follow on lines of their own."""
    record = log_record("30,1021,26570488,-;infiniband rxe0: set active\n SUBSYSTEM=infiniband\n")
    spoken = {"facility": 3, "level": 6, "text": "infiniband rxe0: set active"}
    assert record == {"sequence": 1021, "time_us": 26570488} | spoken


def test_what_a_process_started_descends_from_it() -> None:
    """Children and theirs do; an ancestor does not; of one that has ended nobody knows."""
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert descends(grandchild, os.getpid()) and descends(child.pid, os.getpid()) and descends(child.pid, child.pid)
        assert not descends(os.getppid(), os.getpid()) and not descends(child.pid, grandchild)
        os.kill(grandchild, signal.SIGKILL)
    assert descends(child.pid, 1) and descends(child.pid, os.getpid())


def test_what_a_thread_made_that_has_ended_is_its_process() -> None:
    """By the device that it opened, over the domain if need be; without any of these nobody knows."""
    context = {"kind": "CTX", "device": "rxe0", "number": 5, "pid": 311}
    domain = {"kind": "PD", "device": "rxe0", "number": 7, "pid": None, "context": 5}
    region, other = ({"kind": "MR", "device": name, "number": 9, "pid": None, "pd": 7} for name in ("rxe0", "rxe1"))
    connection = {"kind": "CM_ID", "device": "rxe0", "number": 7, "pid": None}
    assert owners([region, context, domain, other, connection]) == [311, 311, 311, None, None]


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.EPERM])
def test_a_driver_without_hardware_counters_has_none(refused: int) -> None:
    """The kernel's answer for such a driver is no error, any other is."""

    class Refuses(Requests):
        def exchange(self, *_: Any) -> Any:
            raise OSError(refused, os.strerror(refused))

    if refused == errno.EINVAL:
        assert hardware_counters(Refuses(), 0, 1) == {}
    else:
        with pytest.raises(PermissionError):
            hardware_counters(Refuses(), 0, 1)


def test_a_log_that_may_not_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence of a kernel that nobody could hear is none."""
    monkeypatch.setattr("hil.adapters.processes.KMSG", "/nowhere/kmsg")
    log = KernelLog()
    with pytest.raises(FileNotFoundError, match="/nowhere/kmsg"):
        log.read()


def test_verbs_descriptors_are_told_from_others() -> None:
    """Devices, completion channels and the connection manager's; not an ordinary event or file."""
    verbs = ["/dev/infiniband/uverbs0", "anon_inode:[infinibandevent]", "/dev/infiniband/rdma_cm"]
    assert all(map(is_verbs, verbs))
    assert not any(map(is_verbs, ["socket", "anon_inode:[eventpoll]", "/dev/null", "/tmp/x"]))
