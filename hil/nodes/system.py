"""Calls of the ``system`` role on a node: provisioning, the kernel's resources, counters, programs."""

import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hil.adapters.provision import counters, provision
from hil.netlink.audit import resources
from hil.netlink.link import RdmaLink

CGROUPS = Path("/tmp/cgroups")


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    return {
        "provision": provision,
        "counters": counters,
        "resources": resources,
        "versions": versions,
        "run": run,
        "panic": panic,
        "add_rxe": add_rxe,
        "delete_rdma": delete_rdma,
        "limit_rdma": limit_rdma,
    }


def versions() -> dict[str, str]:
    """Kernel, Python and rdma-core's libibverbs on this node."""
    libraries = sorted(Path("/usr/lib/x86_64-linux-gnu").glob("libibverbs.so.1.*"))
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libibverbs": libraries[0].name if libraries else "not found",
    }


def run(command: list[str], timeout_s: float = 30.0) -> dict[str, Any]:
    """Run a program on the node; exit status and output. Raises TimeoutExpired."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def add_rxe(device: str, netdev: str) -> None:
    """Make a soft-RoCE device again. Raises OSError as the kernel answers."""
    with RdmaLink() as link:
        link.add_link(device, "rxe", netdev)


def delete_rdma(device: str) -> None:
    """Take an RDMA device away, as pulling an adapter out does; returns when the kernel has let it go."""
    with RdmaLink() as link:
        index = next(d["DEV_INDEX"] for d in link.devices() if d["DEV_NAME"] == device)
        link.delete_link(index)


def limit_rdma(pid: int, device: str, objects: int) -> None:
    """Let process ``pid`` hold ``objects`` verbs objects of ``device`` at most from now on (the RDMA cgroup).

    What it holds already was charged elsewhere and does not count.
    """
    if not CGROUPS.is_dir():
        CGROUPS.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "none", str(CGROUPS)], check=True)
    (CGROUPS / "cgroup.subtree_control").write_text("+rdma")
    group = CGROUPS / f"limited-{pid}"
    group.mkdir(exist_ok=True)
    (group / "rdma.max").write_text(f"{device} hca_handle=max hca_object={objects}")
    (group / "cgroup.procs").write_text(str(pid))


def panic() -> None:
    """Crash this node's kernel, for tests of the bench."""
    Path("/proc/sys/kernel/sysrq").write_text("1")
    Path("/proc/sysrq-trigger").write_text("c")
