"""All facts of this machine from RDMA netlink at one moment, as plain data."""

import errno
from typing import Any

from hil.netlink.facts import RESOURCES, Device, Port, facts, shown
from hil.netlink.link import RdmaLink
from hil.netlink.requests import Requests
from hil.netlink.sockets import RdmaSocket


def survey(transport: str = "link") -> dict[str, Any]:
    """The system's settings, and every device with its ports, their counters, and its resources by kind.

    ``transport``: "link" for a plain socket, "socket" for pyroute2's. Raises OSError with the kernel's errno.
    """
    with RdmaSocket() if transport == "socket" else RdmaLink() as link:
        return {"system": link.system(), "devices": [_device(link, known) for known in link.devices()]}


def hardware_counters(link: Requests, device_index: int, port: int) -> dict[str, int]:
    """The hardware counters of an existing port by name; empty where the driver has none. Raises OSError."""
    try:
        return link.port_counters(device_index, port)
    except OSError as error:
        # EINVAL: the driver has no counters, as qedr, ocrdma and siw (nldev.c, stat_get_doit_default_counter).
        if error.errno != errno.EINVAL:
            raise
        return {}


def _device(link: Requests, attributes: dict[str, Any]) -> dict[str, Any]:
    index = attributes["DEV_INDEX"]
    ports = [shown(facts(Port, port)) for port in link.ports(index)]
    for port in ports:
        port["counters"] = hardware_counters(link, index, port["number"])
    found: dict[str, Any] = shown(facts(Device, attributes)) | {"ports": ports, "summary": link.summary(index)}
    for command, kind in RESOURCES.items():
        found[kind.__name__] = [shown(facts(kind, entry)) for entry in link.resources(command, index)]
    return found
