"""Build a User-Mode Linux kernel with soft-RoCE, from Debian's own source or the user's kernel tree.

Such a kernel (Linux: Documentation/virt/uml) is an ordinary program: it needs no KVM, no emulator and no root.
It is built once for each source and configuration, and cached beside the images.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hil.agent.agent import MODULES_FOLDER
from hil.cache import building, damage, keep_newest, seal, sweep
from hil.children import die_with_parent
from hil.errors import KernelError
from hil.labs.soft.cpio import CpioWriter
from hil.labs.soft.debian import mmdebstrap
from hil.labs.soft.file import KERNEL_PACKAGE
from hil.labs.soft.image import module_dependencies
from hil.progress import say, step

# Every kernel feature that a test uses, in addition to "allnoconfig".
FEATURES = """
64BIT MULTIUSER PRINTK BUG FUTEX EPOLL SIGNALFD TIMERFD EVENTFD SHMEM AIO POSIX_TIMERS MEMBARRIER ADVISE_SYSCALLS
KALLSYMS SYSFS FHANDLE FILE_LOCKING INOTIFY_USER DNOTIFY MEMFD_CREATE SYSVIPC POSIX_MQUEUE BINFMT_ELF BINFMT_SCRIPT
NO_HZ_IDLE HIGH_RES_TIMERS CC_OPTIMIZE_FOR_PERFORMANCE MCONSOLE MAGIC_SYSRQ PANIC_ON_OOPS SECCOMP SECCOMP_FILTER
CGROUPS CGROUP_RDMA CGROUP_PIDS NAMESPACES UTS_NS IPC_NS PID_NS USER_NS NET_NS
BLK_DEV_INITRD DEVTMPFS TMPFS TMPFS_XATTR PROC_FS PROC_SYSCTL PROC_PAGE_MONITOR CONFIGFS_FS HOSTFS
TTY UNIX98_PTYS SSL NULL_CHAN
NET INET IPV6 UNIX PACKET IP_MULTICAST IP_ADVANCED_ROUTER IP_MULTIPLE_TABLES IPV6_MULTIPLE_TABLES NETDEVICES NET_CORE
NET_SCHED DUMMY VETH BRIDGE BONDING MACVLAN IPVLAN VLAN_8021Q UML_NET_VECTOR
PCI VIRTIO_MENU VIRTIO_UML UML_PCI_OVER_VIRTIO UML_PCI
INFINIBAND_ADDR_TRANS MODULES CRYPTO CRYPTO_CRC32 CRYPTO_CRC32C CRC32
"""
# These are modules, because the order in which they register matters when a device is removed. The kernel notifies its
# clients in the reverse order. ib_uverbs waits until every program has closed the device (ib_uverbs_remove_one). A
# program closes it when rdma_cm reports the removal. So rdma_cm must be notified first, and must register last. Up to
# Linux 6.12 soft-RoCE needs ib_uverbs, so ib_uverbs is loaded first. Newer versions do not need it: modprobe then loads
# rdma_cm before ib_uverbs, and a soft-RoCE device is not removed while a program has it open.
MODULAR = "INFINIBAND INFINIBAND_USER_MAD INFINIBAND_USER_ACCESS RDMA_RXE RDMA_SIW"
LOADED = ("ib_uverbs", "rdma_rxe", "rdma_ucm", "ib_umad")
# These are switched off explicitly: "allnoconfig" leaves them on, or other symbols select them.
LEFT_OUT = "BLOCK IO_URING ELF_CORE LOCALVERSION_AUTO WERROR STATIC_LINK"
# A kernel without these cannot be a node. The other features may be missing in an old or new source.
NEEDED = ("HOSTFS", "IPV6", "PACKET", "SSL", "UML_NET_VECTOR", "INFINIBAND_USER_ACCESS", "RDMA_RXE", "CONFIGFS_FS")
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "dpkg-deb": "dpkg",
    "xz": "xz-utils",
}
HEADER = Path("/usr/include/stdlib.h")
# Kbuild refuses a path with any of these characters.
NOT_IN_PATHS = re.compile(r"[\s:]")
RECIPE_VERSION = 3
# User-Mode Linux closes the descriptor that its netdev was given when the netdev goes down, and cannot open it again
# (arch/um/drivers/vector_user.c, user_init_fd_fds). This preloaded library keeps the descriptor open.
KEEP_OPEN = """
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int close(int fd)
{
    static int kept = -2;

    if (kept == -2) {
        const char *told = getenv("HIL_KEEP_OPEN");
        kept = told ? atoi(told) : -1;
    }
    return fd >= 0 && fd == kept ? 0 : (int)syscall(SYS_close, fd);
}
"""
KEPT = 4


@dataclass(frozen=True, slots=True)
class Kernel:
    """A built kernel: ``program`` to run with ``preload``, a cpio archive of its ``modules``, its ``release`` as in
    uname, and the ``source``."""

    program: Path
    preload: Path
    modules: Path
    release: str
    source: str


def kernel_for(sources: Sequence[str], cache: Path) -> Kernel:
    """The kernel of the first of ``sources`` that is cached. If none is cached, the first available one is built.

    A source is SUITE/PACKAGE, such as trixie-backports/linux-source-7.2, or the path of a kernel tree. Raises
    KernelError. A missing package is an error only if it is the last source.
    """
    folder = cache / "kernels"
    sweep(folder)
    if (kernel := cached_kernel(sources, cache)) is not None:
        return kernel
    for source in sources[:-1]:
        try:
            return _built(source, folder)
        except NoSuchSource as error:
            say(f"{error}; trying the next source")
    return _built(sources[-1], folder)


def cached_kernel(sources: Sequence[str], cache: Path) -> Kernel | None:
    """The kernel of the first of ``sources`` that is cached, or None."""
    for source in sources:
        with suppress(NoSuchSource):
            if (kernel := _cached(cache / "kernels" / key_of(source), source)) is not None:
                return kernel
    return None


class NoSuchSource(KernelError):
    """A suite has no package of that name, or there is no kernel tree at a path."""


def key_of(source: str) -> str:
    """The name in the cache of the kernel built from ``source``. Raises NoSuchSource."""
    inputs = [
        RECIPE_VERSION,
        configuration(),
        KEEP_OPEN,
        LOADED,
        _tree_key(Path(source)) if is_tree(source) else source,
    ]
    name = "tree" if is_tree(source) else source.rpartition("/")[2]
    return f"{name}-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]}"


def is_tree(source: str) -> bool:
    """Whether a source is the path of a kernel tree rather than a package."""
    return KERNEL_PACKAGE.fullmatch(source) is None


def configuration() -> str:
    """The configuration that ``allnoconfig`` starts from."""
    on = [f"CONFIG_{name}=y" for name in FEATURES.split()]
    on += [f"CONFIG_{name}=m" for name in MODULAR.split()]
    off = [f"CONFIG_{name}=n" for name in LEFT_OUT.split()]
    return "\n".join([*on, *off, 'CONFIG_LOCALVERSION=""', "CONFIG_DEBUG_INFO_NONE=y", ""])


def missing_tools() -> list[str]:
    """The Debian packages that a build needs and this machine lacks."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return missing + ["libc6-dev"] * (not HEADER.exists())


