"""Where the time of a test goes: seconds by phase, how much of each the processors worked, and what was waited for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

# Bound here: a test may put others into the module time.
from time import monotonic_ns, process_time_ns, time_ns
from typing import Any

LONG_NS = 10**9
"""A remote call that takes at least so long is kept by its name."""


class Phase(StrEnum):
    """What a test is at. Time that no other phase claims is SET_UP before its call, TAKE_DOWN after it."""

    PAIR = "pair"
    SET_UP = "set-up"
    CALL = "call"
    AUDIT = "audit"
    JUDGING = "judging"
    WRITING = "writing"
    TAKE_DOWN = "take-down"


@dataclass(slots=True)
class Spent:
    """Nanoseconds of a phase: on the wall's clock, and of all processors that worked for the test."""

    wall_ns: int = 0
    processor_ns: int = 0


@dataclass(slots=True)
class Stopwatch:
    """Times one test. ``sources`` tell the processor time, in ns, of this process and of others that work for it."""

    phase: Phase = Phase.SET_UP
    begun_ns: int = field(default_factory=time_ns)
    spent: dict[Phase, Spent] = field(default_factory=dict)
    waits: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[Callable[[], int]] = field(default_factory=lambda: [process_time_ns])
    _wall_ns: int = field(default_factory=monotonic_ns)
    _processor_ns: int = field(default_factory=process_time_ns)

    def enter(self, phase: Phase) -> Phase:
        """Time that passes from now on counts for ``phase``; returns the phase until now."""
        left, wall_ns, processor_ns = self.phase, monotonic_ns(), self._read()
        spent = self.spent.setdefault(left, Spent())
        spent.wall_ns += wall_ns - self._wall_ns
        # A process that ended took its count along.
        spent.processor_ns += max(processor_ns - self._processor_ns, 0)
        self.phase, self._wall_ns, self._processor_ns = phase, wall_ns, processor_ns
        return left

    def _read(self) -> int:
        return sum(source() for source in self.sources)

    def told(self) -> dict[str, Any]:
        """As JSON, seconds: ``phases`` are [wall, processor] by name."""
        self.enter(self.phase)
        phases = {
            str(name): [round(s.wall_ns / 1e9, 3), round(s.processor_ns / 1e9, 3)] for name, s in self.spent.items()
        }
        return {"begun": self.begun_ns / 1e9, "phases": phases, "waits": self.waits, "notes": self.notes}


_running: Stopwatch | None = None


def start() -> Stopwatch:
    """Time a new test from now on: one at a time in a process."""
    global _running
    _running = Stopwatch()
    return _running


def stop() -> dict[str, Any] | None:
    """What was timed, or None when nothing was."""
    global _running
    stopped, _running = _running, None
    return stopped.told() if stopped else None


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Time that passes inside counts for this phase of the running test, if one runs."""
    watch = _running
    if watch is None:
        yield
        return
    before = watch.enter(name)
    try:
        yield
    finally:
        watch.enter(before)


def enter(name: Phase) -> None:
    """Time that passes from now on counts for this phase of the running test, if one runs."""
    if _running is not None:
        _running.enter(name)


def watch(processor_ns: Callable[[], int], *, new: bool) -> None:
    """Count the processor time of other processes that work for the running test, if one runs.

    ``new``: they were made for it, and all that they have worked is the test's.
    """
    if _running is not None:
        before = 0 if new else processor_ns()
        _running.sources.append(lambda: processor_ns() - before)


def note(text: str) -> None:
    """Keep a word about what the running test's time depends on, the same for all that are alike."""
    if _running is not None:
        _running.notes.append(text)


class ProcessorTime:
    """Nanoseconds that a process and its children, ended or not, have worked; the last that was known once it is gone.

    The kernel counts in ticks, of 10 ms on most machines.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._known_ns = pid, 0

    def __call__(self) -> int:
        try:
            children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
            ticks = sum(_ticks(self._pid)) + sum(sum(_ticks(int(child))[:2]) for child in children)
        except (OSError, ValueError):
            return self._known_ns
        self._known_ns = max(self._known_ns, ticks * 10**9 // _TICKS_PER_S)
        return self._known_ns


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> list[int]:
    """User and system time of a process, and those of its children that it has waited for (proc(5), stat)."""
    try:
        return [int(number) for number in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    except FileNotFoundError:
        return [0, 0, 0, 0]


def waited(call: str, wall_ns: int) -> None:
    """A remote call took so long; kept when it is long."""
    if _running is not None and wall_ns >= LONG_NS:
        _running.waits.append((call, round(wall_ns / 1e9, 2)))
