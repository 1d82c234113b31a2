"""Undo the provisioning of hosts after a run that could not undo it itself."""

from pathlib import Path
from typing import Any

from hil.adapters.journal import JOURNAL
from hil.errors import RemoteError
from hil.labs.hosts.file import HostsFile
from hil.labs.hosts.host import Host
from hil.labs.hosts.lab import on_each
from hil.labs.kinds import Restored
from hil.progress import harmless
from hil.waiting import wait_until

AGENTS_END_S, POLL_S = 20.0, 0.1


def restore(lab: HostsFile, base: Path, *, force: bool) -> Restored:
    """Undo the changes on every host. ``force``: undo them even where a bench is at work."""
    undone, failed = on_each(lab, base, lambda host: restored(host, force))
    if any(others for _, others in undone.values()):
        # Two nodes may be namespaces of one machine. The remaining changes are known only after all nodes.
        kept, _ = on_each(lab, base, lambda host: list(host.system("pending_elsewhere")))
        failed |= {name: _kept_elsewhere(changes) for name, changes in kept.items() if changes and name not in failed}
    return Restored({name: _lines(done) for name, (done, _) in undone.items()}, failed)


def _lines(changes: list[dict[str, Any]]) -> list[str]:
    return [f"  {harmless(str(change['kind']))}: {change['facts']}" for change in changes]


def _kept_elsewhere(changes: list[dict[str, Any]]) -> str:
    what = (
        f"{len(changes)} changes were made in other network namespaces, and stay noted in {JOURNAL}. If such a "
        "namespace exists, restore with a lab file that names it. If it is gone, its netdevs are in another namespace: "
        "undo the changes by hand, then remove the journal"
    )
    return "\n".join([what, *_lines(changes)])


def restored(host: Host, force: bool) -> tuple[list[dict[str, Any]], bool]:
    """The changes that were undone on a host, and whether changes in other namespaces remain.

    Raises RemoteError where another bench still uses the host.
    """

    def attempt() -> tuple[list[dict[str, Any]], bool] | RemoteError:
        try:
            return list(host.system("restore", force=force)), bool(host.system("pending_elsewhere"))
        except RemoteError as error:
            # The agent of a bench that was killed takes a moment to notice.
            if error.kind != "AtWork":
                raise
            return error

    done = wait_until(
        attempt,
        AGENTS_END_S,
        f"end of another bench on node {host.name}",
        enough=lambda told: not isinstance(told, RemoteError),
        strict=False,
        poll_s=POLL_S,
    )
    if isinstance(done, RemoteError):
        raise done
    return done
