"""Wait for one of the bench's own machines to boot."""

from typing import Protocol

from hil.errors import NodeDied, PhaseTimeout
from hil.labs.channel import Channel
from hil.waiting import wait_until


class Booting(Protocol):
    """A machine that may end before it has booted."""

    def alive(self) -> bool: ...
    def last_words(self) -> str: ...


def wait_booted(name: str, machine: Booting, channel: Channel, timeout_s: float) -> None:
    """Wait until the agent reports that it is ready. Raises NodeDied and PhaseTimeout with the end of the console."""

    def ready_or_gone() -> bool:
        return channel.ready.wait(0.2) or not machine.alive()

    wait_until(ready_or_gone, timeout_s, f"boot of {name}", strict=False, poll_s=0)
    if channel.ready.is_set():
        return
    if not machine.alive():
        raise NodeDied(f"{name} stopped while booting; {machine.last_words()}")
    raise PhaseTimeout(f"{name} did not boot within {timeout_s:.0f} s; {machine.last_words()}")
