"""The facts of a node that the bench depends on, read without changing anything; the doctor asks for them."""

import ctypes
import importlib
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hil.adapters.find import INFINIBAND, NET, adapters, choose, lower_of, netdevs_of, port_of, read_text
from hil.adapters.network import Network
from hil.adapters.processes import KMSG
from hil.adapters.provenance import machine, packages
from hil.adapters.provision import gid_of, gids, port_state
from hil.errors import AdapterError
from hil.netlink.link import RdmaLink

PROGRAMS = ("ip", "rdma", "dumpcap", "tcpdump", "sudo")
DEVICES = Path("/dev/infiniband")
# linux/capability.h
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_IPC_LOCK": 14}


def inspect(device: str = "", netdev: str = "", addresses: list[str] | None = None) -> dict[str, Any]:
    """Facts of this node by name; a fact that cannot be read is a text that begins with ``error: ``."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return {
        "machine": machine(),
        "packages": packages(),
        "python": list(sys.version_info[:2]),
        "root": os.geteuid() == 0,
        "pyverbs": _tried(lambda: importlib.import_module("pyverbs.device")),
        "librdmacm": _tried(lambda: ctypes.CDLL("librdmacm.so.1")),
        "rdma netlink": _rdma_devices(),
        "rdma_cm": os.access(DEVICES / "rdma_cm", os.R_OK | os.W_OK),
        "capabilities": capabilities(),
        "kernel log": _tried(lambda: os.close(os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))),
        "locked memory": -1 if limit == resource.RLIM_INFINITY else limit,
        "netdevs": [name for _, name in socket.if_nameindex()],
        "soft-roce": _has_module("rdma_rxe"),
        "programs": [name for name in PROGRAMS if shutil.which(name)],
        "adapter": _adapter(device, netdev, addresses or []) if device else {},
    }


def capabilities() -> list[str]:
    """The capabilities that this process has (CapEff), among those that the bench needs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return [name for name, bit in CAPABILITIES.items() if held >> bit & 1]
    return []


def _tried(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"error: {error}"
    return "there"


def _rdma_devices() -> list[str] | str:
    try:
        with RdmaLink() as link:
            return [device["DEV_NAME"] for device in link.devices()]
    except OSError as error:
        return f"error: {error}"


def _has_module(name: str) -> bool:
    """Whether the kernel has loaded a module, or can load it."""
    if Path("/sys/module", name).exists():
        return True
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return False
    nowhere = subprocess.DEVNULL
    return subprocess.run([program, "-n", "-q", name], stdin=nowhere, stdout=nowhere, stderr=nowhere).returncode == 0


def _adapter(device: str, netdev: str, addresses: list[str]) -> dict[str, Any]:
    try:
        carries = netdevs_of(device)
        port = port_of(netdev, carries)
        held = gids(device, port, whole=True)
        missing = [address for address in addresses if gid_of(address) not in held]
        return {
            "port": port,
            "link layer": read_text(INFINIBAND / device / "ports" / str(port) / "link_layer"),
            "state": port_state(device, port),
            "carries": sorted(carries.values()),
            "lower": lower_of(netdev),
            "mac": _mac(netdev),
            "missing gids": missing,
            "not served": [a for a in _not_served(device, addresses) if a not in missing],
        }
    except OSError as error:
        return {"error": str(error)}


def _not_served(device: str, addresses: list[str]) -> list[str]:
    """The addresses that a provider on this node will not find on this device, even where the port has their GIDs."""
    network = Network()
    try:
        known = network.addresses()
    finally:
        network.close()
    return [address for address in addresses if known.get(address) != device]


def device_of(wanted: str) -> str:
    """The name of the RDMA device that ``hil.adapters.find.choose`` finds for ``wanted``, or an empty text."""
    try:
        return choose(adapters(), wanted)[0].name
    except (AdapterError, OSError):
        return ""


def _mac(netdev: str) -> str:
    try:
        return (NET / netdev / "address").read_text().strip()
    except OSError:
        return ""
