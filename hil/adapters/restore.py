"""Undoes the changes of provisioning on this node, also those of benches that were killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from hil.adapters.changes import read
from hil.adapters.journal import JOURNAL, Journal
from hil.errors import AdapterError, AtWork


def pending(journal: str | Path = JOURNAL) -> list[dict[str, Any]]:
    """Kind and facts of the changes that ``restore`` would undo, in its order. Raises AdapterError."""
    return [{"kind": entry.kind, "facts": entry.facts} for entry in Journal(Path(journal)).pending()]


def elsewhere(journal: str | Path = JOURNAL) -> list[dict[str, Any]]:
    """Like ``pending``, for the changes of ended benches in other network namespaces; these are undone only there.

    Raises AdapterError.
    """
    entries = [entry for entry in Journal(Path(journal)).elsewhere() if not (entry.owner and entry.owner.alive())]
    return [{"kind": entry.kind, "facts": entry.facts} for entry in entries]


def restore(
    journal: str | Path = JOURNAL,
    pause: Callable[[], None] = lambda: None,
    at_work: Callable[[], list[int]] = list,
    bench: str = "",
) -> list[dict[str, Any]]:
    """Undo every change in ``journal`` that was made in this network namespace, the last one first.

    Returns the undone changes in the form of ``pending``. An empty journal is removed. The call can be repeated, also
    after it was killed. ``pause`` is called between the steps. ``at_work`` returns the processes of other running
    benches. With ``bench``, changes of other running benches are left alone. Raises AtWork when ``at_work`` returns a
    process, and AdapterError that lists the changes which could not be undone: these stay in the journal, the others
    are undone.
    """
    written = Journal(Path(journal))
    if not written.path.exists():
        return []
    failures, done = [], []
    # A provisioning process waits for this lock: its notes must not be taken for undone.
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
                # When the journal cannot be written, the other changes are still undone. An undo can be repeated.
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
