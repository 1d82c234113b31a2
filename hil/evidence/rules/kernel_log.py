"""What a kernel's log tells: faults of its own, and want of memory."""

import re
from collections.abc import Iterable

from hil.evidence.resources import KernelMessage

# How the kernel says that something of its own is wrong; a driver's own errors are level 3 and below.
COMPLAINT = re.compile(
    r"BUG:|WARNING:|Oops|general protection|Call Trace|refcount_t:|list_(add|del) corruption|blocked for more than|"
    r"unregister_netdevice: waiting|KASAN|UBSAN"
)
STARVED = re.compile(r"Out of memory")


def complaints(log: Iterable[KernelMessage]) -> list[str]:
    """The messages of a kernel's log that tell of a fault."""
    return [message.text for message in log if COMPLAINT.search(message.text)]


def starved(log: Iterable[KernelMessage]) -> list[str]:
    """The messages of a kernel's log that tell of a machine without memory: what it ended says nothing of an adapter.

    One that a control group's limit ended concerns nobody outside of that group.
    """
    return [message.text for message in log if STARVED.search(message.text)]
