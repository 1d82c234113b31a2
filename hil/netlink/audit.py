"""The RDMA resources that the kernel holds, by kind and owner."""

from pathlib import Path
from typing import Any

from hil.netlink.codes import QpState, QpType
from hil.netlink.facts import socket_address
from hil.netlink.link import RdmaLink
from hil.netlink.messages import Command

KINDS = {
    "QP": Command.RES_QP_GET,
    "CQ": Command.RES_CQ_GET,
    "MR": Command.RES_MR_GET,
    "PD": Command.RES_PD_GET,
    "CM_ID": Command.RES_CM_ID_GET,
    "SRQ": Command.RES_SRQ_GET,
    "CTX": Command.RES_CTX_GET,
}
# The attribute that holds a resource's number, by kind.
_NUMBER = {
    "QP": "RES_LQPN",
    "CQ": "RES_CQN",
    "MR": "RES_MRN",
    "PD": "RES_PDN",
    "CM_ID": "RES_CM_IDN",
    "SRQ": "RES_SRQN",
    "CTX": "RES_CTXN",
}
# The attributes that hold the other facts of a resource.
_DETAILS = {
    "length": "RES_MRLEN",
    "key": "RES_LKEY",
    "state": "RES_STATE",
    "use_count": "RES_USECNT",
    "entries": "RES_CQE",
    "context": "RES_CTXN",
    "pd": "RES_PDN",
    "thread": "RES_PID",
}


def resources() -> list[dict[str, Any]]:
    """Every RDMA resource that user space holds: kind, device, number, owner's pid and command, details.

    The kind "CTX" is an opened device. The kernel names the *thread* that made a resource, as long as that thread
    lives. A resource of a thread that has ended is listed with pid None; only resources of the kernel itself are left
    out. Raises OSError when the kernel refuses a dump.
    """
    found = []
    with RdmaLink() as link:
        for device in link.devices():
            for kind, command in KINDS.items():
                for entry in link.resources(command, device["DEV_INDEX"]):
                    if "RES_KERN_NAME" not in entry:
                        found.append(_described(kind, entry, device["DEV_NAME"]))
    return found


def owners(found: list[dict[str, Any]]) -> list[int | None]:
    """The id of the process that holds each resource of ``found``, or None where it is unknown.

    When the thread that made a resource has ended, the process that opened the resource's device holds it; so ``found``
    must hold the opened devices too.
    """
    opened = {(r["device"], r["number"]): r["pid"] for r in found if r["kind"] == "CTX"}
    domains = {(r["device"], r["number"]): r.get("context") for r in found if r["kind"] == "PD"}
    contexts = [r.get("context", domains.get((r["device"], r.get("pd")))) for r in found]
    return [r["pid"] or opened.get((r["device"], context)) for r, context in zip(found, contexts, strict=True)]


def general_services(device: str) -> list[str]:
    """The states of a device's general services queue pairs, one for each port; empty without such a device.

    In any state but RTS the connection manager receives nothing. Raises OSError when the kernel refuses a dump.
    """
    with RdmaLink() as link:
        found = [known["DEV_INDEX"] for known in link.devices() if known["DEV_NAME"] == device]
        entries = [entry for index in found for entry in link.resources(Command.RES_QP_GET, index)]
    return [QpState(entry["RES_STATE"]).name for entry in entries if entry["RES_TYPE"] == QpType.GSI]


def _described(kind: str, entry: dict[str, Any], device: str) -> dict[str, Any]:
    known = {name: entry.get(attribute) for name, attribute in _DETAILS.items()}
    known |= {"number": entry.get(_NUMBER[kind]), "qp": entry.get("RES_LQPN") if kind == "CM_ID" else None}
    for name, attribute in (("source", "RES_SRC_ADDR"), ("destination", "RES_DST_ADDR")):
        address = socket_address(entry.get(attribute, b""))
        known[name] = f"{address[0]} port {address[1]}" if address else None
    details = {name: value for name, value in known.items() if value is not None}
    thread = entry.get("RES_PID")
    pid, command = process_of(thread) if thread else (None, "its thread has ended")
    return {"kind": kind, "device": device, "pid": pid, "command": command} | details


def process_of(thread: int) -> tuple[int | None, str]:
    """The id and name of the process that a thread belongs to, or (None, "ended")."""
    try:
        lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    except OSError:
        return None, "ended"
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return int(fields["Tgid"]), fields["Name"]
