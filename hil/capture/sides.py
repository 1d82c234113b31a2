"""The frames of the wire's capture by direction: those that nodes sent, and those that nodes received.

``hil/wire/forwarder.py`` writes the capture.
"""

from collections.abc import Iterable, Iterator, Sequence

from hil.capture.pcapng import CapturedFrame

SIDES = ("a", "b")
"""The sides of a wire; each is named like its node."""
IN, OUT = "side-", "to-"
# The interfaces of the wire's capture, in their order.
INTERFACES = (*(IN + side for side in SIDES), *(OUT + side for side in SIDES))


def came_in(frames: Iterable[CapturedFrame]) -> Iterator[CapturedFrame]:
    """The frames that nodes sent, also those that the wire dropped or changed."""
    return (frame for frame in frames if not frame.interface.startswith(OUT))


def reached(frames: Iterable[CapturedFrame]) -> Iterator[CapturedFrame]:
    """The frames that nodes received: forwarded ones, and those that the wire delayed, changed, repeated or made.

    A node that had ended, or whose queue still held frames, did not receive the last ones.
    """
    return (frame for frame in frames if frame.interface.startswith(OUT) or not frame.comment)


def emitted(interfaces: Sequence[str]) -> list[int]:
    """The indices of the ``interfaces`` with frames that the wire emitted; empty for a capture not made by a wire."""
    size = len(INTERFACES)
    begins = [n for n in range(len(interfaces) - size + 1) if tuple(interfaces[n : n + size]) == INTERFACES]
    return [begin + n for begin in begins for n in range(len(SIDES), size)]
