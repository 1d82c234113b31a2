"""One direction of a reliable connection: the requests of one end, and the responses of the other end.

Sources: InfiniBand volume 1, 9.7.2 (PSNs), 9.7.3.1 (a READ takes as many PSNs as its response has packets), 9.7.5.1
(acknowledgements are cumulative), 9.7.5.2 (AETH syndromes), 9.7.8 (retransmission from the oldest PSN: go-back-N).
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from hil.evidence.rebuild.answers import Answers
from hil.evidence.rebuild.facts import DirectionFacts, Gap, GapFacts, Ladder, RawStep, Step, Where
from hil.evidence.rebuild.gaps import holds, size_of, where_of
from hil.evidence.rebuild.operations import (
    ANSWER_NAMES,
    ANSWERS_FIRST,
    ANSWERS_LAST,
    ATOMIC,
    FATAL_NAKS,
    FIRST,
    FLUSHED,
    LAST,
    LIKE_READ,
    NAK_NAMES,
    NAMES,
    PARTS,
    READ,
)
from hil.evidence.rebuild.rows import Row
from hil.evidence.rebuild.window import UNSURE_WITHIN_NS, Copy, Window
from hil.roce.opcodes import Operation
from hil.roce.psn import HALF, MASK

NO_COPY = Copy.NO
# The least number of earlier packets whose places are kept; beyond, only those that the window still holds.
MIN_PLACES_KEPT = 32
SMALLEST_MTU = 256
# More PSNs than any adapter keeps in flight. A longer jump is another stream, unless the next packet continues it.
MAX_PSN_JUMP = 1 << 20
MAX_PSNS_BEHIND = 1 << 16
# A loss skips fewer PSNs than this; a longer jump comes from a sender that counts from another PSN.
STREAM_JUMP_PSNS = 1024
GAPS_KEPT, PENDING_KEPT = 256, 1024


@dataclass(slots=True, eq=False)
class Requester:
    """The state of one direction. Feed it the end's requests and the other end's responses, in order.

    ``sender``: the end that sends the requests. ``mtu``: of the path, in bytes, -1 while unknown. ``una``: the oldest
    unacknowledged PSN. ``jumped_ns``: when the PSNs last jumped far ahead.
    """

    sender: int
    window: Window
    ladder: Ladder
    mtu: int = -1
    first_psn: int = -1
    next_psn: int = -1
    una: int = -1
    packets: int = 0
    payload: int = 0
    begun: int = 0
    ended: int = 0
    acknowledged: int = 0
    retransmissions: int = 0
    resends: int = 0
    go_backs: int = 0
    tries: int = 0
    unsure_tries: int = 0
    acknowledgements: int = 0
    repeated: int = 0
    rnr: int = 0
    rnr_since_progress: int = 0
    naks: Counter[str] = field(default_factory=Counter)
    fatal: Step | None = None
    last_msn: int = -1
    reads: int = 0
    reads_answered: int = 0
    read_payload: int = 0
    atomics: int = 0
    copies: int = 0
    unsure: int = 0
    strange: int = 0
    last_request: Row | None = None
    last_response: Row | None = None
    pending: list[RawStep] = field(default_factory=list)
    pending_dropped: int = 0
    gaps: list[Gap] = field(default_factory=list)
    read_gaps: list[Gap] = field(default_factory=list)
    gaps_before: Counter[Where] = field(default_factory=Counter)
    jumped_ns: int = -1
    _open: list[Gap] = field(default_factory=list)
    _first_by_cm: int = -1
    _resent_at: int = -1
    _forgotten_ns: int = -1
    _begun_number: int = -1
    _begun_psn: int = -1
    _begun_payload: int = 0
    _places: dict[int, int] = field(default_factory=dict)
    _responses: dict[int, int] = field(default_factory=dict)
    _room: int = MIN_PLACES_KEPT
    _responses_room: int = MIN_PLACES_KEPT
    _resends: list[tuple[int, int]] = field(default_factory=list)
    _uncertain: int = 0
    _cursor: int = -1
    _run: int = 0
    _stuck: int = -1
    _far: int = -1
    _asked: int = -1
    _answers: Answers = field(default_factory=Answers)
    _read_begun: int = -1
    _read_from: int = 0

    @property
    def disorder(self) -> int:
        """How often packets did not continue the earlier ones: gaps, packets sent again, other streams."""
        gaps = len(self.gaps) + self.gaps_before.total()
        return gaps + self.retransmissions + self.strange + self.repeated

    def start_at(self, psn: int) -> None:
        """Set the first PSN from the CM message, which may come after the first packets."""
        self._first_by_cm = psn
        if self.next_psn < 0:
            self.first_psn = self.next_psn = self.una = psn
        elif 0 < self.first_psn - psn & MASK < MAX_PSN_JUMP and (first := self.last_request) is not None:
            self._note(Gap(psn, self.first_psn, first.number, first.time_ns), self.gaps)
            self.first_psn = psn

    def request(self, row: Row) -> Copy:
        """Take a request packet in; returns whether it is a second copy in the capture."""
        psn = row.psn
        if psn != self.next_psn:
            seen, new = self._takes(row)
            self.last_request = row if seen is not Copy.YES else self.last_request
            if not new:
                return seen
        else:
            self.last_request = row
        self.next_psn = psn + 1 & MASK
        self._places[psn] = row.position
        if len(self._places) > self._room:
            self._room = self._forget(self._places)
        self.packets += 1
        self.payload += row.payload
        if part := PARTS[row.operation]:
            self._edge(row, part)
        return NO_COPY

    def _edge(self, row: Row, part: int) -> None:
        last_psn = row.psn
        if part & FIRST:
            self.begun += 1
            self._begun_number, self._begun_psn, self._begun_payload = row.number, row.psn, self.payload - row.payload
        if part & READ:
            last_psn = self._read(row)
        if part & ATOMIC:
            self.atomics += 1
            self._answers.expect(row.psn, 1, 0)
        if part & LIKE_READ:
            self._answers.expect(row.psn, 1, 0, read=False)
        if part & LAST:
            self.ended += 1
            if self._begun_number < 0:
                self._begun_number, self._begun_psn, self._begun_payload = (
                    row.number,
                    row.psn,
                    self.payload - row.payload,
                )
            size = row.length if part & READ else self.payload - self._begun_payload
            name, psn = NAMES[row.operation], self._begun_psn
            self._sent((self._begun_number, row.number, row.time_ns, self.sender, name, psn, last_psn, size, -1))
            self._begun_number = -1
        elif self.mtu < 0 < row.payload:
            self.mtu = row.payload

    def _sent(self, step: RawStep) -> None:
        self.ladder.add(step)
        self.pending.append(step)
        if len(self.pending) > PENDING_KEPT:
            del self.pending[0]
            self.pending_dropped += 1

    def _read(self, row: Row) -> int:
        self.reads += 1
        if self.mtu > 0:
            count = max(1, -(-row.length // self.mtu))
            self._answers.expect(row.psn, count, row.length)
        else:
            count, self._uncertain = 1, max(0, -(-row.length // SMALLEST_MTU) - 1)
            self._answers.expect(row.psn, -1, row.length)
        self.next_psn = row.psn + count & MASK
        return self.next_psn - 1 & MASK

    def _takes(self, row: Row) -> tuple[Copy, bool]:
        """Classify and count a packet that is not the next one; returns whether it is a copy, and whether it is new."""
        if self.next_psn < 0:
            self.first_psn = self.next_psn = self.una = row.psn
            return NO_COPY, True
        ahead = row.psn - self.next_psn & MASK
        if ahead < HALF:
            return NO_COPY, self._skips(row, ahead)
        # No packet of the stream has a PSN in front of the first one.
        early = self._first_by_cm >= 0 and 0 < self._first_by_cm - row.psn & MASK < HALF
        if early or (MASK + 1 - ahead > MAX_PSNS_BEHIND and not self._in_gap(row.psn)):
            return NO_COPY, self._other_stream(row)
        return self._again(row), False

    def _skips(self, row: Row, ahead: int) -> bool:
        if ahead <= self._uncertain:
            self._uncertain = 0
            return True
        if ahead > MAX_PSN_JUMP:
            return self._other_stream(row)
        if ahead > STREAM_JUMP_PSNS:
            self.jumped_ns = row.time_ns
        gap = Gap(self.next_psn, row.psn, row.number, row.time_ns)
        self._open.append(gap)
        self._note(gap, self.gaps)
        self._begun_number = -1
        return True

    def _other_stream(self, row: Row) -> bool:
        self.strange += 1
        follows, self._far = row.psn == self._far, row.psn + 1 & MASK
        if follows:
            self.una = self.next_psn = row.psn
            self.pending.clear()
        return follows

    def _in_gap(self, psn: int) -> Gap | None:
        return next((gap for gap in self.gaps if holds(gap, psn)), None)

    def _note(self, gap: Gap, gaps: list[Gap]) -> None:
        gaps.append(gap)
        if len(gaps) > GAPS_KEPT:
            old = gaps.pop(0)
            self.gaps_before[where_of(old)] += size_of(old)
            self._open = [gap for gap in self._open if gap is not old]

    def _again(self, row: Row) -> Copy:
        """A PSN behind the next one: it fills a gap, is a second copy in the capture, or was sent again."""
        gap = self._in_gap(row.psn)
        seen = self._copy(row)
        if seen is Copy.YES:
            self.copies += 1
            return seen
        if seen is Copy.UNSURE:
            self.unsure += 1
        else:
            # The copy of the earlier packet may still come from a slow mirror.
            self._resends = [*self._resends[1 - MIN_PLACES_KEPT :], (row.psn, self._places.get(row.psn, -1))]
            self._places[row.psn] = row.position
        if gap is not None and row.psn not in gap.came:
            self._fill(gap, row)
        else:
            self._resent(row, sure=seen is NO_COPY)
        return seen

    def _copy(self, row: Row) -> Copy:
        """Whether a packet is a second copy of an earlier packet with its PSN."""
        same = [self._places.get(row.psn, -1), *(position for psn, position in self._resends if psn == row.psn)]
        found = {self.window.copy(at, row, asked=self._asked >= at) for at in same if at >= 0}
        if not found and 0 <= row.time_ns - self._forgotten_ns <= UNSURE_WITHIN_NS and self._in_gap(row.psn) is None:
            # The packet was sent before, but its bytes are no longer kept.
            return Copy.UNSURE
        return next((seen for seen in (Copy.YES, Copy.UNSURE) if seen in found), NO_COPY)

    def _forget(self, places: dict[int, int]) -> int:
        """Drop the places that the window no longer holds; returns how many places may be kept now."""
        oldest = self.window.oldest
        self._forgotten_ns = self.window.begun_ns
        for psn in [psn for psn, position in places.items() if position < oldest]:
            del places[psn]
        return max(MIN_PLACES_KEPT, 2 * len(places))

    def _fill(self, gap: Gap, row: Row) -> None:
        gap.fill(row.psn, row.time_ns)
        gap.early |= gap.acknowledged
        self.packets += 1
        self.payload += row.payload
        part = PARTS[row.operation]
        self.begun += part & FIRST
        if part & LAST:
            self.ended += 1
            size = row.length if part & READ else row.payload
            self._sent(
                (row.number, row.number, row.time_ns, self.sender, NAMES[row.operation], row.psn, row.psn, size, -1)
            )

    def _resent(self, row: Row, *, sure: bool) -> None:
        self.retransmissions += 1
        self._resent_at = row.position
        if row.psn == self._cursor:
            self.go_backs += self._run == 1
            self._run += 1
        else:
            self.resends += 1
            self._run = 1
            if row.psn != self._stuck:
                self.tries = self.unsure_tries = 0
            self.tries, self.unsure_tries = self.tries + sure, self.unsure_tries + (not sure)
            self._stuck = row.psn
            what = f"{NAMES.get(row.operation, 'packet')} again"
            self.ladder.add((row.number, row.number, row.time_ns, self.sender, what, row.psn, row.psn, row.payload, -1))
        for gap in self.read_gaps:
            gap.asked |= row.operation == Operation.RDMA_READ_REQUEST and row.psn - gap.end & MASK >= HALF
        self._cursor = row.psn + 1 & MASK
        if self._cursor == self.next_psn:
            self._cursor = -1

    def response(self, row: Row) -> Copy:
        """Take a response packet in; returns whether it is a second copy in the capture."""
        psn, kind = row.psn, row.syndrome >> 5 & 3 if row.syndrome >= 0 else 0
        acked, seen = psn if kind == 0 else psn - 1 & MASK, NO_COPY
        if self.una >= 0 and acked - self.una & MASK < HALF:
            self._advance(acked, row)
        elif (seen := self._seen_before(row, kind)) is Copy.YES:
            self.copies += 1
            return seen
        if kind and self.next_psn >= 0 and (beyond := psn - self.next_psn & MASK) < MAX_PSN_JUMP:
            # A NAK refers to a request that its sender has seen.
            self._unseen(psn, beyond, row)
        self.last_response = row
        self.acknowledgements += 1
        if seen is NO_COPY:
            self._responses[psn] = row.position
            if len(self._responses) > self._responses_room:
                self._responses_room = self._forget(self._responses)
        if row.operation != Operation.ACKNOWLEDGE:
            self._answer(row)
            return seen
        self.last_msn = row.msn
        if kind:
            self._refusal(row, kind)
        self.ladder.add((row.number, row.number, row.time_ns, 1 - self.sender, "ACK", psn, psn, -1, row.syndrome))
        return seen

    def _seen_before(self, row: Row, kind: int) -> Copy:
        """Whether a response without progress is a second copy in the capture."""
        if self.una < 0:
            self.una = row.psn + (kind == 0) & MASK
            return NO_COPY
        earlier = self._responses.get(row.psn, -1)
        # A request that was sent again is answered again.
        seen = self.window.copy(earlier, row, asked=earlier <= self._resent_at) if earlier >= 0 else NO_COPY
        self.repeated += kind == 0 and seen is not Copy.YES
        return seen

    def _advance(self, acked: int, row: Row) -> None:
        beyond = acked - self.next_psn & MASK
        if beyond < HALF and self.next_psn >= 0:
            if beyond > MAX_PSN_JUMP:
                self.strange += 1
                return
            self._unseen(acked, beyond, row)
        if self._answers.waiting:
            # An answer packet itself is not missing.
            self._note_missing_answers(acked if row.operation != Operation.ACKNOWLEDGE else acked + 1 & MASK, row)
        self.una = acked + 1 & MASK
        self.tries, self.unsure_tries, self.rnr_since_progress, self._stuck = 0, 0, 0, -1
        if self._open:
            self._settle(acked)
        done = 0
        for step in self.pending:
            if acked - step[_LAST_PSN] & MASK >= HALF:
                break
            done += 1
        if done:
            del self.pending[:done]
            self.acknowledged += done

    def _settle(self, acked: int) -> None:
        for gap in self._open:
            gap.acknowledged = acked - (gap.end - 1) & MASK < HALF
        self._open = [gap for gap in self._open if not gap.acknowledged]

    def _unseen(self, acked: int, beyond: int, row: Row) -> None:
        """A response to requests that are missing in the capture, or to the rest of a READ with unknown MTU."""
        end = acked + 1 & MASK
        if beyond < self._uncertain:
            self._uncertain -= beyond + 1
        else:
            self._note(Gap(self.next_psn, end, row.number, row.time_ns, acknowledged=True), self.gaps)
        self.next_psn = end

    def _refusal(self, row: Row, kind: int) -> None:
        self._asked = row.position
        if gap := self._in_gap(row.psn):
            gap.asked = True
        if kind == 1:
            self.rnr += 1
            self.rnr_since_progress += 1
            return
        code = row.syndrome & 0x1F
        self.naks[NAK_NAMES.get(code, f"code {code}")] += 1
        if code in FATAL_NAKS:
            self.fatal = Step(
                row.number, row.number, row.time_ns, 1 - self.sender, "NAK", row.psn, row.psn, -1, row.syndrome
            )

    def _answer(self, row: Row) -> None:
        """A packet of a READ's or an atomic's response."""
        first, last = row.operation in ANSWERS_FIRST, row.operation in ANSWERS_LAST
        if first:
            self._read_begun, self._read_from = row.number, self.read_payload
        for gap in self.read_gaps:
            if holds(gap, row.psn):
                gap.fill(row.psn, row.time_ns)
        if row.operation == Operation.RDMA_READ_RESPONSE_FIRST and self.mtu < 0 < row.payload:
            self.mtu = row.payload
        self.read_payload += row.payload
        read = self._answers.came(row.psn, self.mtu, last=last)
        if last:
            self.reads_answered += read and row.operation != Operation.ATOMIC_ACKNOWLEDGE
            begun = self._read_begun if self._read_begun >= 0 else row.number
            size = self.read_payload - self._read_from
            name, answerer = ANSWER_NAMES[row.operation] if read else FLUSHED, 1 - self.sender
            self.ladder.add((begun, row.number, row.time_ns, answerer, name, row.psn, row.psn, size, -1))
            self._read_begun = -1

    def _note_missing_answers(self, psn: int, row: Row) -> None:
        """Note as gaps the answers in front of ``psn`` that did not come, though ``row`` did."""
        for start, end in self._answers.passed_over(psn, self.mtu):
            self._note(Gap(start, end, row.number, row.time_ns, acknowledged=True), self.read_gaps)

    def take_over(self, other: "Requester") -> None:
        """Add the counts of ``other``, which saw the same direction before the two were joined."""
        self.acknowledgements += other.acknowledgements
        self.rnr += other.rnr
        self.naks += other.naks
        self.last_msn = other.last_msn
        self.reads_answered += other.reads_answered
        self.read_payload += other.read_payload
        self.copies += other.copies
        self.fatal = self.fatal or other.fatal
        # The answers until now were not compared with the requests.
        self._answers.waiting.clear()
        if (last := other.last_response) is not None and self.next_psn >= 0:
            self.response(last)
            self.acknowledgements -= 1

    def facts(self) -> DirectionFacts:
        """The facts of this direction so far."""
        known = (*self.gaps, *self.read_gaps)
        gaps = tuple(GapFacts(gap.start, size_of(gap), gap.number, where_of(gap)) for gap in known)
        by: Counter[Where] = self.gaps_before.copy()
        for gap in gaps:
            by[gap.where] += gap.packets
        return DirectionFacts(
            first_psn=self.first_psn,
            next_psn=self.next_psn,
            oldest_unacknowledged_psn=self.una,
            packets=self.packets,
            payload=self.payload,
            messages_begun=self.begun,
            messages_ended=self.ended,
            messages_acknowledged=self.acknowledged,
            messages_in_flight=len(self.pending) + self.pending_dropped,
            unacknowledged=tuple(map(Step._make, islice(self.pending, SHOWN_IN_FLIGHT))),
            retransmissions=self.retransmissions,
            resends=self.resends,
            go_backs=self.go_backs,
            unanswered_tries=self.tries,
            unsure_tries=self.unsure_tries,
            acknowledgements=self.acknowledgements,
            repeated_acknowledgements=self.repeated,
            rnr_naks=self.rnr,
            rnr_since_progress=self.rnr_since_progress,
            naks=dict(self.naks),
            fatal_nak=self.fatal,
            last_msn=self.last_msn,
            reads=self.reads,
            reads_answered=self.reads_answered,
            read_payload=self.read_payload,
            atomics=self.atomics,
            gaps=gaps,
            gaps_by=dict(by),
            copies=self.copies,
            unsure_copies=self.unsure,
            strange=self.strange,
            last_request=_step(self.last_request, self.sender),
            last_response=_step(self.last_response, 1 - self.sender),
        )


SHOWN_IN_FLIGHT = 16
# The index of last_psn in a Step.
_LAST_PSN: Final = 6


def _step(row: Row | None, sender: int) -> Step | None:
    if row is None:
        return None
    name = NAMES.get(row.operation, "packet")
    return Step(row.number, row.number, row.time_ns, sender, name, row.psn, row.psn, row.payload, row.syndrome)
