"""The hardware and software of a node, read on the node: adapter, firmware, driver, kernel, rdma-core."""

import platform
import shutil
import subprocess
from pathlib import Path

from hil.adapters.find import INFINIBAND, NET, netdevs_of, port_of

_OF_DEVICE = ("fw_ver", "hca_type", "board_id", "node_guid", "sys_image_guid")
_OF_PORT = ("rate", "state", "link_layer")
_OF_NETDEV = ("address", "mtu", "speed", "operstate")
_PACKAGES = ("rdma-core", "libibverbs1", "librdmacm1", "librdmacm1t64", "ibverbs-providers", "python3-pyverbs")
_RPMS = ("rdma-core", "libibverbs", "librdmacm", "python3-pyverbs")
_MODULE_FACTS = {"driver version": "version", "driver source": "srcversion"}
QUERY_TIMEOUT_S = 20.0


def provenance(device: str, netdev: str) -> dict[str, dict[str, str]]:
    """Facts by subject: adapter, port, netdev, machine, packages. Facts that the node cannot give are left out."""
    adapter = _read(INFINIBAND / device, _OF_DEVICE)
    adapter |= {"device": device} | (_driver(INFINIBAND / device) or {"driver": _soft(device)})
    port = _read(INFINIBAND / device / "ports" / str(_port_of(device, netdev)), _OF_PORT)
    link = _read(NET / netdev, _OF_NETDEV) | {"netdev": netdev} | _driver(NET / netdev)
    return {
        "adapter": _known(adapter),
        "port": port,
        "netdev": _known(link),
        "machine": machine(),
        "packages": packages(),
    }


def machine() -> dict[str, str]:
    """The node's kernel, its Python, its distribution, the machine's product name and host name."""
    facts = {"kernel": platform.release(), "version": platform.version(), "architecture": platform.machine()}
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    facts |= {"python": platform.python_version(), "distribution": release.get("PRETTY_NAME", "")}
    facts |= {"product": _text(Path("/sys/class/dmi/id/product_name")), "host": platform.node()}
    return _known(facts)


def packages() -> dict[str, str]:
    """The versions of rdma-core's packages, from dpkg, rpm or the bench's own image."""
    listing = Path("/hil-packages")
    if listing.is_file():
        named = [name.split("_") for name in listing.read_text().split() if name.count("_") == 2]
        return {name: version for name, version, _ in named if name in _PACKAGES}
    if shutil.which("dpkg-query"):
        command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *_PACKAGES]
    elif shutil.which("rpm"):
        command = ["rpm", "-q", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n", *_RPMS]
    else:
        return {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, stdin=subprocess.DEVNULL)
    # A package that is not installed has no version, or a sentence in its place.
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.count(" ") == 1 and line.split(" ")[1])


def _read(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return _known({name: _text(folder / name) for name in names})


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[:200]
    except OSError:
        # A netdev without a cable has no speed.
        return ""


def _driver(folder: Path) -> dict[str, str]:
    """The driver's name, and the version of its module; only the version identifies an out-of-tree driver."""
    try:
        name = (folder / "device" / "driver").resolve(strict=True).name
    except OSError:
        return {}
    module = folder / "device" / "driver" / "module"
    return {"driver": name} | _known({fact: _text(module / file) for fact, file in _MODULE_FACTS.items()})


def _port_of(device: str, netdev: str) -> int:
    try:
        return port_of(netdev, netdevs_of(device))
    except OSError:
        # A kernel without RDMA has no ports.
        return 1


def _soft(device: str) -> str:
    return "software" if (INFINIBAND / device).exists() else ""


def _known(facts: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if value}
