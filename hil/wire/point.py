"""The interface of capture points, which record the frames of a link. An inline wire can also change them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from hil.capture.sides import SIDES
from hil.errors import Unsupported
from hil.wire.counts import PlainCounts
from hil.wire.faults import Fault

if TYPE_CHECKING:
    from hil.wire.wire import FaultHandle


class Counts(Protocol):
    """Frames by node: ``received`` from it, ``sent`` to it, ``queued`` for it, ``held`` back.

    ``capture_error``: why the file lacks counted frames. ``epoch_ns``: the file's clock minus the controller's.
    ``unlogged``: entries that the log had no room for. ``mismatch``: the sums that do not add up, or an empty text.
    """

    @property
    def received(self) -> dict[str, int]: ...
    @property
    def sent(self) -> dict[str, int]: ...
    @property
    def queued(self) -> dict[str, int]: ...
    @property
    def held(self) -> dict[str, int]: ...
    @property
    def unlogged(self) -> int: ...
    @property
    def capture_error(self) -> str: ...
    @property
    def epoch_ns(self) -> int: ...
    @property
    def late_frames(self) -> dict[str, int]: ...
    def mismatch(self) -> str: ...


class CapturePoint(Protocol):
    """Records from before the first call until ``stop``. The file is pcapng, interfaces ``side-a`` and ``side-b``.

    ``sides`` names the nodes whose adapters' counters must match the capture. Any difference makes the capture
    incomplete. ``late_ns``: the longest time between a frame's arrival at its receiver and its stamp.
    ``uncertainty_ns``: the uncertainty of the stamps' clock.
    """

    path: Path
    sides: tuple[str, ...]
    late_ns: int
    uncertainty_ns: int

    def counts(self) -> Counts:
        """Counts now. All counted frames are in the file. Raises CaptureError when the recording has ended."""

    def log(self) -> list[dict[str, Any]]:
        """The actions on frames in order, each entry with ``t_ns`` on the monotonic clock and ``kind``."""

    def add_fault(self, fault: Fault) -> "FaultHandle":
        """Set a fault. Raises FaultError, and Unsupported where frames do not pass through."""

    def inject(self, side: str, frame: bytes) -> int:
        """Send a frame to a node. Raises FaultError, and Unsupported where frames do not pass through."""

    def cut(self) -> Counts:
        """Drop all frames from now on. Raises Unsupported where frames do not pass through."""

    def mend(self) -> Counts:
        """Carry frames again. Raises Unsupported where frames do not pass through."""

    def stop(self) -> Counts | None:
        """End the recording. Returns the last counts, or None if it had ended before. Safe to call twice."""


class Onlooker:
    """A capture point that frames do not pass through. It records frames and cannot change them."""

    late_ns = 0
    uncertainty_ns = 0

    def log(self) -> list[dict[str, Any]]:
        """An empty list: no frame is changed."""
        return []

    def add_fault(self, fault: Fault) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("no frame can be changed: the lab has no inline wire")

    def inject(self, side: str, frame: bytes) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("no frame can be injected: the lab has no inline wire")

    def cut(self) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("no frame can be held back: the lab has no inline wire")

    def mend(self) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported("no frame can be held back: the lab has no inline wire")


class NothingRecorded(Onlooker):
    """The capture point of a lab that records no frames. Such a lab is for work by hand; its wire cannot be judged."""

    tells_at_end = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sides: tuple[str, ...] = ()

    def counts(self) -> PlainCounts:
        """Zero frames, with the reason as ``capture_error``."""
        none = dict.fromkeys(SIDES, 0)
        return PlainCounts(none, none, none, none, "nothing is recorded: [capture] kind is none", 0)

    def stop(self) -> None:
        """Do nothing: there is no recording."""
