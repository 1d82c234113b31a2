"""Undo what provisioning changed on this node, whoever made it and however that one ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from hil.adapters.changes import read
from hil.adapters.journal import JOURNAL, Journal
from hil.errors import AdapterError, AtWork


def pending(journal: str | Path = JOURNAL) -> list[dict[str, Any]]:
    """The changes that ``restore`` would undo, in its order: kind and facts. Raises AdapterError."""
    return [{"kind": entry.kind, "facts": entry.facts} for entry in Journal(Path(journal)).pending()]


def elsewhere(journal: str | Path = JOURNAL) -> list[dict[str, Any]]:
    """Like ``pending``, of what was changed in other network namespaces than this by benches that have ended: it can be
    undone there only."""
    entries = [entry for entry in Journal(Path(journal)).elsewhere() if not (entry.owner and entry.owner.alive())]
    return [{"kind": entry.kind, "facts": entry.facts} for entry in entries]


def restore(
    journal: str | Path = JOURNAL,
    pause: Callable[[], None] = lambda: None,
    at_work: Callable[[], list[int]] = list,
    bench: str = "",
) -> list[dict[str, Any]]:
    """Undo every change in ``journal`` that was made in this network namespace, the last first.

    Returns what was undone, as ``pending`` tells it; the journal is removed once it notes nothing any more. It may be
    called any number of times, also after it was killed. ``pause`` is called between its steps; ``at_work`` tells the
    processes of other benches, which may work with what was changed. With ``bench`` only what that one changed, or
    nobody who is still at work. Raises AtWork when there is one, and AdapterError that lists what could not be undone;
    those changes stay in the journal, the others are undone.
    """
    written = Journal(Path(journal))
    if not written.path.exists():
        return []
    failures, done = [], []
    # Whoever provisions meanwhile waits: what it notes must not be taken for undone.
    with written.alone():
        if written.pending() and (benches := at_work()):
            raise AtWork(f"a bench is at work here (process {', '.join(map(str, benches))}) and restores at its end")
        for entry in written.pending():
            if bench and entry.of_another(bench):
                continue
            pause()
            try:
                read(entry.kind, entry.facts).undo()
                pause()
                # Where there is no room to note it, the others are undone all the same; nothing is undone twice.
                written.undone(entry)
            except (OSError, ValueError, NetlinkError, AdapterError) as error:
                failures.append(f"{entry.kind} {entry.facts}: {error}")
                continue
            done.append({"kind": entry.kind, "facts": entry.facts})
        written.discard()
    if failures:
        raise AdapterError(
            f"not everything could be undone; the rest stays noted in {journal}:\n  " + "\n  ".join(failures)
        )
    return done
