"""The report of ``hil verify`` as JSON. The shape is stable: fields may be added, none changes its meaning.

    {"format": "hil-verify/1", "exit_code": 0|1|2, "files": [FILE, ...]}

FILE: ``name``, ``verdict`` ("pass", "fail", "invalid"), ``exit_code`` (what the file alone gives), ``frames``,
``roce_packets``, ``first_ns`` (of its first RoCE packet) and ``last_ns`` (of its last frame; nanoseconds since the
epoch), ``interfaces`` (names), ``connections_found``, ``counts`` (verdict to number; when they are very many, of more
connections than are listed), ``doubts`` and ``notes`` (sentences), ``error`` (a sentence when the file could not be
opened; then there is nothing else but name, verdict and exit code) and ``connections``:

``number``, ``verdict``, ``ending`` ("CM disconnect", "QP error", "retry exhaustion", "refused", "never established",
"silence", "still open"), ``closer`` (0, 1 or null: an index into ``ends``), ``at_frame``, ``at_ns`` (null when it has
no end), ``how`` (a sentence), ``vlan`` (null without one) and ``vlans`` (for each end, of what it sends, the
outer tag's id first), ``networks`` (for each end, a number from 1: networks with the same addresses that differ by
their MAC addresses), ``first_frame``, ``last_frame``, ``first_ns``, ``last_ns``,
``inferred`` (directions paired without CM messages), ``doubts``, ``notes``, ``findings`` (``statement``,
``requirements``, ``held``, ``seen``), ``messages`` of the CM (``name``, ``sender``, ``frame``, ``time_ns``,
``times_sent``, ``reason`` of a REJ), ``steps_elided``, ``ends`` and ``steps``.

An end: ``address``, ``qpn``, ``comm_id`` (null unknown), ``packets_sent``, ``wrong_icrc``, ``congestion_marks`` and
``requests``, all counts of the direction of its requests, as hil.evidence.rebuild.facts.DirectionFacts names them;
gaps are {``first_psn``, ``packets``, ``frame``, ``where``}.

A step of the ladder: ``frame``, ``last_frame``, ``time_ns``, ``sender``, ``what`` (a phrase), ``psn``, ``last_psn``,
``bytes``, ``syndrome``; null where it has none.
"""

import json
from dataclasses import fields
from typing import Any

from hil.evidence.rebuild.facts import CmFacts, DirectionFacts, EndFacts, GapFacts, Step
from hil.report.verify import FileReport, Numbered
from hil.report.words import step_words
from hil.roce.layers.cm import CmAttribute
from hil.verdict import Verdict, exit_code

FORMAT = "hil-verify/1"
_SAME = frozenset({"gaps", "gaps_by", "unacknowledged", "fatal_nak", "last_request", "last_response"})


def document(files: list[dict[str, Any]], code: int) -> str:
    """The whole document."""
    return json.dumps({"format": FORMAT, "exit_code": code, "files": files}, indent=1)


def unreadable(name: str, error: str) -> dict[str, Any]:
    """A file that could not be opened."""
    verdict = Verdict.INVALID
    return {"name": name, "verdict": verdict.value, "exit_code": exit_code([verdict]), "error": error}


def file_object(report: FileReport) -> dict[str, Any]:
    facts = report.facts
    return {
        "name": facts.name,
        "verdict": report.verdict.value,
        "exit_code": exit_code([report.verdict]),
        "frames": facts.frames,
        "roce_packets": facts.tally.packets,
        "first_ns": facts.first_ns,
        "last_ns": facts.last_ns,
        "interfaces": list(facts.interfaces),
        "connections_found": report.found,
        "counts": report.counts(),
        "doubts": list(report.doubts),
        "notes": list(report.notes),
        "connections": [_connection(connection) for connection in report.connections],
    }


def _connection(connection: Numbered) -> dict[str, Any]:
    judged, facts = connection.judged, connection.judged.facts
    return {
        "number": connection.number,
        "verdict": judged.verdict.value,
        "ending": judged.ending.value,
        "closer": _known(judged.closer),
        "at_frame": _known(judged.at_number),
        "at_ns": _known(judged.at_ns),
        "how": judged.how,
        "vlan": facts.vlans[0][0] if facts.vlans[0] else None,
        "vlans": [list(vlans) for vlans in facts.vlans],
        "networks": [number + 1 for number in facts.networks],
        "first_frame": facts.first_number,
        "last_frame": facts.last_number,
        "first_ns": facts.first_ns,
        "last_ns": facts.last_ns,
        "inferred": facts.inferred,
        "doubts": list(judged.doubts),
        "notes": list(judged.notes),
        "findings": [
            {"statement": f.statement, "requirements": list(f.requirements), "held": f.held, "seen": f.seen}
            for f in judged.findings
        ],
        "messages": [_message(message) for message in facts.messages],
        "ends": [_end(end) for end in facts.ends],
        "steps_elided": facts.steps_elided,
        "steps": [_step(step) for step in facts.steps],
    }


def _message(sent: CmFacts) -> dict[str, Any]:
    told = {
        "name": sent.message.attribute.name,
        "sender": sent.sender,
        "frame": sent.message.number,
        "time_ns": sent.message.time_ns,
        "times_sent": sent.times_sent,
    }
    return told | ({"reason": sent.message.reason} if sent.message.attribute is CmAttribute.REJ else {})


def _end(end: EndFacts) -> dict[str, Any]:
    return {
        "address": end.address,
        "qpn": _known(end.qpn),
        "comm_id": _known(end.comm_id),
        "packets_sent": end.packets_sent,
        "wrong_icrc": end.wrong_icrc,
        "congestion_marks": end.congestion_marks,
        "requests": _direction(end.requests),
    }


def _direction(requests: DirectionFacts) -> dict[str, Any]:
    plain = {f.name: getattr(requests, f.name) for f in fields(requests) if f.name not in _SAME}
    return plain | {
        "gaps": [_gap(gap) for gap in requests.gaps],
        "gaps_by": {where.value: count for where, count in requests.gaps_by.items()},
        "unacknowledged": [_step(step) for step in requests.unacknowledged],
        "fatal_nak": _step(requests.fatal_nak),
        "last_request": _step(requests.last_request),
        "last_response": _step(requests.last_response),
    }


def _gap(gap: GapFacts) -> dict[str, Any]:
    return {"first_psn": gap.first_psn, "packets": gap.packets, "frame": gap.number, "where": gap.where.value}


def _step(step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    return {
        "frame": step.number,
        "last_frame": step.last_number,
        "time_ns": step.time_ns,
        "sender": step.sender,
        "what": step_words(step),
        "psn": _known(step.psn),
        "last_psn": _known(step.last_psn),
        "bytes": _known(step.size),
        "syndrome": _known(step.syndrome),
    }


def _known(value: int) -> int | None:
    return None if value < 0 else value
