"""RDMA netlink messages without a kernel: numbers, nests, failed dumps, addresses."""

import errno
import re
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from hil.netlink.codes import QpState, QpType
from hil.netlink.facts import Port, QueuePair, SharedReceiveQueue, facts, guid, shown, socket_address
from hil.netlink.link import ended
from hil.netlink.messages import ATTRIBUTES, Command, MarshalRdma, message_type, plain, rdmamsg

HEADER = Path("/usr/include/rdma/rdma_netlink.h")
DUMP_HEADER = struct.Struct("=IHHII")


def encoded(attributes: list[Any], command: Command = Command.RES_QP_GET) -> bytes:
    message = rdmamsg()
    message["attrs"] = attributes
    message["header"]["type"] = message_type(command)
    message.encode()
    return bytes(message.data)


def parsed(data: bytes) -> list[Any]:
    return list(MarshalRdma().parse(data))


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's header rdma_netlink.h is not installed")
def test_attributes_and_commands_have_the_numbers_of_the_kernels_header() -> None:
    """Each attribute and each command has its number in the kernel's header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    attributes = text[text.index("enum rdma_nldev_attr {") :].split("};")[0]
    names = [name.removeprefix("ATTR_") for name in re.findall(r"^\s*RDMA_NLDEV_(\w+),", attributes, re.MULTILINE)]
    known = names[1 : len(ATTRIBUTES)]
    assert list(ATTRIBUTES[1 : len(known) + 1]) == known
    commands = text[text.index("enum rdma_nldev_command {") :].split("};")[0]
    number = -1
    for name, value in re.findall(r"RDMA_NLDEV_CMD_(\w+)(?:\s*=\s*(\d+))?,", commands):
        number = int(value) if value else number + 1
        assert name == "UNSPEC" or Command[name] == number


def test_a_failed_dump_raises() -> None:
    """A DONE message that carries an errno is an error, and never reads as an empty list."""
    data = DUMP_HEADER.pack(20, 3, 2, 1, 0) + struct.pack("=i", -errno.EINVAL)
    (message,) = parsed(data)
    with pytest.raises(OSError, match="RES_QP_GET") as caught:
        ended(message, Command.RES_QP_GET)
    assert caught.value.errno == errno.EINVAL


def test_a_successful_dump_ends_without_an_error() -> None:
    """A DONE message with errno 0, or without one, ends the exchange."""
    for body in (struct.pack("=i", 0), b""):
        (message,) = parsed(DUMP_HEADER.pack(16 + len(body), 3, 2, 1, 0) + body)
        assert ended(message, Command.GET)


def test_a_refused_request_raises_with_its_errno() -> None:
    """An ERROR message names the command that the kernel refused."""
    body = struct.pack("=i", -errno.EPERM) + DUMP_HEADER.pack(16, message_type(Command.SET), 5, 1, 0)
    (message,) = parsed(DUMP_HEADER.pack(16 + len(body), 2, 0, 1, 0) + body)
    with pytest.raises(PermissionError, match="SET: Operation not permitted"):
        ended(message, Command.SET)


def test_a_nest_of_entries_is_a_list_and_codes_have_names() -> None:
    """Two queue pairs in one message, as the kernel nests them, become two objects with their codes' names."""
    one = {"attrs": [("RES_LQPN", 17), ("RES_TYPE", 2), ("RES_STATE", 3), ("RES_SQ_PSN", 9), ("RES_PID", 311)]}
    two = {"attrs": [("RES_LQPN", 1), ("RES_TYPE", 77), ("RES_STATE", 6), ("RES_KERN_NAME", "ib_core")]}
    (message,) = parsed(encoded([("RES_QP", {"attrs": [("RES_QP_ENTRY", one), ("RES_QP_ENTRY", two)]})]))
    first, second = (facts(QueuePair, entry) for entry in plain(message)["RES_QP"])
    assert (first.number, first.type, first.state, first.thread) == (17, QpType.RC, QpState.RTS, 311)
    assert shown(second) == {"number": 1, "type": "UNKNOWN_77", "state": "ERR", "kernel": "ib_core"}


def test_an_empty_nest_is_an_empty_list() -> None:
    """A device without queue pairs has a nest without entries."""
    (message,) = parsed(encoded([("RES_QP", {"attrs": []})]))
    assert plain(message) == {"RES_QP": []}


def test_a_shared_receive_queue_names_its_queue_pairs() -> None:
    """The kernel gives single numbers and ranges, and both are listed."""
    entries = [{"RES_LQPN": 17}, {"MIN_RANGE": 20, "MAX_RANGE": 22}]
    assert facts(SharedReceiveQueue, {"RES_SRQN": 1, "RES_QP": entries}).queue_pairs == (17, 20, 21, 22)


def test_a_drivers_facts_are_names_and_values() -> None:
    """Names, print hints and values alternate in a driver's nest."""
    inner = [("DRIVER_STRING", "cqe_size"), ("DRIVER_U32", 64), ("DRIVER_STRING", "key"), ("DRIVER_PRINT_TYPE", 1)]
    inner += [("DRIVER_U64", 0x1C2), ("DRIVER_STRING", "state"), ("DRIVER_STRING", "ready")]
    (message,) = parsed(encoded([("DRIVER", {"attrs": inner})]))
    assert plain(message)["DRIVER"] == {"cqe_size": 64, "key": 0x1C2, "state": "ready"}


def test_socket_addresses_are_read_by_family() -> None:
    """IPv4 and IPv6 with their port; another family, or too few bytes, is no address."""
    ipv4 = struct.pack("=H", socket.AF_INET) + (5000).to_bytes(2, "big") + bytes([10, 77, 0, 1]) + bytes(120)
    ipv6 = struct.pack("=H", socket.AF_INET6) + (5000).to_bytes(2, "big") + bytes(4) + b"\xfd\x77" + bytes(13) + b"\x01"
    assert socket_address(ipv4) == ("10.77.0.1", 5000)
    assert socket_address(ipv6) == ("fd77::1", 5000)
    for other in (b"", struct.pack("=H", socket.AF_INET), struct.pack("=H", 27) + bytes(126)):
        assert socket_address(other) is None


def test_missing_attributes_are_none() -> None:
    """A port of an old kernel has fewer attributes; the others are None and are not shown."""
    port = facts(Port, {"DEV_INDEX": 0, "PORT_INDEX": 1, "PORT_STATE": 4})
    assert port.netdev is None
    assert shown(port) == {"device_index": 0, "number": 1, "state": "ACTIVE"}


def test_a_guid_reads_as_in_sysfs() -> None:
    """Four groups of four digits, high byte first."""
    assert guid(0x505400FFFE000101) == "5054:00ff:fe00:0101"
