"""The destination's half of the copy: the stream into memory, every frame checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES
from testbed.migration.vector import PageVector
from testbed.migration.wire import Kind, WireError, check_gather, check_run, pack

if TYPE_CHECKING:
    from testbed.guest.memory import GuestMemory
    from testbed.migration.stream import Stream
    from testbed.migration.wire import Frame


class Receiver:
    """Receives pages into a memory that nobody else touches meanwhile."""

    def __init__(self, stream: Stream, memory: GuestMemory) -> None:
        self._stream, self._memory = stream, memory
        self._vector = PageVector(memory.address)
        self._arrived = np.zeros(memory.page_count, np.bool_)
        self._pages = 0

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
        self._stream.receive(self._memory.bytes[first * PAGE_BYTES : end * PAGE_BYTES])
        self._arrived[first:end] = True
        self._pages += frame.count

    def _gather(self, count: int) -> None:
        numbers = self._vector.numbers[:count]
        self._stream.receive(numbers.data.cast("B"))
        check_gather(numbers, self._memory.page_count)
        self._vector.fill(count, with_head=False)
        self._stream.receive_pages(self._vector)
        self._arrived[numbers] = True
        self._pages += count

    def _check_count(self, frame: Frame) -> None:
        if frame.count != self._pages:
            raise WireError(f"{frame.kind.name} of {frame.count} pages, {self._pages} came")
        self._pages = 0
