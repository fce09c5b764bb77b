"""Speaks with a host's agent about one migration: the supervisor's side."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.kernel import netns
from testbed.lab.agent import LARGEST_MESSAGE_BYTES, NAME, is_root

if TYPE_CHECKING:
    from testbed.lab.lines import Message


class Conversation:
    """A connection to an agent; the agent is concerned with its subject until it is closed."""

    def __init__(self, host_netns: str) -> None:
        """Connect to the agent in this namespace.

        Raises:
            LabError: there is none, or it has too much to do.
            KernelError: there is no such namespace.
        """
        with netns.inside(host_netns):
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        try:
            self._sock.connect(NAME)
            if not is_root(self._sock):
                raise PermissionError(0, "who listens there is not root")
        except OSError as error:
            self.close()
            raise LabError(f"speak with the agent in {host_netns}: {error.strerror}") from error

    async def ask(self, subject: str, fields: Message) -> Message:
        """Say what it is about, and return the answer.

        Raises:
            LabError: the agent ended, or answered with an error.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._sock, json.dumps({subject: fields}).encode())
            return await self._heard()
        except OSError as error:
            raise LabError(f"speak with the host's agent: {error.strerror}") from error

    async def over(self) -> Message:
        """Say that it is over; what the agent has to tell in the end, if it still can."""
        self._sock.shutdown(socket.SHUT_WR)
        return await self._heard()

    async def _heard(self) -> Message:
        loop = asyncio.get_running_loop()
        data = await loop.sock_recv(self._sock, LARGEST_MESSAGE_BYTES)
        if not data:
            raise LabError("the host's agent ended")
        said: Message = json.loads(data)
        if "error" in said:
            raise LabError(said["error"])
        return said

    def close(self) -> None:
        """Speak no more."""
        self._sock.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
