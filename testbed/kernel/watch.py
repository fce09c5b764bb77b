"""Tells when a link of a namespace gets or loses its carrier."""

from __future__ import annotations

import socket as sockets
from contextlib import ExitStack

from testbed.errors import KernelError
from testbed.kernel import netns
from testbed.kernel.links import read_links
from testbed.kernel.netlink import RefusedError, Socket

_RTMGRP_LINK = 1
_EVENT_BYTES = 1 << 16


class LinkWatch:
    """A namespace's links, watched by a netlink socket that has joined the group of link events.

    An event only says that something has changed: what it is the kernel is asked for, so that
    none can be missed when events were lost.

    Args:
        where: the namespace.

    Raises:
        KernelError: there is no such namespace.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        with ExitStack() as undo:
            with netns.inside(where):
                self._events = sockets.socket(
                    sockets.AF_NETLINK,
                    sockets.SOCK_RAW | sockets.SOCK_CLOEXEC | sockets.SOCK_NONBLOCK,
                    sockets.NETLINK_ROUTE,
                )
                undo.callback(self._events.close)
                self._events.bind((0, _RTMGRP_LINK))
                self._socket = undo.enter_context(Socket())
            self._running = self._read()
            undo.pop_all()

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._events.fileno()

    def has_carrier(self, link: str) -> bool:
        """Whether frames can pass a link, as of the last reading."""
        return self._running.get(link, False)

    def read(self) -> list[tuple[str, bool]]:
        """The links that have changed since the last reading, and whether they have a carrier.

        A link that is gone has none. Never waits.

        Raises:
            KernelError: the kernel does not answer.
        """
        try:
            while self._events.recv(_EVENT_BYTES):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # events were lost, which is no matter
        before, self._running = self._running, self._read()
        names = before.keys() | self._running.keys()
        return [
            (name, self.has_carrier(name))
            for name in sorted(names)
            if before.get(name, False) != self.has_carrier(name)
        ]

    def _read(self) -> dict[str, bool]:
        try:
            links = read_links(self._socket)
        except (OSError, RefusedError) as error:
            raise KernelError("read the links of", self._where, str(error)) from error
        return {link.name: link.running for link in links.values()}

    def close(self) -> None:
        """Stop watching."""
        self._events.close()
        self._socket.close()

    def __enter__(self) -> LinkWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
