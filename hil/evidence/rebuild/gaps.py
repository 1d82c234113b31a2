"""Where packets went that a capture does not show in their place."""

from hil.evidence.rebuild.facts import Gap, Where
from hil.evidence.rebuild.window import COPY_WITHIN_NS
from hil.roce.psn import MASK


def holds(gap: Gap, psn: int) -> bool:
    return psn - gap.start & MASK < size_of(gap)


def size_of(gap: Gap) -> int:
    return gap.end - gap.start & MASK


def where_of(gap: Gap) -> Where:
    """What was sent again was lost on the wire; what was acknowledged as it is was only not captured.

    What came long after its acknowledgement is no loss either: its first packet is missing, or the order is wrong.
    """
    if len(gap.came) >= size_of(gap):
        late = gap.last_fill_ns - gap.time_ns > COPY_WITHIN_NS
        if late and gap.early:
            return Where.MISSED
        return Where.LOST if late or gap.asked else Where.REORDERED
    if gap.acknowledged:
        return Where.MISSED
    return Where.LOST if gap.asked else Where.UNKNOWN
