"""pcapng: what Wireshark, tcpdump and scapy read, with nanoseconds, directions and drops.

scapy's own writer (2.6) keeps microseconds from floats, no snapshot length and no drop counts,
and writes a nameless interface before the named ones. Format: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, Literal

Direction = Literal["in", "out"]

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN_LENGTH = 0xFFFFFFFFFFFFFFFF
_ETHERNET = 1  # LINKTYPE_ETHERNET
_END = 0
_SHB_OS, _SHB_APPLICATION = 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_RESOLUTION, _IF_FILTER = 2, 3, 9, 11
_PACKET_FLAGS, _RECEIVED, _DROPPED = 2, 4, 5
_NANOSECONDS = b"\x09"  # 10^-9 s
_FLAGS = {"in": 1, "out": 2, None: 0}


@dataclass(frozen=True, slots=True)
class Interface:
    """Where frames were captured; `snaplen_bytes` 0 is without a limit."""

    name: str
    description: str = ""
    snaplen_bytes: int = 0
    filter_text: str = ""


class PcapngWriter:
    """Writes one section to a binary file, a block at a time.

    Raises:
        OSError: the file can't be written.
    """

    def __init__(self, file: IO[bytes], application: str, system: str = "Linux") -> None:
        self._file = file
        self._interfaces = 0
        body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
        options = ((_SHB_OS, system.encode()), (_SHB_APPLICATION, application.encode()))
        self._block(_SECTION, body, options)

    def add_interface(self, interface: Interface) -> int:
        """Describe an interface; its number, for `packet`."""
        options = [(_IF_NAME, interface.name.encode())]
        if interface.description:
            options.append((_IF_DESCRIPTION, interface.description.encode()))
        options.append((_IF_RESOLUTION, _NANOSECONDS))
        if interface.filter_text:  # 0: as libpcap's filters are written, a text
            options.append((_IF_FILTER, b"\0" + interface.filter_text.encode()))
        self._block(
            _INTERFACE, struct.pack("<HHI", _ETHERNET, 0, interface.snaplen_bytes), tuple(options)
        )
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        unix_ns: int,
        frame: bytes | bytearray | memoryview,
        *,
        length: int,
        direction: Direction | None,
    ) -> None:
        """A frame of `length` bytes, of which `frame` are kept, at a time since 1970."""
        head = struct.pack(
            "<IIIII", interface, unix_ns >> 32, unix_ns & 0xFFFFFFFF, len(frame), length
        )
        flags = struct.pack("<I", _FLAGS[direction])
        self._block(_PACKET, head + _padded(bytes(frame)), ((_PACKET_FLAGS, flags),))

    def statistics(self, interface: int, unix_ns: int, received: int, dropped: int) -> None:
        """How many frames came and how many the kernel had to drop, up to a time."""
        body = struct.pack("<III", interface, unix_ns >> 32, unix_ns & 0xFFFFFFFF)
        options = (
            (_RECEIVED, struct.pack("<Q", received)),
            (_DROPPED, struct.pack("<Q", dropped)),
        )
        self._block(_STATISTICS, body, options)

    def _block(self, kind: int, body: bytes, options: tuple[tuple[int, bytes], ...]) -> None:
        parts = [body]
        parts += [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
        if options:
            parts.append(struct.pack("<HH", _END, 0))
        inner = b"".join(parts)
        length = struct.pack("<I", len(inner) + 12)
        self._file.write(b"".join((struct.pack("<I", kind), length, inner, length)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
