"""Boot a node once and keep it as a snapshot. Find out whether KVM works on this machine."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hil.agent.parcel import code_key
from hil.cache import building, damage, in_use, keep_newest, seal, sweep
from hil.errors import NodeError, SnapshotError
from hil.labs.channel import Channel
from hil.labs.soft.booting import wait_booted
from hil.labs.soft.image import Image, write_code
from hil.labs.soft.machine import Hardware, Machine, command_line, fresh_file, qemu_version
from hil.progress import say, step
from hil.waiting import wait_until

KEPT = 4
MIGRATION_TIMEOUT_S = 60.0
BOOT_TIMEOUT_S = {"tcg": 240.0, "kvm": 30.0}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A booted and stopped node: the files that clones are made from."""

    kind: ClassVar[str] = "clone"
    hardware: Hardware
    ram: Path
    state: Path
    image: Image

    def made_of(self) -> dict[str, object]:
        """The machine, for provenance."""
        hardware = self.hardware
        return {"suite": self.image.suite, "accelerator": hardware.accelerator, "memory_mib": hardware.memory_mib}


def snapshot_for(
    image: Image, cache: Path, memory_mib: int = 640, accelerator: str = "auto", *, user_net: bool = False
) -> Snapshot:
    """The snapshot of ``image`` with the current node-side code. It is made if it is missing, damaged or outdated."""
    if accelerator == "auto":
        accelerator = working_accelerator(image, cache, memory_mib)
    # A clone whose hardware differs from the booted machine hangs without a message.
    machine = command_line(
        Hardware(Path(), Path(), memory_mib, accelerator, user_net),
        Path(),
        Path(),
        0,
        0,
        0,
        share=False,
        incoming=False,
    )
    inputs = json.dumps([image.key, code_key(), machine, qemu_version(), _cpu()])
    folder = cache / "snapshots" / f"{image.suite}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    sweep(folder.parent)
    if folder.is_dir():
        problem = damage(folder)
        if problem is None:
            # The least recently used snapshots are removed first, so mark this one as used.
            os.utime(folder)
            return _load(image, folder, memory_mib, accelerator, user_net)
        say(f"the cached snapshot {folder.name} is damaged ({problem}): making it again")
        shutil.rmtree(folder)
    with step(f"booting a {image.suite} node under {accelerator} and taking its snapshot"):
        _make(image, folder, memory_mib, accelerator, user_net)
    keep_newest(folder, KEPT)
    return _load(image, folder, memory_mib, accelerator, user_net)


def working_accelerator(image: Image, cache: Path, memory_mib: int) -> str:
    """``kvm`` if a node boots under KVM here, else ``tcg``. The answer is cached for this machine."""
    if named := os.environ.get("HIL_ACCELERATOR"):
        if named not in BOOT_TIMEOUT_S:
            raise SnapshotError(f"HIL_ACCELERATOR is {named!r}; it must be one of {', '.join(BOOT_TIMEOUT_S)}")
        return named
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    memory = (
        cache
        / f"accelerator-{hashlib.sha256((qemu_version() + _cpu() + os.uname().release).encode()).hexdigest()[:12]}"
    )
    if memory.is_file() and (answer := memory.read_text().strip()) in BOOT_TIMEOUT_S:
        return answer
    answer = "tcg"
    sweep(cache)
    with building(cache) as work:
        try:
            with step("finding out whether KVM works here"):
                _make(image, work / "trial", memory_mib, "kvm")
            answer = "kvm"
        except (NodeError, SnapshotError) as error:
            say(f"KVM is present but does not work here, using TCG: {str(error)[:300]}")
    memory.write_text(answer + "\n")
    return answer


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _load(image: Image, folder: Path, memory_mib: int, accelerator: str, user_net: bool) -> Snapshot:
    in_use(folder)
    hardware = Hardware(image.kernel, folder / "initrd", memory_mib, accelerator, user_net)
    return Snapshot(hardware, folder / "ram", folder / "state", image)


def _make(image: Image, folder: Path, memory_mib: int, accelerator: str, user_net: bool = False) -> None:
    with building(folder.parent) as place:
        work = place / "snapshot"
        work.mkdir()
        check_room(place, (memory_mib << 20) + 2 * image.initrd.stat().st_size)
        try:
            _join(image.initrd, work)
            fresh_file(work / "ram", memory_mib << 20)
        except OSError as error:
            raise SnapshotError(f"no room for a snapshot in {folder.parent}: {error}") from error
        _boot_and_save(Hardware(image.kernel, work / "initrd", memory_mib, accelerator, user_net), work)
        # Clones have the initramfs in the RAM file, but QEMU still needs the name of an existing file.
        (work / "initrd").write_bytes(b"")
        seal(work, folder, {})


def check_room(folder: Path, needed: int) -> None:
    """Raises SnapshotError unless ``needed`` bytes are free. On a full disk, SIGBUS would kill QEMU."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SnapshotError(
            f"no room for a snapshot in {folder.parent}: {needed >> 20} MiB are needed, {free >> 20} MiB are free; "
            "make room, or name another folder in HIL_CACHE"
        )


def _join(initrd: Path, work: Path) -> None:
    write_code(work / "code")
    with (work / "initrd").open("wb") as joined:
        for part in (initrd, work / "code"):
            joined.write(part.read_bytes())
    (work / "code").unlink()


def _boot_and_save(hardware: Hardware, work: Path) -> None:
    machine = Machine(hardware, work / "ram", work / "console", share=True, incoming=False)
    channel = Channel(machine.sockets.agent, "the node being booted", lambda worker, event: None, machine.last_words)
    try:
        try:
            wait_booted("the node", machine, channel, BOOT_TIMEOUT_S[hardware.accelerator])
        except NodeError as error:
            raise SnapshotError(str(error)) from error
        channel.clock()
        _save(machine, work / "state")
    finally:
        machine.stop()
        channel.close()


def _save(machine: Machine, state: Path) -> None:
    machine.monitor("stop")
    machine.monitor("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    machine.monitor("migrate", uri=f"exec:cat > '{state}'")
    wait_for_migration(machine)


def wait_for_migration(machine: Machine) -> None:
    """Wait until an outgoing or incoming migration has ended. Raises SnapshotError when it failed."""
    info = wait_until(
        lambda: dict(machine.monitor("query-migrate")),
        MIGRATION_TIMEOUT_S,
        "the snapshot",
        enough=lambda told: told.get("status") in {"completed", "failed", "cancelled"},
        strict=False,
        poll_s=0.005,
    )
    if info.get("status") in {"failed", "cancelled"}:
        raise SnapshotError(f"the snapshot failed: {info.get('error-desc', info)}; {machine.last_words()}")
    if info.get("status") != "completed":
        raise SnapshotError(f"the snapshot did not end within {MIGRATION_TIMEOUT_S:.0f} s")
