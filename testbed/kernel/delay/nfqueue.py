"""NFQUEUE: the kernel holds the packets of a queue until this process lets them go on.

Plain netlink (linux/netfilter/nfnetlink_queue.h); pyroute2 has no such class. Only what is said
about a packet is read, never the packet itself. A queue that nobody is bound to drops
everything: there is no bypass.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import KernelError
from testbed.kernel.netlink import attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE_PACKETS = 131072  # the kernel's own 1024 lost 55 % at 1 Gb/s and 50 ms
_RECEIVE_BUFFER_BYTES = 32 << 20
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35  # asm-generic/socket.h
_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _CONFIG, _VERDICT_BATCH = _SUBSYSTEM | 0, _SUBSYSTEM | 2, _SUBSYSTEM | 3
_ERROR = 2
_REQUEST, _ACK = 1, 4
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_BIND, _COPY_META, _F_GSO = 1, 1, 1 << 2
_TIMESTAMP, _ACCEPT = 4, 1
_HEADER = struct.Struct("=HHIIBB")  # nlmsghdr after its length, nfgenmsg before the queue
_PACKET_HEAD = struct.Struct(">16x2xH4xI")  # nfgenmsg's queue; NFQA_PACKET_HDR comes first
_KIND = struct.Struct("=4xH")
_TIMESTAMP_HEAD = struct.pack("=HH", 20, _TIMESTAMP)
_SECONDS = struct.Struct(">QQ")
_STATUS_FIELDS = 8
_ANSWER_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue as /proc/net/netfilter/nfnetlink_queue shows it.

    `queue_drops` were lost as the queue was full, `user_drops` as the socket's buffer was.
    """

    number: int
    waiting: int
    copy_mode: int
    queue_drops: int
    user_drops: int


def parse_status(text: str) -> dict[int, QueueStatus]:
    """The queues of a namespace, by number."""
    found = {}
    for line in text.splitlines():
        fields = [int(field) for field in line.split()]
        if len(fields) >= _STATUS_FIELDS:
            number, _, waiting, mode, _, queue_drops, user_drops, _, *_ = fields
            found[number] = QueueStatus(number, waiting, mode, queue_drops, user_drops)
    return found


def configuration(queue: int, most_packets: int) -> bytes:
    """The message that binds a queue: no payload, and TCP's trains left whole.

    Without NFQA_CFG_F_GSO the kernel cuts 64 KB trains into segments: 1.9 Gb/s instead of 10.
    """
    body = b"".join(
        (
            _attribute(_CFG_CMD, struct.pack(">BxH", _BIND, 0)),
            _attribute(_CFG_PARAMS, struct.pack(">IB", 0, _COPY_META)),
            _attribute(_CFG_MAXLEN, struct.pack(">I", most_packets)),
            _attribute(_CFG_MASK, struct.pack(">I", _F_GSO)),
            _attribute(_CFG_FLAGS, struct.pack(">I", _F_GSO)),
        )
    )
    return _message(_CONFIG, _ACK, queue, body)


def verdict(queue: int, packet_id: int) -> bytes:
    """The message that lets a queue's packets go on, in order, up to and with this one."""
    return _message(_VERDICT_BATCH, 0, queue, _attribute(2, struct.pack(">II", _ACCEPT, packet_id)))


def _attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(padding)


def _message(kind: int, flags: int, queue: int, body: bytes) -> bytes:
    head = _HEADER.pack(kind, _REQUEST | flags, 0, 0, socket.AF_UNSPEC, 0)
    return struct.pack("=I", 4 + len(head) + 2 + len(body)) + head + struct.pack(">H", queue) + body


class Queues:
    """Queues of the network namespace that the calling thread is in, bound to one socket.

    Raises:
        KernelError: the kernel refuses, or another process has one of them.
    """

    def __init__(self, numbers: Sequence[int], most_packets: int = QUEUE_PACKETS) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._buffer = bytearray(1 << 16)
        self._timestamp_at: dict[int, int] = {}  # by a message's length
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            # Any socket that wants them makes the kernel note when each frame arrived.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            self._socket.bind((0, 0))
            self._socket.settimeout(_ANSWER_DEADLINE_S)
            for number in numbers:
                self._bind(number, most_packets)
            self._socket.setblocking(False)
            for number in numbers:
                if self.status().get(number, _UNBOUND).copy_mode != _COPY_META:
                    raise KernelError("bind", f"NFQUEUE {number}", "it reads back otherwise")
        except OSError as error:
            self._socket.close()
            raise KernelError(
                "bind", f"NFQUEUE {numbers}", str(error.strerror or error),
                "is another process bound to it? does the kernel have nfnetlink_queue?",
            ) from error  # fmt: skip
        except BaseException:
            self._socket.close()
            raise

    def _bind(self, number: int, most_packets: int) -> None:
        self._socket.send(configuration(number, most_packets))
        while True:  # packets of queues that are bound already may come first; they wait
            data = self._socket.recv(1 << 16)
            if _KIND.unpack_from(data)[0] == _ERROR:
                break
        (error,) = struct.unpack_from("=i", data, 16)
        if error:
            raise OSError(-error, os.strerror(-error))

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self._socket.fileno()

    def receive(self, most: int) -> list[tuple[int, int, int]]:
        """What has arrived: (queue, packet's number, when: CLOCK_MONOTONIC ns), at most so many."""
        now_ns, ahead_ns = _clocks()
        found = []
        buffer, receive = self._buffer, self._socket.recv_into
        try:
            for _ in range(most):
                size = receive(buffer)
                if _KIND.unpack_from(buffer)[0] != _PACKET:
                    continue  # a verdict on packets that went down with their link
                queue, packet_id = _PACKET_HEAD.unpack_from(buffer)
                at = self._find_timestamp(size)
                if at:
                    seconds, microseconds = _SECONDS.unpack_from(buffer, at)
                    arrived_ns = seconds * 1_000_000_000 + microseconds * 1000 - ahead_ns
                    found.append((queue, packet_id, min(arrived_ns, now_ns)))
                else:
                    found.append((queue, packet_id, now_ns))
        except BlockingIOError:
            pass
        return found

    def _find_timestamp(self, size: int) -> int:
        """Where in the buffer the arrival is; 0 if the kernel didn't note it."""
        # Messages of one length are nearly always laid out alike, so the walk is rare.
        buffer = self._buffer
        at = self._timestamp_at.get(size, 4)
        if buffer[at - 4 : at] == _TIMESTAMP_HEAD:
            return at
        for kind, start, _ in attributes(memoryview(buffer), 20, size):
            if kind == _TIMESTAMP:
                self._timestamp_at[size] = start
                return start
        return 0

    def accept(self, queue: int, packet_id: int) -> None:
        """Let the packets of a queue up to this one go on, in the order they came in."""
        self._socket.send(verdict(queue, packet_id))

    def status(self) -> dict[int, QueueStatus]:
        """The queues of the calling thread's namespace."""
        return parse_status(Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text())

    def close(self) -> None:
        """Let go of the queues: the kernel drops what is in them and all that comes."""
        self._socket.close()

    def __enter__(self) -> Queues:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


_UNBOUND = QueueStatus(0, 0, 0, 0, 0)


def _clocks() -> tuple[int, int]:
    """CLOCK_MONOTONIC, and how far CLOCK_REALTIME, the arrivals' clock, is ahead of it."""
    for _ in range(10):  # unless this process is interrupted between the readings
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if after - before < 20_000:
            break
    return after, real - (before + after) // 2
