"""Registered memory: for local use, for the peer's RDMA, and the cache of registrations."""

import errno
import mmap
import os
import struct
from collections.abc import Callable

from hil.provider.core import Core, Refused, T
from hil.provider.descriptor import DESCRIPTOR
from hil.provider.sockets import Kind, Registration, SanSocket, State
from hil.verbs import connection as verbs
from hil.winsock import codes as w
from hil.winsock.codes import Code
from hil.winsock.structures import WSABUF, LpErrno

LOCAL_ACCESS = {w.MEM_READ: 0, w.MEM_WRITE: verbs.LOCAL_WRITE, w.MEM_READWRITE: verbs.LOCAL_WRITE}
REMOTE_ACCESS = {
    w.MEM_READ: verbs.REMOTE_READ,
    w.MEM_WRITE: verbs.LOCAL_WRITE | verbs.REMOTE_WRITE,
    w.MEM_READWRITE: verbs.LOCAL_WRITE | verbs.REMOTE_WRITE | verbs.REMOTE_READ,
}
MAX_CACHED = 64
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1


class Memory(Core):
    """WSPRegisterMemory and its relatives. Each socket has its own PD, so a key works for its peer only (RMEM-06)."""

    def WSPRegisterMemory(
        self, s: int, lpBuffer: int, dwBufferLength: int, dwFlags: int, lpErrno: LpErrno
    ) -> int | None:
        """A handle for ``dwBufferLength`` bytes at address ``lpBuffer``, or None (NULL)."""

        def work() -> int:
            socket = self._find(s, network=False)
            return self._with_room(lambda: self._register(socket, lpBuffer, dwBufferLength, dwFlags))

        return self._answer(lpErrno, None, work)

    def _register(self, socket: SanSocket, address: int, length: int, flags: int) -> int:
        if flags not in LOCAL_ACCESS:
            raise Refused(Code.WSAEINVAL)
        with socket.lock:
            self._registrable(socket)
            for known in socket.registrations:
                if (known.address, known.length, known.flags) == (address, length, flags):
                    known.count += 1
                    return known.handle
            found = self._from_cache(socket, address, length, flags)
            if found is None:
                found = self._new_registration(socket, address, length, flags, LOCAL_ACCESS[flags])
            socket.registrations.append(found)
        return found.handle

    def _registrable(self, socket: SanSocket) -> None:
        self._check_open(socket)
        if socket.state is not State.CONNECTED:
            raise Refused(Code.WSAENOTCONN)

    def _new_registration(self, socket: SanSocket, address: int, length: int, flags: int, access: int) -> Registration:
        assert socket.connection is not None
        # An empty range, or one past the end of the address space, is no memory.
        if length <= 0 or address <= 0 or address + length > 1 << 64:
            raise Refused(Code.WSAEFAULT)
        try:
            mr = socket.connection.register(address, length, access)
        except Exception as error:
            raise Refused(_registration_code(error)) from error
        self._observe_region(socket, mr.lkey, length)
        frames = page_frames(address, length) if self._settings.cache else None
        return Registration(mr.lkey + 1, address, length, flags, mr, frames=frames)

    def _observe_region(self, socket: SanSocket, key: int, length: int) -> None:
        # An audit names leftover memory by this entry.
        self._observe("mr", handle=socket.handle, event="registered", key=key, length=length)

    def WSPDeregisterMemory(self, s: int, Handle: int, lpErrno: LpErrno) -> int:
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._deregister(self._find(s, network=False), Handle))

    def _deregister(self, socket: SanSocket, handle: int) -> int:
        """Lower the count of a registration, and release its memory with the last one.

        Ruling: MEM-12 forbids to *release* memory in use. Only the last deregistration releases (MEM-10), so one that
        only lowers the count is granted. WSPDeregisterRdmaMemory follows the same ruling (RMEM-13, RMEM-14), and so
        must the switch (hil.switch.obligations, SWITCH-10).
        """
        with socket.lock:
            self._check_open(socket)
            found = next((r for r in socket.registrations if r.handle == handle), None)
            if found is None or (found.count == 1 and found.in_use):
                raise Refused(Code.WSAEINVAL)
            found.count -= 1
            if not found.count:
                socket.registrations.remove(found)
                self._to_cache(socket, found)
        return 0

    # --- for the peer's RDMA -----------------------------------------------------------------------------------------

    def WSPRegisterRdmaMemory(
        self,
        s: int,
        lpBuffer: int,
        dwBufferLength: int,
        dwFlags: int,
        lpRdmaBufferDescriptor: bytearray | None,
        lpdwDescriptorLength: list[int] | None,
        lpErrno: LpErrno,
    ) -> int:
        """Store the descriptor in ``lpRdmaBufferDescriptor`` and its length in ``lpdwDescriptorLength[0]``.

        WSAEFAULT when the space is too small; the needed length is stored all the same (RMEM-02).
        """
        space, room = lpRdmaBufferDescriptor, lpdwDescriptorLength

        def work() -> int:
            socket = self._find(s, network=False)
            return self._with_room(lambda: self._register_rdma(socket, lpBuffer, dwBufferLength, dwFlags, space, room))

        return self._answer(lpErrno, w.SOCKET_ERROR, work)

    def _register_rdma(
        self,
        socket: SanSocket,
        address: int,
        length: int,
        flags: int,
        space: bytearray | None,
        space_length: list[int] | None,
    ) -> int:
        if flags not in REMOTE_ACCESS:
            raise Refused(Code.WSAEINVAL)
        with socket.lock:
            self._registrable(socket)
            if space_length is None:
                raise Refused(Code.WSAEFAULT)
            room, space_length[0] = space_length[0], DESCRIPTOR.size
            if space is None or min(room, len(space)) < DESCRIPTOR.size:
                raise Refused(Code.WSAEFAULT)
            descriptor = self._expose(socket, address, length, flags)
            space[: DESCRIPTOR.size] = descriptor
        return 0

    def _expose(self, socket: SanSocket, address: int, length: int, flags: int) -> bytes:
        for descriptor, known in socket.exposed.items():
            if (known.address, known.length, known.flags) == (address, length, flags):
                known.count += 1
                return descriptor
        made = self._new_registration(socket, address, length, flags, REMOTE_ACCESS[flags])
        descriptor = DESCRIPTOR.pack(made.mr.rkey, address, length)
        socket.exposed[descriptor] = made
        return descriptor

    def WSPDeregisterRdmaMemory(
        self, s: int, lpRdmaBufferDescriptor: bytes, dwDescriptorLength: int, lpErrno: LpErrno
    ) -> int:
        return self._answer(
            lpErrno,
            w.SOCKET_ERROR,
            lambda: self._deregister_rdma(
                self._find(s, network=False), bytes(lpRdmaBufferDescriptor[: max(dwDescriptorLength, 0)])
            ),
        )

    def _deregister_rdma(self, socket: SanSocket, descriptor: bytes) -> int:
        with socket.lock:
            self._check_open(socket)
            found = socket.exposed.get(descriptor)
            # Verbs report nothing about the peer's transfers. This end's own transfers with the same memory are known.
            if found is None or (found.count == 1 and _in_transfer(socket, found)):
                raise Refused(Code.WSAEINVAL)
            found.count -= 1
            if not found.count:
                # Only deregistration revokes a key, so memory that the peer could reach is never cached.
                del socket.exposed[descriptor]
                found.mr.close()
        return 0

    # --- the cache ---------------------------------------------------------------------------------------------------

    def WSPMemoryRegistrationCacheCallback(self, lpvAddress: int, Size: int, lpErrno: LpErrno) -> int:
        """Release every cached registration that overlaps the range, for all sockets (CACHE-07).

        Ruling on CACHE-08: the cache cannot release a live registration, so a range with one gives WSAEFAULT. A range
        without any registration gives WSAEINVAL. The switch is about to release the pages, and only WSAEFAULT says that
        an adapter can still reach them.
        """
        return self._answer(lpErrno, w.SOCKET_ERROR, lambda: self._uncache_range(lpvAddress, Size))

    def _uncache_range(self, address: int, length: int) -> int:
        released = self._release_cached(address, length)
        in_use = 0
        for socket in self._all_sockets():
            with socket.lock:
                live = [*socket.registrations, *socket.exposed.values()]
                in_use += sum(r.overlaps(address, length) for r in live)
        if in_use:
            raise Refused(Code.WSAEFAULT)
        if not released:
            raise Refused(Code.WSAEINVAL)
        return 0

    def _all_sockets(self) -> list[SanSocket]:
        with self._lock:
            return list(self._sockets.values()) if self._started else []

    def _release_cached(self, address: int, length: int) -> int:
        """Release the cached registrations that overlap the range, for all sockets; returns their number."""
        count = 0
        for socket in self._all_sockets():
            with socket.lock:
                for known in [r for r in socket.cache if r.overlaps(address, length)]:
                    socket.cache.remove(known)
                    known.mr.close()
                    count += 1
        return count

    def _with_room(self, register: Callable[[], T]) -> T:
        """Register; when there is no room, release the cache and try again: the cache must never cause a refusal."""
        try:
            return register()
        except Refused as refused:
            if refused.code is not Code.WSAENOBUFS or not self._release_cached(0, 1 << 64):
                raise
        return register()

    def _to_cache(self, socket: SanSocket, registration: Registration) -> None:
        if registration.frames is None or socket.state is not State.CONNECTED:
            registration.mr.close()
            return
        socket.cache.append(registration)
        if len(socket.cache) > MAX_CACHED:
            socket.cache.pop(0).mr.close()

    def _from_cache(self, socket: SanSocket, address: int, length: int, flags: int) -> Registration | None:
        self._forget_remapped(socket)
        for known in socket.cache:
            if (known.address, known.length, known.flags) == (address, length, flags):
                socket.cache.remove(known)
                known.count = 1
                return known
        return None

    def _forget_remapped(self, socket: SanSocket) -> None:
        # A pinned page stays in its frame. Another frame at the address means that the application released the memory
        # and mapped it again, while the adapter would still reach the old pages (CACHE-09, CACHE-11).
        for known in list(socket.cache):
            if page_frames(known.address, known.length) != known.frames:
                socket.cache.remove(known)
                known.mr.close()

    # --- finding and releasing ---------------------------------------------------------------------------------------

    def _registration(self, socket: SanSocket, buffer: WSABUF, need: int) -> Registration:
        """The registration that covers ``buffer`` and permits ``need``. Refuses with WSAEFAULT (MEM-14, MEM-16)."""
        for registration in socket.registrations:
            if registration.covers(buffer.buf, buffer.len) and registration.flags & need:
                return registration
        raise Refused(Code.WSAEFAULT)

    def _give_back_memory(self, socket: SanSocket) -> None:
        """Deregister all memory at the adapter; the records stay for the switch to deregister."""
        for registration in [*socket.registrations, *socket.exposed.values(), *socket.cache]:
            self._step(registration.mr.close)
        if socket.early.mr is not None:
            self._step(socket.early.mr.close)

    def _release_memory(self, socket: SanSocket) -> None:
        with socket.lock:
            self._give_back_memory(socket)
            for registration in socket.registrations:
                facts = {"registration": registration.handle, "count": registration.count}
                self._observe("mr", handle=socket.handle, event="released", **facts)
            socket.registrations.clear()
            socket.exposed.clear()
            socket.cache.clear()


def _in_transfer(socket: SanSocket, registration: Registration) -> bool:
    """Whether an RDMA transfer that this end began is using the registration's memory."""
    running = [o for o in socket.pending.values() if o.kind in (Kind.READ, Kind.WRITE)]
    return any(registration.overlaps(buffer.buf, buffer.len) for o in running for buffer in o.buffers)


def page_frames(address: int, length: int) -> bytes | None:
    """The physical frames of a range, 8 bytes a page; None without CAP_SYS_ADMIN, which the kernel demands."""
    first, last = address // mmap.PAGESIZE, (address + length - 1) // mmap.PAGESIZE
    count = last - first + 1
    try:
        pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = struct.unpack(f"={count}Q", os.pread(pages, count * 8, first * 8))
        finally:
            os.close(pages)
    except (OSError, struct.error):
        return None
    if not all(entry & _PRESENT and entry & _FRAME for entry in entries):
        return None
    return struct.pack(f"={len(entries)}Q", *(entry & _FRAME for entry in entries))


def _registration_code(error: Exception) -> Code:
    number = getattr(error, "error_code", None) or getattr(error, "errno", None)
    return Code.WSAEFAULT if number in (errno.EFAULT, errno.EINVAL) else Code.WSAENOBUFS
