"""Random naps where threads and machines meet. A test that relies on an accidental order fails with them.

Naps are off until ``start``. Each place has its own random numbers from the seed, so a run with the same seed naps at
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
    """Turn naps on with ``seed``, or off with an empty text."""
    global _seed
    with _lock:
        _seed = seed
        _chances.clear()
        _derived.clear()


def seed() -> str:
    """The seed of ``start``, or an empty text without naps."""
    return _seed


def derived(name: str) -> str:
    """A seed for another process of the test; empty without naps.

    It holds ``name`` and the number of seeds made for that name in this test, so every process has its own.
    """
    if not _seed:
        return ""
    with _lock:
        _derived[name] = _derived.get(name, 0) + 1
        return f"{_seed} {name} {_derived[name]}"


def nap(place: Place) -> None:
    """Sleep at this place, in one call of ``place.one_in``, up to ``place.most_s`` seconds."""
    if not _seed:
        return
    with _lock:
        chance = _chances.setdefault(place, random.Random(f"{_seed} {place.name}"))
        seconds = chance.uniform(0, place.most_s) if chance.randrange(place.one_in) == 0 else 0.0
    if seconds:
        time.sleep(seconds)
