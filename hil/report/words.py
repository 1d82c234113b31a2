"""Words for the facts of a rebuilt connection, which text, JSON and the page share."""

from hil.evidence.rebuild.endings import counted
from hil.evidence.rebuild.facts import ConnectionFacts, DirectionFacts, EndFacts, Step
from hil.evidence.rebuild.judgement import Judged
from hil.evidence.rebuild.operations import NAK_NAMES
from hil.progress import harmless

__all__ = [
    "counted",
    "direction_words",
    "end_words",
    "ending_words",
    "ends_words",
    "harmless",
    "step_words",
    "syndrome_words",
]

CODE_MASK = 0x1F


def end_words(end: EndFacts) -> str:
    """An end as ADDRESS QP 0x11."""
    return f"{end.address} QP {hex(end.qpn) if end.qpn >= 0 else 'unknown'}"


def ends_words(facts: ConnectionFacts) -> str:
    one, two = facts.ends
    return f"{end_words(one)} -> {end_words(two)}{_segment_words(facts)}"


def _segment_words(facts: ConnectionFacts) -> str:
    stacks = [".".join(map(str, vlans)) or "none" for vlans in dict.fromkeys(facts.vlans)]
    words = [] if stacks == ["none"] else [f"VLAN {' and '.join(stacks)}"]
    if any(facts.networks):
        words.append(f"network {' and '.join(str(number + 1) for number in dict.fromkeys(facts.networks))}")
    return f" ({', '.join(words)})" if words else ""


def ending_words(judged: Judged) -> str:
    """How it ended and by whom."""
    if judged.closer < 0:
        return judged.ending.value
    return f"{judged.ending.value} by {judged.facts.ends[judged.closer].address}"


def syndrome_words(syndrome: int) -> str:
    """An AETH syndrome in words (9.7.5.2)."""
    kind = syndrome >> 5 & 3
    if kind == 0:
        return "ACK"
    if kind == 1:
        return "RNR NAK"
    code = syndrome & CODE_MASK
    return f"NAK: {NAK_NAMES.get(code, f'code {code}')}" if kind == 3 else f"reserved syndrome {syndrome:#x}"


def step_words(step: Step) -> str:
    """One step of a ladder."""
    what = syndrome_words(step.syndrome) if step.what == "ACK" else step.what
    if step.psn < 0:
        return what
    if step.what == "answer" and step.syndrome >= 0:
        what = syndrome_words(step.syndrome)
    psn = f"PSN {step.psn}" if step.psn == step.last_psn else f"PSN {step.psn} to {step.last_psn}"
    return f"{what}, {psn}" + (f", {step.size} bytes" if step.size >= 0 else "")


def direction_words(end: EndFacts) -> str:
    """What an end sent, in one line."""
    r = end.requests
    if not r.packets:
        return f"answers only, {counted(end.packets_sent, 'packet')}" if end.packets_sent else "no data"
    parts = [f"{counted(r.messages_ended, 'message')} ({r.messages_acknowledged} acknowledged)"]
    parts.append(f"{counted(r.packets, 'packet')} with {counted(r.payload, 'byte')}")
    if r.messages_begun != r.messages_ended:
        parts.append(f"{r.messages_begun - r.messages_ended:+d} begun and not ended")
    parts += [f"{count} {name}" for count, name in _counts(r) if count]
    if r.last_msn >= 0:
        parts.append(f"last MSN {r.last_msn}")
    return ", ".join(parts)


def _counts(r: DirectionFacts) -> list[tuple[int, str]]:
    return [
        (r.reads, f"READs ({r.reads_answered} answered, {r.read_payload} bytes)"),
        (r.atomics, "atomics"),
        (r.retransmissions, f"retransmissions in {r.resends} runs ({r.go_backs} go-back-N)"),
        (r.rnr_naks, "RNR NAKs"),
        *[(count, f"NAKs ({name})") for name, count in r.naks.items()],
        (r.messages_in_flight, "in flight at the end"),
    ]
