"""A worker process on a node. It serves the calls of one role, each call in its own thread."""

import contextlib
import importlib
import importlib.util
import py_compile
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from hil.agent.protocol import FrameBuffer, Message, decode, encode

ROLES = {
    "system": "hil.agent.roles.system",
    "provider": "hil.agent.roles.provider",
    "stream": "hil.agent.roles.stream",
    "crowd": "hil.agent.roles.crowd",
    "rounds": "hil.agent.roles.races",
    "capture": "hil.agent.roles.capture",
    "terminal": "hil.agent.roles.terminal",
}
# The role of the provider loads these by name. They are imported before workers are forked.
LOADED_BY_NAME = ("hil.provider.provider", "hil.mutants.providers", "hil.mutants.sessions")
Emit = Callable[[dict[str, Any]], None]


class Outbox:
    """Sends frames whole, from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        data = encode(message)
        with self._lock:
            self._sock.sendall(data)


def leave_out_the_rest_of(package: str) -> None:
    """Let modules of ``package`` be imported alone, without its __init__, which imports all its modules.

    Those imports would be most of the start time of a guest or a host.
    """
    found = importlib.util.find_spec(package)
    if found is None or package in sys.modules:
        return
    sys.modules[package] = importlib.util.module_from_spec(found)


def preload() -> None:
    """Import every role's code and slow libraries before workers are forked."""
    leave_out_the_rest_of("pyroute2")
    for module in (*ROLES.values(), *LOADED_BY_NAME):
        importlib.import_module(module)


def compile_loaded() -> None:
    """Keep the compiled form of every loaded module, so that no later process reads its source.

    A root file system unpacked at each boot gives every file a new time, so the compiled form must be an unchecked one.
    """
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if source and source.endswith(".py"):
            py_compile.compile(source, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def preload_present() -> None:
    """As ``preload``, on a host that may lack a library. A missing library is reported when a role needs it."""
    leave_out_the_rest_of("pyroute2")
    for module in (*ROLES.values(), *LOADED_BY_NAME):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def work(sock: socket.socket, role: str) -> None:
    """Serve calls for ``role`` until the agent closes ``sock``. Raises KeyError for an unknown role."""
    outbox = Outbox(sock)
    module = importlib.import_module(ROLES[role])
    calls: Mapping[str, Callable[..., Any]] = module.serve(lambda event: outbox.send({"event": event}))
    frames = FrameBuffer()
    while data := sock.recv(1 << 18):
        for body in frames.feed(data):
            threading.Thread(target=_answer, args=(outbox, calls, decode(body)), daemon=True).start()


def _answer(outbox: Outbox, calls: Mapping[str, Callable[..., Any]], message: Message) -> None:
    try:
        value = calls[message["call"]](**message.get("args", {}))
        outbox.send({"id": message["id"], "value": value})
    except Exception as error:
        text = str(error) if str(error) else repr(error)
        described = {"kind": type(error).__name__, "text": text, "traceback": traceback.format_exc()}
        outbox.send({"id": message["id"], "error": described})
