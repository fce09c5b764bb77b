"""The TCP connections that a VM opens: one to each of its peers, again whenever it is lost."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Peer = tuple[str, int]
"""Address and port."""

AGAIN_NS = 1_000_000_000
"""So long after one was refused or lost it is tried again."""
_PATIENCE_MS = 3000
_TCP_USER_TIMEOUT = 18  # linux/tcp.h
NEVER_NS = 2**63


class Dials:
    """Sockets that are being connected, watched by an epoll that somebody else waits for."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._peers: dict[int, Peer] = {}
        self._due_ns: dict[int, int] = {}
        self._under_way: dict[int, tuple[socket.socket, int]] = {}

    def dial(self, peers: Mapping[int, Peer]) -> set[int]:
        """Keep a connection to each of these peers, by the service's number, and to no others.

        Returns:
            The services whose connections, if they have any, go elsewhere: lose them.
        """
        former, self._peers = self._peers, dict(peers)
        changed = {one for one in {**former, **peers} if former.get(one) != peers.get(one)}
        for fd in [fd for fd, (_, service) in self._under_way.items() if service in changed]:
            self._drop(fd).close()
        self._due_ns = {one: due for one, due in self._due_ns.items() if one in peers}
        self._due_ns |= dict.fromkeys(changed & set(peers), 0)
        return changed

    def due_ns(self) -> int:
        """When `start` has something to do (CLOCK_MONOTONIC)."""
        return min(self._due_ns.values(), default=NEVER_NS)

    def start(self) -> None:
        """Begin those that are due."""
        now_ns = time.monotonic_ns()
        for service in [one for one, due in self._due_ns.items() if due <= now_ns]:
            del self._due_ns[service]
            address, port = self._peers[service]
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            one.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, _PATIENCE_MS)
            one.connect_ex((address, port))  # what came of it the socket tells
            self._under_way[one.fileno()] = one, service
            self._epoll.register(one, select.EPOLLOUT)

    def connected(self, fd: int) -> tuple[socket.socket, int] | None:
        """A connection and its service, if this is a socket of ours and it has been accepted."""
        if fd not in self._under_way:
            return None
        _, service = self._under_way[fd]
        one = self._drop(fd)
        try:
            one.getpeername()  # who has none was refused
            one.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, 0)
        except OSError:
            one.close()
            self.lost(service)
            return None
        return one, service

    def give_up(self, fd: int) -> None:
        """Break a connection that nobody has room for, if this is a socket of ours."""
        if (opened := self.connected(fd)) is not None:
            opened[0].close()
            self.lost(opened[1])

    def lost(self, service: int) -> None:
        """The connection of a service is no more: if it was to a peer, dial again in a while."""
        if service in self._peers:
            self._due_ns[service] = time.monotonic_ns() + AGAIN_NS

    def close(self) -> None:
        """Give up all."""
        self.dial({})

    def _drop(self, fd: int) -> socket.socket:
        one, _ = self._under_way.pop(fd)
        self._epoll.unregister(one)
        return one
