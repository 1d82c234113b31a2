"""Every mutant as data: its name, the layer it is wrong in, one sentence, and the requirements that it breaks.

A mutant is a provider, a switch or a wire that is wrong on purpose, and the bench must name it. This list is read on
the controller, which cannot import the providers' code: that needs pyverbs.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Protocol

from hil.errors import SeamError
from hil.seams import Seam
from hil.winsock.requirements import requirements


class Layer(StrEnum):
    """The part that is wrong: the provider under test, the session that the switch keeps, or the wire."""

    PROVIDER = "provider"
    SWITCH = "switch"
    WIRE = "wire"


@dataclass(frozen=True, slots=True)
class Mutant:
    """``sentence`` says what it does wrong; ``breaks`` are ids of requirements, none where no requirement speaks of it;
    ``home`` is ``MODULE:CLASS``, loaded where that layer runs."""

    name: str
    layer: Layer
    sentence: str
    breaks: tuple[str, ...]
    home: str

    @property
    def areas(self) -> tuple[str, ...]:
        """The areas of the requirements that it breaks."""
        return tuple(dict.fromkeys(requirements()[name].area for name in self.breaks))


def _provider(name: str, sentence: str, *breaks: str) -> Mutant:
    return Mutant(name, Layer.PROVIDER, sentence, breaks, f"hil.mutants.providers:{name}")


def _switch(name: str, sentence: str, *breaks: str) -> Mutant:
    return Mutant(name, Layer.SWITCH, sentence, breaks, f"hil.mutants.sessions:{name}")


def _wire(name: str, sentence: str, *breaks: str) -> Mutant:
    return Mutant(name, Layer.WIRE, sentence, breaks, f"hil.mutants.wires:{name}")


_OWN = (
    _provider("NoDreq", "Never tells the wire.", "CLOSE-35"),
    _provider("NoFlush", "Leaves the peer's QP in RTS, so its receives never end.", "RECV-13"),
    _provider("LeakMr", "Forgets to deregister.", "CLOSE-18"),
    _provider("ClosesAnyway", "Returns 0 when a close fails, beside its code.", "CLOSE-02"),
    _provider("WrongCode", "Reports the closer's own operations as reset by the peer.", "CLOSE-13"),
    _provider("FalseSuccess", "Tells the switch that what it cancelled was done.", "CLOSE-11"),
    _provider("HandleFirst", "Closes the switch's handle before the completions.", "CLOSE-23", "CLOSE-26"),
    _provider("Lingers", "Gives pending operations time before the reset.", "CLOSE-07"),
    _provider("LateDreq", "Returns from the close and resets later.", "CLOSE-35"),
    _provider("LeakExtra", "Keeps a PD of its own for every operation.", "CLOSE-18"),
    _provider("LeakContext", "Keeps the device open when it has cleaned up, with its completion channels.", "CLEAN-04"),
    _provider("LeakThread", "Leaves a thread behind for every operation.", "CLOSE-27"),
    _provider("LeakLocked", "Locks a page of memory for every operation and never unlocks it.", "CLOSE-27"),
    _provider("LeakDescriptor", "Leaves a descriptor open for every operation.", "CLOSE-27"),
    _provider("StrayUpcall", "Completes what nobody posted on a handle nobody made.", "CLOSE-25"),
    _provider("MemoryLast", "Releases memory only after the completions, and keeps silent about it.", "CLOSE-17"),
    _provider("EarlySuccess", "Completes sends and RDMA writes as soon as the adapter has them.", "SEND-09", "RDMA-11"),
    _provider("Unfenced", "Lets a send overtake an RDMA read.", "SEND-14"),
    _provider("LateWrites", "Lets sends overtake RDMA writes.", "SEND-13", "RDMA-15"),
    _provider("AlwaysReset", "Reports a transport failure as a reset by the peer.", "RECV-17"),
    _provider("KeepsListening", "Leaves a closed listener's CM id listening.", "CLOSE-38"),
    _provider("ForgetsPolled", "Leaves polled operations in progress for ever when it closes.", "CLOSE-49"),
    _provider("SignalsClose", "Signals the event object of what it closes.", "CLOSE-21"),
    _provider("SharedDomain", "Has one protection domain for all its sockets.", "RMEM-06", "RMEM-07"),
    _provider("OpensLocal", "Lets the peer reach whatever is registered.", "MEM-13", "RMEM-08", "RMEM-09"),
    _provider("KeepsExposed", "Caches what the peer could reach with its key.", "RMEM-12", "CACHE-04"),
    _provider("TrustsAddresses", "Takes the same address for the same memory.", "CACHE-09", "CACHE-11"),
    _provider("FreesAtOnce", "Keeps no count of registrations.", "MEM-09", "MEM-10", "RMEM-14"),
    _provider("IgnoresFlags", "Uses registered memory for whatever the switch asks.", "MEM-14"),
    _provider("NotifiesPolled", "Makes an up-call for polled operations too.", "OVL-03"),
    _provider("LocksUpcalls", "Holds a socket's lock while the switch is in an up-call.", "OVL-25"),
    _provider("RefusesFirst", 'Tells the connector "no" while the condition function still thinks.', "ACC-02"),
    _provider("AlwaysCopies", "Goes on receiving into private buffers when the early messages are drained.", "NEG-06"),
    _provider("LateUpcalls", "Tells of what WSPCleanup cancelled when that has returned.", "CLEAN-08"),
    _provider("RepeatsUpcalls", "Tells again of an operation whose end the switch has not made visible yet.", "UP-06"),
    _provider(
        "LeavesBroken",
        "Closes a connection that broke at its own end without telling the peer reliably.",
        "CLOSE-32",
    ),
    _provider("IgnoresReset", "Goes on using a connection that its peer has reset, as an attacker would.", "CLOSE-31"),
    _provider("CleansUpAtOnce", "Does not count its starts.", "STARTUP-12", "CLEAN-03"),
    _provider("KeepsFailures", "Keeps the record of a socket that got no switch handle.", "SOCK-05"),
    _provider("OwnPort", "Connects from a port of its own choice.", "BIND-01", "BIND-02"),
    _provider("LosesWakeUps", "Resets the event object a moment after it told what happened.", "EVT-08"),
    _provider("EndlessQueue", "Queues every request, whatever the backlog.", "LISTEN-07", "LISTEN-08", "LISTEN-09"),
    _provider("LooksAway", "Its thread leaves completions where they are, so that only polling finds them.", "OVL-04"),
    _provider("TouchesOld", "Marks what it told long ago as aborted when it closes.", "OVL-24"),
    _provider("CompletesTwice", "What succeeds while a close is under way is told as done and as aborted.", "CLOSE-14"),
    _provider(
        "ForgetsOutcomes",
        "Forgets what had completed and was not told yet when a close began.",
        "CLOSE-12",
        "OVL-02",
    ),
    _provider("ReleasesInUse", "Deregisters memory whatever still uses it.", "MEM-12"),
    _provider(
        "TellsOnce",
        "Does not tell again, after an accept, of the requests that wait behind.",
        "ACC-07",
        "EVT-08",
    ),
    _provider("WaitsInUpcalls", "Waits for another thread's up-call in a close that is made in an up-call.", "OVL-25"),
    _provider("KeepsOperations", "Keeps a record of every operation for ever, which no audit of the kernel shows."),
    _provider("ClosesTwice", "Two threads may close one descriptor.", "CLOSE-02", "CLOSE-48"),
    _provider(
        "ResetsOnce",
        "Lets its CM id go with the reset, so that a lost DREQ is never repeated on a bad wire.",
        "CLOSE-31",
    ),
    _provider(
        "TrustsFirstPages",
        "Takes memory for unchanged when its first page is.",
        "CACHE-09",
        "CACHE-11",
        "PROXY-04",
    ),
    _provider("WaitsForVisible", "Does not go on after an up-call until the switch has stored the result.", "UP-06"),
    _provider("CopiesForEver", "Has a large private receive for every receive of the switch, for ever.", "NEG-06"),
    _provider("IgnoresReads", "Takes memory that its own RDMA read fills for idle.", "RMEM-13"),
    _provider("WaitsForPolledOnly", "Takes fWait seriously only for operations without notification.", "OVL-13"),
    _provider("KeepsCache", "Empties the cache when the switch's handle is closed already.", "CACHE-10"),
    _provider(
        "CleansMemoryLast",
        "Its clean-up tells of what it cancelled before the memory is free, and lies about it.",
        "CLEAN-06",
    ),
    _provider("NeverAbandons", "Waits for ever for the process that was to take a socket.", "DUP-22"),
    _provider("LosesUnread", "Leaves unread messages in the process that hands a socket over.", "DUP-14"),
    _switch("NegotiatesFirst", "Speaks before it has posted its receives.", "SWITCH-06"),
    _switch("LongHello", "Tells a life story in its negotiation message.", "SWITCH-07"),
    _switch("NoCredits", "Sends whether or not the peer has a receive posted.", "SWITCH-08"),
    _switch("LateRepost", "Posts consumed receives again only when the next message comes.", "SWITCH-09"),
    _switch("WrongPath", "Small data by RDMA, large data by message.", "SWITCH-11"),
    _switch("SuspendsForEver", "Never ends a suspended session.", "SWITCH-16"),
    _switch("EndsInSilence", "Says nothing when a transfer by RDMA has ended.", "SWITCH-18"),
    _switch("OtherCode", "A send that lacks memory ends as if its buffer were bad.", "SWITCH-18"),
    _switch("UrgentFlag", "Passes MSG_OOB on to WSPSend.", "SHUT-04"),
    _switch("Deaf", "Does not ask again when addresses change.", "SWITCH-17"),
    _wire(
        "Denies",
        "Says that it dropped what it was told to drop, and hands it on; it says that it sent something else instead.",
    ),
)


class MutantEntry(Protocol):
    """The shape of an object behind an entry point of the group ``hil.mutants``: a ``Mutant`` named as the entry.

    The bench reads it in its main thread when a mutant is listed or chosen. For a mutant of the provider, ``home`` is a
    provider factory, loaded on the nodes (``hil.provider.seam``). For a mutant of the wire it is a subclass of
    ``hil.wire.forwarder.Forwarder``, loaded in the wire's own process. The switch is the bench's own: packages add no
    mutants of it.
    """

    name: str
    layer: Layer
    sentence: str
    breaks: tuple[str, ...]
    home: str


SEAM: Seam[Mutant] = Seam("hil.mutants", "mutant", MutantEntry, {})


@cache
def mutants() -> dict[str, Mutant]:
    """Every mutant by its name: the bench's own, and those of installed packages.

    Raises SeamError for an entry that is no mutant, has another's name, or breaks a requirement that does not exist.
    """
    found = {mutant.name: mutant for mutant in _OWN}
    for name in SEAM.names():
        mutant = SEAM.load(name)
        unknown = set(mutant.breaks) - requirements().keys()
        if mutant.name != name or name in found or unknown:
            reason = f"there is no requirement {', '.join(sorted(unknown))}" if unknown else "its name is another's"
            raise SeamError(f"mutant {name} of an installed package cannot be used: {reason}")
        found[name] = mutant
    return found
