"""A netlink message that pyroute2 encodes once, and that is sent many times.

pyroute2 takes 100-1000 us to encode a message, patching one that is encoded takes 3-5.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REQUEST, ACK, EXCLUSIVE, CREATE, REPLACE, DUMP = 0x1, 0x4, 0x200, 0x400, 0x100, 0x300
_HEADER_BYTES = 16
_KIND = struct.Struct("=H")
_NLA_F_NESTED = 0x8000


class Slots:
    """Placeholders for the values that change: each is unlike any other byte of the message."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[bytes, struct.Struct]] = {}

    def _add(self, name: str, needle: bytes, layout: str) -> None:
        self.found[name] = (needle, struct.Struct(layout))

    def _number(self) -> int:
        return 0x5A5A5A01 + len(self.found)

    def u32(self, name: str) -> int:
        """A 32-bit number."""
        value = self._number()
        self._add(name, struct.pack("=I", value), "=I")
        return value

    def u64(self, name: str) -> int:
        """A 64-bit number."""
        value = self._number() << 32 | 0x3C3C3C3C
        self._add(name, struct.pack("=Q", value), "=Q")
        return value

    def text(self, name: str) -> str:
        """An interface name: 15 bytes and a NUL; the kernel takes one padded with NULs."""
        value = f"slot-{self._number():010d}"
        self._add(name, value.encode() + b"\0", "16s")
        return value

    def mac(self, name: str) -> str:
        """An Ethernet address."""
        raw = b"\x5a\x5a" + self._number().to_bytes(4, "big")
        self._add(name, raw, "6s")
        return raw.hex(":")

    def ip(self, name: str, family: int) -> str:
        """An IPv4 (4) or IPv6 (6) address."""
        number = self._number().to_bytes(4, "big")
        if family == 4:
            self._add(name, number, "4s")
            return ".".join(str(byte) for byte in number)
        raw = b"\xfd\x5a" + number * 3 + b"\x5a\xfd"
        self._add(name, raw, "16s")
        return ":".join(raw[at : at + 2].hex() for at in range(0, 16, 2))


class Template:
    """An encoded message with slots to be filled.

    Args:
        message: pyroute2's class of the message.
        kind: the netlink message type (RTM_NEWLINK ...).
        flags: those beyond NLM_F_REQUEST and NLM_F_ACK.
        fields: the fixed part of the message.
        attributes: (name, value) pairs, values may be `slots`.
        slots: the placeholders in them.
        bytes_fields: one-byte fields of the fixed part that `fill` sets, too.
        nested_at: where an attribute starts that must be marked as nested.
    """

    def __init__(
        self,
        message: Any,
        kind: int,
        flags: int,
        fields: Mapping[str, int],
        *,
        attributes: Sequence[tuple[str, Any]] = (),
        slots: Slots | None = None,
        bytes_fields: Sequence[str] = (),
        nested_at: int | None = None,
    ) -> None:
        encoded = message()
        encoded["header"] = {"type": kind, "flags": REQUEST | flags, "pid": 0, "sequence_number": 0}
        for name, value in fields.items():
            encoded[name] = value
        encoded["attrs"] = list(attributes)
        encoded.encode()
        data = bytearray(encoded.data)
        if nested_at is not None:
            (flagged,) = _KIND.unpack_from(data, nested_at + 2)
            _KIND.pack_into(data, nested_at + 2, flagged | _NLA_F_NESTED)
        self.data = bytes(data)
        self._slots = {
            name: (_offsets(self.data, needle), layout)
            for name, (needle, layout) in (slots or Slots()).found.items()
        }
        for name in bytes_fields:
            self._slots[name] = ((_field_offset(message, name),), struct.Struct("=B"))

    def fill(self, **values: int | bytes) -> bytearray:
        """The message with all its slots filled; names in bytes, addresses packed."""
        data = bytearray(self.data)
        slots = self._slots
        for name, value in values.items():
            offsets, layout = slots[name]
            for offset in offsets:
                layout.pack_into(data, offset, value)
        return data


def _offsets(data: bytes, needle: bytes) -> tuple[int, ...]:
    found, at = [], data.find(needle)
    while at >= 0:
        found.append(at)
        at = data.find(needle, at + len(needle))
    if not found:
        raise ValueError("pyroute2 did not encode a placeholder as it was given")
    return tuple(found)


def _field_offset(message: Any, wanted: str) -> int:
    layout = "="
    for name, form, *_ in message.fields:
        if name == wanted:
            return _HEADER_BYTES + struct.calcsize(layout)
        layout += form
    raise ValueError(f"{message.__name__} has no field {wanted}")
