"""Concludes where the packets of a gap went."""

from hil.evidence.rebuild.facts import Gap, Where
from hil.evidence.rebuild.window import COPY_WITHIN_NS
from hil.roce.psn import MASK


def holds(gap: Gap, psn: int) -> bool:
    return psn - gap.start & MASK < size_of(gap)


def size_of(gap: Gap) -> int:
    return gap.end - gap.start & MASK


def where_of(gap: Gap) -> Where:
    """Packets that were sent again were lost on the wire; packets acknowledged without that were only not captured.

    Packets that came long after their acknowledgement were not lost either: the capture misses their first sending, or
    its order is wrong.
    """
    if len(gap.came) >= size_of(gap):
        late = gap.last_fill_ns - gap.time_ns > COPY_WITHIN_NS
        if late and gap.early:
            return Where.MISSED
        return Where.LOST if late or gap.asked else Where.REORDERED
    if gap.acknowledged:
        return Where.MISSED
    return Where.LOST if gap.asked else Where.UNKNOWN
