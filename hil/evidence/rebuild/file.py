"""Rebuilds the connections of a whole capture, and collects the facts of the file."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from hil.capture.bulk import Batch, Malformed, Passed, scan
from hil.capture.chunk import Chunk
from hil.capture.links import unread
from hil.capture.reader import Capture
from hil.capture.sides import emitted
from hil.evidence.rebuild.clock import Clock
from hil.evidence.rebuild.facts import ConnectionFacts
from hil.evidence.rebuild.rebuilder import MAX_LIVE, Rebuilder, Tally
from hil.evidence.rebuild.rows import rows_of


@dataclass(slots=True)
class FileFacts:
    """The facts of a capture as a whole.

    - ``last_ns``: the time of the last frame of any protocol.
    - ``dropped``: the number of frames that the capturing side lost, by interface.
    - ``problems``: damages of the file.
    - ``other_links``: the number of frames of link types that are not supported, by link type.
    - ``snapped``: RoCE packets that were not captured completely.
    - ``right_icrc``, ``wrong_icrc``: packets by their ICRC; the ICRC of the others could not be checked.
    - ``grain_ns``: the step of the clock; only the file gives the order of frames that are closer together.
    """

    name: str
    frames: int = 0
    first_ns: int = 0
    last_ns: int = 0
    interfaces: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    passed: Passed = field(default_factory=Passed)
    other_links: Counter[int] = field(default_factory=Counter)
    malformed: dict[str, int] = field(default_factory=dict)
    snapped: int = 0
    right_icrc: int = 0
    wrong_icrc: int = 0
    first_wrong_icrc: int = -1
    grain_ns: int = 1
    clock: Clock = field(default_factory=Clock)
    tally: Tally = field(default_factory=Tally)

    @property
    def joined(self) -> bool:
        """Whether the file joins several captures: it has two interfaces with the same name."""
        return len(set(self.interfaces)) < len(self.interfaces)


class FileRebuild:
    """Iterate over it once for the connections of ``capture``; ``facts`` is complete when the iteration has ended."""

    def __init__(
        self,
        capture: Capture,
        *,
        check_icrc: bool = True,
        max_live: int = MAX_LIVE,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """``progress`` is called after each chunk with the number of bytes read.

        ``max_live``: the most connections that may be live at once.
        """
        self.facts = FileFacts(capture.name)
        self._capture = capture
        self._check_icrc = check_icrc
        self._progress = progress
        self._rebuilder = Rebuilder(max_live, self.facts.tally)
        self._position = 0

    def __iter__(self) -> Iterator[ConnectionFacts]:
        for chunk in self._capture:
            yield from self._take(chunk)
            self._progress(self._capture.bytes_read)
        yield from self._rebuilder.finish()
        self._conclude()

    def _take(self, chunk: Chunk) -> Iterator[ConnectionFacts]:
        facts = self.facts
        facts.frames += len(chunk)
        batch = scan(chunk, check_icrc=self._check_icrc)
        facts.passed = facts.passed + batch.passed
        if batch.passed.other_links:
            links, counts = np.unique(chunk.link_type[unread(chunk)], return_counts=True)
            facts.other_links.update(dict(zip(links.tolist(), counts.tolist(), strict=True)))
        if len(batch):
            yield from self._rebuild(batch)
        # Frames of any protocol show how far the capture goes on.
        facts.last_ns = max(facts.last_ns, facts.clock.continued(int(chunk.time_ns[-1])))
        self._rebuilder.until_ns = max(self._rebuilder.until_ns, facts.last_ns)

    def _rebuild(self, batch: Batch) -> Iterator[ConnectionFacts]:
        facts = self.facts
        facts.right_icrc += int(np.count_nonzero(batch.icrc == 1))
        wrong = np.flatnonzero(batch.icrc == 0)
        if len(wrong) and not facts.wrong_icrc:
            facts.first_wrong_icrc = int(batch.number[wrong[0]])
        facts.wrong_icrc += len(wrong)
        facts.snapped += int(np.count_nonzero(batch.captured < batch.original))
        for code, count in zip(*np.unique(batch.malformed, return_counts=True), strict=True):
            if code != Malformed.NO:
                name = Malformed(code).name.lower()
                facts.malformed[name] = facts.malformed.get(name, 0) + int(count)
        times = facts.clock.times_ns(batch)
        facts.first_ns = facts.first_ns or int(times.min())
        facts.last_ns = max(facts.last_ns, int(times.max()))
        interfaces = [interface.name for interface in self._capture.interfaces]
        trusted, by_wire = facts.right_icrc > 0, emitted(interfaces)
        rows = rows_of(batch, self._position, times, trust_icrc=trusted, emitted=by_wire)
        self._position += len(batch)
        yield from self._rebuilder.feed(rows)

    def _conclude(self) -> None:
        interfaces = self._capture.interfaces
        self.facts.interfaces = tuple(interface.name for interface in interfaces)
        for interface in interfaces:
            if interface.dropped > 0:
                self.facts.dropped[interface.name] = self.facts.dropped.get(interface.name, 0) + interface.dropped
        self.facts.grain_ns = max(self.facts.clock.grain_ns, *(interface.tick_ns for interface in interfaces), 1)
        self.facts.problems = tuple(map(str, self._capture.problems))
