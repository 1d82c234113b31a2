"""Calls of the ``system`` role on a node: provisioning, the kernel's resources, counters, programs."""

import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hil.adapters.provision import counters, provision
from hil.netlink.audit import resources


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role."""
    return {
        "provision": provision,
        "counters": counters,
        "resources": resources,
        "versions": versions,
        "run": run,
        "panic": panic,
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


def panic() -> None:
    """Crash this node's kernel, for tests of the bench."""
    Path("/proc/sys/kernel/sysrq").write_text("1")
    Path("/proc/sysrq-trigger").write_text("c")