def _tree_key(tree: Path) -> str:
    """A key of a tree's files by name, size and time. Raises NoSuchSource."""
    if not (tree / "arch" / "um" / "Makefile").is_file():
        raise NoSuchSource(f"{tree} is no kernel tree with User-Mode Linux: it has no arch/um/Makefile")
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(tree):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(files):
            status = (Path(folder) / name).lstat()
            digest.update(f"{folder}/{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _cached(folder: Path, source: str) -> Kernel | None:
    if not folder.is_dir():
        return None
    if (problem := damage(folder)) is not None:
        say(f"the cached kernel {folder.name} is damaged ({problem}): building it again")
        shutil.rmtree(folder)
        return None
    # The least recently used kernels are removed first, so mark this one as used.
    os.utime(folder)
    return _kernel(folder, source)


def _kernel(folder: Path, source: str) -> Kernel:
    release = json.loads((folder / "manifest.json").read_text())["release"]
    return Kernel(folder / "linux", folder / "keep-open.so", folder / "modules.cpio", release, source)


def _built(source: str, folder: Path) -> Kernel:
    if missing := missing_tools():
        raise KernelError(
            f"a kernel cannot be built here; install the missing packages: apt-get install {' '.join(missing)}"
        )
    final = folder / key_of(source)
    if NOT_IN_PATHS.search(str(folder)):
        raise KernelError(
            f"a kernel cannot be built in {folder}: a blank or a colon is in the path; name another in HIL_CACHE"
        )
    with step(f"building a User-Mode Linux kernel from {source} (once; takes minutes)"), building(folder) as work:
        tree = Path(source).absolute() if is_tree(source) else _unpacked(source, work)
        out = work / "out"
        out.mkdir()
        try:
            _make(tree, out, work / "log")
            kept = work / "kernel"
            kept.mkdir()
            shutil.copy(out / "linux", kept / "linux")
            _pack_modules(out, kept / "modules.cpio")
            (work / "keep-open.c").write_text(KEEP_OPEN)
            compiler = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(kept / "keep-open.so")]
            _run([*compiler, str(work / "keep-open.c")], work / "log")
        except OSError as error:
            raise KernelError(f"the kernel could not be written to {folder}: {error}") from error
        release = _run([str(kept / "linux"), "--version"], work / "log").strip()
        seal(kept, final, {"release": release, "source": source})
    keep_newest(final, KEPT)
    return _kernel(final, source)


