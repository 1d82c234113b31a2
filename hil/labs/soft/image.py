"""Build the guest image: a Debian root file system as an initramfs, and the kernel to boot it with.

The build needs no root: mmdebstrap writes a tar, and the cpio archive is written from it entry by entry.
"""

import bz2
import gzip
import hashlib
import importlib.metadata
import json
import lzma
import re
import shutil
import stat
import struct
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from hil.agent.parcel import code_files
from hil.cache import building, damage, seal, sweep
from hil.errors import ImageError
from hil.labs.soft.cpio import CpioWriter
from hil.labs.soft.debian import mmdebstrap
from hil.progress import say, step

SUITES = {"trixie": "librdmacm1t64", "bookworm": "librdmacm1"}
PACKAGES = (
    "base-files",
    "libc6",
    "libc-bin",
    "python3-minimal",
    "libpython3-stdlib",
    "python3-pyverbs",
    "ibverbs-providers",
    "rdmacm-utils",
    "ibverbs-utils",
    "perftest",
    "iproute2",
    "busybox-static",
    "kmod",
    "linux-image-amd64",
)
# Additional packages of a guest. "host" has an ssh server and capture programs.
VARIANTS = {"": (), "host": ("openssh-server", "tcpdump", "wireshark-common")}
DRIVERS = ("crc32_generic", "virtio_pci", "virtio_net", "virtio_console")
# macvlan gives a node a second netdev on the same wire, and so a second adapter.
# The other two are for netdevs that a test stacks on the lab's netdevs.
STACKED = ("macvlan", "8021q", "ipvlan")
MODULES = (*DRIVERS, *STACKED, "rdma_rxe", "rdma_ucm", "ib_umad")
LEFT_OUT = re.compile(
    r"^(usr/share/(doc|man|locale|info|lintian|perl|bug|zoneinfo|i18n|bash-completion|gcc|gdb)/|usr/lib/x86_64-linux-gnu/"
    r"(perl|gconv|systemd)|boot/|var/|(usr/)?lib/(modules|systemd|udev|firmware)/|usr/lib/python3\.\d+/(test|idlelib|tkinter|"
    r"ensurepip|lib2to3|pydoc_data|config-[^/]*)/|usr/(games|include|src)/)"
)
# A host records with dumpcap and does not need the libraries that decode packets.
LEFT_OUT_OF_HOSTS = r"^usr/(lib/x86_64-linux-gnu/(libwireshark|wireshark/)|share/wireshark/)"
RECIPE_VERSION = 2
INIT_BEGIN = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
# One band: in pfifo_fast a CM message overtakes a thousand data frames of its own adapter.
echo pfifo > /proc/sys/net/core/default_qdisc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
"""
"""The first lines of every guest's init, on each kind of kernel."""
INIT = (
    INIT_BEGIN
    + """for module in $(cat /etc/hil-modules); do
    insmod /hil-modules/$module.ko || echo "hil: module $module did not load"
done
ip link set lo up
ulimit -l unlimited
ulimit -n 65536
export PYTHONPATH=/hil-code:/hil-lib PYTHONUNBUFFERED=1 HOME=/tmp
cd /tmp
exec python3 -m hil.agent.agent hil
"""
)


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: ``kernel`` (vmlinux or bzImage), ``initrd`` (newc cpio), the recipe's key, and the packages."""

    suite: str
    key: str
    kernel: Path
    initrd: Path
    packages: dict[str, str]


def recipe(suite: str, variant: str = "") -> dict[str, object]:
    """All inputs of the image. Raises ImageError for an unknown suite."""
    if suite not in SUITES:
        raise ImageError(f"suite {suite!r} is not known; choose one of {', '.join(SUITES)}")
    return {
        "version": RECIPE_VERSION,
        "suite": suite,
        "packages": [*PACKAGES, SUITES[suite], *VARIANTS[variant]],
        "modules": MODULES,
        "left out": left_out(variant).pattern,
        "init": INIT,
        "pyroute2": importlib.metadata.version("pyroute2"),
    }


def left_out(variant: str) -> re.Pattern[str]:
    """A pattern for the packages' files that guests of ``variant`` lack. Paths have no leading slash."""
    return re.compile(f"{LEFT_OUT.pattern}|{LEFT_OUT_OF_HOSTS}") if variant else LEFT_OUT


