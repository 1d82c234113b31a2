"""Mutant wires. They report other actions than they take, and the bench must notice."""

import importlib
import sys

from hil.mutants.catalogue import mutants
from hil.roce.outline import Outline
from hil.wire.faults import Action, Drop
from hil.wire.forwarder import TO, Forwarder, serve

# A frame of a local experimental EtherType (IEEE 802). No adapter reacts to it.
ALIBI = bytes.fromhex("ffffffffffff 02000000002a 88b5").ljust(60, b"\0")


class Denies(Forwarder):
    """Forwards frames that it reports as dropped, and reports another frame than it sent."""

    def _act(self, side: int, frame: bytes, found: Outline | None, action: Action, comment: str) -> None:
        super()._act(side, frame, found, action, comment)
        if isinstance(action, Drop):
            to = 1 - side
            self._record(TO + to, ALIBI, "injected")
            self.injected[to] += 1
            self._pass(to, frame)


if __name__ == "__main__":
    module, _, name = mutants()[sys.argv[5]].home.partition(":")
    serve(getattr(importlib.import_module(module), name))
