"""A socket's error queue: what routers and hosts report by ICMP, with who said it and when."""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from dataclasses import dataclass

# linux/in.h, in6.h, errqueue.h, asm-generic/socket.h; Python names few of them
IP_RECVERR, IPV6_RECVERR = 11, 25
SO_TIMESTAMPNS = 35
ORIGIN_LOCAL, ORIGIN_ICMP, ORIGIN_ICMP6 = 1, 2, 3
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # errno, origin, type, code, pad, info, data
_OFFENDER = {socket.AF_INET: (4, 8), socket.AF_INET6: (8, 24)}
"""Where the address lies in the sockaddr that follows."""


@dataclass(frozen=True, slots=True)
class SocketError:
    """Why a packet didn't get through; `mtu` is the path's, for a packet too long.

    `offender` is who reported it, None for this host itself; `destination` and `port` are where
    the packet was going; `at_ns` (CLOCK_MONOTONIC) is when the report arrived.
    """

    number: int
    mtu: int = 0
    origin: int = ORIGIN_LOCAL
    icmp_type: int = 0
    icmp_code: int = 0
    offender: str | None = None
    destination: str | None = None
    port: int = 0
    at_ns: int = 0


def report_errors(opened: socket.socket) -> None:
    """Have the kernel queue errors with their details, and stamp what arrives with its time."""
    version6 = opened.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if version6 else socket.IPPROTO_IP
    opened.setsockopt(level, IPV6_RECVERR if version6 else IP_RECVERR, 1)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def next_error(opened: socket.socket) -> SocketError | None:
    """The next report in a non-blocking socket's error queue, if any."""
    try:
        _, ancillary, _, name = opened.recvmsg(256, 512, socket.MSG_ERRQUEUE)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return None
        return SocketError(error.errno or errno.EIO, at_ns=time.monotonic_ns())
    at_ns = arrival_ns(ancillary)
    destination, port = (name[0], name[1]) if name else (None, 0)
    for _, kind, data in ancillary:
        if kind in {IP_RECVERR, IPV6_RECVERR} and len(data) >= _EXTENDED_ERROR.size:
            number, origin, its_type, its_code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
            mtu = info if number == errno.EMSGSIZE else 0
            offender = _offender(data[_EXTENDED_ERROR.size :]) if origin != ORIGIN_LOCAL else None
            return SocketError(
                number, mtu, origin, its_type, its_code, offender, destination, port, at_ns
            )
    return SocketError(errno.EIO, at_ns=at_ns)


def _offender(data: bytes) -> str | None:
    family = int.from_bytes(data[:2], sys.byteorder) if len(data) >= 2 else 0
    if family not in _OFFENDER:
        return None
    begin, end = _OFFENDER[socket.AddressFamily(family)]
    return socket.inet_ntop(family, data[begin:end]) if len(data) >= end else None


def arrival_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """When the kernel received it, on CLOCK_MONOTONIC, so that our own delay doesn't count."""
    now_ns = time.monotonic_ns()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@ll", data[:16])
            return min(now_ns, int(seconds) * 10**9 + int(nanoseconds) + _to_monotonic_ns())
    return now_ns


def _to_monotonic_ns() -> int:
    """CLOCK_MONOTONIC less CLOCK_REALTIME: of three readings the one with the least pause in it."""

    def reading() -> tuple[int, int]:
        before, now, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        return after - before, before - now

    return min(reading() for _ in range(3))[1]
