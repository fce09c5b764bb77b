"""Bytes in bulk: a client that sends them, and a service that takes them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from testbed.guest.layout import BYTES
from testbed.guest.nic.services import CHUNK_BYTES
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks.operations import count_operation

if TYPE_CHECKING:
    from testbed.guest.nic.connections import Connection
    from testbed.guest.workloads import Bulk

_LEAST_PIECE_BYTES = 512
_PIECE_NS = 10_000_000
LATE_NS = 10_000_000


class BulkService:
    """Sends zeros on the connection that the NIC process has opened to the workload's peer.

    At a rate it makes up for 10 ms that it was late, no more: not for the time it stood still.
    """

    _BEGAN, _SENT = range(2)

    def __init__(self, workload: Bulk, record: memoryview) -> None:
        self._record, self._rate_bps = record, workload.rate_bps
        piece_bytes = CHUNK_BYTES
        if self._rate_bps:
            at_a_time = self._rate_bps * _PIECE_NS // 8 // 10**9
            piece_bytes = min(max(at_a_time, _LEAST_PIECE_BYTES), CHUNK_BYTES)
        self._piece = bytes(piece_bytes)

    def receive(self, _: Connection, __: bytes, ___: int) -> bool:
        """What a sink says is of no interest."""
        return True

    def due(self, connection: Connection, now_ns: int) -> float:
        """Now, or when the rate allows more."""
        if not self._rate_bps:
            return now_ns
        own = connection.own
        if not own[self._BEGAN]:
            own[self._BEGAN] = now_ns
        due_ns = own[self._BEGAN] + own[self._SENT] * 8 * 10**9 // self._rate_bps
        late_ns = now_ns - due_ns - LATE_NS
        if late_ns > 0:
            own[self._BEGAN] += late_ns
        return int(due_ns + max(late_ns, 0))

    def send(self, connection: Connection, room: int, now_ns: int) -> None:
        """A piece; each is an operation."""
        late_ns = int(now_ns - self.due(connection, now_ns))
        data = self._piece[:room]
        if connection.send(data):
            connection.own[self._SENT] += len(data)
            self._record[BYTES] += len(data)
            count_operation(self._record, late_ns, now_ns)

    def end(self, _: Connection) -> bool:
        """Whoever says no more may still listen."""
        return False


class SinkService:
    """What arrives is counted and forgotten."""

    def __init__(self, record: memoryview) -> None:
        self._record = record

    def receive(self, _: Connection, data: bytes, at_ns: int) -> bool:
        """Each piece that arrives is an operation."""
        count_operation(self._record, (now_ns := time.monotonic_ns()) - at_ns, now_ns)
        self._record[BYTES] += len(data)
        return True

    def due(self, _: Connection, __: int) -> float:
        """Nothing, ever."""
        return NEVER_NS

    def send(self, connection: Connection, room: int, now_ns: int) -> None:
        """Nothing, ever."""

    def end(self, _: Connection) -> bool:
        """All has come."""
        return True
