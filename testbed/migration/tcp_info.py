"""What the kernel tells of a TCP connection."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_INFO = struct.Struct("8B24I4Q6I4Q2I2Q")  # struct tcp_info of linux/tcp.h, to tcpi_bytes_retrans
_MSS, _RTT, _RETRANSMITTED = 10, 23, 31
_ACKNOWLEDGED, _SENT, _SENT_AGAIN = 34, 48, 49
_BYTES = struct.Struct("120x2Q")  # acknowledged, received


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """A connection at one moment; `in_flight_bytes` are sent, and not acknowledged yet."""

    mss_bytes: int
    rtt_ns: int
    retransmitted_segments: int
    acknowledged_bytes: int
    in_flight_bytes: int


def read(sock: socket.socket) -> TcpInfo:
    """How the connection is now; fields that an older kernel lacks are 0."""
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    info = _INFO.unpack(data.ljust(_INFO.size, b"\0"))
    acknowledged = info[_ACKNOWLEDGED]
    return TcpInfo(
        mss_bytes=info[_MSS],
        rtt_ns=info[_RTT] * 1000,
        retransmitted_segments=info[_RETRANSMITTED],
        acknowledged_bytes=acknowledged,
        # What is acknowledged counts the SYN.
        in_flight_bytes=max(0, info[_SENT] - info[_SENT_AGAIN] - max(0, acknowledged - 1)),
    )


def acknowledged_bytes(sock: socket.socket) -> int:
    """What the peer's TCP has acknowledged so far."""
    return _bytes(sock)[0]


def received_bytes(sock: socket.socket) -> int:
    """What has come from the peer so far, read or not."""
    return _bytes(sock)[1]


def window_scale(sock: socket.socket) -> int:
    """By how many bits the windows that this end tells are shifted."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[6] >> 4  # a field of 4 bits


def _bytes(sock: socket.socket) -> tuple[int, int]:
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES.size)
    acknowledged, received = _BYTES.unpack(data)
    return acknowledged, received
