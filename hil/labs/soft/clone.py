"""Clones: QEMU machines made from a snapshot in a tenth of a second, on their distribution's own kernel."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hil.errors import SetupError
from hil.labs.findings import Finding
from hil.labs.node import Record
from hil.labs.soft.doctor import kvm, qemu
from hil.labs.soft.file import Guest
from hil.labs.soft.image import Image
from hil.labs.soft.kinds import GuestKind
from hil.labs.soft.machine import Machine, qemu_version
from hil.labs.soft.node import SoftNode
from hil.labs.soft.snapshot import Snapshot, snapshot_for, wait_for_migration


class Clone(SoftNode):
    """A running clone with its agent. Its ``machine`` is QEMU.

    ``joined``: the clone's own end of a socket to another clone, instead of a wire. ``ssh_port``: the port of this
    machine's loopback that leads to the clone's ssh server; 0 for none.
    """

    machine: Machine

    def __init__(
        self,
        name: str,
        snapshot: Snapshot,
        console: Path,
        on_event: Record,
        ssh_port: int = 0,
        joined: socket.socket | None = None,
    ) -> None:
        machine = Machine(
            snapshot.hardware, snapshot.ram, console, share=False, incoming=True, ssh_port=ssh_port, frames=joined
        )
        try:
            capability = {"capability": "x-ignore-shared", "state": True}
            machine.monitor("migrate-set-capabilities", capabilities=[capability])
            # A restored QEMU would announce its old MAC address on the wire.
            machine.monitor("migrate-set-parameters", **{"announce-rounds": 0})
            machine.monitor("migrate-incoming", uri=f"exec:cat '{snapshot.state}'")
            wait_for_migration(machine)
            machine.monitor("cont")
        except BaseException:
            machine.stop()
            raise
        super().__init__(name, machine, on_event)


class CloneKind:
    """The kind of guest that is a clone of a snapshot."""

    schema = Guest
    noun = "a clone"
    own_kernel = True
    waits = False

    def prepare(self, guest: Guest, image: Image, cache: Path, *, second_net: bool) -> Snapshot:
        return snapshot_for(image, cache, guest.memory_mib, guest.accelerator, user_net=second_net)

    def start(self, name: str, made_from: Any, console: Path, record: Record, mtu: int) -> SoftNode:
        return Clone(name, made_from, console, record)

    def examine(self, guest: Guest, count: int) -> Iterator[Finding]:
        yield qemu()
        yield kvm(guest)

    def made_with(self) -> dict[str, Any]:
        with suppress(SetupError, OSError, subprocess.SubprocessError):
            return {"qemu": qemu_version()}
        return {}


CLONE: GuestKind = CloneKind()
