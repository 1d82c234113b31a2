"""Calls of the ``system`` role on a node: provisioning, the kernel's resources, counters, programs."""

import itertools
import os
import platform
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hil.adapters import find
from hil.adapters.inspect import device_of, inspect
from hil.adapters.journal import Owner
from hil.adapters.processes import KernelLog, descends, other_agents, processes, programs
from hil.adapters.provenance import provenance
from hil.adapters.provision import counters, foresee, provision, wait_ready
from hil.adapters.restore import elsewhere, pending, restore
from hil.netlink.audit import general_services, owners, resources
from hil.netlink.link import RdmaLink
from hil.netlink.messages import Command
from hil.netlink.monitor import Monitor
from hil.netlink.sockets import RdmaSocket
from hil.netlink.survey import hardware_counters, survey
from hil.provider import tokens

CGROUPS = Path("/tmp/cgroups")


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    return {
        "device_of": device_of,
        "adapters": lambda: find.plain(find.adapters()),
        "standing": standing,
        "provision": provisioned,
        "foresee": foresee,
        "inspect": inspect,
        "provenance": provenance,
        "wait_ready": wait_ready,
        "restore": restored,
        "pending_changes": pending,
        "pending_elsewhere": elsewhere,
        # A worker's parent is its agent.
        "other_agents": lambda: other_agents(os.getppid()),
        "killed": killed,
        "counters": counters,
        "port_counters": port_counters,
        "processes": processes,
        "kernel_log": KernelLog().read,
        "resources": held,
        "general_services": general_services,
        "versions": versions,
        "run": run,
        "panic": panic,
        "add_rxe": add_rxe,
        "delete_rdma": delete_rdma,
        "limit_rdma": limit_rdma,
        "survey": survey,
        "netlink": netlink,
        "watch_devices": lambda: watch_devices(emit),
    }


def standing() -> dict[str, Any]:
    """The node's state, without verbs objects, that a test must not change. ``tokens`` are of handed-over sockets."""
    return find.standing() | {"programs": programs(), "tokens": sorted(path.name for path in tokens.FOLDER.glob("*"))}


def held(contexts: bool = False) -> list[dict[str, Any]]:
    """``hil.netlink.audit.resources``. ``ours``: a process of this bench holds it, or its holder is unknown."""
    found, agent = resources(), os.getppid()
    holders = owners(found)
    ours = {pid: pid is None or descends(pid, agent) for pid in set(holders)}
    told = [resource | {"ours": ours[pid]} for resource, pid in zip(found, holders, strict=True)]
    return [resource for resource in told if contexts or resource["kind"] != "CTX"]


def provisioned(bench: str = "", **arguments: Any) -> dict[str, Any]:
    """``hil.adapters.provision.provision`` for the bench of this name."""
    return provision(**arguments, owner=Owner.through(bench, os.getppid()) if bench else None)


def restored(force: bool = True, **arguments: Any) -> list[dict[str, Any]]:
    """``hil.adapters.restore.restore``. Without ``force`` it does nothing while another bench works here."""
    return restore(**arguments, at_work=(lambda: []) if force else lambda: other_agents(os.getppid()))


def port_counters() -> dict[str, dict[str, int]]:
    """The hardware counters of every RDMA port that has counters, by "device/port"."""
    with RdmaLink() as link:
        return {
            f"{device['DEV_NAME']}/{port['PORT_INDEX']}": hardware_counters(
                link, device["DEV_INDEX"], port["PORT_INDEX"]
            )
            for device in link.devices()
            for port in link.ports(device["DEV_INDEX"])
        }


def netlink(method: str, transport: str = "link", **arguments: Any) -> Any:
    """Make one request of hil.netlink.requests by its name, over a transport ("link" or "socket").

    A request's ``command`` is given by name.
    """
    if "command" in arguments:
        arguments["command"] = Command[arguments["command"]]
    with RdmaSocket() if transport == "socket" else RdmaLink() as link:
        return getattr(link, method)(**arguments)


def watch_devices(emit: Callable[[dict[str, Any]], None]) -> None:
    """Journal the kernel's RDMA device events from now on. Raises OSError where the kernel has none."""
    monitor = Monitor()

    def work() -> None:
        while True:
            try:
                events = monitor.events()
            except TimeoutError:
                continue
            for event in events:
                facts = {"event": event.type.name, "device": event.device, "index": event.device_index}
                facts |= {"port": event.port, "netdev": event.netdev}
                emit({"kind": "device", "t_ns": time.monotonic_ns()} | facts)

    threading.Thread(target=work, daemon=True).start()


def versions() -> dict[str, str]:
    """The versions of kernel, Python and rdma-core's libibverbs on this node."""
    libraries = sorted(Path("/usr/lib/x86_64-linux-gnu").glob("libibverbs.so.1.*"))
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libibverbs": libraries[0].name if libraries else "not found",
    }


def run(command: list[str], timeout_s: float = 30.0) -> dict[str, Any]:
    """Run a program on the node. Returns exit status and output. Raises TimeoutExpired.

    The program and its children end after ``timeout_s`` and with the agent, except children in a session of their own.
    """
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
        _guarded(process.pid),
    ):
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return {"status": process.returncode, "stdout": stdout, "stderr": stderr}


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Kill a process group if this process ends, in any way, inside the context."""
    # The kernel signals a parent's end only to its children, not to grandchildren.
    # Every process with a pipe sees the pipe's end.
    watch = ["/bin/sh", "-c", 'read line; kill -s KILL -- "-$1"', "sh", str(group)]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(
        watch, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


def add_rxe(device: str, netdev: str) -> None:
    """Make a soft-RoCE device again. Raises OSError with the kernel's error."""
    with RdmaLink() as link:
        link.add_link(device, "rxe", netdev)


def delete_rdma(device: str) -> None:
    """Remove an RDMA device, as if its adapter were pulled out. Returns when the kernel has freed it."""
    with RdmaLink() as link:
        index = next(d["DEV_INDEX"] for d in link.devices() if d["DEV_NAME"] == device)
        link.delete_link(index)


def limit_rdma(pid: int, device: str, objects: int) -> None:
    """Let process ``pid`` make at most ``objects`` more verbs objects of ``device`` (the RDMA cgroup).

    Objects it holds already were charged elsewhere and do not count.
    """
    if not CGROUPS.is_dir():
        CGROUPS.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "none", str(CGROUPS)], check=True)
    (CGROUPS / "cgroup.subtree_control").write_text("+rdma")
    group = CGROUPS / f"limited-{pid}"
    group.mkdir(exist_ok=True)
    (group / "rdma.max").write_text(f"{device} hca_handle=max hca_object={objects}")
    (group / "cgroup.procs").write_text(str(pid))


def killed(call: str, at: int, **arguments: Any) -> bool:
    """Run "provision" or "restore" in a process that is killed at step ``at``, for tests. Returns if it was killed.

    The journal and the kernel are then in the state that a crash at this step leaves.
    """
    pid = os.fork()
    if pid == 0:
        steps = itertools.count()

        def pause() -> None:
            if next(steps) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            calls: dict[str, Callable[..., Any]] = {"provision": provision, "restore": restore}
            calls[call](pause=pause, **arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise ChildProcessError(f"{call} failed by itself with {code}: see the node's console")
    return code != 0


def panic() -> None:
    """Crash this node's kernel, for tests of the bench."""
    Path("/proc/sys/kernel/sysrq").write_text("1")
    Path("/proc/sysrq-trigger").write_text("c")
