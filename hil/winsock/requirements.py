"""The requirement catalogue of the contract, as data (part 3 of the catalogue)."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

AREAS = {
    "INST": "Installation and discovery",
    "STARTUP": "Initialisation",
    "ADDR": "Address list and translation",
    "SOCK": "Socket creation",
    "BIND": "Binding",
    "EVT": "Event selection and enumeration",
    "LISTEN": "Listening and backlog",
    "ACC": "Accepting and rejecting",
    "CONN": "Connecting",
    "NEG": "First messages and missing receive buffers",
    "MEM": "Memory registration, local",
    "RMEM": "Memory registration, remote",
    "CACHE": "Registration caching",
    "OVL": "Overlapped operation and completion",
    "SEND": "WSPSend",
    "RECV": "WSPRecv",
    "RDMA": "WSPRdmaWrite and WSPRdmaRead",
    "CLOSE": "WSPCloseSocket and closing a SAN socket",
    "SHUT": "What the provider must not see",
    "OPT": "Socket options",
    "QOS": "Quality of service",
    "DUP": "Socket duplication and hand-over between processes",
    "CLEAN": "WSPCleanup and process exit",
    "ERR": "Cross-cutting error rules",
    "PROXY": "Proxy-driver duties",
    "SWITCH": "Obligations of the emulated switch",
    "UP": "Up-calls",
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement. ``tags``: drv, SDK or IBSP where no SAN page states it. ``verify``: a hint how to observe it."""

    id: str
    sentence: str
    level: Literal["must", "should", "may"]
    source: str
    tags: tuple[str, ...]
    verify: str

    @property
    def area(self) -> str:
        return self.id.rpartition("-")[0]


@cache
def requirements() -> dict[str, Requirement]:
    """Every requirement by its id, in the catalogue's order."""
    text = files(__package__).joinpath("requirements.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {
        row["id"]: Requirement(
            row["id"],
            row["sentence"],
            row["level"],  # type: ignore[arg-type]
            row["source"],
            tuple(row["tags"].split()),
            row["verify"],
        )
        for row in rows
    }
