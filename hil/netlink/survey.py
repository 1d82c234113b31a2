"""Everything RDMA netlink tells of this machine at one moment, as plain data."""

import errno
from typing import Any

from hil.netlink.facts import RESOURCES, Device, Port, facts, shown
from hil.netlink.link import RdmaLink
from hil.netlink.requests import Requests
from hil.netlink.sockets import RdmaSocket


def survey(transport: str = "link") -> dict[str, Any]:
    """The system's settings, and every device with its ports, their counters, and its resources by kind.

    ``transport``: "link" or "socket", pyroute2's own. Raises OSError as the kernel answers.
    """
    with RdmaSocket() if transport == "socket" else RdmaLink() as link:
        return {"system": link.system(), "devices": [_device(link, known) for known in link.devices()]}


def hardware_counters(link: Requests, device_index: int, port: int) -> dict[str, int]:
    """The hardware counters of a port that is there, by name; none where the driver counts none. Raises OSError."""
    try:
        return link.port_counters(device_index, port)
    except OSError as error:
        # The kernel's answer for a driver without (nldev.c, stat_get_doit_default_counter): qedr, ocrdma, siw.
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
