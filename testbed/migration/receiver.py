"""The destination's half of the copy: one stream into memory, every frame checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.swap import OvercommittedMemory
from testbed.migration import bitmap
from testbed.migration.swap_bitmap import Arriving
from testbed.migration.vector import PageVector
from testbed.migration.wire import (
    NUMBER,
    Kind,
    WireError,
    check_gather,
    check_run,
    pack,
    unpack_zero,
)
from testbed.migration.wire_pages import wire_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.migration.stream import Stream
    from testbed.migration.wire import Frame

_STAMPS = 255
_BITMAPS = {Kind.BITMAP, Kind.EXPECT, Kind.MISSING}
_SWAP = {Kind.SWAPPED, Kind.SLOTS}


class Arrivals:
    """Which pages have come, in which iteration: shared by the receivers of a migration.

    Each marks pages of its own: in one iteration no page comes on two streams, and the next
    one begins when all of this has come.
    """

    def __init__(self, memory: Memory) -> None:
        """None have come."""
        self.memory = memory
        self.stamps = np.zeros(memory.page_count, np.uint8)  # of the iteration; 0: never
        self.announced: NDArray[np.int64] | None = None
        """What BITMAP said would come in the last iteration."""
        self.missing: NDArray[np.int64] | None = None
        """What MISSING said would come after the guest runs."""
        self.swap: Arriving | None = None
        """What is told of the swap file, if there is one."""
        if isinstance(memory, OvercommittedMemory):
            self.swap = Arriving(memory, self.stamps)

    def check(self, last_iteration: int, pages: int) -> None:
        """Prove that memory is whole, and the last iteration what BITMAP announced.

        Args:
            last_iteration: its number.
            pages: how many came in it, over all streams.

        Raises:
            WireError: it is not.
        """
        if missing := self._lacking():
            raise WireError(f"SWITCHOVER, but {missing} pages never came")
        if self.announced is None:
            return
        came = np.flatnonzero(self.stamps == stamp(last_iteration))
        if pages != len(self.announced) or not np.array_equal(came, self.announced):
            raise WireError(f"the bitmap told of {len(self.announced)} pages, {pages} others came")

    def _lacking(self) -> int:
        if self.swap is not None:
            return self.swap.lacking()
        return 0 if self.stamps.all() else int((self.stamps == 0).sum())


def stamp(iteration: int) -> int:
    """What marks a page that came in this iteration; never 0."""
    return (iteration + 1) % _STAMPS + 1


class Receiver:
    """Receives pages into a memory that nobody else touches meanwhile."""

    def __init__(
        self,
        stream: Stream,
        arrivals: Arrivals,
        expect: Callable[[NDArray[np.int64]], None] | None = None,
        *,
        first: bool = True,
    ) -> None:
        """Of the first stream, or of another, which carries nothing but pages.

        `expect` is told of pages that will come only after resume; None: there may be none.
        """
        self._stream, self._arrivals, self._first = stream, arrivals, first
        self._expect = expect
        self._page_count = arrivals.memory.page_count
        self._places = wire_pages(arrivals.memory)
        self._vector = PageVector(self._places.address)
        self._iteration = -1
        self._count = 0

    def copy(self) -> Frame:
        """Receive until the source says that it was all.

        Returns:
            Its SWITCHOVER.

        Raises:
            PeerError: the source has gone, gave up, or is stuck.
            WireError: a frame is not what it should be.
        """
        receive_frame = self._stream.receive_frame
        while True:
            frame = receive_frame()
            if frame.kind is Kind.RUN:
                self._run(frame)
            elif frame.kind is Kind.GATHER:
                self._gather(frame.count)
            elif frame.kind is Kind.ZERO:
                self._zero(frame.count)
            elif frame.kind is Kind.END:
                self._check(frame)
                self._stream.send(pack(Kind.ENDED, 0, frame.value))
                self._iteration += 1
                self._count = 0
            elif frame.kind is Kind.SWITCHOVER:
                self._check(frame)
                return frame
            elif frame.kind in _BITMAPS and self._first:
                self._bitmap(frame)
            elif frame.kind in _SWAP and self._first and self._arrivals.swap is not None:
                self._arrivals.swap.receive(frame, self._stream)
            else:
                raise WireError(f"{frame.kind.name} during the copy")

    def _run(self, frame: Frame) -> None:
        check_run(frame, self._page_count)
        first, end = frame.value, frame.value + frame.count
        self._stream.receive(self._places.room(first, frame.count))
        self._places.arrived(np.arange(first, end, dtype=NUMBER))
        self._arrivals.stamps[first:end] = stamp(self._iteration)
        self._count += frame.count

    def _gather(self, count: int) -> None:
        numbers = self._vector.numbers[:count]
        self._stream.receive(numbers.data.cast("B"))
        check_gather(numbers, self._page_count)
        self._vector.fill(self._places.places(numbers), with_head=False)
        self._stream.receive_pages(self._vector)
        self._places.arrived(numbers)
        self._arrivals.stamps[numbers] = stamp(self._iteration)
        self._count += count

    def _zero(self, count: int) -> None:
        body = bytearray(count * 2 * NUMBER.itemsize)
        self._stream.receive(body)
        pages = unpack_zero(body, self._page_count)
        stamps = self._arrivals.stamps
        self._places.clear(pages[stamps[pages] != 0])  # memory begins as zeros
        stamps[pages] = stamp(self._iteration)
        self._count += len(pages)

    def _bitmap(self, frame: Frame) -> None:
        receive = self._stream.receive
        pages = bitmap.decode_parts(frame.count, frame.value, self._page_count, receive)
        if frame.kind is Kind.BITMAP:
            self._arrivals.announced = pages
        elif self._expect is None:
            raise WireError(f"{frame.kind.name} in a migration whose pages all come before resume")
        elif frame.kind is Kind.EXPECT:
            self._expect(pages)
            self._stream.send(pack(Kind.EXPECTED, 0, self._iteration))
        else:
            self._arrivals.missing = pages

    def _check(self, frame: Frame) -> None:
        if frame.count != self._count:
            raise WireError(f"{frame.kind.name} of {frame.count} pages, {self._count} came")
        if frame.value != self._iteration:
            raise WireError(
                f"{frame.kind.name} of iteration {frame.value} instead of {self._iteration}"
            )
