"""Counts of the wire's frames, whose sums must add up."""

from dataclasses import dataclass, field

from hil.capture.sides import SIDES

OTHER = {"a": "b", "b": "a"}


def _zero() -> dict[str, int]:
    return dict.fromkeys(SIDES, 0)


@dataclass(frozen=True, slots=True)
class WireCounts:
    """Frames by side ("a", "b").

    By the side they came in: ``received``. Of these, ``unchanged``, ``changed`` and ``late`` (delayed) were forwarded;
    ``dropped`` were dropped by a fault or a cut cable; ``held`` are still held back.
    By the side they go to: faults added ``duplicated``, and tests added ``injected``. Of all forwarded and added
    frames, ``sent`` reached the node, ``lost`` did not because the node was gone, and ``queued`` wait for it.
    ``unlogged``: actions of faults that the log had no room for. ``epoch_ns``: the capture's clock minus the monotonic.
    ``late_frames``: how many ns a frame was stamped later than its machine sent it, by its number in the capture as
    text.
    """

    received: dict[str, int] = field(default_factory=_zero)
    unchanged: dict[str, int] = field(default_factory=_zero)
    changed: dict[str, int] = field(default_factory=_zero)
    late: dict[str, int] = field(default_factory=_zero)
    dropped: dict[str, int] = field(default_factory=_zero)
    held: dict[str, int] = field(default_factory=_zero)
    duplicated: dict[str, int] = field(default_factory=_zero)
    injected: dict[str, int] = field(default_factory=_zero)
    sent: dict[str, int] = field(default_factory=_zero)
    lost: dict[str, int] = field(default_factory=_zero)
    queued: dict[str, int] = field(default_factory=_zero)
    unlogged: int = 0
    capture_error: str = ""
    epoch_ns: int = 0
    late_frames: dict[str, int] = field(default_factory=dict)

    def mismatch(self) -> str:
        """A message about the sums that do not add up, or an empty text."""
        wrong = []
        for side in SIDES:
            came, other = self.received[side], OTHER[side]
            on = self.unchanged[side] + self.changed[side] + self.late[side]
            told = on + self.dropped[side] + self.held[side]
            if came != told:
                wrong.append(f"{came} frames came in on side {side}, and {told} are accounted for")
            out = on + self.duplicated[other] + self.injected[other]
            gone = self.sent[other] + self.lost[other] + self.queued[other]
            if out != gone:
                wrong.append(f"{out} frames went on to side {other}, and {gone} were sent, lost or queued")
        return "; ".join(wrong)


@dataclass(frozen=True, slots=True)
class PlainCounts:
    """Frames by node at a capture point that changes none: received from the node, sent to it, lost because it was
    gone, queued for it."""

    received: dict[str, int]
    sent: dict[str, int]
    lost: dict[str, int]
    queued: dict[str, int]
    capture_error: str
    epoch_ns: int
    unlogged: int = 0
    late_frames: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> dict[str, int]:
        """Zero for every node: no frames are held back."""
        return dict.fromkeys(self.received, 0)

    def mismatch(self) -> str:
        """An empty text: there are no two independent counts to compare."""
        return ""
