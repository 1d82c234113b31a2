"""Which frames of the wire's own capture came in where, and which a node got (how the wire records: forwarder.py)."""

from collections.abc import Iterable, Iterator, Sequence

from hil.capture.pcapng import CapturedFrame

SIDES = ("a", "b")
"""The sides of a wire, each with the node of its name."""
IN, OUT = "side-", "to-"
# The interfaces of the wire's capture, in their order.
INTERFACES = (*(IN + side for side in SIDES), *(OUT + side for side in SIDES))


def came_in(frames: Iterable[CapturedFrame]) -> Iterator[CapturedFrame]:
    """What the nodes sent, whatever became of it."""
    return (frame for frame in frames if not frame.interface.startswith(OUT))


def reached(frames: Iterable[CapturedFrame]) -> Iterator[CapturedFrame]:
    """What the nodes got: what simply went on, and what left the wire later, changed, once more or of itself.

    A node that was gone, or that a queue still held frames for, did not get its last ones.
    """
    return (frame for frame in frames if frame.interface.startswith(OUT) or not frame.comment)


def emitted(interfaces: Sequence[str]) -> list[int]:
    """Which of a capture's ``interfaces`` hold what the wire itself emitted; none in a capture from elsewhere."""
    size = len(INTERFACES)
    begins = [n for n in range(len(interfaces) - size + 1) if tuple(interfaces[n : n + size]) == INTERFACES]
    return [begin + n for begin in begins for n in range(len(SIDES), size)]
