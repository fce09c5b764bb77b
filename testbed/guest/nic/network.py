"""The sockets of a VM, held by its NIC process, and their bytes to and from the rings."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from testbed.guest.nic import echoes
from testbed.guest.nic.dials import Dials
from testbed.guest.nic.listeners import Listeners
from testbed.guest.nic.records import CLOSE, CONNECTIONS, DATA, ECHO, ENDED, LOST, OPENED, SENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed.guest.nic.dials import Peer
    from testbed.guest.nic.echoes import EchoSockets
    from testbed.guest.nic.rings import Ring

LEAST_ROOM = 64
_READ_BYTES = 16384
# With so much of a connection still to be sent its socket isn't read: what it says would make
# the guest say more. Twice a ring more may come, which bounds an echo's bytes in this process.
_READ_BELOW_BYTES = 65536
_MOST_BUFFERS = 64
_TAKEN_AT_ONCE = 64
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
_NOT_SENT_BYTES = 131072  # what the kernel would go on sending while the guest stands still


@dataclass(eq=False)
class _Connection:
    number: int
    service: int
    socket: socket.socket
    mss_bytes: int
    out: deque[memoryview] = field(default_factory=deque)
    out_bytes: int = 0
    unreported: int = 0
    reading: bool = True
    closing: bool = False
    lost: bool = False
    watched: int = 0


class Network:
    """Listeners, connections and raw sockets in the namespace that this process is in."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.listeners = Listeners(self._epoll)
        self.dials = Dials(self._epoll)
        self._connections: dict[int, _Connection] = {}
        self._sockets: dict[int, _Connection | socket.socket] = {}
        self._echoes: EchoSockets | None = None
        self._owed: dict[int, _Connection] = {}  # SENT or LOST is to be told
        self._traffic = 0, 0

    def fileno(self) -> int:
        """Readable if a socket waits for `carry_in`."""
        return self._epoll.fileno()

    def dial(self, peers: Mapping[int, Peer]) -> None:
        """Keep a connection to each of these peers, by the service's number, and to no others."""
        changed = self.dials.dial(peers)
        for one in tuple(self._connections.values()):
            if one.service in changed and not one.lost:
                one.service = 0
                self._lose(one)

    def take_traffic(self) -> tuple[int, int]:
        """Bytes and packets, in segments (MSS), that were sent and received since last asked."""
        traffic, self._traffic = self._traffic, (0, 0)
        return traffic

    def answer_echoes(self, sockets: EchoSockets | None) -> None:
        """Receive echo requests by these sockets, or none."""
        if self._echoes is not None:
            for one in self._echoes.sockets:
                self._epoll.unregister(one)
                del self._sockets[one.fileno()]
            self._echoes.close()
        self._echoes = sockets
        for one in sockets.sockets if sockets else ():
            self._sockets[one.fileno()] = one
            self._epoll.register(one, select.EPOLLIN)

    @property
    def answers_echoes(self) -> bool:
        """Whether echo requests are received here."""
        return self._echoes is not None

    def drop_connections(self) -> None:
        """Break all connections: the guest that they were to is no more."""
        for one in tuple(self._connections.values()):
            self._close(one)

    def close(self) -> None:
        """Close everything; the kernel answers pings again if it did before."""
        self.dials.close()
        self.drop_connections()
        self.listeners.listen(())
        self.answer_echoes(None)
        self._epoll.close()

    # -- from the guest ---------------------------------------------------------------------

    def carry_out(self, ring: Ring, running: Callable[[], bool]) -> bool:
        """Take what the guest has to send, and send what the sockets take; whether it did any.

        It is all taken: the guest bounds what it has under way.
        """
        touched: dict[int, _Connection] = {}
        taken = 0
        while taken < _TAKEN_AT_ONCE and running() and (record := ring.first()) is not None:
            ring.drop(record)
            taken += 1
            if record.kind == ECHO:
                if self._echoes is not None:
                    self._echoes.send(record.payload)
                    self._count(len(record.payload), len(record.payload))
                continue
            one = self._connections.get(record.connection)
            if one is None:
                continue
            if record.kind == CLOSE:
                one.closing = True
            elif record.kind == DATA and not one.lost:
                one.out.append(memoryview(record.payload))
                one.out_bytes += len(record.payload)
            touched[record.connection] = one
        for one in touched.values():
            self._send(one)
        return bool(taken)

    def _send(self, one: _Connection) -> None:
        while one.out and not one.lost:
            try:
                sent = one.socket.sendmsg(tuple(islice(one.out, _MOST_BUFFERS)))
            except BlockingIOError:
                break
            except OSError:
                self._lose(one)
                break
            self._sent(one, sent)
        if one.closing and not one.out:
            self._close(one)
        else:
            self._watch(one)

    def _count(self, size_bytes: int, mss_bytes: int) -> None:
        total_bytes, packets = self._traffic
        self._traffic = total_bytes + size_bytes, packets + -(-size_bytes // mss_bytes)

    def _sent(self, one: _Connection, count: int) -> None:
        self._count(count, one.mss_bytes)
        one.out_bytes -= count
        one.unreported += count
        self._owed[one.number] = one
        while count:
            first = one.out.popleft()
            if len(first) > count:
                one.out.appendleft(first[count:])
                return
            count -= len(first)

    # -- to the guest -----------------------------------------------------------------------

    def carry_in(self, ring: Ring, running: Callable[[], bool]) -> bool:
        """Give the guest what has arrived, as far as there is room; whether there was any."""
        self.dials.start()
        put = self._tell(ring, running)
        if ring.room() < LEAST_ROOM or not running():
            return put
        for fd, event in self._epoll.poll(0, _TAKEN_AT_ONCE):
            if ring.room() < LEAST_ROOM or not running():
                break
            one = self._sockets.get(fd)
            if isinstance(one, _Connection):
                put |= self._serve(one, event, ring)
            elif one is not None:
                put |= self._receive_echo(one, ring)
            else:
                put |= self._open(fd, ring)
        return put | self._tell(ring, running)

    def _tell(self, ring: Ring, running: Callable[[], bool]) -> bool:
        """What became of what the guest sent."""
        put = False
        while self._owed and ring.room() >= LEAST_ROOM and running():
            _, one = self._owed.popitem()
            now_ns = time.monotonic_ns()
            if one.lost:
                ring.put(LOST, one.number, now_ns)
            else:
                ring.put(SENT, one.number, now_ns, one.unreported.to_bytes(8, "little"))
                one.unreported = 0
            put = True
        return put

    def _open(self, fd: int, ring: Ring) -> bool:
        """Tell of a connection that somebody, or this VM, has opened."""
        number = next((n for n in range(CONNECTIONS) if n not in self._connections), None)
        if number is None:  # they wait, in the kernel, until one has gone
            self.listeners.accept_more(False)
            self.dials.give_up(fd)
            return False
        opened = self.listeners.accept(fd) or self.dials.connected(fd)
        if opened is None:
            return False
        made, service = opened
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
        mss_bytes = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        one = _Connection(number, service, made, mss_bytes)
        self._connections[number] = self._sockets[made.fileno()] = one
        ring.put(OPENED, number, time.monotonic_ns(), service.to_bytes(4, "little"))
        one.watched = select.EPOLLIN
        self._epoll.register(made, one.watched)
        return True

    def _serve(self, one: _Connection, event: int, ring: Ring) -> bool:
        if event & select.EPOLLOUT:
            self._send(one)
            return False
        try:
            data = one.socket.recv(min(ring.room(), _READ_BYTES)) if one.reading else b""
        except BlockingIOError:
            return False
        except OSError:
            self._lose(one)
            return False
        if data:
            self._count(len(data), one.mss_bytes)
            return ring.put(DATA, one.number, time.monotonic_ns(), data)
        if event & (select.EPOLLERR | select.EPOLLHUP):
            self._lose(one)
            return False
        one.reading = False
        self._watch(one)
        return ring.put(ENDED, one.number, time.monotonic_ns())

    # -- connections ------------------------------------------------------------------------

    def _watch(self, one: _Connection) -> None:
        if one.lost:
            return
        reads = one.reading and not one.closing and one.out_bytes < _READ_BELOW_BYTES
        wanted = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if one.out else 0)
        if wanted != one.watched:
            one.watched = wanted
            self._epoll.modify(one.socket, wanted)

    def _lose(self, one: _Connection) -> None:
        """The peer broke it: what it had to be sent goes nowhere; its number waits for CLOSE."""
        one.lost = True
        one.out.clear()
        self._forget(one.socket)
        if one.closing:
            self._close(one)
        else:
            self._owed[one.number] = one

    def _close(self, one: _Connection) -> None:
        if not one.lost:
            one.lost = True
            self._forget(one.socket)
        self._owed.pop(one.number, None)
        self._connections.pop(one.number, None)
        self.listeners.accept_more(True)
        self.dials.lost(one.service)

    def _forget(self, one: socket.socket) -> None:
        self._epoll.unregister(one)
        del self._sockets[one.fileno()]
        one.close()

    def _receive_echo(self, one: socket.socket, ring: Ring) -> bool:
        try:
            payload = echoes.receive(one)
        except OSError:
            return False
        if payload is None:
            return False
        self._count(len(payload), len(payload))
        # One without room is lost, as in a NIC whose ring is full.
        return ring.put(ECHO, 0, time.monotonic_ns(), payload)
