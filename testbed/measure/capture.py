"""Frames of a device as the kernel shows them, with their VLAN tags put back, and their times."""

from __future__ import annotations

import heapq
import select
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import InputError, MeasurementError
from testbed.measure.capture_filter import CaptureFilter
from testbed.measure.packet_ring import HELD_BACK_MS, LARGEST_FRAME_BYTES, MOST_BYTES, PacketRing

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from testbed.measure.packet_ring import RingFrame
    from testbed.measure.pcapng import Direction

_HEADERS_BYTES = 256
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

    `ring_bytes` is the room for frames that wait to be taken, for each tap and direction.

    Raises:
        InputError: a number out of range.
    """

    count: int | None = None
    duration_ns: int | None = None
    snaplen_bytes: int | None = None
    ring_bytes: int = MOST_BYTES
    frames: CaptureFilter = field(default_factory=CaptureFilter)

    def __post_init__(self) -> None:
        bounds = (
            ("count", self.count, 1, 10**9),
            ("time in ns", self.duration_ns, 1_000_000, 86_400 * 10**9),
            ("snapshot length in bytes", self.snaplen_bytes, 14, LARGEST_FRAME_BYTES),
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
        rings = [stack.enter_context(_open(tap, test)) for tap in taps]
        if on_ready is not None:
            on_ready()
        _Run(taps, rings).until_end(test, keep, stop)
        return tuple(TapCounts(*ring.statistics()) for ring in rings)


class _Run:
    def __init__(self, taps: Sequence[Tap], rings: Sequence[PacketRing]) -> None:
        self.taps, self.rings = taps, rings
        self.kept = 0

    def until_end(
        self, test: CaptureTest, keep: Callable[[Captured], None], stop: threading.Event | None
    ) -> None:
        left_ns = test.duration_ns
        began_ns = time.monotonic_ns()
        while not (stop is not None and stop.is_set()) and (left_ns is None or left_ns > 0):
            wait_s = _TURN_S if left_ns is None else min(_TURN_S, left_ns / 1e9)
            ready = select.select(self.rings, [], [], wait_s)[0]
            if ready and self.take(test, keep) == 0:
                self.see_whether_gone()
            if self.kept == test.count:
                return
            if test.duration_ns is not None:
                left_ns = began_ns + test.duration_ns - time.monotonic_ns()
        # What has arrived by now may still be held back.
        ended_ns = time.time_ns()
        time.sleep(2 * HELD_BACK_MS / 1e3)
        self.take(test, keep, ended_ns)

    def take(
        self, test: CaptureTest, keep: Callable[[Captured], None], until_ns: int | None = None
    ) -> int:
        """Keep what waits now, of several taps in the order of time; how many frames waited."""
        taken = 0
        everything, matches, snaplen = (
            test.frames.everything,
            test.frames.matches,
            test.snaplen_bytes,
        )
        for number, frame in self.waiting():
            taken += 1
            if self.kept == test.count or (until_ns is not None and frame.unix_ns > until_ns):
                break
            if everything or matches(frame.data):
                direction: Direction = "out" if frame.outgoing else "in"
                shown = self.taps[number].shown_as or direction
                keep(Captured(number, frame.unix_ns, frame.length, shown, frame.data[:snaplen]))
                self.kept += 1
        return taken

    def waiting(self) -> Iterable[tuple[int, RingFrame]]:
        each = [_numbered(number, ring) for number, ring in enumerate(self.rings)]
        return each[0] if len(each) == 1 else heapq.merge(*each, key=lambda one: one[1].unix_ns)

    def see_whether_gone(self) -> None:
        for tap, ring in zip(self.taps, self.rings, strict=True):
            failure = ring.failure()
            if failure is not None:
                raise MeasurementError(
                    f"capture on {tap.device}: {failure}; was it removed or set down meanwhile?"
                )


def _numbered(number: int, ring: PacketRing) -> Iterator[tuple[int, RingFrame]]:
    for frame in ring.frames():
        yield number, frame


def _open(tap: Tap, test: CaptureTest) -> PacketRing:
    # Conditions look at headers, which a short snapshot would cut.
    least = _HEADERS_BYTES if not test.frames.everything else 0
    snaplen = max(test.snaplen_bytes or LARGEST_FRAME_BYTES, least)
    outgoing = None if tap.direction is None else tap.direction == "out"
    try:
        return PacketRing(tap.netns_path, tap.device, outgoing, snaplen, test.ring_bytes)
    except OSError as error:
        raise MeasurementError(
            f"capture on {tap.device} in {tap.netns_path}: {error.strerror}; is it there and up?"
        ) from error
