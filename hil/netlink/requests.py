"""The requests of RDMA netlink, independent of the socket that carries them.

Every method raises OSError with the kernel's errno: EPERM for a change without CAP_NET_ADMIN, EOPNOTSUPP where the
driver does not support it, EINVAL also from a kernel that does not know the command. A failed dump raises too, so an
empty list means that no such object exists.
"""

import errno
from collections.abc import Iterator
from typing import Any, Protocol

from hil.netlink.codes import CounterMode, NetnsMode
from hil.netlink.messages import ATTRIBUTES, Command, rdmamsg

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
COUNTED_QP = ATTRIBUTES.index("RES_QP")
"""The value of STAT_RES for queue pairs: the number of the attribute RES_QP."""

Attributes = dict[str, Any]


class Exchange(Protocol):
    """Sends one request to the kernel and yields the attributes of each answer."""

    def exchange(self, command: Command, flags: int, attributes: Attributes) -> Iterator[Attributes]:
        """``flags``: of the netlink header. Without ACK and DUMP the first answer ends the exchange."""
        ...


def request(attributes: Attributes) -> Any:
    """An unencoded message that holds ``attributes``."""
    message = rdmamsg()
    message["attrs"] = list(attributes.items())
    return message


class Requests:
    """The commands as methods. Devices and ports are given by index, which a rename does not change."""

    def exchange(self, command: Command, flags: int, attributes: Attributes) -> Iterator[Attributes]:
        """See ``Exchange``; each transport implements it."""
        raise NotImplementedError

    def dump(self, command: Command, **attributes: Any) -> list[Attributes]:
        """All objects of one kind."""
        return list(self.exchange(command, NLM_F_REQUEST | NLM_F_DUMP, attributes))

    def get(self, command: Command, **attributes: Any) -> Attributes:
        """One object. The kernel sends no acknowledgement behind it."""
        return next(iter(self.exchange(command, NLM_F_REQUEST, attributes)), {})

    def act(self, command: Command, **attributes: Any) -> list[Attributes]:
        """Make a change, and wait for the acknowledgement."""
        return list(self.exchange(command, NLM_F_REQUEST | NLM_F_ACK, attributes))

    # --- devices and ports -------------------------------------------------------------------------------------------

    def devices(self) -> list[Attributes]:
        """Every RDMA device the socket's network namespace sees."""
        return self.dump(Command.GET)

    def device(self, name: str) -> Attributes:
        """The device with this name. Raises OSError (ENODEV) that lists the existing devices."""
        found = self.devices()
        for device in found:
            if device["DEV_NAME"] == name:
                return device
        there = ", ".join(device["DEV_NAME"] for device in found) or "none"
        raise OSError(errno.ENODEV, f"there is no RDMA device {name!r}; there are: {there}")

    def ports(self, device_index: int) -> list[Attributes]:
        return self.dump(Command.PORT_GET, DEV_INDEX=device_index)

    def port(self, device_index: int, port: int) -> Attributes:
        return self.get(Command.PORT_GET, DEV_INDEX=device_index, PORT_INDEX=port)

    def add_link(self, name: str, link_type: str, netdev: str) -> None:
        """Make a software device (``link_type`` "rxe" or "siw") on a netdev."""
        self.act(Command.NEWLINK, DEV_NAME=name, LINK_TYPE=link_type, NDEV_NAME=netdev)

    def delete_link(self, device_index: int) -> None:
        """Remove a software device; returns when the kernel has removed it."""
        self.act(Command.DELLINK, DEV_INDEX=device_index)

    def rename(self, device_index: int, name: str) -> None:
        self.act(Command.SET, DEV_INDEX=device_index, DEV_NAME=name)

    def set_moderation(self, device_index: int, *, on: bool) -> None:
        """Turn adaptive moderation on or off for completion queues that are made from now on."""
        self.act(Command.SET, DEV_INDEX=device_index, DEV_DIM=int(on))

    def move(self, device_index: int, netns_fd: int) -> None:
        """Move a device to the network namespace of a descriptor: in exclusive mode, if the driver supports it."""
        self.act(Command.SET, DEV_INDEX=device_index, NET_NS_FD=netns_fd)

    def character_device(self, kind: str, device_index: int | None = None, port: int | None = None) -> Attributes:
        """The character device of a kind: "uverbs" or "umad" of a device, or "rdma_cm" without a device."""
        place = {"DEV_INDEX": device_index, "PORT_INDEX": port}
        chosen = {name: value for name, value in place.items() if value is not None}
        return self.get(Command.GET_CHARDEV, CHARDEV_TYPE=kind, **chosen)

    # --- the whole subsystem -----------------------------------------------------------------------------------------

    def system(self) -> Attributes:
        """The settings of this kernel's RDMA subsystem (SYS_ATTR_*)."""
        return self.get(Command.SYS_GET)

    def netns_mode(self) -> NetnsMode:
        return NetnsMode(self.system()["SYS_ATTR_NETNS_MODE"])

    def set_netns_mode(self, mode: NetnsMode) -> None:
        """Set the namespace mode. Raises OSError (EBUSY) while network namespaces beside the first one exist."""
        self.act(Command.SYS_SET, SYS_ATTR_NETNS_MODE=int(mode))

    # --- resources ---------------------------------------------------------------------------------------------------

    def summary(self, device_index: int) -> dict[str, int]:
        """The number of a device's resources by kind, including those of the kernel itself."""
        found = self.get(Command.RES_GET, DEV_INDEX=device_index).get("RES_SUMMARY", [])
        return {e["RES_SUMMARY_ENTRY_NAME"]: e["RES_SUMMARY_ENTRY_CURR"] for e in found}

    def resources(self, command: Command, device_index: int) -> list[Attributes]:
        """A device's resources of one kind; ``command`` is RES_QP_GET or one like it.

        Reading the keys (RES_LKEY, RES_RKEY) takes CAP_NET_ADMIN.
        """
        nest = "RES_" + command.name.removeprefix("RES_").removesuffix("_GET")
        return [entry for message in self.dump(command, DEV_INDEX=device_index) for entry in message.get(nest, [])]

    # --- counters ----------------------------------------------------------------------------------------------------

    def port_counters(self, device_index: int, port: int) -> dict[str, int]:
        """The hardware counters of a port by name."""
        return _counters(self.get(Command.STAT_GET, DEV_INDEX=device_index, PORT_INDEX=port))

    def qp_counters(self, device_index: int) -> list[tuple[Attributes, dict[str, int]]]:
        """Each counter that queue pairs are bound to, with its values by name."""
        messages = self.dump(Command.STAT_GET, DEV_INDEX=device_index, STAT_RES=COUNTED_QP)
        found = [entry for message in messages for entry in message.get("STAT_COUNTER", [])]
        return [(entry, _counters(entry)) for entry in found]

    def counter_mode(self, device_index: int, port: int) -> CounterMode:
        """How queue pairs of a port get their counters."""
        # The kernel demands a mode in this request too, and ignores it.
        place = {"DEV_INDEX": device_index, "PORT_INDEX": port, "STAT_RES": COUNTED_QP, "STAT_MODE": 0}
        return CounterMode(self.get(Command.STAT_GET, **place)["STAT_MODE"])

    def count_by(self, device_index: int, port: int, mask: int) -> None:
        """Have the kernel bind queue pairs to counters: ``mask`` 1 by type, 2 by process, 3 by both, 0 not at all."""
        self._set_counters(device_index, port, CounterMode.AUTO, STAT_AUTO_MODE_MASK=mask)

    def bind_counter(self, device_index: int, port: int, qp: int, counter: int | None = None) -> None:
        """Bind a queue pair to ``counter``, or to a new counter without one."""
        named = {} if counter is None else {"STAT_COUNTER_ID": counter}
        self._set_counters(device_index, port, CounterMode.MANUAL, RES_LQPN=qp, **named)

    def unbind_counter(self, device_index: int, port: int, qp: int, counter: int) -> None:
        place = {"DEV_INDEX": device_index, "PORT_INDEX": port, "STAT_RES": COUNTED_QP}
        self.act(Command.STAT_DEL, **place, STAT_COUNTER_ID=counter, RES_LQPN=qp)

    def _set_counters(self, device_index: int, port: int, mode: CounterMode, **more: int) -> None:
        place = {"DEV_INDEX": device_index, "PORT_INDEX": port, "STAT_RES": COUNTED_QP}
        self.act(Command.STAT_SET, **place, STAT_MODE=int(mode), **more)


def _counters(holder: Attributes) -> dict[str, int]:
    entries = holder.get("STAT_HWCOUNTERS", [])
    return {e["STAT_HWCOUNTER_ENTRY_NAME"]: e["STAT_HWCOUNTER_ENTRY_VALUE"] for e in entries}
