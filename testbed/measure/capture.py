"""Frames of a device as the kernel shows them, with their VLAN tags put back, and their times."""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import InputError, MeasurementError
from testbed.measure.capture_filter import CaptureFilter
from testbed.measure.endpoint import socket_in

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from testbed.measure.pcapng import Direction

# linux/if_packet.h, if_ether.h, asm-generic/socket.h
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA = 263, 6, 8
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_PACKET_OUTGOING = 4
_TAG_VALID, _TAG_TYPE_VALID = 0x10, 0x40
_AUXILIARY = struct.Struct("=IIIHHHH")  # tpacket_auxdata: status, len, snaplen, mac, net, tci, tpid
_BUFFER_BYTES = 64 << 20
_LARGEST_FRAME_BYTES = 1 << 18  # a train of TCP segments is one frame here, of up to 64 KiB so far
_ADDRESSES_BYTES = 12
_TURN_S = 0.1


@dataclass(frozen=True, slots=True)
class Tap:
    """A device to listen on, and which direction's frames to take (None: both).

    `shown_as` is the direction to give its frames, where the device's own says nothing: on one
    that a mirror sends to.
    """

    netns_path: Path | str
    device: str
    direction: Direction | None = None
    shown_as: Direction | None = None


@dataclass(frozen=True, slots=True)
class CaptureTest:
    """When to end (None: not by that), how much of a frame to keep, which frames.

    Raises:
        InputError: a number out of range.
    """

    count: int | None = None
    duration_ns: int | None = None
    snaplen_bytes: int | None = None
    frames: CaptureFilter = field(default_factory=CaptureFilter)

    def __post_init__(self) -> None:
        bounds = (
            ("count", self.count, 1, 10**9),
            ("time in ns", self.duration_ns, 1_000_000, 86_400 * 10**9),
            ("snapshot length in bytes", self.snaplen_bytes, 14, _LARGEST_FRAME_BYTES),
        )
        for name, value, least, most in bounds:
            if value is not None and not least <= value <= most:
                raise InputError(f"capture {name} {value}: give {least} to {most}")


@dataclass(frozen=True, slots=True)
class Captured:
    """A frame: its time since 1970, whole length, direction, and the bytes that were kept."""

    tap: int
    unix_ns: int
    length: int
    direction: Direction
    data: bytes


@dataclass(frozen=True, slots=True)
class TapCounts:
    """What a tap saw, and what the kernel dropped as we were too slow."""

    seen: int
    dropped: int


def capture(
    taps: Sequence[Tap],
    test: CaptureTest,
    keep: Callable[[Captured], None],
    stop: threading.Event | None = None,
    on_ready: Callable[[], None] | None = None,
) -> tuple[TapCounts, ...]:
    """Hand frames of `taps` to `keep` until enough came, time is up, or the event is set.

    `on_ready` is called when no frame will be missed any more. Frames of several taps come in
    order of each, and mostly in that of time.

    Raises:
        InputError: nothing would ever end it.
        MeasurementError: a namespace or device isn't there, or goes away.
    """
    if test.count is None and test.duration_ns is None and stop is None:
        raise InputError("a capture without an end; give a count or a time")
    with ExitStack() as stack:
        run = _Run([_Tap(tap, stack.enter_context(_open(tap)), i) for i, tap in enumerate(taps)])
        if on_ready is not None:
            on_ready()
        run.until_end(test, keep, stop)
        for tap in run.taps:
            tap.count()
        return tuple(TapCounts(tap.seen, tap.dropped) for tap in run.taps)


def _open(tap: Tap) -> socket.socket:
    # Protocol 0 hears nothing until it is bound: no frame of another device gets in.
    opened = socket_in(tap.netns_path, socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        opened.bind((tap.device, _ETH_P_ALL))
    except OSError as error:
        opened.close()
        raise MeasurementError(
            f"capture on {tap.device} in {tap.netns_path}: {error.strerror}; is it there and up?"
        ) from error
    return opened


class _Run:
    def __init__(self, taps: list[_Tap]) -> None:
        self.taps = taps
        self.kept = 0

    def until_end(
        self, test: CaptureTest, keep: Callable[[Captured], None], stop: threading.Event | None
    ) -> None:
        began_ns = time.monotonic_ns()
        while stop is None or not stop.is_set():
            left_s = _TURN_S
            if test.duration_ns is not None:
                left_ns = began_ns + test.duration_ns - time.monotonic_ns()
                left_s = min(left_s, left_ns / 1e9)
            if select.select(self.taps, [], [], max(0.0, left_s))[0]:
                for frame in self.turn(test):
                    keep(frame)
                    self.kept += 1
                    if self.kept == test.count:
                        return
            if left_s <= 0:  # what had arrived by then has been read
                return

    def turn(self, test: CaptureTest) -> Iterable[Captured]:
        """What waits now: of several taps in the order of time."""
        if len(self.taps) == 1:
            return self.taps[0].frames(test)
        waiting = [frame for tap in self.taps for frame in tap.frames(test)]
        return sorted(waiting, key=lambda frame: frame.unix_ns)


class _Tap:
    def __init__(self, tap: Tap, opened: socket.socket, number: int) -> None:
        self.tap, self.opened, self.number = tap, opened, number
        self.seen = self.dropped = 0
        self._buffer = bytearray(_LARGEST_FRAME_BYTES)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        return self.opened.fileno()

    def count(self) -> None:
        """The kernel's counts since it was last asked."""
        packed = self.opened.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        seen, dropped = struct.unpack("=II", packed)
        self.seen += seen
        self.dropped += dropped

    def frames(self, test: CaptureTest) -> Iterator[Captured]:
        """What waits to be read, as far as it is wanted: at most a thousand frames a turn."""
        everything = test.frames.everything
        # Conditions look at headers, which a short snapshot would cut.
        room = self._view[: test.snaplen_bytes if everything else None]
        for _ in range(1000):
            try:
                size, ancillary, _, name = self.opened.recvmsg_into(
                    [room], 256, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            except OSError as error:
                raise MeasurementError(
                    f"capture on {self.tap.device}: {error.strerror}; was it removed meanwhile?"
                ) from error
            direction: Direction = "out" if name[2] == _PACKET_OUTGOING else "in"
            if self.tap.direction not in (None, direction):
                continue
            data, length, unix_ns = _restore(bytes(room[:size]), ancillary)
            if everything or test.frames.matches(data):
                data = data[: test.snaplen_bytes]
                shown = self.tap.shown_as or direction
                yield Captured(self.number, unix_ns, length, shown, data)


def _restore(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> tuple[bytes, int, int]:
    """A frame with the tag that the kernel keeps beside it, its whole length and its time."""
    length, unix_ns = len(data), 0
    for level, kind, value in ancillary:
        if level == _SOL_PACKET and kind == _PACKET_AUXDATA:
            status, length, _, _, _, tci, tpid = _AUXILIARY.unpack_from(value)
            if status & _TAG_VALID:
                tpid = tpid if status & _TAG_TYPE_VALID else 0x8100
                tag = struct.pack("!HH", tpid, tci)
                data = data[:_ADDRESSES_BYTES] + tag + data[_ADDRESSES_BYTES:]
                length += len(tag)
        elif level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@ll", value[:16])
            unix_ns = int(seconds) * 10**9 + int(nanoseconds)
    return data, length, unix_ns or time.time_ns()
