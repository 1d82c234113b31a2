"""The results of the capture readers: frames in columns, many at a time, and facts about the file."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Unsigned = NDArray[np.uint64]

LINK_ETHERNET = 1
# Zero bytes behind the last frame of a chunk's data, so that a fixed window laid over any header stays inside.
PADDING = 256
MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a capture.

    ``snap_length`` is in bytes, 0 when there is none. ``fcs_length`` is in bytes, -1 when the file does not say.
    ``dropped`` is the number of frames that the capturing side says it lost, -1 when the file does not say. ``tick_ns``
    is the step of its clock, rounded up to nanoseconds.
    """

    name: str
    link_type: int
    snap_length: int = 0
    fcs_length: int = -1
    dropped: int = -1
    tick_ns: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """A damage of a capture file: the text, the byte of the file, and the number of frames in front of that byte."""

    text: str
    offset: int
    frames: int

    def __str__(self) -> str:
        return f"{self.text}, at byte {self.offset}, behind frame {self.frames}"


def no_comments(index: int) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames in file order, as columns of equal length.

    ``number`` counts the file's frames from 1, ``time_ns`` is since the epoch or -1 where the file has no time,
    ``interface`` is an index into the capture's interfaces, ``offset`` is where the frame begins in ``data``,
    ``captured`` and ``original`` are lengths in bytes. ``data`` ends with ``PADDING`` zero bytes.
    """

    data: Bytes
    number: Integers
    time_ns: Integers
    interface: Integers
    link_type: Integers
    offset: Integers
    captured: Integers
    original: Integers
    find_comments: Callable[[int], list[str]] = no_comments

    def __len__(self) -> int:
        return len(self.number)

    def frame(self, index: int) -> bytes:
        """The captured bytes of the frame at ``index`` of the columns."""
        start = int(self.offset[index])
        return self.data[start : start + int(self.captured[index])].tobytes()

    def comments(self, index: int) -> list[str]:
        """The comments that the file holds on the frame at ``index`` of the columns."""
        return self.find_comments(index)


@dataclass(slots=True)
class Findings:
    """Facts about a capture, collected while it is read: interfaces, problems, the number of frames so far."""

    interfaces: list[Interface] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    frames: int = 0

    def report(self, text: str, offset: int, frames: int) -> None:
        """Add a problem. Problems beyond ``MAX_PROBLEMS`` are dropped, so that no file can fill the memory."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(text, offset, frames))
