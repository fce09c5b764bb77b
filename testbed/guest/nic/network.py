"""The sockets of a VM, held by its NIC process, and their bytes to and from the rings."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from testbed.guest.nic import echoes
from testbed.guest.nic.records import CLOSE, CONNECTIONS, DATA, ECHO, ENDED, LOST, OPENED, SENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from testbed.guest.nic.echoes import EchoSockets
    from testbed.guest.nic.rings import Ring

LEAST_ROOM = 64
_READ_BYTES = 16384
# With so much of a connection still to be sent its socket isn't read: what it says would make
# the guest say more. Twice a ring more may come, which bounds an echo's bytes in this process.
_READ_BELOW_BYTES = 65536
_MOST_BUFFERS = 64
_TAKEN_AT_ONCE = 64
_BACKLOG = 64
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
_NOT_SENT_BYTES = 131072  # what the kernel would go on sending while the guest stands still


@dataclass(eq=False)
class _Connection:
    number: int
    socket: socket.socket
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
        self._listeners: dict[int, list[socket.socket]] = {}
        self._connections: dict[int, _Connection] = {}
        self._sockets: dict[int, _Connection | socket.socket] = {}
        self._echoes: EchoSockets | None = None
        self._owed: dict[int, _Connection] = {}  # SENT or LOST is to be told
        self._accepting = True

    def fileno(self) -> int:
        """Readable if a socket waits for `carry_in`."""
        return self._epoll.fileno()

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports that are listened to, ascending."""
        return tuple(sorted(self._listeners))

    def listen(self, ports: Iterable[int]) -> None:
        """Listen to these TCP ports over IPv4 and IPv6, and no longer to others.

        Raises:
            OSError: one cannot be listened to.
        """
        wanted = set(ports)
        for port in set(self._listeners) - wanted:
            for one in self._listeners.pop(port):
                self._forget(one)
        for port in sorted(wanted - set(self._listeners)):
            with ExitStack() as undo:
                opened = [
                    undo.enter_context(
                        socket.create_server(("", port), family=family, backlog=_BACKLOG)
                    )
                    for family in (socket.AF_INET, socket.AF_INET6)
                ]
                undo.pop_all()
            self._listeners[port] = opened
            for one in opened:
                one.setblocking(False)
                self._sockets[one.fileno()] = one
                self._epoll.register(one, select.EPOLLIN if self._accepting else 0)

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
        self.drop_connections()
        self.listen(())
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

    def _sent(self, one: _Connection, count: int) -> None:
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
        put = self._tell(ring, running)
        if ring.room() < LEAST_ROOM or not running():
            return put
        for fd, event in self._epoll.poll(0, _TAKEN_AT_ONCE):
            if ring.room() < LEAST_ROOM or not running():
                break
            one = self._sockets.get(fd)
            if isinstance(one, _Connection):
                put |= self._serve(one, event, ring)
            elif one is not None and one.type == socket.SOCK_RAW:
                put |= _receive_echo(one, ring)
            elif one is not None:
                put |= self._accept(one, ring)
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

    def _accept(self, listener: socket.socket, ring: Ring) -> bool:
        number = next((n for n in range(CONNECTIONS) if n not in self._connections), None)
        if number is None:  # they wait, in the kernel, until one has gone
            self._accept_more(False)
            return False
        try:
            accepted, _ = listener.accept()
        except OSError:  # it has gone again
            return False
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
        one = _Connection(number, accepted)
        self._connections[number] = self._sockets[accepted.fileno()] = one
        port = listener.getsockname()[1]
        ring.put(OPENED, number, time.monotonic_ns(), port.to_bytes(2, "little"))
        one.watched = select.EPOLLIN
        self._epoll.register(accepted, one.watched)
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
        self._accept_more(True)

    def _forget(self, one: socket.socket) -> None:
        self._epoll.unregister(one)
        del self._sockets[one.fileno()]
        one.close()

    def _accept_more(self, accepting: bool) -> None:
        if self._accepting != accepting:
            self._accepting = accepting
            for one in (one for pair in self._listeners.values() for one in pair):
                self._epoll.modify(one, select.EPOLLIN if accepting else 0)


def _receive_echo(one: socket.socket, ring: Ring) -> bool:
    try:
        payload = echoes.receive(one)
    except OSError:
        return False
    # One without room is lost, as in a NIC whose ring is full.
    return payload is not None and ring.put(ECHO, 0, time.monotonic_ns(), payload)
