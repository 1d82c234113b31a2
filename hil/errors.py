"""The error tree of the bench.

HilError                  anything the bench says about itself
  SetupError              a prerequisite is missing or broken: exit code 2, never a pass
    LabFileError          a lab file holds mistakes
    ImageError            the guest image could not be built
    KernelError           a kernel for guests could not be built
    SnapshotError         a node could not be booted or snapshotted
    AdapterError          there is no such adapter, or it could not be provisioned or restored
      AtWork                another bench works with what was to be restored
  NodeError               something went wrong on or with a node
    NodeDied              the node, its agent or its worker is gone
    PhaseTimeout          an answer did not come in the time of its phase
    RemoteError           code on the node raised; carries the remote traceback
  Unsupported               the lab lacks what was asked of it: the verdict is unsupported
  CaptureError            a capture cannot be read or is incomplete
  EvidenceError           what a node told, or a file of a results folder holds, is malformed
    ResultsError          a results folder holds no such results, or results of another format
  FaultError              a fault for the wire holds a mistake, or is not set
  UnhitFault              a fault for the wire picked no frame, so a test that stands on it shows nothing
"""


class HilError(Exception):
    """Base of every error the bench raises on purpose."""


class SetupError(HilError):
    """A prerequisite is missing or broken."""


class LabFileError(SetupError):
    """A lab file holds mistakes; the message lists each with its place."""


class SeamError(SetupError):
    """What an installed package adds to the bench cannot be used; the message names the package."""


class ImageError(SetupError):
    """The guest image could not be built."""


class KernelError(SetupError):
    """A kernel for guests could not be built."""


class SnapshotError(SetupError):
    """A node could not be booted or snapshotted."""


class AdapterError(SetupError):
    """There is no such adapter, or it could not be provisioned or restored."""


class AtWork(AdapterError):
    """Another bench works with what was to be changed or restored."""


class NodeError(HilError):
    """Something went wrong on or with a node."""


class NodeDied(NodeError):
    """The node, its agent or its worker is gone."""


class PhaseTimeout(NodeError):
    """An answer did not come within the time of its phase."""


class RemoteError(NodeError):
    """Code on the node raised.

    ``kind`` is the remote exception's class name, ``message`` its text, ``remote_traceback`` where it came from.
    """

    def __init__(self, kind: str, message: str, remote_traceback: str) -> None:
        super().__init__(f"{kind}: {message}\n--- on the node ---\n{remote_traceback}")
        self.kind, self.message = kind, message
        self.remote_traceback = remote_traceback


class CaptureError(HilError):
    """A capture cannot be read or is incomplete."""


class EvidenceError(HilError):
    """What a node told, or a file of a results folder holds, is malformed; the message names the place."""


class ResultsError(EvidenceError):
    """A results folder holds no such results, or results of another format."""


class FaultError(HilError):
    """A rule for the wire holds a mistake, or is not set."""


class UnhitFault(HilError):
    """A rule for the wire picked no frame, so a test that stands on it shows nothing."""


class Unsupported(HilError):
    """The lab lacks what was asked of it; the message says what, and why."""
