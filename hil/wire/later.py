"""Frames that wait on the wire until a time, or until other frames were forwarded."""

import heapq
from dataclasses import dataclass

_NEVER = -1


@dataclass(slots=True)
class Waiting:
    """A frame from ``side`` for the other side. ``copy``: a duplicate, which was never received."""

    side: int
    frame: bytes
    comment: str
    copy: bool = False
    gone: bool = False


class Later:
    """All waiting frames. Each is due at a monotonic time, or earlier when enough frames of its side were forwarded."""

    def __init__(self) -> None:
        self._by_time: list[tuple[int, int, Waiting]] = []
        self._by_count: tuple[list[tuple[int, int, Waiting]], ...] = ([], [])
        self._passed = [0, 0]
        self._order = self._waiting = 0
        self._held = [0, 0]

    def __len__(self) -> int:
        return self._waiting

    def add(self, due_ns: int, waiting: Waiting, *, frames: int = _NEVER) -> None:
        """Keep a frame until ``due_ns``, or until ``frames`` other frames of its side were forwarded."""
        self._order += 1
        self._waiting += 1
        self._held[waiting.side] += not waiting.copy
        heapq.heappush(self._by_time, (due_ns, self._order, waiting))
        if frames != _NEVER:
            target = self._passed[waiting.side] + frames
            heapq.heappush(self._by_count[waiting.side], (target, self._order, waiting))

    def held(self, side: int) -> int:
        """The number of received frames of ``side`` that wait."""
        return self._held[side]

    def next_ns(self) -> int | None:
        """The time when the next frame is due, or None."""
        while self._by_time and self._by_time[0][2].gone:
            heapq.heappop(self._by_time)
        return self._by_time[0][0] if self._by_time else None

    def due(self, now_ns: int) -> Waiting | None:
        """Take out the next frame that is due, or None."""
        due_ns = self.next_ns()
        if due_ns is None or due_ns > now_ns:
            return None
        return self._take(heapq.heappop(self._by_time)[2])

    def went_by(self, side: int) -> list[Waiting]:
        """Count a forwarded frame of ``side``. Take out the frames that waited for it, in the order they came."""
        self._passed[side] += 1
        heap, found = self._by_count[side], []
        while heap and (heap[0][2].gone or heap[0][0] <= self._passed[side]):
            waiting = heapq.heappop(heap)[2]
            if not waiting.gone:
                found.append(self._take(waiting))
        return found

    def _take(self, waiting: Waiting) -> Waiting:
        waiting.gone = True
        self._waiting -= 1
        self._held[waiting.side] -= not waiting.copy
        return waiting
