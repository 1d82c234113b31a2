"""RDMA netlink on pyroute2's own socket class, for programs that use pyroute2's other sockets."""

import os
from collections.abc import Iterator

from pyroute2.netlink import NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkSocket

from hil.netlink.messages import NETLINK_RDMA, Command, MarshalRdma, message_type, plain
from hil.netlink.requests import NLM_F_ACK, NLM_F_DUMP, Attributes, Requests, request


class RdmaSocket(Requests, NetlinkSocket):  # type: ignore[misc]
    """The requests over a ``NetlinkSocket``. Raises OSError (EPROTONOSUPPORT) where the kernel has no RDMA.

    It takes the keyword arguments of ``NetlinkSocket``, such as ``netns``. It runs its own event loop; inside a running
    event loop use ``hil.netlink.link.RdmaLink``.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(family=NETLINK_RDMA, **options)
        self.set_marshal(MarshalRdma())
        self.bind()

    def exchange(self, command: Command, flags: int, attributes: Attributes) -> Iterator[Attributes]:
        # A single answer ends the exchange: no acknowledgement follows it.
        single = None if flags & (NLM_F_ACK | NLM_F_DUMP) else lambda message: True
        try:
            kind = message_type(command)
            for message in self.nlm_request(request(attributes), msg_type=kind, msg_flags=flags, terminate=single):
                if message["header"]["type"] not in (NLMSG_ERROR, NLMSG_DONE):
                    yield plain(message)
        except NetlinkError as error:
            raise OSError(error.code, f"RDMA netlink, {command.name}: {os.strerror(error.code)}") from error
