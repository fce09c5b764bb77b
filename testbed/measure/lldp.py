"""LLDP (IEEE 802.1AB): what a physical switch says of the port that a NIC is cabled to."""

from __future__ import annotations

import struct
from dataclasses import dataclass

ETHERTYPE = 0x88CC
NEAREST_BRIDGE = bytes.fromhex("0180c200000e")
"""The destination that no bridge forwards (IEEE 802.1Q, table 8-1)."""

_END, _CHASSIS, _PORT, _TTL, _PORT_TEXT, _SYSTEM, _ORGANISATION = 0, 1, 2, 3, 4, 5, 127
_MAC_SUBTYPE, _NAME_SUBTYPE = 4, 5  # of chassis (MAC address) and of port (interface name)
_IEEE_8021, _IEEE_8023 = bytes.fromhex("0080c2"), bytes.fromhex("00120f")
_VLAN_NAME, _MAX_FRAME = 3, 4
_FRAME_OVERHEAD_BYTES = 18  # Ethernet's header and checksum; a tag is not counted
_TTL_S = 120
_MOST_VLANS = 60  # of a trunk with more only the first are named: the frame must fit MTU 1500


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The port at the other end of a cable: its switch, name, MTU and the VLANs it carries.

    `vlans` () is a port that carries all, or does not say.
    """

    switch: str
    port: str
    mtu: int
    vlans: tuple[int, ...] = ()


def encode(neighbour: Neighbour, mac: bytes) -> bytes:
    """The frame by which a switch tells it, from its port's address `mac`."""
    vlans = b"".join(
        _tlv(
            _ORGANISATION,
            _IEEE_8021 + struct.pack("!BHB", _VLAN_NAME, vid, len(name)) + name,
        )
        for vid in neighbour.vlans[:_MOST_VLANS]
        for name in [f"VLAN{vid}".encode()]
    )
    return b"".join(
        (
            NEAREST_BRIDGE,
            mac,
            struct.pack("!H", ETHERTYPE),
            _tlv(_CHASSIS, bytes([_MAC_SUBTYPE]) + mac),
            _tlv(_PORT, bytes([_NAME_SUBTYPE]) + neighbour.port.encode()),
            _tlv(_TTL, struct.pack("!H", _TTL_S)),
            _tlv(_PORT_TEXT, neighbour.port.encode()),
            _tlv(_SYSTEM, neighbour.switch.encode()),
            vlans,
            _tlv(
                _ORGANISATION,
                _IEEE_8023 + struct.pack("!BH", _MAX_FRAME, neighbour.mtu + _FRAME_OVERHEAD_BYTES),
            ),
            _tlv(_END, b""),
        )
    )


def decode(frame: bytes) -> Neighbour | None:
    """What a received frame says; None if it is no LLDP, is cut short, or lacks a part."""
    if len(frame) < 14 or int.from_bytes(frame[12:14], "big") != ETHERTYPE:
        return None
    switch, port, mtu = "", "", 0
    vlans: list[int] = []
    at = 14
    while at + 2 <= len(frame):
        (head,) = struct.unpack_from("!H", frame, at)
        kind, length = head >> 9, head & 0x1FF
        value = frame[at + 2 : at + 2 + length]
        if kind == _END or len(value) < length:
            break
        at += 2 + length
        if kind == _SYSTEM:
            switch = value.decode(errors="replace")
        elif kind == _PORT and value[:1] == bytes([_NAME_SUBTYPE]):
            port = value[1:].decode(errors="replace")
        elif kind == _ORGANISATION and value[:4] == _IEEE_8023 + bytes([_MAX_FRAME]):
            mtu = int.from_bytes(value[4:6], "big") - _FRAME_OVERHEAD_BYTES
        elif kind == _ORGANISATION and value[:4] == _IEEE_8021 + bytes([_VLAN_NAME]):
            vlans.append(int.from_bytes(value[4:6], "big"))
    return Neighbour(switch, port, mtu, tuple(vlans)) if switch and port and mtu > 0 else None


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!H", kind << 9 | len(value)) + value
