"""What vCPU 0 says on connections: a web server, media streams, echoes.

Each service is told of what arrives and asked to go on sending; all it knows of a connection
is in the connection's words.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from testbed.content import PART_HEADER, PART_NS, content, part_bytes, part_content
from testbed.guest.layout import BYTES
from testbed.guest.nic import http
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks.operations import count_operation

if TYPE_CHECKING:
    from testbed.guest.nic.connections import Connection
    from testbed.guest.workloads import Echo, Media, Web

CHUNK_BYTES = 24_576  # two of them, and more, fit the ring at a time
_LATE_PARTS_NS = 10**9


class Service(Protocol):
    """One workload of the network, on any number of connections."""

    def receive(self, connection: Connection, data: bytes, at_ns: int) -> bool:
        """Take what arrived at `at_ns`; False if there is no room to answer: try again."""

    def due(self, connection: Connection, now_ns: int) -> float:
        """When it has something to send; the past: now."""

    def send(self, connection: Connection, room: int, now_ns: int) -> None:
        """Send some of what is due, at most `room` bytes, which are at least 512."""

    def end(self, connection: Connection) -> bool:
        """The peer sends no more: whether the connection is done with."""


class EchoService:
    """What arrives is sent back."""

    def __init__(self, _: Echo, record: memoryview) -> None:
        self._record = record

    def receive(self, connection: Connection, data: bytes, at_ns: int) -> bool:
        """Each piece that arrives is an operation."""
        # No allowance is asked for: the NIC process reads no socket that takes nothing.
        if not connection.send(data):
            return False
        count_operation(self._record, (now_ns := time.monotonic_ns()) - at_ns, now_ns)
        self._record[BYTES] += len(data)
        return True

    def due(self, _: Connection, __: int) -> float:
        """Nothing of its own accord."""
        return NEVER_NS

    def send(self, connection: Connection, room: int, now_ns: int) -> None:
        """Nothing of its own accord."""

    def end(self, _: Connection) -> bool:
        """All has been said."""
        return True


class MediaService:
    """Parts, due every 10 ms since the connection began.

    What became due while the guest stood still is sent once it runs, late; of that which is late
    by more than a second, nothing: it is no longer of use to who listens.
    """

    _BEGAN, _PART, _OFFSET = range(3)

    def __init__(self, workload: Media, record: memoryview, seed: int) -> None:
        self._record, self._seed = record, seed
        self._size = part_bytes(workload.rate_bps)

    def receive(self, _: Connection, __: bytes, ___: int) -> bool:
        """What a listener says is of no interest."""
        return True

    def due(self, connection: Connection, now_ns: int) -> float:
        """When the next part is."""
        own = connection.own
        if not own[self._BEGAN]:
            own[self._BEGAN] = now_ns
        return int(own[self._BEGAN] + own[self._PART] * PART_NS)

    def send(self, connection: Connection, room: int, now_ns: int) -> None:
        """A part, or as much of it as there is room for."""
        own = connection.own
        offset, due_ns = own[self._OFFSET], self.due(connection, now_ns)
        if not offset and now_ns - due_ns > _LATE_PARTS_NS:
            own[self._PART] = (now_ns - own[self._BEGAN]) // PART_NS
            due_ns = self.due(connection, now_ns)
        number, head = own[self._PART], b""
        if not offset:
            head = PART_HEADER.pack(number, int(due_ns), self._size)
        begin = max(offset - PART_HEADER.size, 0)
        count = min(self._size - PART_HEADER.size - begin, min(room, CHUNK_BYTES) - len(head))
        data = head + part_content(self._seed, number, begin, count)
        if not connection.send(data):
            return
        self._record[BYTES] += len(data)
        if offset + len(data) < self._size:
            own[self._OFFSET] = offset + len(data)
        else:
            own[self._OFFSET], own[self._PART] = 0, number + 1
            count_operation(self._record, int(now_ns - due_ns), now_ns)

    def end(self, _: Connection) -> bool:
        """Nobody listens any more, or so it looks."""
        return True


class WebService:
    """Files by number, one request at a time.

    A request that comes before the one before is answered ends the connection after that answer
    (RFC 9112, 9.3.2: who sends requests ahead must be ready for it).
    """

    _PHASE, _FILE, _OFFSET, _SINCE = range(4)
    # The phase's word: where in the exchange it is (none of these: before a request line), what
    # the request line said, and in its lowest byte how long the line is by now.
    _FIELDS, _HEAD, _BODY = 1 << 8, 1 << 9, 1 << 10
    _CLOSE, _WITH_BODY, _FOUND, _NOT_FOUND, _UNKNOWN = (1 << bit for bit in range(11, 16))
    _LINE = 0xFF

    def __init__(self, workload: Web, record: memoryview, seed: int) -> None:
        self._record, self._seed = record, seed
        self._file_bytes = workload.file_bytes

    def receive(self, connection: Connection, data: bytes, at_ns: int) -> bool:
        """Lines of a request's head, in pieces of any size."""
        own = connection.own
        while data:
            if own[self._PHASE] & (self._HEAD | self._BODY):
                own[self._PHASE] |= self._CLOSE
                return True
            piece, newline, data = data.partition(b"\n")
            self._extend(connection, piece)
            if newline:
                line = bytes(connection.line[: own[self._PHASE] & self._LINE]).rstrip(b"\r")
                own[self._PHASE] &= ~self._LINE
                self._take_line(own, line, at_ns)
        return True

    def _extend(self, connection: Connection, piece: bytes) -> None:
        """Of a line its beginning is enough."""
        own, line = connection.own, connection.line
        used = own[self._PHASE] & self._LINE
        kept = piece[: len(line) - used]
        line[used : used + len(kept)] = kept
        own[self._PHASE] += len(kept)

    def _take_line(self, own: memoryview, line: bytes, at_ns: int) -> None:
        if not own[self._PHASE] & self._FIELDS:
            if not line:  # before a request, RFC 9112, 2.2
                return
            request = http.parse_request_line(line)
            found = {200: self._FOUND, 404: self._NOT_FOUND, 501: self._UNKNOWN}
            own[self._PHASE] = (
                self._FIELDS
                | found.get(request.status, 0)
                | (self._WITH_BODY if request.with_body else 0)
                | (self._CLOSE if request.close else 0)
            )
            own[self._FILE] = request.file
        elif line:
            if http.asks_to_close(line):
                own[self._PHASE] |= self._CLOSE
        else:
            own[self._PHASE] = own[self._PHASE] & ~self._FIELDS | self._HEAD
            own[self._OFFSET], own[self._SINCE] = 0, at_ns

    def due(self, connection: Connection, now_ns: int) -> float:
        """Now, while a request is being answered."""
        phase = connection.own[self._PHASE]
        return now_ns if phase & (self._HEAD | self._BODY) else NEVER_NS

    def send(self, connection: Connection, room: int, now_ns: int) -> None:
        """The response's head, or some of the file."""
        own = connection.own
        phase = own[self._PHASE]
        if phase & self._HEAD:
            status = {self._FOUND: 200, self._NOT_FOUND: 404, self._UNKNOWN: 501}.get(
                phase & (self._FOUND | self._NOT_FOUND | self._UNKNOWN), 400
            )
            size = self._file_bytes if status == 200 else 0
            if not connection.send(
                http.response_head(status, size, close=bool(phase & self._CLOSE))
            ):
                return
            own[self._PHASE] = phase & ~self._HEAD | self._BODY
        else:
            count = min(self._file_bytes - own[self._OFFSET], room, CHUNK_BYTES)
            if not connection.send(content(self._seed, own[self._FILE], own[self._OFFSET], count)):
                return
            own[self._OFFSET] += count
            self._record[BYTES] += count
        if not own[self._PHASE] & self._WITH_BODY or own[self._OFFSET] >= self._file_bytes:
            self._answered(connection, now_ns)

    def _answered(self, connection: Connection, now_ns: int) -> None:
        own = connection.own
        count_operation(self._record, int(now_ns - own[self._SINCE]), now_ns)
        close = own[self._PHASE] & self._CLOSE
        own[self._PHASE] = 0
        if close or connection.ended:
            connection.close()

    def end(self, connection: Connection) -> bool:
        """A request under way is still answered."""
        return not connection.own[self._PHASE] & (self._HEAD | self._BODY)
