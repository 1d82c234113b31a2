"""What is there, what is missing, what would fail, and the command that mends it: of this machine and of a lab."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hil.adapters.inspect import inspect
from hil.agent.roles.capture import free_memory
from hil.cache import cache_folder
from hil.errors import HilError
from hil.files import passing_folder
from hil.labs.file import (
    Adapter,
    Guest,
    HostsFile,
    LabFile,
    MirrorCapture,
    NodeSection,
    SoftBridgeFile,
    SoftPairFile,
)
from hil.labs.hosts.host import Host
from hil.labs.hosts.lab import addresses, not_ready, outside, provisioning, resolved, told
from hil.labs.needs import doubts, lacks
from hil.labs.soft.machine import qemu_version
from hil.labs.soft.uml import NO_MEMORY_FOLDER, memory_folder
from hil.labs.soft.umlkernel import cached_kernel, missing_tools
from hil.progress import printable

QEMU_AT_LEAST = (7, 2)
# The first Linux whose soft-RoCE works inside network namespaces.
NAMESPACES_SINCE = 7
# An image, two snapshots and what their making needs.
ROOM_GIB = 4
MEND_MEMORY = "mount -o remount,exec,size=50% /dev/shm"
INSTALL = "apt-get install -y --no-install-recommends {}"


class Level(Enum):
    """How much a finding matters: nothing is missing, something works less well, the lab will not work."""

    OK = "ok"
    WARNING = "warning"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at, what was seen, and where that is not good the command that mends it."""

    level: Level
    what: str
    seen: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level.value:>8}  {self.what}: {self.seen}" + f"\n          mend: {self.mend}" * bool(self.mend)


def examine(lab: LabFile, base: Path) -> Iterator[Finding]:
    """Everything the lab of a file that lies in ``base`` depends on; nothing is changed."""
    yield _python()
    if isinstance(lab, HostsFile):
        yield from _hosts(lab, base)
    else:
        yield from _soft(lab)
    yield _program("tshark", "tshark", "second opinions on captures are skipped", Level.WARNING)
    yield _rdma_here(needed=isinstance(lab, HostsFile) and any(n.kind == "local" for n in lab.nodes.values()))
    yield from (Finding(Level.WARNING, f"no {need}", reason) for need, reason in lacks(lab).items())


def _python() -> Finding:
    # What is older than the project asks for does not get here.
    return Finding(Level.OK, "Python", sys.version.split()[0])


def _program(name: str, package: str, otherwise: str, level: Level = Level.BAD) -> Finding:
    if path := shutil.which(name):
        return Finding(Level.OK, name, path)
    return Finding(level, name, f"missing: {otherwise}", INSTALL.format(package))


def _soft(lab: LabFile) -> Iterator[Finding]:
    assert not isinstance(lab, HostsFile)
    guests = {lab.guest, lab.guest_b or lab.guest} if isinstance(lab, SoftPairFile) else {lab.guest}
    yield _program("mmdebstrap", "mmdebstrap", "guest images cannot be built")
    yield _program("zstd", "zstd", "the kernels of some suites cannot be unpacked", Level.WARNING)
    if clones := [guest for guest in guests if guest.kind == "clone"]:
        yield _qemu()
        yield _kvm(clones[0])
    for guest in guests:
        if guest.kind == "uml":
            yield _uml_kernel(guest)
            yield _uml_memory(lab.bridge.nodes if isinstance(lab, SoftBridgeFile) else 2, guest.memory_mib)
    yield _room(cache_folder())
    count = 2 if isinstance(lab, SoftPairFile) else lab.bridge.nodes
    yield _memory(count, lab.guest.memory_mib)


def _uml_kernel(guest: Guest) -> Finding:
    """Whether a kernel for User-Mode Linux is cached, or can be built."""
    kept = cached_kernel(guest.kernel, cache_folder())
    if kept is not None:
        return Finding(Level.OK, "User-Mode Linux", f"kernel {kept.release}, from {kept.source}, is cached")
    if missing := missing_tools():
        seen = f"a kernel must be built, and {', '.join(missing)} are missing"
        return Finding(Level.BAD, "User-Mode Linux", seen, INSTALL.format(" ".join(missing)))
    return Finding(Level.OK, "User-Mode Linux", f"a kernel will be built from {guest.kernel[0]}, in some minutes")


