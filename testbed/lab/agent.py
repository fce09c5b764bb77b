"""A host's agent: the process that receives what comes to the host, whichever VM it is for.

The supervisor and the VMXes of the host speak with it over an abstract Unix socket, whose names
are the namespace's own; only root is heard there. Each conversation is about one migration, and
lasts as long as that concerns the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from testbed import prctl
from testbed.errors import KernelError, TestbedError
from testbed.kernel import netns
from testbed.lab.client import error_message
from testbed.lab.connections import Connections
from testbed.lab.lines import LARGEST_LINE_BYTES, encode
from testbed.lab.management import Management
from testbed.lab.reception import Reception

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from testbed.lab.lines import Message

NAME = "\0testbed.agent"
LARGEST_MESSAGE_BYTES = 65536
_MOST_WAITING = 128
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def is_root(sock: socket.socket) -> bool:
    """Whether who is at the other end of a Unix socket was root when it was made."""
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(said)[1] == 0)


def run(control: socket.socket, *, host: str, host_netns: str, key: bytes) -> None:
    """Be the agent of a host until `control` is closed: for a process of its own.

    Says `{"event": "ready"}` once it can be spoken with, or `{"error": {"type", "message"}}`.
    `key` is the lab's, by which its agents know one another.
    """
    prctl.set_name(f"agent-{host}")
    netns.enter(host_netns)
    asyncio.run(_serve(control, key))


async def _serve(control: socket.socket, key: bytes) -> None:
    reader, writer = await asyncio.open_connection(sock=control, limit=LARGEST_LINE_BYTES)
    try:
        agent = _Agent(key)
    except TestbedError as error:
        writer.write(encode(error_message(error)))
        await writer.drain()
        return
    writer.write(encode({"event": "ready"}))
    serving = asyncio.create_task(agent.serve())
    while await reader.readline():
        pass
    serving.cancel()


class _Agent:
    def __init__(self, key: bytes) -> None:
        self._conversations = Connections(lambda: _MOST_WAITING)
        reception, management = Reception(), Management(key)
        self._subjects: dict[str, Callable[[Message, socket.socket], Awaitable[None]]] = {
            "wait": reception.wait_for,
            "expect": management.expect,
            "deliver": management.deliver,
        }
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._door.bind(NAME)
        except OSError as error:
            self._door.close()
            raise KernelError("wait at", NAME[1:], str(error.strerror)) from error
        self._door.listen(_MOST_WAITING)
        self._door.setblocking(False)

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._door)
            self._conversations.keep(self._converse(sock))

    async def _converse(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock, suppress(BrokenPipeError, ConnectionResetError):
            if not is_root(sock):
                return
            said = await loop.sock_recv(sock, LARGEST_MESSAGE_BYTES)
            try:
                ((subject, fields),) = json.loads(said).items()
                await self._subjects[subject](fields, sock)
            except (TestbedError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
                await loop.sock_sendall(sock, json.dumps({"error": _cause(error)}).encode())


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:  # asyncio words it by its own calls
        return os.strerror(error.errno) if error.errno else error.strerror
    return str(error) or type(error).__name__
