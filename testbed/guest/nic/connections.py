"""A connection as vCPU 0 knows it: 16 words of guest memory, so that it survives a move."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from testbed.guest.nic.records import CLOSE, CONNECTION_BYTES, CONNECTIONS, DATA

if TYPE_CHECKING:
    from testbed.guest.nic.rings import Ring

_PORT, _UNDER_WAY, _CLOSING, _ENDED = range(4)
OWN_WORDS = 4
LINE_WORDS = 8
"""The connection's last words are a buffer of 64 bytes."""
_LIMIT_BYTES = 262_144  # on the way from vCPU 0 to the kernel


class Connection:
    """One entry of the table; a new object for the same entry goes on from what it holds.

    Attributes:
        own: words of the service that it is to.
        line: a buffer of the service's.
    """

    def __init__(self, number: int, table: memoryview, to_send: Ring) -> None:
        self.number = number
        entry = table[number * CONNECTION_BYTES : (number + 1) * CONNECTION_BYTES]
        self._words = entry.cast("q")
        self.own = self._words[OWN_WORDS:LINE_WORDS]
        self.line = entry[LINE_WORDS * 8 :]
        self._ring = to_send

    def open(self, port: int) -> None:
        """It begins."""
        self._words[:] = memoryview(bytes(CONNECTION_BYTES)).cast("q")
        self._words[_PORT] = port

    @property
    def port(self) -> int:
        """The service's; 0: there is no such connection."""
        return int(self._words[_PORT])

    @property
    def ended(self) -> bool:
        """Whether the peer sends no more."""
        return bool(self._words[_ENDED])

    @property
    def closing(self) -> bool:
        """Whether nothing more is to be said on it."""
        return bool(self._words[_CLOSING])

    def end(self) -> None:
        """The peer sends no more."""
        self._words[_ENDED] = 1

    def sent(self, count: int) -> None:
        """So many bytes have been taken by the socket."""
        self._words[_UNDER_WAY] -= count

    def allowance(self) -> int:
        """How many bytes may be put on their way now, if the ring has room too."""
        return _LIMIT_BYTES - int(self._words[_UNDER_WAY])

    def send(self, data: bytes) -> bool:
        """Put bytes on their way; False if there is no room."""
        if not self._ring.put(DATA, self.number, time.monotonic_ns(), data):
            return False
        self._words[_UNDER_WAY] += len(data)
        return True

    def close(self) -> bool:
        """End it after what is on its way; False if there is no room to say so yet."""
        self._words[_CLOSING] = 1
        if not self._ring.put(CLOSE, self.number, time.monotonic_ns()):
            return False
        self._words[_PORT] = 0
        return True


def all_connections(table: memoryview, to_send: Ring) -> list[Connection]:
    """Every entry of the table, open or not."""
    return [Connection(number, table, to_send) for number in range(CONNECTIONS)]
