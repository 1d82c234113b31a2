"""Check the dependencies of soft labs: programs, kernels, memory and disk space on this machine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from hil.agent.roles.capture import free_memory
from hil.cache import cache_folder
from hil.errors import HilError
from hil.labs.findings import INSTALL, Finding, Level
from hil.labs.soft.file import Guest
from hil.labs.soft.machine import qemu_version
from hil.labs.soft.memory import NO_MEMORY_FOLDER, memory_folder
from hil.labs.soft.umlkernel import cached_kernel, missing_tools

QEMU_AT_LEAST = (7, 2)
# The size of an image, two snapshots and the temporary files of their making.
ROOM_GIB = 4
MEND_MEMORY = "mount -o remount,exec,size=50% /dev/shm"


def uml_kernel(guest: Guest) -> Finding:
    """Check that a kernel for User-Mode Linux is cached or can be built."""
    kept = cached_kernel(guest.kernel, cache_folder())
    if kept is not None:
        return Finding(Level.OK, "User-Mode Linux", f"kernel {kept.release}, from {kept.source}, is cached")
    if missing := missing_tools():
        seen = f"a kernel must be built, and {', '.join(missing)} are missing"
        return Finding(Level.BAD, "User-Mode Linux", seen, INSTALL.format(" ".join(missing)))
    return Finding(Level.OK, "User-Mode Linux", f"a kernel will be built from {guest.kernel[0]}, in some minutes")


def uml_memory(count: int, memory_mib: int) -> Finding:
    """Check that the folder for the memory of User-Mode Linux nodes has room and allows execution."""
    folder = memory_folder()
    if folder is None:
        return Finding(Level.BAD, "nodes' memory", NO_MEMORY_FOLDER, MEND_MEMORY)
    status = os.statvfs(folder)
    free_mib = status.f_bavail * status.f_frsize >> 20
    if free_mib < count * memory_mib:
        seen = f"{free_mib} MiB are free in {folder}; {count} nodes of {memory_mib} MiB need {count * memory_mib}"
        return Finding(Level.BAD, "nodes' memory", seen, MEND_MEMORY)
    return Finding(Level.OK, "nodes' memory", f"{free_mib} MiB are free in {folder}")


def qemu() -> Finding:
    """Check that QEMU is installed and new enough."""
    try:
        version = qemu_version()
    except (HilError, OSError, subprocess.SubprocessError) as error:
        return Finding(Level.BAD, "QEMU", str(error), INSTALL.format("qemu-system-x86"))
    found = re.search(r"version (\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < QEMU_AT_LEAST:
        wanted = ".".join(map(str, QEMU_AT_LEAST))
        return Finding(Level.BAD, "QEMU", f"{version}: {wanted} is needed", INSTALL.format("qemu-system-x86"))
    return Finding(Level.OK, "QEMU", version)


def kvm(guest: Guest) -> Finding:
    """Check that KVM works, by the result of an earlier boot under KVM if there was one."""
    level = Level.BAD if guest.accelerator == "kvm" else Level.WARNING
    slow = "nodes are emulated, which is some ten times slower"
    if not Path("/dev/kvm").exists():
        return Finding(level, "KVM", f"this kernel has no /dev/kvm: {slow}", "modprobe kvm_intel || modprobe kvm_amd")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding(level, "KVM", f"/dev/kvm may not be opened: {slow}", "usermod -aG kvm $USER, and log in again")
    known = {path.read_text().strip() for path in cache_folder().glob("accelerator-*")}
    if known == {"tcg"}:
        return Finding(level, "KVM", f"/dev/kvm is there, but a node did not boot under it: {slow}")
    return Finding(
        Level.OK, "KVM", "works" if "kvm" in known else "/dev/kvm opens; the first boot will show whether it works"
    )


def room(folder: Path) -> Finding:
    """Check that the cache has room for an image and its snapshots."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_gib = shutil.disk_usage(there).free / (1 << 30)
    if free_gib < ROOM_GIB:
        seen = f"{free_gib:.1f} GiB are free in {there}, {ROOM_GIB} are needed"
        return Finding(Level.BAD, "disk", seen, f"rm -r {folder}/snapshots, or name another folder in HIL_CACHE")
    return Finding(Level.OK, "disk", f"{free_gib:.0f} GiB are free in {there}")


def memory(nodes: int, each_mib: int) -> Finding:
    """Check that this machine has the memory for ``nodes`` nodes of ``each_mib`` MiB."""
    available = free_memory() >> 20
    # Clones share the memory pages that they have not written since the snapshot.
    needed = each_mib + nodes * each_mib // 4
    level = Level.OK if available >= needed else Level.WARNING
    return Finding(level, "memory", f"{available} MiB are available, {nodes} nodes use about {needed}")
