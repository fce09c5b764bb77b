"""Where a host receives migrations: its vMotion addresses, shared by all that come at a time.

Connections prove themselves (testbed/migration/handshake.py), and each one that has done so is
handed to the VMX of its migration. Of all others, strangers, there are only so many at a time and
none for long; they get nothing and keep nobody waiting.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from testbed.errors import KernelError
from testbed.lab.connections import Connections
from testbed.migration.handshake import Answering
from testbed.migration.sockets import limit_window, listen
from testbed.migration.specification import MigrationSpec

if TYPE_CHECKING:
    from testbed.lab.lines import Message
    from testbed.migration.handshake import Keys

MOST_STRANGERS = 64
HELLO_DEADLINE_S = 10.0
"""So long a connection may take to prove itself."""


@dataclass(slots=True)
class _Waiting:
    """A VMX that waits: its specification, and the streams that it has been given."""

    spec: MigrationSpec
    sock: socket.socket
    given: set[int] = field(default_factory=set)

    def give(self, number: int, keys: Keys, stream: socket.socket) -> None:
        said = {
            "number": number,
            "to_destination": keys.to_destination.hex(),
            "to_source": keys.to_source.hex(),
        }
        socket.send_fds(self.sock, [json.dumps(said).encode()], [stream.fileno()])
        self.given.add(number)


class Reception:
    """Serves the VMXes and the connections of one host, whose namespace this process is in."""

    def __init__(self) -> None:
        self._connections = Connections(self._most_strangers)
        self._waiting: dict[int, _Waiting] = {}
        self._expected: dict[int, MigrationSpec] = {}
        self._listeners: dict[tuple[str, int], socket.socket] = {}

    def _most_strangers(self) -> int:
        """Beside the connections of migrations that are still to come."""
        waiting = self._waiting.values()
        return MOST_STRANGERS + sum(len(one.spec.connections) - len(one.given) for one in waiting)

    async def wait_for(self, fields: Message, vmx: socket.socket) -> None:
        """From the time when a VMX says for what it waits until it waits no more.

        Raises:
            KernelError: an address of the migration is not here, or in use.
            ValueError, KeyError, TypeError: it says something else.
        """
        loop = asyncio.get_running_loop()
        spec = MigrationSpec.from_json(fields)
        for address in {one.destination_address for one in spec.connections}:
            self._listen(spec, address)
        self._waiting[spec.migration_id] = _Waiting(spec, vmx)
        self._expected[spec.migration_id] = spec
        try:
            await loop.sock_sendall(vmx, b"{}")
            await loop.sock_recv(vmx, 1)  # it says nothing more: this is its end
        finally:
            del self._waiting[spec.migration_id], self._expected[spec.migration_id]

    def _listen(self, spec: MigrationSpec, address: str) -> None:
        """Listen at an address from now on, for others as well."""
        if (address, spec.port) not in self._listeners:
            # What one migration has of its own is set on its connections.
            plain = replace(
                spec, window_bytes=None, send_buffer_bytes=None, receive_buffer_bytes=None
            )
            listener = listen(plain, address)
            listener.setblocking(False)
            self._listeners[address, spec.port] = listener
            self._connections.keep(self._connections.receive(listener, self._hear))

    async def _hear(self, sock: socket.socket) -> None:
        """Hear a connection, and hand it on once it has proved what it is."""
        loop = asyncio.get_running_loop()
        said = Answering(self._expected)
        with sock, suppress(OSError, TimeoutError, KernelError):
            async with asyncio.timeout(HELLO_DEADLINE_S):
                while said.wants:
                    answer = said.feed(data := await loop.sock_recv(sock, said.wants))
                    if not data:
                        return
                    if said.spec is not None:
                        self._connections.know()
                    if said.keys is not None:
                        self._hand_on(sock, said, answer)
                    elif answer:
                        await loop.sock_sendall(sock, answer)

    def _hand_on(self, sock: socket.socket, said: Answering, accepted: bytes) -> None:
        waiting = self._waiting.get(said.spec.migration_id) if said.spec else None
        if waiting is None or said.keys is None or said.number in waiting.given:
            return  # its VMX has gone meanwhile, or has this stream
        spec = waiting.spec
        limit_window(sock, spec.window_bytes)
        congestion, timeout_ms = spec.congestion_control.encode(), spec.timeout_ns // 1_000_000
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        sock.send(accepted)  # there is room for it: nothing else waits to be sent
        waiting.give(said.number, said.keys, sock)
