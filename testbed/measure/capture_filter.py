"""Which frames to capture: the options of pktcap-uw, on the frame's own bytes.

All that is given must match. A frame is as it was on the wire, with its VLAN tag.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Network, IPv6Network, ip_network

from testbed.errors import InputError

_TAG_TYPES = (0x8100, 0x88A8)  # IEEE 802.1Q, 802.1ad
_IPV4, _IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
_FRAGMENT = 44
_EXTENSIONS = frozenset({0, 43, 60, 135})
"""IPv6 headers of 8 bytes and 8 more for each of their length: RFC 8200, RFC 6275."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NAMED_TYPES = {"arp": 0x0806, "ip": _IPV4, "ipv4": _IPV4, "ipv6": _IPV6, "rarp": 0x8035,
                "lldp": 0x88CC}  # fmt: skip
_NAMED_PROTOCOLS = {"icmp": 1, "tcp": TCP, "udp": UDP, "icmpv6": 58}
_HEXADECIMAL = re.compile(r"0x[0-9a-f]{1,4}")

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Frame:
    """What a filter asks of a frame; None is what it doesn't have.

    `vid` is the outermost tag's, `ether_type` what follows the tags, `protocol` what follows
    IPv6's extension headers. Later fragments have no ports.
    """

    destination_mac: bytes
    source_mac: bytes
    vid: int | None
    ether_type: int
    source: bytes | None = None
    destination: bytes | None = None
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None


@dataclass(frozen=True, slots=True)
class CaptureFilter:
    """The conditions; None and "" ask nothing. `vlan` 0 asks for untagged frames.

    `ip`, `mac` and `tcp_port` match either end; `source_port` and `destination_port` are TCP's
    or UDP's.
    """

    source_ip: Network | None = None
    destination_ip: Network | None = None
    ip: Network | None = None
    mac: bytes = b""
    source_mac: bytes = b""
    destination_mac: bytes = b""
    vlan: int | None = None
    ether_type: int | None = None
    protocol: int | None = None
    tcp_port: int | None = None
    source_port: int | None = None
    destination_port: int | None = None

    @property
    def everything(self) -> bool:
        """Whether it lets all frames pass."""
        return all(getattr(self, field.name) in (None, b"") for field in fields(self))

    def matches(self, data: bytes | memoryview) -> bool:
        """Whether a frame (from its destination address on) meets all conditions."""
        frame = dissect(data)
        return frame is not None and all(
            (
                self._matches_ethernet(frame),
                _is_in(frame.source, self.source_ip),
                _is_in(frame.destination, self.destination_ip),
                _is_in(frame.source, self.ip) or _is_in(frame.destination, self.ip),
                self.protocol is None or frame.protocol == self.protocol,
                self._matches_ports(frame),
            )
        )

    def _matches_ethernet(self, frame: Frame) -> bool:
        return (
            (not self.mac or self.mac in (frame.source_mac, frame.destination_mac))
            and (not self.source_mac or self.source_mac == frame.source_mac)
            and (not self.destination_mac or self.destination_mac == frame.destination_mac)
            and (self.vlan is None or (frame.vid or 0) == self.vlan)
            and (self.ether_type is None or frame.ether_type == self.ether_type)
        )

    def _matches_ports(self, frame: Frame) -> bool:
        ports = (frame.source_port, frame.destination_port)
        return (
            (self.tcp_port is None or (frame.protocol == TCP and self.tcp_port in ports))
            and (self.source_port is None or frame.source_port == self.source_port)
            and (self.destination_port is None or frame.destination_port == self.destination_port)
        )


def _is_in(address: bytes | None, network: Network | None) -> bool:
    if network is None:
        return True
    if address is None or len(address) != network.max_prefixlen // 8:
        return False
    shift = network.max_prefixlen - network.prefixlen
    return int.from_bytes(address) >> shift == int(network.network_address) >> shift


