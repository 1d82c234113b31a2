"""A second network in user space for a User-Mode Linux node. Only a port of this machine's loopback leads into it."""

import json
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hil.children import die_with_parent
from hil.errors import NodeError, SetupError
from hil.files import passing_folder
from hil.labs.soft.machine import GUEST_ADDRESS
from hil.waiting import wait_until

ANSWER_TIMEOUT_S = 10.0
SSH_PORT = 22


class UserNet:
    """A running slirp4netns. A node's netdev joins it through the socket at ``frames`` when it first goes up.

    ``frames``: each datagram is one Ethernet frame (slirp4netns(1), --target-type=bess).
    """

    def __init__(self) -> None:
        program = shutil.which("slirp4netns")
        if program is None:
            raise SetupError("slirp4netns is missing; install it with: apt-get install slirp4netns")
        self._stack = ExitStack()
        folder = self._stack.enter_context(passing_folder("hil-net-"))
        self.frames, self._api = folder / "frames", folder / "api"
        command = [program, "--target-type=bess", "--disable-host-loopback", "--disable-dns"]
        self._process = subprocess.Popen(
            [*command, f"--api-socket={self._api}", str(self.frames)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
        try:
            self._wait_for(self.frames)
        except BaseException:
            self.stop()
            raise

    def forward(self, port: int) -> None:
        """Forward ``port`` of 127.0.0.1 to the node's ssh server. The node's netdev must be up. Raises NodeError."""
        self._wait_for(self._api)
        arguments: dict[str, Any] = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port}
        arguments |= {"guest_addr": GUEST_ADDRESS, "guest_port": SSH_PORT}
        try:
            with socket.socket(socket.AF_UNIX) as api:
                api.settimeout(ANSWER_TIMEOUT_S)
                api.connect(str(self._api))
                api.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
                api.shutdown(socket.SHUT_WR)
                answer = json.loads(api.recv(1 << 16) or b"{}")
        except (OSError, ValueError) as error:
            raise NodeError(f"slirp4netns does not answer: {error}") from error
        if "error" in answer or "return" not in answer:
            raise NodeError(f"port {port} cannot be forwarded to the node: {answer}")

    def _wait_for(self, path: Path) -> None:
        def there_or_gone() -> bool:
            return path.exists() or self._process.poll() is not None

        wait_until(there_or_gone, ANSWER_TIMEOUT_S, f"slirp4netns's socket {path.name}", strict=False, poll_s=0.01)
        if not path.exists():
            raise NodeError(f"slirp4netns does not serve {path.name}: is the node's netdev up?")

    def stop(self) -> None:
        """End slirp4netns. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._stack.close()
