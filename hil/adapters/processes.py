"""Processes of this machine that use an RDMA device, with what they hold; and messages of the kernel's log."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

PROC = Path("/proc")
VERBS = ("/dev/infiniband/", "infinibandevent", "[uverbs", "[rdma_cm")
"""Texts in the targets of verbs descriptors: devices, completion channels, asynchronous events."""
NUMBERED = re.compile(r"^(socket|pipe):\[\d+\]$")
AGENT = b"hil.agent.agent import serve_host"
KIB = 1 << 10
SSH_CONNECTION = b"SSH_CONNECTION="
KMSG = "/dev/kmsg"
# The facility of the kernel's own messages; programs cannot use it (syslog(3), LOG_KERN).
KERNEL = 0


def processes(pids: Collection[int] = ()) -> list[dict[str, Any]]:
    """Each process with an open verbs descriptor, and each living process of ``pids``, in order of their ids.

    Each has: pid, command, threads, ``descriptors`` (their number by target), ``locked`` and ``pinned`` memory in bytes
    (VmLck, VmPin). A process that ends meanwhile is left out, and so is another user's process that this one may not
    read.
    """
    found = (_process(int(path.name), pids) for path in _all())
    return [process for process in found if process]


def _all() -> list[Path]:
    """The folders of all processes, in order of their ids."""
    return sorted((path for path in PROC.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def other_agents(own: int) -> list[int]:
    """The process ids of the agents of other benches in this network namespace. ``own``: this bench's agent.

    An agent is a Python process with the command line of the bootstrap (``hil.agent.parcel``). Its workers, forked from
    it, have the same command line and are left out.
    """
    here, found = Path("/proc/self/ns/net").stat(), {}
    for path in _all():
        try:
            if not os.path.samestat((path / "ns" / "net").stat(), here):
                continue
            command = (path / "cmdline").read_bytes()
            # sudo and "ip netns exec", which start an agent, have the bootstrap among their arguments too.
            if AGENT in command and (path / "exe").readlink().name.startswith("python"):
                found[int(path.name)] = int(_status(path)["PPid"])
        except OSError:
            continue
    return sorted(pid for pid, parent in found.items() if parent not in found and pid != own)


def descends(pid: int, ancestor: int) -> bool:
    """Whether process ``pid`` is ``ancestor`` or one of its descendants.

    True also when process ``pid`` has ended, because its ancestors are then unknown.
    """
    try:
        return ancestor in _ancestry(pid)
    except OSError:
        return True


def _ancestry(pid: int) -> Iterator[int]:
    """A process, its parent, and so on. Raises OSError for a process that has ended."""
    while pid:
        yield pid
        pid = int(_status(PROC / str(pid))["PPid"])


def ssh_address() -> str:
    """The address of this machine that the ssh connection of this process uses; "" without ssh.

    sudo removes SSH_CONNECTION from the environment, so the environments of all ancestors are searched (ssh(1)).
    """
    with contextlib.suppress(OSError):
        for pid in _ancestry(os.getpid()):
            variables = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
            found = [value[len(SSH_CONNECTION) :].split() for value in variables if value.startswith(SSH_CONNECTION)]
            if found and len(found[0]) == 4:
                return found[0][2].decode(errors="replace").partition("%")[0]
    return ""


def programs() -> dict[str, int]:
    """The number of processes by name, without the kernel's own threads."""
    found: dict[str, int] = {}
    for path in _all():
        with contextlib.suppress(OSError):
            # A kernel thread has no executable.
            if (path / "exe").readlink():
                name = (path / "comm").read_text().strip()
                found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def is_verbs(target: str) -> bool:
    """Whether ``target`` is the target of a descriptor of verbs or the connection manager."""
    return any(part in target for part in VERBS)


def _process(pid: int, wanted: Collection[int]) -> dict[str, Any] | None:
    try:
        descriptors = _descriptors(PROC / str(pid) / "fd")
        if pid not in wanted and not any(is_verbs(target) for target in descriptors):
            return None
        fields = _status(PROC / str(pid))
    except OSError:
        return None
    return {
        "pid": pid,
        "command": fields["Name"],
        "threads": int(fields["Threads"]),
        "descriptors": descriptors,
        "locked": _bytes(fields.get("VmLck", "0 kB")),
        "pinned": _bytes(fields.get("VmPin", "0 kB")),
    }


def _status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _descriptors(folder: Path) -> dict[str, int]:
    """The number of a process's descriptors by target; sockets are counted together, and so are pipes."""
    found: dict[str, int] = {}
    for descriptor in folder.iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        kind = NUMBERED.sub(r"\1", target)
        found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items()))


def _bytes(text: str) -> int:
    return int(text.split()[0]) * KIB


class KernelLog:
    """The kernel's own messages from now on, without messages that programs write to its log."""

    def __init__(self) -> None:
        self._refused: OSError | None = None
        try:
            self._log = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._log, 0, os.SEEK_END)
        except OSError as error:
            self._refused = error

    def read(self) -> list[dict[str, Any]]:
        """The messages since the last read: sequence, level (0 to 7), microseconds since the boot, text.

        Raises OSError where this process may not read the log.
        """
        if self._refused:
            raise self._refused
        found = []
        while record := self._record():
            if record.pop("facility") == KERNEL:
                found.append(record)
        return found

    def _record(self) -> dict[str, Any] | None:
        while True:
            try:
                return log_record(os.read(self._log, 1 << 13).decode(errors="replace"))
            except BrokenPipeError:
                # The next record was overwritten; the kernel goes on with the oldest record that is left.
                continue
            except BlockingIOError:
                return None


def log_record(text: str) -> dict[str, Any]:
    """A record of /dev/kmsg: "priority,sequence,time,flags;text", then lines of details (Linux: dev-kmsg)."""
    head, _, rest = text.partition(";")
    priority, sequence, time_us = (int(part) for part in head.split(",")[:3])
    message = {"facility": priority >> 3, "level": priority & 7, "text": rest.split("\n")[0]}
    return {"sequence": sequence, "time_us": time_us} | message
