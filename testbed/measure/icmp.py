"""ICMP and ICMPv6 echo: the messages, and a socket that carries them."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from testbed.errors import MeasurementError
from testbed.measure.endpoint import socket_in
from testbed.measure.socket_errors import report_errors

if TYPE_CHECKING:
    from testbed.measure.endpoint import Endpoint

HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence: RFC 792, RFC 4443
MARK = struct.Struct("!8sQ")  # the run's own token and the full sequence number, as payload
LEAST_PAYLOAD_BYTES = MARK.size
ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
IP_HEADER_BYTES = {4: 20, 6: 40}
# linux/icmp.h, in.h, in6.h, icmpv6.h, asm-generic/socket.h; Python names few of them
ICMP_FILTER, ICMP6_FILTER = 1, 1
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG = 10, 23, 62
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT = 51, 52
SOL_RAW = 255


def encode_request(
    ip_version: int, identifier: int, number: int, token: bytes, payload_bytes: int
) -> bytes:
    """An echo request. The kernel fills in ICMPv6's checksum, not ICMP's."""
    payload = MARK.pack(token, number).ljust(payload_bytes, b"\0")
    head = (ECHO_REQUEST[ip_version], 0)
    sequence = number & 0xFFFF
    checksum = 0
    if ip_version == 4:
        checksum = internet_checksum(HEADER.pack(*head, 0, identifier, sequence) + payload)
    return HEADER.pack(*head, checksum, identifier, sequence) + payload


def decode_reply(ip_version: int, packet: bytes, token: bytes) -> int | None:
    """The number of the request that a received packet answers; None if it isn't ours."""
    begin = (packet[0] & 0xF) * 4 if ip_version == 4 and packet else 0  # IPv4 comes with header
    message = packet[begin:]
    if len(message) < HEADER.size + MARK.size or message[0] != ECHO_REPLY[ip_version]:
        return None
    found, number = MARK.unpack_from(message, HEADER.size)
    return int(number) if found == token else None


def received_ttl(
    ip_version: int, packet: bytes, ancillary: list[tuple[int, int, bytes]]
) -> int | None:
    """The time to live (hop limit) that a packet arrived with; None if it isn't told."""
    if ip_version == 4:
        return packet[8] if len(packet) > 8 else None
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == IPV6_HOPLIMIT:
            return int(struct.unpack("=i", data[:4])[0])
    return None


def internet_checksum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def open_socket(source: Endpoint, destination: Endpoint, *, dont_fragment: bool) -> socket.socket:
    """A raw ICMP socket from `source`'s address and device to `destination`.

    Raw, as a new namespace's ping_group_range admits nobody to the other kind.

    Raises:
        MeasurementError: the namespace, device or address is not there, or no route leads.
    """
    version = source.ip_version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    opened = socket_in(source.netns_path, family, socket.SOCK_RAW, protocol)
    try:
        opened.setblocking(False)
        report_errors(opened)
        discover = PMTUDISC_DO if dont_fragment else PMTUDISC_DONT
        if version == 4:
            reply = ~(1 << ECHO_REPLY[4]) & 0xFFFFFFFF  # set bits are blocked
            opened.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", reply))
            opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
        else:
            blocked = [0xFFFFFFFF] * 8
            blocked[ECHO_REPLY[6] >> 5] &= ~(1 << (ECHO_REPLY[6] & 31)) & 0xFFFFFFFF
            opened.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", *blocked))
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discover)
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, int(dont_fragment))
            opened.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
        if source.device:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.device.encode())
        opened.bind((source.address, 0))
        opened.connect((destination.address, 0))
    except OSError as error:
        opened.close()
        raise MeasurementError(
            f"ping from {source} to {destination}: {error.strerror}; check that the address and "
            "device are there, up, and have a route (`testbed exec LAB NODE -- ip addr`)"
        ) from error
    return opened
