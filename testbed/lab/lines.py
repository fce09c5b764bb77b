"""JSON objects as lines over a stream socket: the control protocol of a lab."""

from __future__ import annotations

import json
import select
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

Message = dict[str, Any]
LARGEST_LINE_BYTES = 64 * 1024 * 1024


class LineSocket:
    """The blocking side of the protocol."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self.sock.fileno()

    def send(self, message: Message) -> None:
        """Send one object.

        Raises:
            OSError: the other side is gone.
        """
        self.sock.sendall(encode(message))

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next object; None if none came within the timeout.

        Raises:
            EOFError: the other side closed the connection.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (end := self._buffer.find(b"\n")) < 0:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.sock], [], [], wait)[0]:
                return None
            part = self.sock.recv(1 << 16)
            if not part:
                raise EOFError("the other side closed the connection")
            self._buffer += part
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return decode(line)

    def pending(self) -> bool:
        """Whether a whole object has already been read from the socket."""
        return b"\n" in self._buffer


def encode(message: Message) -> bytes:
    """One object as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The object of a line.

    Raises:
        ValueError: it is not a JSON object.
    """
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"not a JSON object: {line[:80]!r}")
    return message
