"""Write newc cpio archives, the format of an initramfs (Linux: driver-api/early-userspace/buffer-format)."""

import stat
from typing import BinaryIO


class CpioWriter:
    """Append entries to ``out``; ``close`` writes the trailer. Names are relative, without a leading slash."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        """Add one entry; ``mode`` carries the file type, ``device`` the major and minor of a device node."""
        self._inode += 1
        self._entry(name, self._inode, mode, data, device)

    def add_file(self, name: str, data: bytes, permissions: int = 0o644) -> None:
        self.add(name, stat.S_IFREG | permissions, data)

    def add_directory(self, name: str) -> None:
        self.add(name, stat.S_IFDIR | 0o755)

    def add_link(self, name: str, target: str) -> None:
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, 0, b"", (0, 0))
        self._out.write(b"\0" * (-self._out.tell() % 512))

    def _entry(self, name: str, inode: int, mode: int, data: bytes, device: tuple[int, int]) -> None:
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(encoded), 0)
        self._out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._out.write(b"\0" * (-(110 + len(encoded)) % 4))
        self._out.write(data)
        self._out.write(b"\0" * (-len(data) % 4))
