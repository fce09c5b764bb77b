"""The source's half of the copy: memory into the stream, one iteration at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from testbed.guest.memory import PAGE_BYTES
from testbed.migration.vector import PageVector
from testbed.migration.wire import (
    GATHER_PAGES,
    HEADER_BYTES,
    NUMBER,
    RUN_PAGES,
    Kind,
    WireError,
    pack,
)
from testbed.migration.wire_pages import wire_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.migration.stream import Stream


class Sender:
    """Sends pages of a memory that may be written meanwhile.

    `turn` is called between two messages, when `turn_ns` have passed since the last time; what
    it raises ends the copy. `pages_left` are those of this iteration that are not sent yet.
    """

    def __init__(
        self, stream: Stream, memory: Memory, turn: Callable[[], None], turn_ns: int
    ) -> None:
        self._stream, self.memory, self._turn, self._turn_ns = stream, memory, turn, turn_ns
        self._pages = wire_pages(memory)
        self._vector = PageVector(self._pages.address)
        self._due_ns = 0
        self.pages_left = 0
        self.wire_bytes = 0

    def send_all(self) -> None:
        """Every page, in runs of 1 MiB.

        Raises:
            PeerError: the peer has gone or is stuck.
        """
        send, run, total = self._stream.send, self._pages.run, self.memory.page_count
        self.wire_bytes = 0
        for first in range(0, total, RUN_PAGES):
            count = min(RUN_PAGES, total - first)
            self.pages_left = total - first
            send(pack(Kind.RUN, count, first), run(first, count))
            self.wire_bytes += HEADER_BYTES + count * PAGE_BYTES
            self._turn_if_due()
        self.pages_left = 0

    def send_pages(self, pages: NDArray[np.int64]) -> None:
        """These pages, ascending, in gathers of 512; errors as `send_all`."""
        vector, numbers = self._vector, pages.astype(NUMBER)
        self.wire_bytes = len(pages) * (PAGE_BYTES + NUMBER.itemsize)
        for first in range(0, len(pages), GATHER_PAGES):
            chunk = numbers[first : first + GATHER_PAGES]
            self.pages_left = len(pages) - first
            vector.numbers[: len(chunk)] = chunk
            vector.header[:] = pack(Kind.GATHER, len(chunk))
            vector.fill(self._pages.stage(chunk), with_head=True)
            self._stream.send_pages(vector)
            self.wire_bytes += HEADER_BYTES
            self._turn_if_due()
        self.pages_left = 0

    def end(self, kind: Kind, answer: Kind, pages: int, iteration: int) -> None:
        """Say that the iteration is whole, and wait until it is in the destination's memory.

        Raises:
            PeerError: the peer has gone or is stuck.
            WireError: the answer is another.
        """
        self._stream.send(pack(kind, pages, iteration))
        self.wire_bytes += HEADER_BYTES
        frame = self._stream.expect(answer)
        if frame.value != iteration:
            raise WireError(f"{answer.name} of iteration {frame.value} instead of {iteration}")

    def _turn_if_due(self) -> None:
        now = time.monotonic_ns()
        if now >= self._due_ns:
            self._due_ns = now + self._turn_ns
            self._turn()
