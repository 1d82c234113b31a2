"""Events of RDMA devices: made, removed, attached to a netdev, renamed (Linux 6.12 and later)."""

import errno
import platform
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from hil.netlink.codes import EventType
from hil.netlink.link import RdmaLink
from hil.netlink.messages import NOTIFY_GROUP, Command, message_type, plain


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One event. A fact that the kernel leaves out is None; older kernels leave out the device's name."""

    type: EventType
    device_index: int | None
    device: str | None
    port: int | None
    netdev_index: int | None
    netdev: str | None


class Monitor:
    """Receives the events of devices in this network namespace.

    Raises OSError (EOPNOTSUPP) where the kernel sends no events.
    """

    def __init__(self) -> None:
        with RdmaLink() as link:
            supported = link.system().get("SYS_ATTR_MONITOR_MODE", 0)
        if not supported:
            raise OSError(
                errno.EOPNOTSUPP, f"kernel {platform.release()} tells no RDMA device events: it needs Linux 6.12"
            )
        self._link = RdmaLink(groups=(NOTIFY_GROUP,))

    def fileno(self) -> int:
        return self._link.fileno()

    def events(self) -> list[DeviceEvent]:
        """The next events. Raises TimeoutError when no event came, OSError (ENOBUFS) when events were lost."""
        kind = message_type(Command.MONITOR)
        return [event_of(plain(m)) for m in self._link.receive() if m["header"]["type"] == kind]

    def close(self) -> None:
        self._link.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def event_of(attributes: dict[str, Any]) -> DeviceEvent:
    """The event of a decoded message."""
    names = ("DEV_INDEX", "DEV_NAME", "PORT_INDEX", "NDEV_INDEX", "NDEV_NAME")
    return DeviceEvent(EventType(attributes["EVENT_TYPE"]), *(attributes.get(name) for name in names))
