"""Random naps at the places where threads and machines meet: a test that takes an order for granted fails with them.

Off unless started. With a seed each place naps by random numbers of its own, so that a run with the same seed naps at
the same calls, as far as its threads make the same calls.
"""

import random
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A place where one call in ``one_in`` naps for at most ``most_s`` seconds."""

    name: str
    one_in: int
    most_s: float


TEST_CALL = Place("around a call of the test", 7, 0.3)
PROVIDER_CALL = Place("around a call of the provider", 25, 0.08)
PROVIDER_EVENT = Place("before an event that the provider's thread handles", 10, 0.25)
UPCALL = Place("in an up-call of the switch", 25, 0.1)
WIRE = Place("before frames that the wire takes", 50, 0.12)

_lock = threading.Lock()
_seed = ""
_chances: dict[Place, random.Random] = {}
_derived: dict[str, int] = {}


def start(seed: str) -> None:
    """Nap from now on, or no more with an empty ``seed``."""
    global _seed
    with _lock:
        _seed = seed
        _chances.clear()
        _derived.clear()


def seed() -> str:
    """The seed that was started with, or an empty text."""
    return _seed


def derived(name: str) -> str:
    """A seed for another process of a test, of its own; empty without naps.

    A process of that name is numbered by how many there were in the test.
    """
    if not _seed:
        return ""
    with _lock:
        _derived[name] = _derived.get(name, 0) + 1
        return f"{_seed} {name} {_derived[name]}"


def nap(place: Place) -> None:
    """Nap now and then."""
    if not _seed:
        return
    with _lock:
        chance = _chances.setdefault(place, random.Random(f"{_seed} {place.name}"))
        seconds = chance.uniform(0, place.most_s) if chance.randrange(place.one_in) == 0 else 0.0
    if seconds:
        time.sleep(seconds)
