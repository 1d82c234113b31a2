"""DCB messages about priority flow control, without an adapter that has it."""

import struct

import pytest

from hil.adapters.pfc import IEEE_SET, MarshalDcb, Pfc, check_priorities, dcbmsg, get_pfc, message, unpacked
from hil.errors import AdapterError

# An answer as the kernel lays it out: 8 classes, priority 3 enabled, bypass 1, delay 0x1234, then 16 counts.
STRUCTURE = bytes([8, 0b1000, 1, 0]) + struct.pack("=Hxx", 0x1234) + struct.pack("=16Q", *range(16))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def test_an_answer_is_read() -> None:
    """An answer is read: four bytes of header, IFNAME, and the structure two nests deep."""
    body = bytes([0, 21, 0, 0]) + attribute(1, b"eth4\0") + attribute(13, attribute(2, STRUCTURE))
    data = struct.pack("=IHHII", 16 + len(body), 78, 0, 5, 0) + body
    (answer,) = MarshalDcb().parse(data)
    assert answer.get_attr("IFNAME") == "eth4"
    assert unpacked(bytes(answer.get_attr("IEEE").get_attr("IEEE_PFC"))) == Pfc(8, 0b1000, 1, 0x1234)


def test_a_request_keeps_the_other_settings() -> None:
    """The message reads back with the new priorities and the former other settings, in the kernel's layout."""
    wanted = Pfc(8, 0b11000, 1, 0x1234)
    order = message("eth4", IEEE_SET, wanted)
    order.encode()
    seen = dcbmsg(bytes(order.data))
    seen.decode()
    data = bytes(seen.get_attr("IEEE").get_attr("IEEE_PFC"))
    assert (seen["cmd"], seen.get_attr("IFNAME"), len(data)) == (IEEE_SET, "eth4", 136)
    assert unpacked(data) == wanted


def test_too_short_an_answer_is_named() -> None:
    """An answer that is shorter than the structure is an error."""
    with pytest.raises(AdapterError, match="answered 7 bytes about PFC instead of 136"):
        unpacked(bytes(7))


def test_a_netdev_without_flow_control_says_so() -> None:
    """The loopback netdev of the kernel that runs the tests has no PFC."""
    with pytest.raises(AdapterError, match="lo has no PFC to set: its driver has no DCB"):
        get_pfc("lo")


def test_a_refused_request_is_an_error() -> None:
    """The kernel acknowledges a request that the driver refuses, so the settings that are read back decide."""
    check_priorities("eth4", Pfc(8, 0b1000, 1, 0), 0b1000)
    with pytest.raises(AdapterError, match="eth4 did not take PFC for priorities 3, 4: it has PFC for none"):
        check_priorities("eth4", Pfc(8, 0, 1, 0), 0b11000)
