"""What the kernel still holds, by kind and owner."""

from pathlib import Path
from typing import Any

from hil.netlink.link import RdmaLink
from hil.netlink.messages import Command

KINDS = {
    "QP": Command.RES_QP_GET,
    "CQ": Command.RES_CQ_GET,
    "MR": Command.RES_MR_GET,
    "PD": Command.RES_PD_GET,
    "CM_ID": Command.RES_CM_ID_GET,
}
_NUMBER = {"QP": "RES_LQPN", "CQ": "RES_CQN", "MR": "RES_MRN", "PD": "RES_PDN", "CM_ID": "RES_CM_IDN"}


def resources(pid: int | None = None) -> list[dict[str, Any]]:
    """Every resource owned by a process (only ``pid``'s when given): kind, number, pid, device, details.

    Raises OSError when the kernel refuses a dump: a failed dump is never an empty list.
    """
    found = []
    with RdmaLink() as link:
        for device in link.devices():
            for kind, command in KINDS.items():
                for entry in link.resources(command, device["DEV_INDEX"]):
                    owner = entry.get("RES_PID")
                    if owner is None or (pid is not None and owner != pid):
                        continue
                    found.append(_described(kind, entry, owner, device["DEV_NAME"]))
    return found


def _described(kind: str, entry: dict[str, Any], owner: int, device: str) -> dict[str, Any]:
    known = {"number": entry.get(_NUMBER[kind]), "length": entry.get("RES_MRLEN"), "state": entry.get("RES_STATE")}
    details = {name: value for name, value in known.items() if value is not None}
    return {"kind": kind, "pid": owner, "device": device, "command": command_of(owner)} | details


def command_of(pid: int) -> str:
    """The name of a process, or "ended"."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
