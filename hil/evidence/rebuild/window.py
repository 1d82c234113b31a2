"""The last packets of a capture, kept to distinguish a mirror's second copy of a packet from a packet sent again."""

from collections import deque
from enum import Enum

from hil.evidence.rebuild.rows import Frames, Row

# Two mirror sessions deliver the copies of a packet within this time; a retransmission timer is far slower.
COPY_WITHIN_NS = 1_000_000
# A port that is mirrored in both directions delivers a packet twice at one interface, within this time. A later packet
# may also come from an adapter with a short timer.
COPY_HERE_WITHIN_NS = 100_000
# Within these times equal bytes may be either: the first for the same interface, the second for another interface. A
# packet that is sent again usually takes the same way.
UNSURE_WITHIN_NS, ELSEWHERE_WITHIN_NS = 10_000_000, 1_000_000_000
BATCHES = 2


class Copy(Enum):
    """Whether a packet is the capture's second copy of an earlier one."""

    NO = 0
    YES = 1
    UNSURE = 2


class Window:
    """The frames of the last two batches, by position."""

    def __init__(self) -> None:
        self._batches: deque[Frames] = deque(maxlen=BATCHES)

    def add(self, frames: Frames) -> None:
        self._batches.append(frames)

    @property
    def oldest(self) -> int:
        """The first position whose bytes are still kept."""
        return self._batches[0].first if self._batches else 0

    @property
    def begun_ns(self) -> int:
        """The time of the first packet whose bytes are still kept, or 0."""
        return self._batches[0].time_ns(self.oldest) if self._batches and len(self._batches[0]) else 0

    def copy(self, earlier: int, row: Row, *, asked: bool = False, patient_ns: int = 0) -> Copy:
        """Whether ``row`` is a copy of the packet at position ``earlier``.

        ``asked``: the receiver asked in between for the packet to be sent again. ``patient_ns``: the sender waits at
        least this long before it sends the packet again. Senders number IPv4 packets: equal numbers mean a copy, other
        numbers a packet sent again. Without numbers the time between the two decides.
        """
        first, second = self._holding(earlier), self._holding(row.position)
        if second is None:
            return Copy.NO
        if first is None:
            return Copy.UNSURE
        between_ns = abs(second.time_ns(row.position) - first.time_ns(earlier))
        elsewhere = first.interface(earlier) != second.interface(row.position)
        late = between_ns > (ELSEWHERE_WITHIN_NS if elsewhere else UNSURE_WITHIN_NS)
        (number, data), (other_number, other_data) = first.packet(earlier), second.packet(row.position)
        if first.cut(earlier) or second.cut(row.position):
            # Two capture points may have different snap lengths: the bytes that both have are compared.
            shorter = min(len(data), len(other_data))
            data, other_data = data[:shorter], other_data[:shorter]
        if (number, data) != (other_number, other_data):
            return Copy.NO
        if between_ns < patient_ns:
            return Copy.YES
        if late:
            # The clocks of merged captures may differ by any time, so only an equal number can suggest a copy.
            return Copy.UNSURE if number > 0 else Copy.NO
        if number > 0:
            return Copy.YES
        within_ns = COPY_WITHIN_NS if elsewhere else COPY_HERE_WITHIN_NS
        return Copy.UNSURE if asked or between_ns > within_ns else Copy.YES

    def interface(self, row: Row) -> int:
        """The interface of ``row``, or -1 when its bytes are no longer kept."""
        frames = self._holding(row.position)
        return -1 if frames is None else frames.interface(row.position)

    def _holding(self, position: int) -> Frames | None:
        return next((frames for frames in self._batches if position in frames), None)
