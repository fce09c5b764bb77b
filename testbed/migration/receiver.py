"""The destination's half of the copy: the stream into memory, every frame checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.migration.vector import PageVector
from testbed.migration.wire import NUMBER, Kind, WireError, check_gather, check_run, pack
from testbed.migration.wire_pages import wire_pages

if TYPE_CHECKING:
    from testbed.guest.memory import Memory
    from testbed.migration.stream import Stream
    from testbed.migration.wire import Frame


class Receiver:
    """Receives pages into a memory that nobody else touches meanwhile."""

    def __init__(self, stream: Stream, memory: Memory) -> None:
        self._stream, self._memory = stream, memory
        self._pages = wire_pages(memory)
        self._vector = PageVector(self._pages.address)
        self._arrived = np.zeros(memory.page_count, np.bool_)
        self._count = 0

    def copy(self) -> Frame:
        """Receive until the source says that it was all.

        Returns:
            Its SWITCHOVER, to be answered by LOADED.

        Raises:
            PeerError: the source has gone, gave up, or is stuck.
            WireError: a frame is not what it should be, or memory is not whole.
        """
        receive_frame = self._stream.receive_frame
        while True:
            frame = receive_frame()
            if frame.kind is Kind.RUN:
                self._run(frame)
            elif frame.kind is Kind.GATHER:
                self._gather(frame.count)
            elif frame.kind is Kind.END:
                self._check_count(frame)
                self._stream.send(pack(Kind.ENDED, 0, frame.value))
            elif frame.kind is Kind.SWITCHOVER:
                self._check_count(frame)
                if not self._arrived.all():
                    missing = int((~self._arrived).sum())
                    raise WireError(f"SWITCHOVER, but {missing} pages never came")
                return frame
            else:
                raise WireError(f"{frame.kind.name} during the copy")

    def _run(self, frame: Frame) -> None:
        check_run(frame, self._memory.page_count)
        first, end = frame.value, frame.value + frame.count
        self._stream.receive(self._pages.room(first, frame.count))
        self._pages.arrived(np.arange(first, end, dtype=NUMBER))
        self._arrived[first:end] = True
        self._count += frame.count

    def _gather(self, count: int) -> None:
        numbers = self._vector.numbers[:count]
        self._stream.receive(numbers.data.cast("B"))
        check_gather(numbers, self._memory.page_count)
        self._vector.fill(self._pages.places(numbers), with_head=False)
        self._stream.receive_pages(self._vector)
        self._pages.arrived(numbers)
        self._arrived[numbers] = True
        self._count += count

    def _check_count(self, frame: Frame) -> None:
        if frame.count != self._count:
            raise WireError(f"{frame.kind.name} of {frame.count} pages, {self._count} came")
        self._count = 0
