"""Every mutant as data: its name, the layer it is wrong in, one sentence, and the requirements that it breaks.

A mutant is a provider, a switch or a wire that is wrong on purpose, and the bench must name it. The controller reads
this list. It cannot import the providers' code, which needs pyverbs.
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
    """A mutant: ``sentence`` describes its mistake, and ``breaks`` are ids of requirements.

    ``breaks`` is empty if no requirement forbids the mistake. ``home`` is ``MODULE:CLASS``, loaded where it runs.
    """

    name: str
    layer: Layer
    sentence: str
    breaks: tuple[str, ...]
    home: str

    @property
    def areas(self) -> tuple[str, ...]:
        """The areas of the requirements that the mutant breaks."""
        return tuple(dict.fromkeys(requirements()[name].area for name in self.breaks))


def _provider(name: str, sentence: str, *breaks: str) -> Mutant:
    return Mutant(name, Layer.PROVIDER, sentence, breaks, f"hil.mutants.providers:{name}")


def _switch(name: str, sentence: str, *breaks: str) -> Mutant:
    return Mutant(name, Layer.SWITCH, sentence, breaks, f"hil.mutants.sessions:{name}")


def _wire(name: str, sentence: str, *breaks: str) -> Mutant:
    return Mutant(name, Layer.WIRE, sentence, breaks, f"hil.mutants.wires:{name}")


_OWN = (
    _provider("NoDreq", "Sends no DREQ when it closes a socket.", "CLOSE-35"),
    _provider("NoFlush", "Leaves the peer's QP in RTS, so its receives never end.", "RECV-13"),
    _provider("LeakMr", "Does not deregister memory when it closes a socket.", "CLOSE-18"),
    _provider("ClosesAnyway", "Returns 0 from a failed close, although it stores the code.", "CLOSE-02"),
    _provider("WrongCode", "Reports the closer's own operations as reset by the peer.", "CLOSE-13"),
    _provider("FalseSuccess", "Reports cancelled operations as successful.", "CLOSE-11"),
    _provider("HandleFirst", "Closes the switch's handle before it reports the completions.", "CLOSE-23", "CLOSE-26"),
    _provider("Lingers", "Gives pending operations time before the reset.", "CLOSE-07"),
    _provider("LateDreq", "Returns from the close before it resets the connection.", "CLOSE-35"),
    _provider("LeakExtra", "Leaks a PD for every operation.", "CLOSE-18"),
    _provider("LeakContext", "Leaves the device and its completion channels open after WSPCleanup.", "CLEAN-04"),
    _provider("LeakThread", "Leaves a thread behind for every operation.", "CLOSE-27"),
    _provider("LeakLocked", "Locks a page of memory for every operation and never unlocks it.", "CLOSE-27"),
    _provider("LeakDescriptor", "Leaves a descriptor open for every operation.", "CLOSE-27"),
    _provider("StrayUpcall", "Completes an unknown operation on an unknown handle.", "CLOSE-25"),
    _provider("MemoryLast", "Releases memory only after the completions, and does not report that.", "CLOSE-17"),
    _provider("EarlySuccess", "Completes sends and RDMA writes as soon as the adapter has them.", "SEND-09", "RDMA-11"),
    _provider("Unfenced", "Lets a send overtake an RDMA read.", "SEND-14"),
    _provider("LateWrites", "Lets sends overtake RDMA writes.", "SEND-13", "RDMA-15"),
    _provider("AlwaysReset", "Reports a transport failure as a reset by the peer.", "RECV-17"),
    _provider("KeepsListening", "Leaves a closed listener's CM id listening.", "CLOSE-38"),
    _provider("ForgetsPolled", "Leaves polled operations in progress for ever when it closes.", "CLOSE-49"),
    _provider("SignalsClose", "Signals a socket's event object when it closes the socket.", "CLOSE-21"),
    _provider("SharedDomain", "Has one protection domain for all its sockets.", "RMEM-06", "RMEM-07"),
    _provider("OpensLocal", "Lets the peer access all registered memory.", "MEM-13", "RMEM-08", "RMEM-09"),
    _provider("KeepsExposed", "Caches exposed memory, so that the peer can still access it.", "RMEM-12", "CACHE-04"),
    _provider("TrustsAddresses", "Treats the same address as the same memory.", "CACHE-09", "CACHE-11"),
    _provider("FreesAtOnce", "Keeps no count of registrations.", "MEM-09", "MEM-10", "RMEM-14"),
    _provider("IgnoresFlags", "Uses registered memory for any operation, against its flags.", "MEM-14"),
    _provider("NotifiesPolled", "Makes an up-call for polled operations too.", "OVL-03"),
    _provider("LocksUpcalls", "Holds a socket's lock while the switch is in an up-call.", "OVL-25"),
    _provider("RefusesFirst", "Refuses the connector before the condition function has answered.", "ACC-02"),
    _provider("AlwaysCopies", "Goes on receiving into private buffers after the early messages are drained.", "NEG-06"),
    _provider(
        "LateUpcalls", "Reports operations that WSPCleanup cancelled only after WSPCleanup has returned.", "CLEAN-08"
    ),
    _provider("RepeatsUpcalls", "Reports an operation again if the switch has not yet made its end visible.", "UP-06"),
    _provider(
        "LeavesBroken",
        "Closes a connection that broke at its own end without a reliable reset of the peer.",
        "CLOSE-32",
    ),
    _provider("IgnoresReset", "Goes on using a connection that its peer has reset, like an attacker.", "CLOSE-31"),
    _provider("CleansUpAtOnce", "Does not count its starts.", "STARTUP-12", "CLEAN-03"),
    _provider("KeepsFailures", "Keeps the record of a socket that got no switch handle.", "SOCK-05"),
    _provider("OwnPort", "Connects from another port than the bound one.", "BIND-01", "BIND-02"),
    _provider("LosesWakeUps", "Resets the event object only some time after it reported the events.", "EVT-08"),
    _provider("EndlessQueue", "Queues every request, even beyond the backlog.", "LISTEN-07", "LISTEN-08", "LISTEN-09"),
    _provider("LooksAway", "Never looks for completions in its own thread, so that only polling finds them.", "OVL-04"),
    _provider("TouchesOld", "Marks operations that it reported long before as aborted when it closes.", "OVL-24"),
    _provider(
        "CompletesTwice", "Reports an operation that succeeds during a close as successful and as aborted.", "CLOSE-14"
    ),
    _provider(
        "ForgetsOutcomes",
        "Forgets completions that it has not reported when a close begins.",
        "CLOSE-12",
        "OVL-02",
    ),
    _provider("ReleasesInUse", "Deregisters memory that operations still use.", "MEM-12"),
    _provider(
        "TellsOnce",
        "Does not signal again, after an accept, for further requests in the queue.",
        "ACC-07",
        "EVT-08",
    ),
    _provider("WaitsInUpcalls", "Waits for another thread's up-call when it closes inside an up-call.", "OVL-25"),
    _provider("KeepsOperations", "Keeps a record of every operation for ever; no audit of the kernel shows it."),
    _provider("ClosesTwice", "Lets two threads close one descriptor.", "CLOSE-02", "CLOSE-48"),
    _provider(
        "ResetsOnce",
        "Destroys its CM id with the reset, so that a lost DREQ is never repeated.",
        "CLOSE-31",
    ),
    _provider(
        "TrustsFirstPages",
        "Treats memory as unchanged if its first page is unchanged.",
        "CACHE-09",
        "CACHE-11",
        "PROXY-04",
    ),
    _provider("WaitsForVisible", "Does not go on after an up-call until the switch has stored the result.", "UP-06"),
    _provider("CopiesForEver", "Posts a large private receive for every receive of the switch, for ever.", "NEG-06"),
    _provider("IgnoresReads", "Treats memory that its own RDMA read fills as idle.", "RMEM-13"),
    _provider("WaitsForPolledOnly", "Waits for fWait only if the operation is polled.", "OVL-13"),
    _provider("KeepsCache", "Empties the cache only after it has closed the switch's handle.", "CACHE-10"),
    _provider(
        "CleansMemoryLast",
        "Reports operations that WSPCleanup cancelled before it frees their memory, and journals the opposite.",
        "CLEAN-06",
    ),
    _provider("NeverAbandons", "Waits for ever for the process that should take a socket over.", "DUP-22"),
    _provider("LosesUnread", "Leaves unread messages in the process that hands a socket over.", "DUP-14"),
    _switch("NegotiatesFirst", "Sends its negotiation message before it has posted receives.", "SWITCH-06"),
    _switch("LongHello", "Sends a negotiation message longer than 256 bytes.", "SWITCH-07"),
    _switch("NoCredits", "Sends messages even without a posted receive at the peer.", "SWITCH-08"),
    _switch("LateRepost", "Posts a consumed receive again only after the next message.", "SWITCH-09"),
    _switch("WrongPath", "Sends small data by RDMA and large data by message.", "SWITCH-11"),
    _switch("SuspendsForEver", "Never ends a suspended session.", "SWITCH-16"),
    _switch("EndsInSilence", "Sends no message when a transfer by RDMA has ended.", "SWITCH-18"),
    _switch("OtherCode", "Ends a send that lacks memory with WSAEFAULT instead of WSAENOBUFS.", "SWITCH-18"),
    _switch("UrgentFlag", "Passes MSG_OOB on to WSPSend.", "SHUT-04"),
    _switch("Deaf", "Does not query the addresses again when they change.", "SWITCH-17"),
    _wire(
        "Denies",
        "Forwards frames that it reports as dropped, and reports another frame than it sent.",
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
