"""Corrects the times of a capture: clocks that were set back are continued, small steps back are sorted."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hil.capture.bulk import Batch

# A smaller step back comes from several receive queues, a mirror port or the order of the file: the times are right.
# A larger one comes from a clock that was set: the order of the file is right.
JUMP_NS = 60_000_000_000
# Beyond any date; the sum of two such times still fits into 64 bits.
LATEST_NS = 1 << 61
JUMPS_LOOKED_AT = 64
# Times with finer steps are not measured further.
FINE_NS = 1_000
# Percent of a coarse clock's steps that may be smaller than its own: it was set, or another interface interferes.
SMALL_STEPS = 2


@dataclass(slots=True)
class Clock:
    """Follows the capture's clock through the batches.

    ``jumps``: steps of one interface's clock back by more than a minute; later times get an offset. ``disordered``:
    packets that are earlier than one in front of them, by up to ``disorder_ns``; a batch is sorted by time.
    ``unsorted_ns``: the longest time by which a packet is earlier than one of an earlier batch. ``packets``: all
    packets. ``untimed``: packets without a time.
    """

    jumps: int = 0
    disordered: int = 0
    disorder_ns: int = 0
    unsorted_ns: int = 0
    packets: int = 0
    untimed: int = 0
    _step_ns: int = 0
    _burst_ns: int = 0
    _alike: int = 0
    _latest: dict[int, int] = field(default_factory=dict)
    _offset: int = 0
    _last: int = -1
    _highest: int = 0

    def times_ns(self, batch: Batch) -> NDArray[np.int64]:
        """The times of the rows of ``batch``; clocks that were set back are continued."""
        self._measure(batch.time_ns)
        times = np.clip(batch.time_ns, 0, LATEST_NS)
        before = np.concatenate(([self._last if self._last >= 0 else times[0]], times[:-1]))
        following = np.concatenate((times[1:], times[-1:]))
        # Behind a single late packet the times go on as before; behind a clock that was set they do not.
        back = (times - before < -JUMP_NS) & (following - before < -JUMP_NS)
        shifts = np.zeros_like(times)
        for place in np.flatnonzero(back)[:JUMPS_LOOKED_AT].tolist():
            if self._set_back(batch, times, place):
                shifts[place] = before[place] - times[place]
                self.jumps += 1
        self._remember(batch, times)
        continued = times + self._offset + np.cumsum(shifts)
        self._offset = min(self._offset + int(shifts.sum()), LATEST_NS)
        self._note(continued)
        return continued

    def continued(self, time_ns: int) -> int:
        """The time of a frame behind the last batch, continued in the same way; 0 for a frame without a time."""
        return min(max(time_ns, 0), LATEST_NS) + self._offset if time_ns >= 0 else 0

    @property
    def grain_ns(self) -> int:
        """The step of the clock; LATEST_NS when times are absent or all equal, so that they give no order."""
        if not self._step_ns or self.untimed:
            return LATEST_NS
        # When most packets have the time of the packet before, the clock is coarse, even with unequal steps.
        return max(self._step_ns, self._burst_ns if 2 * self._alike > self.packets else 0)

    def _measure(self, times: NDArray[np.int64]) -> None:
        timed = times[times >= 0]
        self.packets += len(times)
        self.untimed += len(times) - len(timed)
        steps = np.diff(timed)
        if self._step_ns == 0 or self._step_ns > FINE_NS:
            self._step_ns = int(np.gcd.reduce(np.append(steps, self._step_ns)))
        moved = np.abs(steps[steps != 0])
        self._alike += len(steps) - len(moved)
        if len(moved):
            # A fine clock shows small steps between large ones, a coarse one never does.
            self._burst_ns = min(self._burst_ns or LATEST_NS, 2 * int(np.percentile(moved, SMALL_STEPS)))

    def _set_back(self, batch: Batch, times: NDArray[np.int64], place: int) -> bool:
        """Whether the interface's own clock was set back.

        If the interface had not been later, another capture was appended, and its times are right.
        """
        interface = batch.interface[place]
        same = np.flatnonzero(batch.interface[:place] == interface)
        latest = int(times[same[-1]]) if len(same) else self._latest.get(int(interface), -1)
        return int(times[place]) - latest < -JUMP_NS and latest >= 0

    def _remember(self, batch: Batch, times: NDArray[np.int64]) -> None:
        self._last = int(times[-1])
        interfaces, from_the_end = np.unique(batch.interface[::-1], return_index=True)
        self._latest.update(zip(interfaces.tolist(), times[::-1][from_the_end].tolist(), strict=True))

    def _note(self, times: NDArray[np.int64]) -> None:
        self.unsorted_ns = max(self.unsorted_ns, self._highest - int(times.min()))
        highest = np.maximum(np.maximum.accumulate(times), self._highest)
        behind = highest - times
        self.disordered += int(np.count_nonzero(behind))
        self.disorder_ns = max(self.disorder_ns, int(behind.max()))
        self._highest = int(highest[-1])
