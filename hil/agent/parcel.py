"""The node-side code as one parcel. A host's Python runs it from memory, without writing to a disk."""

import functools
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("winsock", "verbs", "provider", "switch", "netlink", "adapters", "agent")
"""Every module of these folders may run on a node. They import only each other and ``SINGLE_MODULES``."""
SINGLE_MODULES = (
    "__init__.py",
    "errors.py",
    "jitter.py",
    "mutants/__init__.py",
    "mutants/providers.py",
    "mutants/sessions.py",
)
# A fixed time makes the same parcel from the same content.
_WHEN = (1980, 1, 1, 0, 0, 0)
BOOTSTRAP = """
import os, sys
if sys.version_info < (3, 11):
    sys.exit("hil: Python 3.11 or newer is needed, this is " + sys.version.split()[0])
def take(size):
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            sys.exit("hil: the code did not arrive whole")
        data += part
    return data
fd = os.memfd_create("hil")
with open(fd, "wb", closefd=False) as file:
    file.write(take(int.from_bytes(take(4), "big")))
sys.path.insert(0, "/proc/self/fd/%d" % fd)
sys.dont_write_bytecode = True
from hil.agent.agent import serve_host
serve_host({silence_limit_s})
"""


def library_files(name: str) -> Iterator[tuple[str, Path]]:
    """The Python files of an installed pure-Python package: (name below its parent, path)."""
    for file in importlib.metadata.files(name) or ():
        if file.suffix == ".py" and ".." not in file.parts:
            yield str(file), Path(str(file.locate()))


@functools.cache
def parcel() -> bytes:
    """A length of four bytes, and a zip archive of the node-side code and pyroute2."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, path in (*code_files(), *library_files("pyroute2")):
            archive.writestr(zipfile.ZipInfo(name, _WHEN), path.read_bytes(), zipfile.ZIP_DEFLATED)
    data = out.getvalue()
    return len(data).to_bytes(4, "big") + data


def bootstrap(silence_limit_s: float) -> str:
    """The program for the command line of a host's Python. It reads the parcel from standard input."""
    return BOOTSTRAP.replace("{silence_limit_s}", str(silence_limit_s))


def code_files() -> Iterator[tuple[str, Path]]:
    """The node-side code: (name below the package's parent, path)."""
    root = Path(__file__).parents[1]
    paths = [root / name for name in SINGLE_MODULES]
    for folder in ROOMS:
        paths += sorted((root / folder).rglob("*.py"))
    for path in paths:
        yield str(path.relative_to(root.parent)), path


def code_key() -> str:
    """A key of the node-side code's content."""
    digest = hashlib.sha256()
    for name, path in code_files():
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
