"""Where the time of a run went, from the lines that it kept: by folder, file and phase, the slowest, long waits."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hil.errors import HilError
from hil.progress import harmless
from hil.stopwatch import Phase

TIMES = "times.jsonl"
"""In a results folder: a line for each test, and one for the start."""
BARS = " ▁▂▃▄▅▆▇█"
SLICES = 60
WIDTH = 200


@dataclass(frozen=True, slots=True)
class Timed:
    """A test's times in seconds: ``phases`` are (wall, processor) by phase, ``waits`` are long calls by name."""

    test: str
    worker: str
    phases: dict[Phase, tuple[float, float]]
    waits: list[tuple[str, float]]
    notes: list[str]

    @property
    def wall_s(self) -> float:
        return sum(wall for wall, _ in self.phases.values())

    @property
    def processor_s(self) -> float:
        return sum(processor for _, processor in self.phases.values())

    @property
    def waiting_s(self) -> float:
        """Seconds in which fewer than one processor worked for the test: what more tests at once can fill."""
        return sum(max(wall - processor, 0.0) for wall, processor in self.phases.values())


@dataclass(slots=True)
class Times:
    """All that a run kept. ``busy``: (time, busy ticks, all ticks) of the machine's cores, in order."""

    tests: list[Timed] = field(default_factory=list)
    busy: list[tuple[float, int, int]] = field(default_factory=list)


def cores() -> tuple[int, int]:
    """Ticks that all cores of this machine were busy, and all their ticks, since it was started (proc(5), stat)."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    # The fourth is idle, the fifth waits for a disk.
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def read(folder: Path) -> Times:
    """The times of a results folder. Raises HilError when it holds none, or what is no such file."""
    path, found, number = folder / TIMES, Times(), 0
    try:
        # A run that was killed may have left half of a line at the end.
        text = path.read_text(errors="replace")
        for line in text[: text.rfind("\n") + 1].splitlines():
            number += 1
            _take(found, json.loads(line))
    except OSError as error:
        raise HilError(f"{path}: {error.strerror}: a run of the bench keeps it") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise HilError(f"{path}: line {number} is not a test's times: {error!r}") from error
    return found


def newest(parent: Path) -> Path | None:
    """The newest results folder below ``parent`` that holds the times of a test."""
    for path in sorted(parent.glob(f"*/{TIMES}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(HilError):
            if read(path.parent).tests:
                return path.parent
    return None


def _take(found: Times, line: dict[str, Any]) -> None:
    at, (busy, ticks) = _number(line["at"]), map(int, line["cores"])
    found.busy.append((at, busy, ticks))
    if "test" in line:
        phases = {Phase(name): (_number(wall), _number(worked)) for name, (wall, worked) in line["phases"].items()}
        waits = [(str(call), _number(seconds)) for call, seconds in line["waits"]]
        found.tests.append(
            Timed(str(line["test"]), str(line["worker"]), phases, waits, [str(note) for note in line.get("notes", [])])
        )


def _number(value: Any) -> float:
    """Raises ValueError for what is no finite number."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def busy_share(busy: Sequence[tuple[float, int, int]]) -> float:
    """How much of all cores' time was busy, 0 to 1."""
    ticks = busy[-1][2] - busy[0][2] if busy else 0
    return min(max((busy[-1][1] - busy[0][1]) / ticks, 0.0), 1.0) if ticks > 0 else 0.0


def busy_line(busy: Sequence[tuple[float, int, int]]) -> str:
    """How busy the cores were over the run, a bar for each slice of it."""
    if len(busy) < 2 or busy[-1][0] <= busy[0][0]:
        return ""
    slices: list[list[tuple[float, int, int]]] = [[] for _ in range(SLICES)]
    begun, length = busy[0][0], busy[-1][0] - busy[0][0]
    for before, now in pairwise(busy):
        # The ticks between two tests' ends belong to all the time between them. A clock that was set stays inside.
        first, last = (min(max(int((at - begun) / length * SLICES), 0), SLICES - 1) for at in (before[0], now[0]))
        for place in range(first, last + 1):
            slices[place] += [before, now] if not slices[place] else [now]
    shares = [busy_share(part) if len(part) > 1 else 0.0 for part in slices]
    return "".join(BARS[round(share * (len(BARS) - 1))] for share in shares)


def as_json(times: Times) -> dict[str, Any]:
    """Everything as plain data, seconds."""
    tests = [
        {
            "test": t.test,
            "worker": t.worker,
            "wall": round(t.wall_s, 3),
            "processor": round(t.processor_s, 3),
            "phases": t.phases,
            "waits": t.waits,
            "notes": t.notes,
        }
        for t in times.tests
    ]
    length = times.busy[-1][0] - times.busy[0][0] if times.busy else 0.0
    return {"seconds": round(length, 1), "cores busy": round(busy_share(times.busy), 3), "tests": tests}


def show(times: Times, console: Console, most: int) -> None:
    """Tables for a terminal: folders, files, phases, the ``most`` slowest tests, the longest waits."""
    told = as_json(times)
    workers = len({test.worker for test in times.tests})
    seconds, busy = told["seconds"], told["cores busy"]
    console.print(f"{len(times.tests)} tests in {seconds:.0f} s, {workers} at a time; cores busy {busy:.0%}")
    console.print(f"busy |{busy_line(times.busy)}|", markup=False)
    folders = _grouped(times.tests, lambda test: test.test.rpartition("/")[0] or ".")
    console.print(_table("folder", folders, console))
    files = _grouped(times.tests, lambda test: test.test.partition("::")[0])
    console.print(_table("file", files[:most], console))
    slowest = sorted(times.tests, key=lambda test: test.wall_s, reverse=True)[:most]
    console.print(_table("slowest test", [(test.test, [test]) for test in slowest], console))
    console.print(_waits(times.tests, most))
    for note, count in Counter(note for test in times.tests for note in test.notes).most_common(most):
        console.print(f"{count:5}  {harmless(note)}", markup=False, highlight=False)


def _grouped(tests: Iterable[Timed], key: Any) -> list[tuple[str, list[Timed]]]:
    groups: dict[str, list[Timed]] = defaultdict(list)
    for test in tests:
        groups[key(test)].append(test)
    return sorted(groups.items(), key=lambda item: -sum(test.wall_s for test in item[1]))


def _table(title: str, groups: Iterable[tuple[str, list[Timed]]], console: Console) -> Table:
    """Seconds of wall time by phase; of the whole also the processors' and what was waited."""
    table = Table(title=None, box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for column in ("tests", "wall", "processor", "waiting", *Phase):
        table.add_column(column, justify="right", no_wrap=True)
    for name, tests in groups:
        whole = [sum(getattr(test, what) for test in tests) for what in ("wall_s", "processor_s", "waiting_s")]
        parts = [sum(test.phases.get(phase, (0.0, 0.0))[0] for test in tests) for phase in Phase]
        table.add_row(harmless(name), str(len(tests)), *(f"{seconds:.1f}" for seconds in (*whole, *parts)))
    return table


def _waits(tests: Iterable[Timed], most: int) -> Table:
    table = Table(title=None, box=None, pad_edge=False)
    for column in ("long wait, s", "call", "test"):
        table.add_column(column, overflow="fold")
    waits = sorted(((s, call, t.test) for t in tests for call, s in t.waits), reverse=True)
    for seconds, call, test in waits[:most]:
        table.add_row(f"{seconds:.1f}", harmless(call), harmless(test))
    return table