def _unpacked(source: str, work: Path) -> Path:
    """The source tree of a Debian package, unpacked below ``work``. Raises NoSuchSource and KernelError."""
    suite, _, package = source.partition("/")
    # Use the apt settings of the new root, so that this machine's suites and keys do not matter.
    # The package without a version depends on the newest package, which is downloaded instead.
    script = (
        'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; '
        f'p=$(apt-cache depends {package} 2> /dev/null | sed -n "s/ *Depends: *\\(linux-source-[0-9.]*\\)$/\\1/p"); '
        f'[ -n "$p" ] || p={package}; '
        "apt-cache show $p > /dev/null 2>&1 "
        "|| { apt-cache pkgnames linux-source- | sort | xargs echo hil-known:; exit 1; }; "
        'cd "$1" && apt-get -q download $p'
    )
    tar = work / "source.tar"
    done = mmdebstrap(suite, tar, ["--variant=custom", f"--customize-hook={script}"])
    if done.returncode != 0:
        told = done.stdout + done.stderr
        if known := re.search(r"hil-known:(.*)", told):
            raise NoSuchSource(f"{suite} has no package {package}; it has {known[1].strip() or 'no kernel source'}")
        raise KernelError(f"{source} could not be fetched: is the network there?\n" + "\n".join(told.splitlines()[-6:]))
    log = work / "log"
    _run(["tar", "-C", str(work), "--wildcards", "--strip-components=1", "-xf", str(tar), "./*.deb"], log)
    deb = next(work.glob("linux-source-*.deb"))
    _run(["dpkg-deb", "--extract", str(deb), str(work / "deb")], log)
    tree = work / "tree"
    tree.mkdir()
    packed = next((work / "deb" / "usr" / "src").glob("linux-source-*.tar.xz"))
    _run(["tar", "-C", str(tree), "--strip-components=1", "-xf", str(packed)], log)
    return tree


def _make(tree: Path, out: Path, log: Path) -> None:
    answers = out.parent / "answers"
    answers.write_text(configuration())
    make = ["make", "-C", str(tree), "ARCH=um", f"O={out}"]
    _run([*make, f"KCONFIG_ALLCONFIG={answers}", "allnoconfig"], log)
    known = (out / ".config").read_text()
    if missing := [name for name in NEEDED if not re.search(f"^CONFIG_{name}=[ym]$", known, re.MULTILINE)]:
        raise KernelError(f"{tree.name}: this source cannot be built with {', '.join(missing)}")
    _run([*make, f"-j{os.cpu_count() or 1}", "linux", "modules"], log)


def _pack_modules(out: Path, archive: Path) -> None:
    """Write a cpio archive with the modules that a node loads, and a list of them in load order."""
    built = {path.stem.replace("-", "_"): path for path in out.rglob("*.ko")}
    order: list[str] = []

    def take(module: str) -> None:
        if module not in order and module in built:
            for needed in module_dependencies(built[module].read_bytes()):
                take(needed)
            order.append(module)

    for module in LOADED:
        take(module)
    with archive.open("wb") as raw:
        cpio = CpioWriter(raw)
        cpio.add_directory(MODULES_FOLDER.lstrip("/"))
        for module in order:
            cpio.add_file(f"{MODULES_FOLDER}/{module}.ko".lstrip("/"), built[module].read_bytes())
        cpio.add_file(f"{MODULES_FOLDER}/order".lstrip("/"), "\n".join(order).encode())
        cpio.close()


def _run(command: list[str], log: Path) -> str:
    """Run a step of the build. Returns its output, which is also added to ``log``. Raises KernelError with its last
    lines."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    )
    with log.open("a") as file:
        file.write(done.stdout)
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()][-8:]
        raise KernelError(f"{command[0]} ended with {done.returncode}:\n" + "\n".join(lines))
    return done.stdout
