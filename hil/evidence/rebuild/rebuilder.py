"""Rebuilds connections from packets in one pass; the number of live connections, not of packets, bounds the memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hil.evidence.rebuild.connection import Connection, Lane
from hil.evidence.rebuild.facts import ConnectionFacts
from hil.evidence.rebuild.management import CmMessage, read_message
from hil.evidence.rebuild.networks import Networks
from hil.evidence.rebuild.rows import Flow, Kind, Row, Rows, Segment
from hil.evidence.rebuild.window import Copy, Window
from hil.roce.layers.cm import CmAttribute
from hil.roce.psn import HALF, MASK

# How long a closed connection is kept for late packets, in the capture's time. Linux repeats a DREQ for a minute. A
# queue pair's number that is reused sooner shows by its REQ and REP.
LINGER_NS = 120_000_000_000
MAX_LIVE = 50_000
# An acknowledgement is matched with the requests of the last PSNs, up to this number.
PAIRING_WINDOW = 4096
PAIRING_ATTEMPTS, PAIRING_CANDIDATES = 64, 256

PASSED_OVER = (Kind.WRONG_ICRC, Kind.UNREADABLE, Kind.OTHER)

CommKey = tuple[Segment, int, int, int]


@dataclass(slots=True)
class Tally:
    """The number of packets that belong to no connection or are no evidence, by reason.

    ``packets``: all packets. ``emitted``: sent by the wire, not by a node.
    """

    packets: int = 0
    wrong_icrc: int = 0
    unreadable: int = 0
    congestion: int = 0
    management: int = 0
    management_cut: int = 0
    other: int = 0
    emitted: int = 0
    first_unreadable: int = -1


@dataclass(slots=True)
class Rebuilder:
    """Feed it batches in order. ``feed`` yields the connections that are over, ``finish`` the others."""

    max_live: int = MAX_LIVE
    tally: Tally = field(default_factory=Tally)
    until_ns: int = 0
    _window: Window = field(default_factory=Window)
    _networks: Networks = field(default_factory=Networks)
    _lanes: dict[Flow, Lane] = field(default_factory=dict)
    _by_comm_id: dict[CommKey, Connection] = field(default_factory=dict)
    _by_id_alone: dict[tuple[int, int, int], Connection] = field(default_factory=dict)
    _announced: dict[tuple[int, int, int], Connection] = field(default_factory=dict)
    _strays: dict[tuple[int, int, int], Connection] = field(default_factory=dict)
    _live: dict[Connection, None] = field(default_factory=dict)
    _unpaired: dict[tuple[Segment, int, int], dict[Connection, None]] = field(default_factory=dict)
    _over: list[Connection] = field(default_factory=list)

    def feed(self, batch: Rows) -> Iterator[ConnectionFacts]:
        """Read a batch; yields the connections that are over."""
        self._window.add(batch.batch)
        flows = self._networks.placed(batch.flows, batch.macs, batch.order)
        lanes: list[Lane | None] = [None] * len(flows)
        request, response = int(Kind.REQUEST), int(Kind.RESPONSE)
        new_ways: set[int] = set()
        row = None
        for row in self._noting_belief(batch, flows) if batch.believed else batch.rows:
            kind = row.kind
            if kind > response:
                self._special(row, flows[row.flow], batch)
                continue
            lane = lanes[row.flow]
            if lane is None or lane.stale:
                lane = lanes[row.flow] = self._lane(flows[row.flow], row)
                if not lane.connection.knows(lane.sender, batch.macs[row.flow]):
                    new_ways.add(row.flow)
            lane.last = row
            lane.packets += 1
            before = lane.disorder if row.flow in new_ways else -1
            seen = lane.requester.request(row) if kind == request else lane.answered.response(row)
            if before >= 0 and seen is not Copy.YES:
                new_ways.discard(row.flow)
                in_order = lane.disorder == before
                lane.connection.come_by(lane.sender, batch.macs[row.flow], in_order=in_order)
            if lane.watched:
                lane.connection.late(lane.sender, row, seen)
            if lane.unpaired and kind == response:
                self._pair(lane, flows[row.flow], row)
        self.tally.packets += len(batch.batch)
        if row is not None:
            self.until_ns = max(self.until_ns, row.time_ns)
        self._sweep()
        yield from self._finished()

    def _noting_belief(self, batch: Rows, flows: list[Flow]) -> Iterator[Row]:
        """The rows; counts rows with a wrong ICRC at their connections after the caller has taken them."""
        for row in batch.rows:
            yield row
            lane = self._lanes.get(flows[row.flow])
            if row.position in batch.believed and lane is not None:
                lane.connection.believed += 1

    def finish(self) -> Iterator[ConnectionFacts]:
        """The connections that were still live at the end of the capture."""
        for connection in list(self._live):
            self._end(connection)
        yield from self._finished()

    def _finished(self) -> Iterator[ConnectionFacts]:
        over, self._over = self._over, []
        for connection in over:
            yield connection.facts(self.until_ns)

    def _special(self, row: Row, flow: Flow, batch: Rows) -> None:
        if row.kind == Kind.MANAGEMENT:
            message = read_message(batch.batch.packet(row.position)[1], row.number, row.time_ns)
            if message is None:
                self.tally.management += 1
                self.tally.management_cut += batch.batch.cut(row.position)
            else:
                self._managed(message, flow, row, believed=row.position in batch.believed)
            return
        lane = self._lanes.get(flow)
        if lane is not None and lane.watched and row.kind in PASSED_OVER:
            # No adapter accepts the packet, but it shows that its sender was not silent.
            lane.connection.late(lane.sender, row, Copy.NO, taken=False)
        if row.kind == Kind.CONGESTION:
            self.tally.congestion += 1
            if lane is not None:
                lane.end.congestion_marks += 1
        elif row.kind == Kind.WRONG_ICRC:
            self.tally.wrong_icrc += 1
            if lane is not None:
                lane.end.wrong_icrc += 1
        elif row.kind == Kind.UNREADABLE:
            self.tally.unreadable += 1
            self.tally.first_unreadable = row.number if self.tally.unreadable == 1 else self.tally.first_unreadable
        elif row.kind == Kind.EMITTED:
            self.tally.emitted += 1
        else:
            self.tally.other += 1

    def _new(self, segment: Segment, gids: tuple[int, int], row: Row) -> Connection:
        connection = Connection(segment, gids, self._window, row)
        self._live[connection] = None
        if len(self._live) > self.max_live:
            self._evict()
        return connection

    def _lane(self, flow: Flow, row: Row) -> Lane:
        """The lane of a flow. A flow that no CM message announced begins a new connection."""
        if (lane := self._lanes.get(flow)) is not None:
            return lane
        connection = self._new(flow.segment, (flow.source, flow.destination), row)
        connection.inferred = True
        self._strays[flow[1:]] = connection
        if (announced := self._announced.get(flow[1:])) is not None:
            announced.note_elsewhere(flow)
        connection.ends[1].qpn = flow.dest_qp
        lane = self._lanes[flow] = connection.lane(0)
        self._unpaired.setdefault(_way(connection), {})[connection] = None
        return lane

    def _pair(self, lane: Lane, flow: Flow, row: Row) -> None:
        """Find the flow whose requests this response answers, and join the two."""
        connection = lane.connection
        connection.attempts += 1
        lane.unpaired = connection.attempts < PAIRING_ATTEMPTS
        opposite = self._unpaired.get((flow.segment, flow.destination, flow.source), {})
        if len(opposite) > PAIRING_CANDIDATES:
            return
        found = [other for other in opposite if other is not connection and _asks(other, row.psn)]
        if len(found) != 1:
            return
        (other,) = found
        if other.announced and connection.announced:
            return
        if other.announced:
            connection, other = other, connection
        connection.join(other)
        for joined in (connection, other):
            self._unpaired.get(_way(joined), {}).pop(joined, None)
            joined.leave_lanes()
        self._live.pop(other, None)
        for sender in (0, 1):
            self._lanes[connection.flow(sender)] = connection.lane(sender)

    def _managed(self, message: CmMessage, flow: Flow, row: Row, *, believed: bool) -> None:
        segment, source, destination = flow.segment, flow.source, flow.destination
        connection = self._known(message, flow, row)
        if connection is None and message.attribute is CmAttribute.MRA:
            self.tally.management += 1
            return
        if connection is None:
            connection = self._new(segment, _active_first(message, source, destination), row)
            if message.attribute is not CmAttribute.REQ:
                self._unpaired.setdefault(_way(connection), {})[connection] = None
        connection.believed += believed
        new = connection.note(message, self._sender(connection, message, source), row)
        self._register(connection, begins=new and message.attribute in (CmAttribute.REQ, CmAttribute.REP))

    def _known(self, message: CmMessage, flow: Flow, row: Row) -> Connection | None:
        """The live connection that a CM message belongs to."""
        segment, source, destination = flow.segment, flow.source, flow.destination
        local, remote = _lasting_id(message), message.remote_comm_id
        found = self._by_comm_id.get((segment, source, destination, local)) if local > 0 else None
        if found is None and remote > 0:
            found = self._by_comm_id.get((segment, destination, source, remote)) or self._elsewhere(flow, remote)
        if found is not None and self._other_incarnation(found, message, source, row):
            if message.attribute is CmAttribute.REQ:
                self._end(found)
            found = None
        if found is None and message.attribute is CmAttribute.DREQ:
            lane = self._lanes.get(Flow(segment, source, destination, message.qpn))
            if lane is not None and lane.end.comm_id < 0 and lane.connection.ends[1 - lane.sender].comm_id < 0:
                return lane.connection
        return found

    def _elsewhere(self, flow: Flow, remote_comm_id: int) -> Connection | None:
        """The connection whose active end sends with other VLAN tags or other MAC addresses than the passive end.

        A mirror of two kinds of ports shows other VLAN tags, the two sides of a router other MAC addresses.
        """
        found = self._by_id_alone.get((flow.destination, flow.source, remote_comm_id))
        if found is None or found.ends[1].gid != flow.source or found.ends[1].gid == found.ends[0].gid:
            return None
        if found.heard(1):
            return None
        self._let_go(found, 1)
        found.segments[1] = flow.segment
        return found

    def _other_incarnation(self, connection: Connection, message: CmMessage, source: int, row: Row) -> bool:
        """Whether ``message`` belongs to an earlier or later connection that used one of the same ids."""
        sender = self._sender(connection, message, source)
        end, other = connection.ends[sender], connection.ends[1 - sender]
        if message.attribute is CmAttribute.REQ:
            if sender != 0 or not connection.repeats(message):
                return True
            return connection.released and connection.copy(message, sender, row, patient=False) is Copy.NO
        if message.attribute is CmAttribute.REP and end.qpn >= 0 and message.qpn not in (-1, end.qpn):
            return True
        pairs = ((end.comm_id, _lasting_id(message)), (other.comm_id, message.remote_comm_id))
        return any(known > 0 and given > 0 and known != given for known, given in pairs)

    def _sender(self, connection: Connection, message: CmMessage, source: int) -> int:
        one, two = connection.ends
        if one.gid == two.gid:
            return int(message.local_comm_id == two.comm_id or message.remote_comm_id == one.comm_id)
        return int(source == two.gid)

    def _register(self, connection: Connection, *, begins: bool) -> None:
        """Index the connection by the ids in its CM messages. ``begins``: the last message was a new REQ or REP."""
        for sender, end in enumerate(connection.ends):
            other = connection.ends[1 - sender]
            if end.comm_id > 0:
                self._by_comm_id.setdefault(connection.comm_key(sender), connection)
                self._by_id_alone[connection.comm_key(sender)[1:]] = connection
            if other.qpn > 0:
                self._take_flow(connection, sender, begins=begins)

    def _take_flow(self, connection: Connection, sender: int, *, begins: bool) -> None:
        flow = connection.flow(sender)
        lane = self._lanes.get(flow)
        if lane is not None and lane.connection is connection:
            return
        if lane is not None and not begins and not lane.connection.announced:
            # The REP is missing in the capture: the earlier packets of this flow belong to this connection.
            connection.adopt(lane.connection, sender)
            self._forget(lane.connection)
        elif lane is not None and not begins and not lane.connection.released:
            # A stale DREQ or DREP of an earlier connection with the same numbers: the flow stays with the live one.
            return
        elif lane is not None:
            # The queue pair's number is used again.
            lane.connection.reused = True
            self._end(lane.connection)
        self._lanes[flow] = connection.lane(sender)
        self._announced[flow[1:]] = connection
        if (stray := self._strays.get(flow[1:])) is not None and stray is not connection:
            connection.note_elsewhere(flow)

    def _end(self, connection: Connection) -> None:
        if connection in self._live:
            self._forget(connection)
            self._over.append(connection)

    def _forget(self, connection: Connection) -> None:
        self._live.pop(connection, None)
        connection.leave_lanes()
        for sender in (0, 1):
            self._let_go(connection, sender)
        if (unpaired := self._unpaired.get(_way(connection))) is not None:
            unpaired.pop(connection, None)
            if not unpaired:
                del self._unpaired[_way(connection)]

    def _let_go(self, connection: Connection, sender: int) -> None:
        """Remove one direction of the connection from the indices."""
        flow, key = connection.flow(sender), connection.comm_key(sender)
        if (known := self._lanes.get(flow)) is not None and known.connection is connection:
            del self._lanes[flow]
        for known_flows in (self._announced, self._strays):
            if known_flows.get(flow[1:]) is connection:
                del known_flows[flow[1:]]
        if self._by_comm_id.get(key) is connection:
            del self._by_comm_id[key]
        if self._by_id_alone.get(key[1:]) is connection:
            del self._by_id_alone[key[1:]]

    def _sweep(self) -> None:
        for connection in [c for c in self._live if c.closed_ns >= 0 and self.until_ns - c.last.time_ns > LINGER_NS]:
            self._end(connection)

    def _evict(self) -> None:
        """Too many connections are live: end the tenth of them that was silent for longest."""
        oldest = sorted(self._live, key=lambda c: c.last.position)[: max(1, self.max_live // 10)]
        for connection in oldest:
            connection.evicted = connection.closed_ns < 0
            self._end(connection)


def _asks(connection: Connection, psn: int) -> bool:
    """Whether ``psn`` is among the latest requests of the connection's only known direction."""
    requester = connection.ends[0].requester
    if requester.next_psn < 0:
        return False
    behind = requester.next_psn - 1 - psn & MASK
    return behind < PAIRING_WINDOW and psn - requester.first_psn & MASK < HALF


def _way(connection: Connection) -> tuple[Segment, int, int]:
    one, two = connection.ends
    return connection.segments[0], one.gid, two.gid


def _lasting_id(message: CmMessage) -> int:
    """The sender's comm id in a message; -1 for a REJ of a REQ, which has a new id each time."""
    refuses = message.attribute is CmAttribute.REJ and message.answered == 0
    return -1 if refuses else message.local_comm_id


def _active_first(message: CmMessage, source: int, destination: int) -> tuple[int, int]:
    """The addresses of a connection that begins with ``message`` in the capture, the active end's first."""
    passive = message.attribute in (CmAttribute.REP, CmAttribute.DREP)
    refused = message.attribute is CmAttribute.REJ and message.answered == 0
    return (destination, source) if passive or refused else (source, destination)
