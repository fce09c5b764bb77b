"""The source's half of the copy: memory into one stream, one iteration at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.memory import PAGE_BYTES
from testbed.migration.vector import PageVector
from testbed.migration.wire import HEADER_BYTES, NUMBER, Kind, WireError, pack, pack_zero
from testbed.migration.wire_pages import wire_pages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.migration.stream import Stream
    from testbed.migration.work import Work

TURN_NS = 25_000_000


class Sender:
    """Sends pages of a memory that may be written meanwhile.

    The stream's `turn` is called between two messages as well, when `TURN_NS` have passed since the
    last time; what it raises ends the copy. `pages`, `zero_pages` of them, and `wire_bytes` are
    what it has sent of the iteration that is under way.
    """

    def __init__(self, stream: Stream, memory: Memory, *, zero_pages: bool = False) -> None:
        """Pages of zeros are sent as such, or only told."""
        self._stream, self._memory, self._tell_zero_pages = stream, memory, zero_pages
        self._places = wire_pages(memory)
        self._vector = PageVector(self._places.address)
        self._due_ns = 0
        self.pages = self.zero_pages = self.wire_bytes = 0

    def begin(self) -> None:
        """Begin an iteration."""
        self.pages = self.zero_pages = self.wire_bytes = 0

    def send(self, work: Work) -> None:
        """Take parts of the work until it has no more.

        Raises:
            PeerError: the peer has gone, gave up, or is stuck.
            WireError: the peer spoke, which it may not now.
        """
        turn = self._stream.turn

        def hear() -> None:
            turn()
            self._stream.turn = turn  # it may block in the middle of what it hears
            self._stream.hear()
            self._stream.turn = hear

        self._stream.turn = hear
        try:
            while (part := work.take()) is not None:
                first, count = part
                if work.numbers is None:
                    self._send_run(first, count)
                else:
                    self._send_numbers(work.numbers[first : first + count])
                self.pages += count
                self._turn_if_due()
        finally:
            self._stream.turn = turn

    def end(self, kind: Kind, iteration: int) -> None:
        """Say that the iteration is whole: END or SWITCHOVER; errors as `send`."""
        self._stream.observe()
        self._stream.send(pack(kind, self.pages, iteration))
        self.wire_bytes += HEADER_BYTES

    def confirm(self, answer: Kind, iteration: int) -> None:
        """Wait until the destination has it in its memory.

        Raises:
            PeerError: the peer has gone, gave up, or is stuck.
            WireError: the answer is another.
        """
        frame = self._stream.expect(answer)
        if frame.value != iteration:
            raise WireError(f"{answer.name} of iteration {frame.value} instead of {iteration}")

    def _send_run(self, first: int, count: int) -> None:
        if self._tell_zero_pages and (zero := self._memory.zero_pages(first, count)).any():
            self._send_mixed(np.arange(first, first + count, dtype=NUMBER), zero)
            return
        self._stream.send(pack(Kind.RUN, count, first), self._places.run(first, count))
        self.wire_bytes += HEADER_BYTES + count * PAGE_BYTES

    def _send_numbers(self, numbers: NDArray[np.uint32]) -> None:
        if self._tell_zero_pages and (zero := self._places.zero(numbers)).any():
            self._send_mixed(numbers, zero)
        else:
            self._gather(numbers)

    def _send_mixed(self, numbers: NDArray[np.uint32], zero: NDArray[np.bool_]) -> None:
        told = pack_zero(numbers[zero])
        self._stream.send(told)
        self.wire_bytes += len(told)
        count = int(np.count_nonzero(zero))
        self.zero_pages += count
        if count < len(numbers):
            self._gather(numbers[~zero])

    def _gather(self, numbers: NDArray[np.uint32]) -> None:
        vector, count = self._vector, len(numbers)
        vector.numbers[:count] = numbers
        vector.header[:] = pack(Kind.GATHER, count)
        vector.fill(self._places.stage(numbers), with_head=True)
        self._stream.send_pages(vector)
        self.wire_bytes += HEADER_BYTES + count * (PAGE_BYTES + NUMBER.itemsize)

    def _turn_if_due(self) -> None:
        now = time.monotonic_ns()
        if now >= self._due_ns:
            self._due_ns = now + TURN_NS
            self._stream.observe()
            self._stream.turn()