def _uml_memory(count: int, memory_mib: int) -> Finding:
    """Whether the folder where User-Mode Linux keeps its nodes' memory has room for them, and lets it be run."""
    folder = memory_folder()
    if folder is None:
        return Finding(Level.BAD, "nodes' memory", NO_MEMORY_FOLDER, MEND_MEMORY)
    status = os.statvfs(folder)
    free_mib = status.f_bavail * status.f_frsize >> 20
    if free_mib < count * memory_mib:
        seen = f"{free_mib} MiB are free in {folder}; {count} nodes of {memory_mib} MiB need {count * memory_mib}"
        return Finding(Level.BAD, "nodes' memory", seen, MEND_MEMORY)
    return Finding(Level.OK, "nodes' memory", f"{free_mib} MiB are free in {folder}")


def _qemu() -> Finding:
    try:
        version = qemu_version()
    except (HilError, OSError, subprocess.SubprocessError) as error:
        return Finding(Level.BAD, "QEMU", str(error), INSTALL.format("qemu-system-x86"))
    found = re.search(r"version (\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < QEMU_AT_LEAST:
        wanted = ".".join(map(str, QEMU_AT_LEAST))
        return Finding(Level.BAD, "QEMU", f"{version}: {wanted} is needed", INSTALL.format("qemu-system-x86"))
    return Finding(Level.OK, "QEMU", version)


def _kvm(guest: Guest) -> Finding:
    """The answer that a boot under KVM gave on this machine, where one was tried."""
    level = Level.BAD if guest.accelerator == "kvm" else Level.WARNING
    slow = "nodes are emulated, which is some ten times slower"
    if not Path("/dev/kvm").exists():
        return Finding(level, "KVM", f"this kernel has no /dev/kvm: {slow}", "modprobe kvm_intel || modprobe kvm_amd")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding(level, "KVM", f"/dev/kvm may not be opened: {slow}", "usermod -aG kvm $USER, and log in again")
    known = {path.read_text().strip() for path in cache_folder().glob("accelerator-*")}
    if known == {"tcg"}:
        return Finding(level, "KVM", f"/dev/kvm is there, but a node did not boot under it: {slow}")
    return Finding(Level.OK, "KVM", "works" if "kvm" in known else "/dev/kvm opens; the first boot will tell")


def _room(folder: Path) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_gib = shutil.disk_usage(there).free / (1 << 30)
    if free_gib < ROOM_GIB:
        seen = f"{free_gib:.1f} GiB are free in {there}, {ROOM_GIB} are needed"
        return Finding(Level.BAD, "disk", seen, f"rm -r {folder}/snapshots, or name another folder in HIL_CACHE")
    return Finding(Level.OK, "disk", f"{free_gib:.0f} GiB are free in {there}")


def _memory(nodes: int, each_mib: int) -> Finding:
    available = free_memory() >> 20
    # Clones share what they did not write since the snapshot.
    needed = each_mib + nodes * each_mib // 4
    level = Level.OK if available >= needed else Level.WARNING
    return Finding(level, "memory", f"{available} MiB are available, {nodes} nodes use about {needed}")


def _rdma_here(*, needed: bool) -> Finding:
    facts = inspect()
    devices = facts["rdma netlink"]
    if isinstance(devices, str):
        level = Level.BAD if needed else Level.OK
        seen = f"none: {devices.removeprefix('error: ')}" + " (not needed: the nodes are elsewhere)" * (not needed)
        return Finding(
            level,
            "RDMA in this kernel",
            seen,
            "modprobe -a rdma_rxe rdma_ucm, or your NIC's module instead of the first" if needed else "",
        )
    return Finding(Level.OK, "RDMA in this kernel", ", ".join(devices) or "no device")


def _hosts(lab: HostsFile, base: Path) -> Iterator[Finding]:
    if any(node.kind == "ssh" for node in lab.nodes.values()):
        yield _program("ssh", "openssh-client", "no host can be reached")
    yield from (Finding(Level.WARNING, "lab file", doubt) for doubt in doubts(lab))
    for name in lab.nodes:
        yield from _host(lab, name, base)


def _host(lab: HostsFile, name: str, base: Path) -> Iterator[Finding]:
    section = next(node for known, node in lab.nodes.items() if known == name)
    what, adapter = f"node {name}", section.adapter
    with passing_folder("hil-") as folder:
        try:
            host = Host(name, outside(section), base, folder / "console", lambda node, worker, event: None)
            try:
                host.wait_ready()
                wanted: dict[str, Any] = {}
                if adapter:
                    adapter = resolved(host, adapter)
                    wanted = {"device": adapter.device, "netdev": adapter.netdev, "addresses": addresses(adapter)}
                facts = host.system("inspect", **wanted)
                foreseen = _foreseen(host, section, adapter)
            finally:
                host.stop()
        except HilError as error:
            yield Finding(Level.BAD, what, told(name, error))
            return
    machine = facts["machine"]
    described = [machine.get(key, "") for key in ("distribution", "kernel")] + [f"Python {machine.get('python', '')}"]
    yield Finding(Level.OK, what, ", ".join(text for text in described if text))
    if adapter:
        yield from _adapter(adapter, facts, what, outside(section).namespace, foreseen)
    yield from _namespace(section, what, machine.get("kernel", ""))
    yield from _recorder(lab, name, facts)


def _foreseen(host: Host, section: NodeSection, adapter: Adapter | None) -> list[str]:
    """Why the node would refuse to make an adapter what the lab file asks; what it has to begin with is told apart."""
    wanted = provisioning(adapter, section.namespace if section.make_namespace else "") if adapter else {}
    return list(host.system("foresee", **wanted)) if wanted else []


def _namespace(section: NodeSection, what: str, kernel: str) -> Iterator[Finding]:
    number = re.match(r"\d+", kernel)
    soft = section.adapter is not None and section.adapter.soft_roce
    if section.namespace and soft and number and int(number[0]) < NAMESPACES_SINCE:
        seen = f"soft-RoCE of Linux {kernel} sends nothing from inside a network namespace"
        yield Finding(Level.WARNING, what, seen, f"take Linux {NAMESPACES_SINCE} or newer for it")


def _adapter(
    adapter: Adapter, facts: dict[str, Any], what: str, namespace: str = "", foreseen: Iterable[str] = ()
) -> Iterator[Finding]:
    if problems := not_ready(adapter, facts, provisioned=False, namespace=namespace):
        yield from (Finding(Level.BAD, what, problem.seen, problem.mend) for problem in problems)
        return
    if refused := [Finding(Level.BAD, what, text) for text in foreseen]:
        yield from refused
        return
    having = ", ".join(addresses(adapter))
    if not_ready(adapter, facts):
        yield Finding(Level.OK, what, f"{adapter.device} on {adapter.netdev} will be made for the run, with {having}")
    else:
        yield Finding(Level.OK, what, f"{adapter.device} is ACTIVE with {having}")


def _recorder(lab: HostsFile, name: str, facts: dict[str, Any]) -> Iterator[Finding]:
    capture, what = lab.capture, f"node {name}"
    if capture.kind == "none" or name != (capture.node if isinstance(capture, MirrorCapture) else capture.on):
        return
    adapter = next(node.adapter for known, node in lab.nodes.items() if known == name)
    own = adapter.netdev if adapter else ""
    interface = capture.netdev if isinstance(capture, MirrorCapture) else capture.interface or own
    # libpcap knows RDMA devices too, each by its own name.
    there = [*facts["netdevs"], *(facts["rdma netlink"] if isinstance(facts["rdma netlink"], list) else [])]
    # libpcap calls the second port of an RDMA device NAME:2.
    named = interface if interface in facts["netdevs"] else interface.partition(":")[0]
    if named not in (facts["netdevs"] if capture.method == "packet-socket" else there):
        yield Finding(Level.BAD, what, f"there is no {interface} to record on (there is: {', '.join(there)})")
    if capture.method == "packet-socket" and "CAP_NET_RAW" not in facts["capabilities"]:
        mend = "log in as root, or set sudo = true"
        yield Finding(Level.BAD, what, "CAP_NET_RAW is missing, which recording needs", mend)
    if capture.method != "packet-socket" and capture.method not in facts["programs"]:
        package = {"dumpcap": "wireshark-common"}.get(capture.method, capture.method)
        yield Finding(Level.BAD, what, f"{capture.method} is missing, which is to record", INSTALL.format(package))


def report(findings: Iterator[Finding], say: Callable[[str], None]) -> bool:
    """Say each finding as it is found; whether none was bad."""
    counts = dict.fromkeys(Level, 0)
    for finding in findings:
        counts[finding.level] += 1
        say(printable(str(finding)))
    say(f"{counts[Level.BAD]} bad, {counts[Level.WARNING]} warnings, {counts[Level.OK]} ok")
    return not counts[Level.BAD]
