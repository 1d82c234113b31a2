"""What every capture point is: where frames of a link are recorded, and on an inline wire changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from hil.capture.sides import SIDES
from hil.errors import Unsupported
from hil.wire.counts import PlainCounts
from hil.wire.faults import Fault

if TYPE_CHECKING:
    from hil.wire.wire import FaultHandle


class Counts(Protocol):
    """Frames by node: ``received`` from it, ``sent`` to it, ``queued`` for it, ``held`` back; when the clock began.

    ``capture_error``: why the file does not hold what was counted. ``epoch_ns``: the file's clock less ours.
    ``unlogged``: entries that the log had no room for. ``mismatch``: which sum does not add up, or an empty text.
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

    ``sides`` names the nodes whose adapters must have counted what was recorded: a frame more or less on one of them
    makes the capture incomplete. ``late_ns`` is by how much a frame may be stamped later than its receiver had it,
    ``uncertainty_ns`` that of the stamps' clock.
    """

    path: Path
    sides: tuple[str, ...]
    late_ns: int
    uncertainty_ns: int

    def counts(self) -> Counts:
        """Counts now; all that they count is in the file. Raises CaptureError when nothing records any more."""

    def log(self) -> list[dict[str, Any]]:
        """What was done to the frames, in order, each entry with ``t_ns`` on the monotonic clock and ``kind``."""

    def add_fault(self, fault: Fault) -> "FaultHandle":
        """Change frames by a fault. Raises FaultError, and Unsupported where frames do not pass through."""

    def inject(self, side: str, frame: bytes) -> int:
        """Send a frame to a node. Raises FaultError, and Unsupported where frames do not pass through."""

    def cut(self) -> Counts:
        """Carry nothing from now on. Raises Unsupported where frames do not pass through."""

    def mend(self) -> Counts:
        """Carry frames again. Raises Unsupported where frames do not pass through."""

    def stop(self) -> Counts | None:
        """Record no more; the last counts, or None when it had ended already. Safe to call twice."""


class Onlooker:
    """A capture point that frames do not pass through: it sees them, and can do nothing to them."""

    late_ns = 0
    uncertainty_ns = 0

    def log(self) -> list[dict[str, Any]]:
        """Empty: nothing is done to any frame."""
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
    """Where a lab records nothing: it can be worked with by hand, and nothing about its wire can be judged."""

    tells_at_end = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sides: tuple[str, ...] = ()

    def counts(self) -> PlainCounts:
        """None, and why."""
        none = dict.fromkeys(SIDES, 0)
        return PlainCounts(none, none, none, none, "nothing is recorded: [capture] kind is none", 0)

    def stop(self) -> None:
        """There is nothing to stop."""
