"""The error tree of the bench.

HilError                  anything the bench says about itself
  SetupError              a prerequisite is missing or broken: exit code 2, never a pass
    LabFileError          a lab file holds mistakes
    ImageError            the guest image could not be built
    SnapshotError         a node could not be booted or snapshotted
  NodeError               something went wrong on or with a node
    NodeDied              the node, its agent or its worker is gone
    PhaseTimeout          an answer did not come in the time of its phase
    RemoteError           code on the node raised; carries the remote traceback
  CaptureError            a capture cannot be read or is incomplete
"""


class HilError(Exception):
    """Base of every error the bench raises on purpose."""


class SetupError(HilError):
    """A prerequisite is missing or broken."""


class LabFileError(SetupError):
    """A lab file holds mistakes; the message lists each with its place."""


class ImageError(SetupError):
    """The guest image could not be built."""


class SnapshotError(SetupError):
    """A node could not be booted or snapshotted."""


class NodeError(HilError):
    """Something went wrong on or with a node."""


class NodeDied(NodeError):
    """The node, its agent or its worker is gone."""


class PhaseTimeout(NodeError):
    """An answer did not come within the time of its phase."""


class RemoteError(NodeError):
    """Code on the node raised.

    ``kind`` is the remote exception's class name, ``remote_traceback`` its text.
    """

    def __init__(self, kind: str, message: str, remote_traceback: str) -> None:
        super().__init__(f"{kind}: {message}\n--- on the node ---\n{remote_traceback}")
        self.kind = kind
        self.remote_traceback = remote_traceback


class CaptureError(HilError):
    """A capture cannot be read or is incomplete."""
