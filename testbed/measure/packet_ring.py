"""A packet socket whose frames the kernel writes into shared memory (TPACKET_V3).

Without it each frame waits whole in the socket's buffer and costs a system call: at some Gb/s a
short snapshot would then lose frames. Layout: the kernel's Documentation/networking/packet_mmap.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from testbed.measure.endpoint import socket_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# linux/if_packet.h, if_ether.h, filter.h, asm-generic/socket.h
_ETH_P_ALL = 0x0003
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS = 263, 1, 1
_SIOCGIFINDEX, _IFREQ_INDEX = 0x8933, struct.Struct("=16xi")
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10
_SO_ATTACH_FILTER = 26
_TPACKET_V3 = 2
_OUTGOING = 4  # PACKET_OUTGOING
_READY, _GIVEN_BACK = 1, 0  # TP_STATUS_USER, _KERNEL
_TAG_VALID, _TAG_TYPE_VALID = 0x10, 0x40
_BLOCK = struct.Struct("=8xIII")  # tpacket_block_desc: status, frames, offset of the first
_STATUS_AT = 8
_FRAME = struct.Struct("=IIIIIIHHIIH")  # tpacket3_hdr: next, s, ns, kept, length, status, mac, ...
_TYPE_AT = 58  # sll_pkttype of the sockaddr_ll that follows
_BLOCK_BYTES = 1 << 20
_LEAST_BLOCKS = 4
MOST_BYTES = 64 << 20
"""How large a ring is unless the kernel has not that much: a quarter of a second to make."""
HELD_BACK_MS = 20
"""How long a block that isn't full may keep its frames."""
_ADDRESSES_BYTES = 12
LARGEST_FRAME_BYTES = 1 << 18  # a train of TCP segments is one frame here, of up to 64 KiB so far


class RingFrame(NamedTuple):
    """A frame with its VLAN tag put back; `length` is the whole frame's."""

    unix_ns: int
    length: int
    outgoing: bool
    data: bytes


class PacketRing:
    """What a device of a namespace receives and sends, from when this is made until `close`.

    Args:
        netns_path: the namespace.
        device: its link.
        outgoing: only what it sends (True) or receives (False); None for both.
        snaplen_bytes: how much the kernel keeps of a frame, without its tag.
        most_bytes: how large the ring may be.

    Raises:
        OSError: there is no such device, or no memory.
        MeasurementError: there is no such namespace.
    """

    def __init__(
        self,
        netns_path: Path | str,
        device: str,
        outgoing: bool | None,
        snaplen_bytes: int,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        # Protocol 0 hears nothing until it is bound: no frame of another device gets in.
        self._socket = socket_in(netns_path, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._block = 0
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
            self._blocks = self._make_ring(most_bytes)
            self._memory = mmap.mmap(self._socket.fileno(), self._blocks * _BLOCK_BYTES)
            _attach_filter(self._socket, outgoing, snaplen_bytes)
            self._socket.bind((device, _ETH_P_ALL))
            self._hear_all(device)
        except BaseException:
            self._socket.close()
            raise

    def _hear_all(self, device: str) -> None:
        """Frames for other addresses too: a VM's NIC, a bridge, would keep them to itself."""
        asked = struct.pack("=16si20x", device.encode(), 0)
        index = _IFREQ_INDEX.unpack_from(fcntl.ioctl(self._socket, _SIOCGIFINDEX, asked))[0]
        request = struct.pack("=iHH8x", index, _PROMISCUOUS, 0)
        self._socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)

    def _make_ring(self, most_bytes: int) -> int:
        blocks = max(most_bytes // _BLOCK_BYTES, _LEAST_BLOCKS)
        while True:
            shape = (_BLOCK_BYTES, blocks, 2048, blocks * _BLOCK_BYTES // 2048, HELD_BACK_MS, 0, 0)
            try:
                self._socket.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=7I", *shape))
            except OSError:
                if blocks <= _LEAST_BLOCKS:
                    raise
                blocks //= 2
            else:
                return blocks

    def fileno(self) -> int:
        """For select: readable when a block is ready, or the device has gone."""
        return self._socket.fileno()

    def frames(self) -> Iterator[RingFrame]:
        """What is ready; of each block all frames have to be taken before the next is."""
        for _ in range(self._blocks):
            base = self._block * _BLOCK_BYTES
            status, count, offset = _BLOCK.unpack_from(self._memory, base)
            if not status & _READY:
                return
            at = base + offset
            for _ in range(count):
                following, frame = self._frame(at)
                yield frame
                at += following
            struct.pack_into("=I", self._memory, base + _STATUS_AT, _GIVEN_BACK)
            self._block = (self._block + 1) % self._blocks

    def _frame(self, at: int) -> tuple[int, RingFrame]:
        following, seconds, nanoseconds, kept, length, status, begin, _, _, tci, tpid = (
            _FRAME.unpack_from(self._memory, at)
        )
        data = self._memory[at + begin : at + begin + kept]
        if status & _TAG_VALID:
            tag = struct.pack("!HH", tpid if status & _TAG_TYPE_VALID else 0x8100, tci)
            data = data[:_ADDRESSES_BYTES] + tag + data[_ADDRESSES_BYTES:]
            length += len(tag)
        outgoing = self._memory[at + _TYPE_AT] == _OUTGOING
        return following, RingFrame(seconds * 10**9 + nanoseconds, length, outgoing, data)

    def failure(self) -> str | None:
        """Why nothing comes any more (the device has gone, or is down), in the kernel's words."""
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return os.strerror(number) if number else None

    def statistics(self) -> tuple[int, int]:
        """Frames that passed the filter since this was last asked, and how many had no room."""
        packed = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 12)
        seen, dropped, _ = struct.unpack("=III", packed)
        return seen, dropped

    def close(self) -> None:
        """End it."""
        self._memory.close()
        self._socket.close()

    def __enter__(self) -> PacketRing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _attach_filter(opened: socket.socket, outgoing: bool | None, snaplen_bytes: int) -> None:
    """A classic BPF program: the direction, and how much to keep."""
    keep, drop = (0x06, 0, 0, snaplen_bytes), (0x06, 0, 0, 0)
    program = [keep]
    if outgoing is not None:
        packet_type = (0x20, 0, 0, 0xFFFFF004)  # SKF_AD_OFF + SKF_AD_PKTTYPE
        is_outgoing = (0x15, 0, 1, _OUTGOING)
        program = [packet_type, is_outgoing, *((keep, drop) if outgoing else (drop, keep))]
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    place = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HP", len(program), ctypes.addressof(place))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