def image_for(suite: str, cache: Path, variant: str = "") -> Image:
    """The image of ``suite`` from the cache. It is built if it is missing, damaged or of another recipe."""
    text = json.dumps(recipe(suite, variant), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache / "images" / f"{suite}-{key}"
    sweep(folder.parent)
    if folder.is_dir():
        problem = damage(folder)
        if problem is None:
            return _load(suite, key, folder)
        say(f"the cached image {folder.name} is damaged ({problem}): building it again")
        shutil.rmtree(folder)
    with step(f"building the {suite} guest image{f' ({variant})' * bool(variant)}"):
        _build(suite, variant, folder)
    return _load(suite, key, folder)


def _load(suite: str, key: str, folder: Path) -> Image:
    manifest = json.loads((folder / "manifest.json").read_text())
    return Image(suite, key, folder / "kernel", folder / "initrd", manifest["packages"])


def _build(suite: str, variant: str, folder: Path) -> None:
    with building(folder.parent) as work:
        tar = work / "root.tar"
        _bootstrap(suite, variant, tar)
        out = work / "image"
        out.mkdir()
        try:
            packages = _convert(tar, out, variant)
        except OSError as error:
            raise ImageError(f"the image could not be written to {folder.parent}: {error}") from error
        seal(out, folder, {"packages": packages, "recipe": recipe(suite, variant)})


def _bootstrap(suite: str, variant: str, tar: Path) -> None:
    include = ",".join([*PACKAGES, SUITES[suite], *VARIANTS[variant]])
    # The packages' names carry their versions; dpkg's own status file stays empty in this variant.
    note = 'ls "$1/var/cache/apt/archives" > "$1/hil-packages"'
    done = mmdebstrap(suite, tar, ["--variant=extract", f"--include={include}", f"--extract-hook={note}"])
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()[-6:]
        raise ImageError(
            f"mmdebstrap could not fetch {suite}: is the network there, and is there room in {tar.parent}?\n"
            + "\n".join(lines)
        )


def _convert(tar_path: Path, out: Path, variant: str) -> dict[str, str]:
    with tarfile.open(tar_path) as tar, (out / "initrd").open("wb") as raw:
        members = {m.name.removeprefix("./"): m for m in tar.getmembers()}
        cpio = CpioWriter(raw)
        cpio.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        _copy_tree(tar, members, cpio, variant)
        order = _copy_modules(tar, members, cpio)
        _copy_library("pyroute2", cpio)
        cpio.add_file("init", INIT.encode(), 0o755)
        cpio.add_file("etc/hil-modules", "\n".join(order).encode())
        cpio.close()
        kernel = next((m for n, m in members.items() if re.match(r"boot/vmlinuz-", n)), None)
        if kernel is None:
            raise ImageError("the package set holds no kernel")
        (out / "kernel").write_bytes(uncompressed_kernel(_read(tar, kernel)))
        return package_versions(_read(tar, members["hil-packages"]).decode())


def _copy_tree(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], cpio: CpioWriter, variant: str) -> None:
    unwanted = left_out(variant)
    for name in ("dev", "proc", "sys", "tmp", "run", "hil-modules", "hil-code", "hil-lib"):
        cpio.add_directory(name)
    for name, member in members.items():
        if not name or name in {".", "dev", "proc", "sys", "tmp", "run"} or name.startswith("dev/"):
            continue
        if unwanted.match(name) or unwanted.match(name + "/"):
            continue
        if member.isdir():
            cpio.add_directory(name)
        elif member.issym():
            cpio.add_link(name, member.linkname)
        elif member.isfile() or member.islnk():
            cpio.add_file(name, _read(tar, member), 0o755 if member.mode & 0o111 else 0o644)


def _copy_modules(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], cpio: CpioWriter) -> list[str]:
    available = {}
    for name, member in members.items():
        if found := re.search(r"lib/modules/.*/([^/]+)\.ko(\.xz)?$", name):
            available[found[1].replace("-", "_")] = member
    order: list[str] = []

    def take(module: str) -> None:
        if module in order or module not in available:
            return
        data = _read(tar, available[module])
        if available[module].name.endswith(".xz"):
            data = lzma.decompress(data)
        for needed in module_dependencies(data):
            take(needed)
        cpio.add_file(f"hil-modules/{module}.ko", data)
        order.append(module)

    for module in MODULES:
        take(module)
    return order


def module_dependencies(module: bytes) -> list[str]:
    """The modules that a kernel module names in its ``depends=`` line, with underscores."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def uncompressed_kernel(bz_image: bytes) -> bytes:
    """The ELF inside a bzImage (Linux: x86/boot, header fields setup_sects and payload_*).

    Booting the ELF saves the guest's own decompression. An image that cannot be unpacked here is returned whole.
    """
    sectors = bz_image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bz_image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = bz_image[start : start + length]
    unpackers = {
        b"\xfd7zXZ": _unxz,
        b"\x1f\x8b": gzip.decompress,
        b"BZh": bz2.decompress,
        b"\x28\xb5\x2f\xfd": _unzstd,
    }
    for magic, unpack in unpackers.items():
        if payload.startswith(magic):
            return unpack(payload)
    return bz_image


def _unxz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload)


def _unzstd(payload: bytes) -> bytes:
    # The kernel's build appends the unpacked size, four bytes that are no part of the zstd data.
    done = subprocess.run(["zstd", "-dcq"], input=payload[:-4], capture_output=True)
    if done.returncode != 0:
        raise ImageError(f"the kernel could not be unpacked: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _copy_library(name: str, cpio: CpioWriter) -> None:
    seen = set()
    for file in importlib.metadata.files(name) or ():
        if file.suffix != ".py" or ".." in file.parts:
            continue
        for parent in reversed(file.parents):
            if str(parent) != "." and parent not in seen:
                seen.add(parent)
                cpio.add_directory(f"hil-lib/{parent}")
        cpio.add_file(f"hil-lib/{file}", Path(str(file.locate())).read_bytes())


def write_code(out: Path) -> None:
    """Write the node-side code as a cpio archive to append to an image."""
    with out.open("wb") as raw:
        cpio = CpioWriter(raw)
        cpio.add_directory("hil-code")
        seen: set[str] = set()
        for name, path in code_files():
            for parent in reversed(Path(name).parents):
                if str(parent) != "." and str(parent) not in seen:
                    seen.add(str(parent))
                    cpio.add_directory(f"hil-code/{parent}")
            cpio.add_file(f"hil-code/{name}", path.read_bytes())
        cpio.close()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ImageError(f"{member.name} is not a file in the package set")
    return file.read()


def package_versions(listing: str) -> dict[str, str]:
    """Package versions from a listing of ``name_version_architecture.deb`` file names."""
    found = re.findall(r"^([^_\s]+)_([^_]+)_[^_]+\.deb$", listing, re.MULTILINE)
    return {name: version.replace("%3a", ":") for name, version in found}
