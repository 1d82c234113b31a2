"""The answers that an end waits for: READs and atomics take a PSN for each packet of their answer (9.7.3.1)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hil.roce.psn import HALF, MASK

EXPECTED_KEPT = 1024


@dataclass(slots=True)
class _Expected:
    """One READ or atomic that is not fully answered.

    ``psn``: of its next answer. ``count``: the number of answers from there, or -1 while the MTU that divides
    ``length`` bytes is unknown.
    """

    psn: int
    count: int
    length: int
    read: bool = True

    def left(self, mtu: int) -> int:
        if self.count < 0:
            # An unknown MTU: at least one answer.
            return max(1, -(-self.length // mtu)) if mtu > 0 else 1
        return self.count


@dataclass(slots=True)
class Answers:
    """Answers that an end waits for, the oldest first.

    RC answers in order (9.7.5), so an answer shows that all earlier answers were sent.
    """

    waiting: list[_Expected] = field(default_factory=list)

    def expect(self, psn: int, count: int, length: int, *, read: bool = True) -> None:
        """Add a request with ``count`` answers from ``psn`` on, -1 when their number is unknown.

        ``read``: a READ or an atomic, not a FLUSH or ATOMIC WRITE.
        """
        self.waiting.append(_Expected(psn, count, length, read))
        if len(self.waiting) > EXPECTED_KEPT:
            del self.waiting[0]

    def passed_over(self, psn: int, mtu: int) -> Iterator[tuple[int, int]]:
        """Drop the missing answers in front of ``psn``; yields them as (first PSN, the PSN behind the last)."""
        while self.waiting:
            oldest = self.waiting[0]
            ahead = psn - oldest.psn & MASK
            if not 0 < ahead < HALF:
                return
            left = oldest.left(mtu)
            missing = min(left, ahead)
            yield oldest.psn, oldest.psn + missing & MASK
            oldest.psn, oldest.count = oldest.psn + missing & MASK, left - missing
            if oldest.count:
                return
            del self.waiting[0]

    def came(self, psn: int, mtu: int, *, last: bool) -> bool:
        """Take the answer ``psn`` in; ``last``: it is the last one of its READ.

        Returns whether it may belong to a READ or an atomic.
        """
        if not self.waiting or self.waiting[0].psn != psn:
            return True
        oldest = self.waiting[0]
        oldest.count, oldest.psn = oldest.left(mtu) - 1, psn + 1 & MASK
        if last or oldest.count == 0:
            del self.waiting[0]
        return oldest.read
