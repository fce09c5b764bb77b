"""Takes in the connections of one migration, by listening at the addresses of its streams."""

from __future__ import annotations

import select
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from testbed.migration.acceptor import Accepted
from testbed.migration.handshake import Answering
from testbed.migration.sockets import limit_window, listen
from testbed.migration.stream import PeerError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from testbed.migration.specification import MigrationSpec

_STRANGERS = 16  # connections, beside those of the migration, that have proved nothing yet


class Listening:
    """An `Acceptor` that listens in this network namespace from the beginning on."""

    def __init__(self, spec: MigrationSpec) -> None:
        """Listen at each address that a stream goes to.

        Raises:
            KernelError: an address is not here, or in use.
        """
        addresses = dict.fromkeys(stream.destination_address for stream in spec.connections)
        with ExitStack() as undo:
            self._listeners = [undo.enter_context(listen(spec, one)) for one in addresses]
            for listener in self._listeners:
                listener.setblocking(False)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Listen no more."""
        self._undo.close()

    def accept(self, spec: MigrationSpec) -> list[Accepted]:
        """Wait for all streams; strangers are closed without a word, and keep nobody waiting.

        Raises:
            PeerError: they did not come within the timeout.
        """
        deadline_ns = time.monotonic_ns() + spec.timeout_ns
        count = len(spec.connections)
        heard: dict[socket.socket, Answering] = {}
        accepted: dict[int, Accepted] = {}
        with ExitStack() as undo:
            undo.callback(_close, heard)
            while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
                for sock in _ready((*self._listeners, *heard), left_ns):
                    if sock in self._listeners:
                        self._take(sock, heard, spec)
                    elif sock in heard and _converse(sock, heard[sock]):
                        said = heard.pop(sock)
                        if not said.done or said.number in accepted:
                            sock.close()
                            continue
                        undo.callback(sock.close)
                        limit_window(sock, spec.window_bytes)
                        accepted[said.number] = Accepted(sock, said.number, said.keys)
                if len(accepted) == count:
                    _close(heard)
                    undo.pop_all()
                    return [accepted[number] for number in sorted(accepted)]
        came = f": {len(accepted)} of {count} streams did" if accepted else ""
        raise PeerError(f"the source did not come within {spec.timeout_ns / 1e9:g} s{came}")

    @staticmethod
    def _take(
        listener: socket.socket, heard: dict[socket.socket, Answering], spec: MigrationSpec
    ) -> None:
        with suppress(OSError):  # it went away again
            sock = listener.accept()[0]
            sock.setblocking(False)
            heard[sock] = Answering({spec.migration_id: spec})
            if len(heard) > _STRANGERS + len(spec.connections):
                unproved = (sock for sock, said in heard.items() if said.spec is None)
                oldest = next(unproved, next(iter(heard)))
                del heard[oldest]
                oldest.close()


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _ready(sockets: tuple[socket.socket, ...], wait_ns: int) -> list[socket.socket]:
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(wait_ns / 1e6)]


def _converse(sock: socket.socket, said: Answering) -> bool:
    """Take in what has come, and answer; True when nothing more is to be said."""
    try:
        data = sock.recv(said.wants)
        if answer := said.feed(data):
            sock.sendall(answer)  # a new connection has room for it
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not data or not said.wants
