"""More than two nodes: one node has connections to many, and all close at once."""

import threading

import pytest

from hil import Code
from hil.testing import PORT, Bench, End, Endpoint

FIRST_PORT = 6000


@pytest.mark.timeout(600)
@pytest.mark.requirement("CLOSE-01", "CLOSE-31", "RECV-13", "CLOSE-17")
def test_fifteen_connectors_of_one_node_close_at_once(many: Bench) -> None:
    """Fifteen nodes connect to one and close at the same moment, and each of its receives ends with WSAECONNRESET."""
    server, *clients = (Endpoint(many.pair.nodes[p.name], p.ipv4, many.provider) for p in many.pair.places)
    many.endpoints |= {endpoint.node.name: endpoint for endpoint in (server, *clients)}
    listener = server.listen(PORT, backlog=len(clients))
    pairs = [many.join(client, server, listener, FIRST_PORT + n) for n, client in enumerate(clients)]
    receives = [(acceptor, acceptor.recv()) for _, acceptor in pairs]
    together, answers = threading.Barrier(len(pairs)), {}

    def close(end: End) -> None:
        together.wait()
        answers[end.at.node.name] = end.close()

    threads = [threading.Thread(target=close, args=(connector,)) for connector, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == dict.fromkeys((client.node.name for client in clients), (0, Code.OK))
    assert [acceptor.completion(receive, 30) for acceptor, receive in receives] == [(Code.WSAECONNRESET, 0)] * len(
        pairs
    )
    evidence = many.judge(*(many.hard_close(connector, acceptor) for connector, acceptor in pairs))
    assert len(evidence.connections()) == len(pairs)
