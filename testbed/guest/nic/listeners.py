"""The TCP ports that a VM listens to, over IPv4 and IPv6."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_BACKLOG = 64


class Listeners:
    """Listening sockets, watched by an epoll that somebody else waits for."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._pairs: dict[int, list[socket.socket]] = {}
        self._ports: dict[int, tuple[socket.socket, int]] = {}
        self._accepting = True

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports that are listened to, ascending."""
        return tuple(sorted(self._pairs))

    def listen(self, ports: Iterable[int]) -> None:
        """Listen to these TCP ports, and no longer to others.

        Raises:
            OSError: one cannot be listened to.
        """
        wanted = set(ports)
        for port in set(self._pairs) - wanted:
            for one in self._pairs.pop(port):
                self._epoll.unregister(one)
                del self._ports[one.fileno()]
                one.close()
        for port in sorted(wanted - set(self._pairs)):
            with ExitStack() as undo:
                opened = [
                    undo.enter_context(
                        socket.create_server(("", port), family=family, backlog=_BACKLOG)
                    )
                    for family in (socket.AF_INET, socket.AF_INET6)
                ]
                undo.pop_all()
            self._pairs[port] = opened
            for one in opened:
                one.setblocking(False)
                self._ports[one.fileno()] = one, port
                self._epoll.register(one, select.EPOLLIN if self._accepting else 0)

    def accept(self, fd: int) -> tuple[socket.socket, int] | None:
        """A connection and its port here, if this is a listener of ours and one waits."""
        listener, port = self._ports.get(fd, (None, 0))
        if listener is None:
            return None
        try:
            return listener.accept()[0], port
        except OSError:  # it has gone again
            return None

    def accept_more(self, accepting: bool) -> None:
        """Whether those who connect are taken in; if not, they wait in the kernel."""
        if self._accepting != accepting:
            self._accepting = accepting
            for listener, _ in self._ports.values():
                self._epoll.modify(listener, select.EPOLLIN if accepting else 0)
