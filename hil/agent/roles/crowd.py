"""The ``crowd`` role of a worker: one provider with hundreds of sockets, driven by loops on the node."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hil.agent.roles.provider import Service
from hil.switch.switch import Emit, Switch, length_of, name_of
from hil.winsock import codes as w
from hil.winsock.codes import INVALID_SOCKET, Code
from hil.winsock.structures import WSABUF, WSAEVENT, WSANETWORKEVENTS

SIZE = 256


def serve(emit: Emit) -> Mapping[str, Callable[..., Any]]:
    """The calls of this role: those of a provider, and those of a crowd."""
    crowd = Crowd(Switch(emit))
    return {name: getattr(crowd, name) for name in dir(crowd) if not name.startswith("_")}


class Crowd(Service):
    """Many sockets, each with one receive posted into shared memory."""

    def __init__(self, switch: Switch) -> None:
        super().__init__(switch)
        self._memory = 0
        self._connecting: dict[int, WSAEVENT] = {}
        self._receives: dict[int, int] = {}

    # --- the listening side ------------------------------------------------------------------------------------------

    def accept_crowd(self, s: int, event: int, count: int, timeout_s: float) -> list[int]:
        """Accept ``count`` connections, or fewer within ``timeout_s``, with a receive on each. Returns the sockets."""
        accepted: list[int] = []
        end = time.monotonic() + timeout_s
        while len(accepted) < count and time.monotonic() < end:
            answer = self._switch.call("WSPAccept", s, None, None, None, 0)
            if answer["result"] == "INVALID_SOCKET":
                self._switch.events[event].wait(0.1)
                continue
            accepted.append(answer["result"])
            self._post_receive(answer["result"])
        return accepted

    # --- the connecting side -----------------------------------------------------------------------------------------

    def connect_crowd(self, ip: str, address: str, port: int, first: int, count: int) -> list[int]:
        """Begin ``count`` connects, from port ``first`` on. Returns the sockets."""
        begun = []
        for own in range(first, first + count):
            s = self._must("WSPSocket", w.AF_INET, w.SOCK_STREAM, w.IPPROTO_TCP, None, 0, w.WSA_FLAG_OVERLAPPED)
            name, event = name_of(ip, own), WSAEVENT()
            self._must("WSPBind", s, name, length_of(name))
            self._must("WSPEventSelect", s, event, 0x10)
            target = name_of(address, port)
            self._must("WSPConnect", s, target, length_of(target), None, None, None, None, code=Code.WSAEWOULDBLOCK)
            self._connecting[s] = event
            begun.append(s)
        return begun

    def connects_ended(self, sockets: list[int], timeout_s: float) -> dict[str, int]:
        """The number of connects by code, and "pending" for those that did not end in ``timeout_s``.

        Connected sockets get a receive.
        """
        found: Counter[str] = Counter()
        end = time.monotonic() + timeout_s
        for s in sockets:
            if not self._connecting[s].wait(max(end - time.monotonic(), 0.0)):
                found["pending"] += 1
                continue
            events = WSANETWORKEVENTS()
            self._must("WSPEnumNetworkEvents", s, self._connecting[s], events)
            code = Code(events.iErrorCode[w.FD_CONNECT_BIT])
            found[code.name] += 1
            if code is Code.OK:
                self._post_receive(s)
        return dict(found)

    # --- both --------------------------------------------------------------------------------------------------------

    def _post_receive(self, s: int) -> None:
        if not self._memory:
            self._memory = self._switch.new_memory(1 << 20)["memory"]
        address = self._switch.memories[self._memory].address
        self._must("WSPRegisterMemory", s, address, 1 << 20, w.MEM_READWRITE)
        number = self._switch.new_overlapped()
        arguments = (s, [WSABUF(SIZE, address)], 1, [0], [0], self._switch.overlapped[number], None, None)
        self._must("WSPRecv", *arguments, overlapped=number, code=Code.WSA_IO_PENDING)
        self._receives[s] = number

    def close_crowd(self, sockets: list[int], threads: int = 1) -> list[float]:
        """Close these sockets from ``threads`` threads. Returns the seconds of each close, in the order of their end.

        With a thread for each socket all closes begin at once.
        """
        waiting, seconds, failures = list(sockets), [], []
        go = threading.Barrier(threads)

        def work() -> None:
            go.wait()
            while True:
                try:
                    s = waiting.pop(0)
                except IndexError:
                    return
                begun = time.monotonic()
                if (code := self._switch.close_socket(s)["code"]) != Code.OK:
                    failures.append(f"{s}: {Code(code)}")
                seconds.append(time.monotonic() - begun)

        closers = [threading.Thread(target=work) for _ in range(threads)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        if failures:
            raise RuntimeError(f"closes failed: {failures[:5]}")
        return seconds

    def quickest_close(self, sockets: list[int]) -> float:
        """Close these sockets one after the other. Returns the shortest close in seconds."""
        return min(self.close_crowd(sockets))

    def receives_ended(self, sockets: list[int], timeout_s: float) -> dict[str, int]:
        """The number of these sockets' receives by code and bytes, and "pending" for those that did not end."""
        found: Counter[str] = Counter()
        end = time.monotonic() + timeout_s
        for s in sockets:
            done = self._switch.wait_completion(self._receives[s], max(end - time.monotonic(), 0.0))
            found[f"{Code(done['code']).name} {done['transferred']}" if done else "pending"] += 1
        return dict(found)

    def _must(self, function: str, *arguments: Any, code: Code = Code.OK, overlapped: int | None = None) -> Any:
        answer = self._switch.call(function, *arguments, overlapped=overlapped)
        if answer["code"] != code or answer["result"] in (None, "INVALID_SOCKET", INVALID_SOCKET):
            raise RuntimeError(f"{function}: {answer['result']}, {Code(answer['code'])}; expected {code}")
        return answer["result"]
