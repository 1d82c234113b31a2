"""What an end must be answered with packets of data: the PSNs that its READs and atomics take (9.7.3.1)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hil.roce.psn import HALF, MASK

EXPECTED_KEPT = 1024


@dataclass(slots=True)
class _Expected:
    """One READ or atomic: the PSN of its next answer, and how many answers it has from there; -1 while the MTU is not
    known that ``length`` bytes are divided by."""

    psn: int
    count: int
    length: int
    read: bool = True

    def left(self, mtu: int) -> int:
        if self.count < 0:
            # At least one, where nothing tells.
            return max(1, -(-self.length // mtu)) if mtu > 0 else 1
        return self.count


@dataclass(slots=True)
class Answers:
    """Answers that an end waits for, the oldest first. RC answers in order (9.7.5): one that is behind others shows
    that those were sent."""

    waiting: list[_Expected] = field(default_factory=list)

    def expect(self, psn: int, count: int, length: int, *, read: bool = True) -> None:
        """A READ, or an atomic, from ``psn`` on: with ``count`` answers, or -1 while that is not known. ``read``: its
        answer is not the one packet that FLUSH and ATOMIC WRITE have."""
        self.waiting.append(_Expected(psn, count, length, read))
        if len(self.waiting) > EXPECTED_KEPT:
            del self.waiting[0]

    def passed_over(self, psn: int, mtu: int) -> Iterator[tuple[int, int]]:
        """Answers in front of ``psn`` that did not come, as (first PSN, the PSN behind the last)."""
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
        """The answer ``psn`` came, ``last`` of its READ; none in front of it is waited for any more.

        Whether it may be a READ's or an atomic's."""
        if not self.waiting or self.waiting[0].psn != psn:
            return True
        oldest = self.waiting[0]
        oldest.count, oldest.psn = oldest.left(mtu) - 1, psn + 1 & MASK
        if last or oldest.count == 0:
            del self.waiting[0]
        return oldest.read
