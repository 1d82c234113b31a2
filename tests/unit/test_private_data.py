"""The providers' messages in CM private data survive encoding and decoding, and other data is refused."""

import random

import pytest

from hil.provider.private_data import MAX_USER_DATA, Peer, hello, parse_hello, parse_take, take

SECRET, OTHER = bytes(range(16)), bytes(range(16, 32))


@pytest.mark.parametrize("data", [b"", b"x", bytes(MAX_USER_DATA)])
def test_a_hello_comes_back_with_the_switchs_data(data: bytes) -> None:
    """A hello gives the switch's data back, also with the zeros that the connection manager appends."""
    assert parse_hello(hello(SECRET, 40000, data) + bytes(10)) == (Peer(40000, SECRET), data)


def test_a_take_over_names_the_connection_and_the_new_peer() -> None:
    """A take-over fits into a REQ's 56 bytes, gives back connection and new peer, and is not decoded as a hello."""
    message = take(OTHER, SECRET, 40001)
    assert len(message) <= 56
    assert parse_take(message) == (OTHER, Peer(40001, SECRET))
    assert parse_hello(message) == (Peer(), b"")


def test_other_programs_data_is_no_hello() -> None:
    """Empty data, rsockets' data and ten thousand random strings are neither a hello nor a take-over."""
    rng = random.Random(7)
    strings = [b"", bytes(56), b"SANP", b"SANH", b"\x01\x00\x00\x40" * 9]
    strings += [rng.randbytes(rng.randrange(60)) for _ in range(10_000)]
    assert {parse_hello(s) for s in strings} == {(Peer(), b"")}
    assert {parse_take(s) for s in strings} == {None}


def test_a_length_beyond_the_data_is_cut() -> None:
    """A length byte beyond the message gives only the bytes that are there."""
    message = bytearray(hello(SECRET, 1, b"four"))
    message[5] = 255
    assert parse_hello(bytes(message)) == (Peer(1, SECRET), b"four")
