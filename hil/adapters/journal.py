"""The journal of changes to this node: each change is written before it is made, as a JSON line, synced to disk."""

import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hil.errors import AdapterError

JOURNAL = (Path("/run") if os.geteuid() == 0 else Path(f"/run/user/{os.geteuid()}")) / "hil" / "changes.jsonl"
"""The journal's file. It is in memory, like the settings that it describes: a reboot loses both."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# asm-generic/socket.h, Linux 5.14
SO_NETNS_COOKIE = 71


def namespace_identity() -> str:
    """An identity of this process's network namespace, unique in this boot since Linux 5.14."""
    status = Path("/proc/self/ns/net").stat()
    with socket.socket(socket.AF_UNIX) as any_socket:
        try:
            cookie = int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            # An older kernel has only the inode, which a later namespace may get again.
            cookie = 0
    return f"{status.st_dev}:{status.st_ino}:{cookie}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The bench that made a change, and its agent process.

    ``bench``: its unique name. ``pid``: of the agent. ``started``: when the agent began, in ticks of this boot.
    """

    bench: str
    pid: int
    started: int

    @classmethod
    def through(cls, bench: str, pid: int) -> "Owner":
        """The owner ``bench``, whose agent is process ``pid``."""
        return cls(bench, pid, _started(pid))

    def alive(self) -> bool:
        """Whether the agent still runs; a later process with the same id began at another time."""
        return self.started > 0 and _started(self.pid) == self.started


def _started(pid: int) -> int:
    try:
        # The program's name, in parentheses, may hold any characters.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A noted change, which may have been made or not.

    ``number``: from 1. ``kind``, ``facts``: as in ``hil.adapters.changes``. ``owner``: None when it was noted without.
    """

    number: int
    kind: str
    facts: dict[str, Any]
    owner: Owner | None = None

    def of_another(self, bench: str) -> bool:
        """Whether a running bench other than ``bench`` made the change."""
        return self.owner is not None and self.owner.bench != bench and self.owner.alive()


class Journal:
    """The journal at ``path``. Raises AdapterError when the file cannot be read or written.

    ``boot``: the identity of this boot; a reboot loses all changes, so changes of another boot must not be undone.
    ``netns``: the identity of this network namespace. The nodes of one machine share the file, and a change is undone
    only in the namespace where it was made: elsewhere the same name is another netdev. ``owner``: the bench that notes
    changes.
    """

    def __init__(self, path: Path = JOURNAL, boot: str = "", netns: str = "", owner: Owner | None = None) -> None:
        self.path = path
        self._owner = owner
        self._boot = boot or BOOT_ID.read_text().strip()
        self._netns = netns or namespace_identity()
        self._is_alone = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the journal: until the context ends, no other process changes the file or makes or undoes changes."""
        if self._is_alone:
            yield
            return
        try:
            folder = self._locked_folder()
        except OSError as error:
            raise AdapterError(f"the journal of changes {self.path} cannot be written: {error.strerror}") from error
        try:
            self._is_alone = True
            yield
        finally:
            self._is_alone = False
            os.close(folder)

    def _locked_folder(self) -> int:
        while True:
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except FileExistsError:
                if _is_no_folder(self.path.parent):
                    raise
            with suppress(FileNotFoundError):
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(folder, fcntl.LOCK_EX)
                # The former holder of the lock may have removed this folder, and another folder may be in its place.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(folder), self.path.parent.stat()):
                        return folder
                os.close(folder)

    def note(self, kind: str, facts: dict[str, Any]) -> Entry:
        """Note a change that is about to be made; the note is on the disk when this returns."""
        with self.alone():
            number = max((line["number"] for line in self._lines() if "number" in line), default=0) + 1
            line = {"number": number, "kind": kind, "facts": facts, "boot": self._boot, "netns": self._netns}
            self._append(line | ({"owner": asdict(self._owner)} if self._owner else {}))
        return Entry(number, kind, facts, self._owner)

    def undone(self, entry: Entry) -> None:
        """Note that a change is undone."""
        with self.alone():
            self._append({"undone": entry.number})

    def pending(self) -> list[Entry]:
        """The changes to be undone in this network namespace, the last one first."""
        # An entry without a namespace belongs to every namespace.
        ours = [line for line in self._pending() if line.get("netns", self._netns) == self._netns]
        return [Entry(line["number"], line["kind"], line["facts"], _owner(line)) for line in reversed(ours)]

    def elsewhere(self) -> list[Entry]:
        """The changes to be undone in other network namespaces, which may be gone, the last one first."""
        theirs = [line for line in self._pending() if line.get("netns", self._netns) != self._netns]
        return [Entry(line["number"], line["kind"], line["facts"], _owner(line)) for line in reversed(theirs)]

    def discard(self) -> None:
        """Remove the file, and its folder if that is then empty.

        Does nothing while a change is to be undone, in this namespace or in another one.
        """
        if not self.path.exists():
            return
        with self.alone():
            if self.path.exists() and not self._pending():
                self.path.unlink()
                _sync(self.path.parent)
                with suppress(OSError):
                    self.path.parent.rmdir()

    def _pending(self) -> list[dict[str, Any]]:
        """The lines of this boot's changes that are not undone."""
        lines = self._lines()
        undone = {line["undone"] for line in lines if "undone" in line}
        entries = [line for line in lines if "number" in line and line.get("boot") == self._boot]
        return [line for line in entries if line["number"] not in undone]

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise AdapterError(f"the journal of changes {self.path} cannot be read: {error}") from error
        # A line without its end was cut when its writer died, so its change was not made.
        return [self._line(number, line) for number, line in enumerate(text.split("\n")[:-1], 1) if line]

    def _line(self, number: int, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line)
            if isinstance(found, dict) and (isinstance(found.get("undone"), int) or _is_entry(found)):
                return found
        except (ValueError, RecursionError):
            pass
        raise AdapterError(f"{self.path}, line {number} is no change of this bench; undo by hand, then remove the file")

    def _append(self, line: dict[str, Any]) -> None:
        try:
            fresh = not self.path.exists()
            with self.path.open("ab+") as file:
                os.fchmod(file.fileno(), 0o600)
                _cut_torn_line(file.fileno())
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                _sync(self.path.parent)
        except OSError as error:
            raise AdapterError(f"the journal of changes {self.path} cannot be written: {error.strerror}") from error


def _owner(line: dict[str, Any]) -> Owner | None:
    try:
        return Owner(**line["owner"])
    except (KeyError, TypeError):
        return None


def _is_entry(line: dict[str, Any]) -> bool:
    kinds = {"number": int, "kind": str, "facts": dict}
    return all(isinstance(line.get(name), kind) for name, kind in kinds.items())


def _is_no_folder(path: Path) -> bool:
    # Path.mkdir also raises FileExistsError when a folder disappears between its two looks at it.
    with suppress(FileNotFoundError):
        return not stat.S_ISDIR(path.lstat().st_mode)
    return False


def _cut_torn_line(file: int) -> None:
    data = os.pread(file, os.fstat(file).st_size, 0)
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(file, whole)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
