"""The needs that tests can have of a lab. A kind of lab derives the unmet needs from the lab file (hil.labs.kinds)."""

from enum import StrEnum


class Need(StrEnum):
    """A property that some labs have and others lack.

    CAPTURE: every frame between the nodes is recorded, and a missing one is noticed (see ``LabKind.guarantee``).
    INLINE_WIRE: frames pass through the bench, which can delay or change them.
    OWN_NODES: the bench owns the nodes. A test may change addresses and remove adapters, and need not undo it.
    POWER: a node can be halted, and its power can be cut. IPV6: adapters have an IPv6 address.
    GUESTS: the nodes are guests, whose netdevs and networks a test knows.
    MANY_NODES: at least sixteen nodes on one bridge. CLONES: the nodes are clones, on their distribution's own kernel.
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
