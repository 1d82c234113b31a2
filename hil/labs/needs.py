"""What tests need of a lab. A kind of lab tells what a lab lacks, from its file alone (hil.labs.kinds)."""

from enum import StrEnum


class Need(StrEnum):
    """A property of labs that some have and some lack.

    CAPTURE: every frame between the nodes is recorded, and a missing one is noticed (how: ``LabKind.guarantee``).
    INLINE_WIRE: frames pass through the bench, which can hold them back or change them. OWN_NODES: the nodes are the
    bench's; a test may change their addresses, take adapters away, and need not put anything back. POWER: a node can be
    halted and cut off at will. IPV6: adapters have an IPv6 address. GUESTS: the nodes are guests, whose netdevs and
    networks a test knows.
    MANY_NODES: sixteen nodes at least on one bridge. CLONES: the nodes are clones, on their distribution's own kernel.
    """

    PAIR = "pair"
    CAPTURE = "capture"
    INLINE_WIRE = "inline wire"
    OWN_NODES = "own nodes"
    POWER = "power control"
    IPV6 = "IPv6"
    GUESTS = "guests"
    MANY_NODES = "many nodes"
    CLONES = "clones"


MANY = 16
