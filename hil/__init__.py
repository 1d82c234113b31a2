"""Hardware-in-the-loop test bench for SAN adapters.

The names below are the public ones; a test of one's own needs these and ``hil.testing``. They are loaded when they are
first used: nodes import this package too, and have none of the libraries that the bench itself needs.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "hil.errors": (
        "AdapterError",
        "CaptureError",
        "HilError",
        "LabFileError",
        "NodeDied",
        "NodeError",
        "PhaseTimeout",
        "RemoteError",
        "SetupError",
        "Unsupported",
    ),
    "hil.evidence.disconnect": ("Finding",),
    "hil.evidence.evidence": ("Evidence",),
    "hil.evidence.packets": ("RocePacket",),
    "hil.labs.file": ("read_lab_file",),
    "hil.labs.kinds": ("open_lab",),
    "hil.labs.named": ("lab_path",),
    "hil.labs.needs": ("Need",),
    "hil.winsock.codes": ("Code",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AdapterError",
    "CaptureError",
    "Code",
    "Evidence",
    "Finding",
    "HilError",
    "LabFileError",
    "Need",
    "NodeDied",
    "NodeError",
    "PhaseTimeout",
    "RemoteError",
    "RocePacket",
    "SetupError",
    "Unsupported",
    "__version__",
    "lab_path",
    "open_lab",
    "read_lab_file",
]

if TYPE_CHECKING:
    from hil.errors import (
        AdapterError,
        CaptureError,
        HilError,
        LabFileError,
        NodeDied,
        NodeError,
        PhaseTimeout,
        RemoteError,
        SetupError,
        Unsupported,
    )
    from hil.evidence.disconnect import Finding
    from hil.evidence.evidence import Evidence
    from hil.evidence.packets import RocePacket
    from hil.labs.file import read_lab_file
    from hil.labs.kinds import open_lab
    from hil.labs.named import lab_path
    from hil.labs.needs import Need
    from hil.winsock.codes import Code


def __getattr__(name: str) -> object:
    """A public name, loaded now. Raises AttributeError for any other."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
