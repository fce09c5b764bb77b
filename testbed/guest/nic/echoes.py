"""Echo requests: raw sockets that receive them for the guest, and the answers it composes."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.nic.records import ENVELOPE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/icmp.h, icmpv6.h, in.h, in6.h; Python names few of them
_ICMP_FILTER, _ICMP6_FILTER, _SOL_RAW = 1, 1, 255
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_REQUEST, _REQUEST6, _REPLY, _REPLY6 = 8, 128, 0, 129
_ICMP_HEADER_BYTES = 8
_ENVELOPE = struct.Struct("<16s16sII")  # who asked, whom, the link (of link-local ones), version
_IN_PKTINFO, _IN6_PKTINFO = struct.Struct("=i4s4s"), struct.Struct("=16si")
_IGNORE = ("net/ipv4/icmp_echo_ignore_all", "net/ipv6/icmp/echo_ignore_all")
_MOST_BYTES = 1 << 16


def reply(payload: bytes) -> bytes | None:
    """The guest's answer to an ECHO record; None if the request came damaged."""
    version = _ENVELOPE.unpack_from(payload)[3]
    message = payload[ENVELOPE_BYTES:]
    if len(message) < _ICMP_HEADER_BYTES or (version == 4 and checksum(message)):
        return None
    kind = _REPLY if version == 4 else _REPLY6
    answer = bytes((kind, 0, 0, 0)) + message[4:]
    if version == 4:  # the kernel fills in that of ICMPv6, which covers addresses too
        answer = answer[:2] + checksum(answer).to_bytes(2, "big") + answer[4:]
    return payload[:ENVELOPE_BYTES] + answer


def checksum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words, RFC 1071; 0 over what holds its own."""
    total = int(np.frombuffer(data + bytes(len(data) % 2), ">u2").sum(dtype=np.int64))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class EchoSockets:
    """Raw sockets for echo requests of both IP versions; the kernel leaves the answers to us.

    Args:
        read_sysctl: the value of a sysctl of this namespace.
        write_sysctl: sets one and reads it back.

    Raises:
        OSError, TestbedError: no such socket, or a sysctl cannot be set.
    """

    def __init__(
        self, read_sysctl: Callable[[str], str], write_sysctl: Callable[[str, str], None]
    ) -> None:
        self._write_sysctl = write_sysctl
        self._former: list[tuple[str, str]] = []
        self.sockets: list[socket.socket] = []
        try:
            self._open()
            for name in _IGNORE:
                former = read_sysctl(name)
                write_sysctl(name, "1")
                self._former.append((name, former))
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        v4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.sockets.append(v4)
        v4.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << _REQUEST) & 0xFFFFFFFF))
        v4.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        v6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self.sockets.append(v6)
        blocked = [0xFFFFFFFF] * 8
        blocked[_REQUEST6 >> 5] &= ~(1 << (_REQUEST6 & 31)) & 0xFFFFFFFF
        v6.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *blocked))
        v6.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        for one in self.sockets:
            one.setblocking(False)

    def close(self) -> None:
        """Have the kernel answer again, if it did before."""
        for one in self.sockets:
            one.close()
        self.sockets.clear()
        while self._former:
            self._write_sysctl(*self._former.pop())

    def send(self, payload: bytes) -> None:
        """Send the guest's reply; one that the kernel has no way or room for is lost."""
        if not self.sockets:
            return
        asked_by, asked, link, version = _ENVELOPE.unpack_from(payload)
        message = payload[ENVELOPE_BYTES:]
        with suppress(OSError):
            if version == 4:
                info = _IN_PKTINFO.pack(0, asked[:4], bytes(4))
                to = (socket.inet_ntop(socket.AF_INET, asked_by[:4]), 0)
                self.sockets[0].sendmsg([message], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, to)
            else:
                info = _IN6_PKTINFO.pack(asked, link)
                to6 = (socket.inet_ntop(socket.AF_INET6, asked_by), 0, 0, link)
                self.sockets[1].sendmsg(
                    [message], [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, info)], 0, to6
                )


def receive(one: socket.socket) -> bytes | None:
    """The next request as an ECHO record's payload; None: one to nobody in particular.

    Raises:
        OSError: BlockingIOError if there is none.
    """
    packet, ancillary, _, sender = one.recvmsg(_MOST_BYTES, 256)
    if not ancillary:
        return None
    data = ancillary[0][2]
    asked_by = socket.inet_pton(one.family, sender[0].partition("%")[0])
    if one.family == socket.AF_INET:
        _, local, asked = _IN_PKTINFO.unpack_from(data)
        if local != asked:  # a broadcast
            return None
        return _ENVELOPE.pack(asked_by, asked, 0, 4) + packet[(packet[0] & 0xF) * 4 :]
    asked, _ = _IN6_PKTINFO.unpack_from(data)
    if asked[0] == 0xFF:  # a multicast
        return None
    return _ENVELOPE.pack(asked_by, asked, sender[3], 6) + packet
