"""Times of a test: wall time and processor time of each phase, and its long remote calls."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

# Imported by name: a test may replace the functions of the module time.
from time import monotonic_ns, process_time_ns, time_ns
from typing import Any

LONG_NS = 10**9
"""A remote call that takes at least this long is recorded with its name."""


class Phase(StrEnum):
    """The phases of a test. Time outside the other phases is SET_UP before the test's call, TAKE_DOWN after it."""

    PAIR = "pair"
    SET_UP = "set-up"
    CALL = "call"
    AUDIT = "audit"
    JUDGING = "judging"
    WRITING = "writing"
    TAKE_DOWN = "take-down"


@dataclass(slots=True)
class Spent:
    """Nanoseconds of a phase: wall time, and processor time of all processes that worked for the test."""

    wall_ns: int = 0
    processor_ns: int = 0


@dataclass(slots=True)
class Stopwatch:
    """Times one test. ``sources`` return processor time in ns, of this process and of others that work for the test."""

    phase: Phase = Phase.SET_UP
    begun_ns: int = field(default_factory=time_ns)
    spent: dict[Phase, Spent] = field(default_factory=dict)
    waits: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[Callable[[], int]] = field(default_factory=lambda: [process_time_ns])
    _wall_ns: int = field(default_factory=monotonic_ns)
    _processor_ns: int = field(default_factory=process_time_ns)

    def enter(self, phase: Phase) -> Phase:
        """Begin ``phase``; returns the phase that ends."""
        left, wall_ns, processor_ns = self.phase, monotonic_ns(), self._read()
        spent = self.spent.setdefault(left, Spent())
        spent.wall_ns += wall_ns - self._wall_ns
        # The sum may fall, because a process that has ended is no longer counted.
        spent.processor_ns += max(processor_ns - self._processor_ns, 0)
        self.phase, self._wall_ns, self._processor_ns = phase, wall_ns, processor_ns
        return left

    def _read(self) -> int:
        return sum(source() for source in self.sources)

    def as_json(self) -> dict[str, Any]:
        """The times as JSON, in seconds: ``phases`` maps a phase's name to [wall, processor]."""
        self.enter(self.phase)
        phases = {
            str(name): [round(s.wall_ns / 1e9, 3), round(s.processor_ns / 1e9, 3)] for name, s in self.spent.items()
        }
        return {"begun": self.begun_ns / 1e9, "phases": phases, "waits": self.waits, "notes": self.notes}


_running: Stopwatch | None = None


def start() -> Stopwatch:
    """Begin to time a test. A process times one test at a time."""
    global _running
    _running = Stopwatch()
    return _running


def stop() -> dict[str, Any] | None:
    """End the timing; returns the times as JSON, or None when no test was timed."""
    global _running
    stopped, _running = _running, None
    return stopped.as_json() if stopped else None


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Count the time inside the context for this phase of the running test, if one runs."""
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
    """Begin this phase of the running test, if one runs."""
    if _running is not None:
        _running.enter(name)


def watch(processor_ns: Callable[[], int], *, new: bool) -> None:
    """Count the processor time of other processes that work for the running test, if one runs.

    ``new``: the processes were started for this test, so all their processor time counts.
    """
    if _running is not None:
        before = 0 if new else processor_ns()
        _running.sources.append(lambda: processor_ns() - before)


def note(text: str) -> None:
    """Record a condition that the running test's time depends on; tests under equal conditions record equal texts."""
    if _running is not None:
        _running.notes.append(text)


class ProcessorTime:
    """Processor time in ns of a process and its children, running or ended.

    When the process has ended, the last known value stays. The kernel counts in ticks, of 10 ms on most machines.
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
    """User and system time of a process, and of the children that it has waited for, in ticks (proc(5), stat)."""
    try:
        return [int(number) for number in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    except FileNotFoundError:
        return [0, 0, 0, 0]


def waited(call: str, wall_ns: int) -> None:
    """Record that a remote call took ``wall_ns``, when that is at least ``LONG_NS``."""
    if _running is not None and wall_ns >= LONG_NS:
        _running.waits.append((call, round(wall_ns / 1e9, 2)))