def dissect(data: bytes | memoryview) -> Frame | None:
    """A frame's fields; None if it is too short for an Ethernet header."""
    if len(data) < 14:
        return None
    at, vid = 12, None
    ether_type = _u16(data, at)
    while ether_type in _TAG_TYPES and len(data) >= at + 6:
        if vid is None:
            vid = _u16(data, at + 2) & 0xFFF
        at += 4
        ether_type = _u16(data, at)
    frame = Frame(bytes(data[:6]), bytes(data[6:12]), vid, ether_type)
    packet = data[at + 2 :]
    if ether_type == _IPV4 and len(packet) >= 20:
        return _with_ipv4(frame, packet)
    if ether_type == _IPV6 and len(packet) >= 40:
        return _with_ipv6(frame, packet)
    return frame


def _with_ipv4(frame: Frame, packet: bytes | memoryview) -> Frame:
    protocol, begin = packet[9], (packet[0] & 0xF) * 4
    later = _u16(packet, 6) & 0x1FFF
    ports = (None, None) if later else _ports(packet, begin, protocol)
    return replace(
        frame,
        source=bytes(packet[12:16]),
        destination=bytes(packet[16:20]),
        protocol=protocol,
        source_port=ports[0],
        destination_port=ports[1],
    )


def _with_ipv6(frame: Frame, packet: bytes | memoryview) -> Frame:
    protocol, at, later = packet[6], 40, False
    while not later:
        if protocol in _EXTENSIONS and len(packet) >= at + 8:
            protocol, at = packet[at], at + 8 + packet[at + 1] * 8
        elif protocol == _FRAGMENT and len(packet) >= at + 8:
            later = _u16(packet, at + 2) >> 3 > 0
            protocol, at = packet[at], at + 8
        else:
            break
    ports = (None, None) if later else _ports(packet, at, protocol)
    return replace(
        frame,
        source=bytes(packet[8:24]),
        destination=bytes(packet[24:40]),
        protocol=protocol,
        source_port=ports[0],
        destination_port=ports[1],
    )


def _ports(packet: bytes | memoryview, at: int, protocol: int) -> tuple[int | None, int | None]:
    if protocol not in (TCP, UDP) or len(packet) < at + 4:
        return None, None
    return _u16(packet, at), _u16(packet, at + 2)


def _u16(data: bytes | memoryview, at: int) -> int:
    return int(struct.unpack_from("!H", data, at)[0])


def parse(options: dict[str, str | int | None]) -> CaptureFilter:
    """The filter of pktcap-uw's options by name (`srcip`, ..., `dstport`); None is not given.

    Raises:
        InputError: a value isn't what its option takes.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return CaptureFilter(
        source_ip=_network(given, "srcip"),
        destination_ip=_network(given, "dstip"),
        ip=_network(given, "ip"),
        mac=_mac(given, "mac"),
        source_mac=_mac(given, "srcmac"),
        destination_mac=_mac(given, "dstmac"),
        vlan=_number(given, "vlan", 4095, {}),
        ether_type=_number(given, "ethtype", 0xFFFF, _NAMED_TYPES),
        protocol=_number(given, "proto", 0xFF, _NAMED_PROTOCOLS),
        tcp_port=_number(given, "tcpport", 0xFFFF, {}),
        source_port=_number(given, "srcport", 0xFFFF, {}),
        destination_port=_number(given, "dstport", 0xFFFF, {}),
    )


def _network(given: dict[str, str | int], name: str) -> Network | None:
    if name not in given:
        return None
    try:
        return ip_network(str(given[name]), strict=False)
    except ValueError:
        raise InputError(
            f"--{name} {given[name]}: give an address or a network: 192.168.20.0/24"
        ) from None


def _mac(given: dict[str, str | int], name: str) -> bytes:
    text = str(given.get(name, "")).lower().replace("-", ":")
    if text and not _MAC.fullmatch(text):
        raise InputError(f"--{name} {given[name]}: give a MAC address: 00:50:56:01:02:03")
    return bytes.fromhex(text.replace(":", ""))


def _number(given: dict[str, str | int], name: str, most: int, names: dict[str, int]) -> int | None:
    if name not in given:
        return None
    text = str(given[name]).lower()
    if text in names:
        return names[text]
    base = 16 if _HEXADECIMAL.fullmatch(text) else 10
    value = int(text, base) if base == 16 or text.isdecimal() else -1
    if not 0 <= value <= most:
        also = f" or {', '.join(names)}" if names else ""
        raise InputError(f"--{name} {given[name]}: give 0 to {most} (0x is hexadecimal){also}")
    return value
