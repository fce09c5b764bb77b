"""Pages as the wire carries them: where their bytes lie for a send, and go for a receive.

Real pages lie in guest memory, and nothing is copied. A page of synthetic memory has no bytes, so
it is sent as 4096 that begin with its number and version, from a staging buffer in which only
these two words change; the destination checks the number and keeps the version.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from testbed.guest.filling import fill_pages
from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE, GuestMemory, zero_rows
from testbed.guest.page_runs import bounds
from testbed.guest.swap import OvercommittedMemory
from testbed.guest.synthetic import MAGIC, SyntheticMemory
from testbed.migration.wire import GATHER_PAGES, NUMBER, RUN_PAGES, WireError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory

_STAGED_PAGES = max(RUN_PAGES, GATHER_PAGES)


class WirePages(Protocol):
    """A memory's pages for one end of one stream."""

    address: int
    """What the places that `stage` returns count from, in pages."""

    def run(self, first: int, count: int) -> memoryview:
        """The bytes of neighbouring pages, to be sent before the next call."""

    def room(self, first: int, count: int) -> memoryview:
        """Where the bytes of neighbouring pages are to be received."""

    def stage(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Make these pages, ascending, ready to be sent before the next call; their places."""

    def places(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Where these pages, ascending, are to be received."""

    def arrived(self, numbers: NDArray[np.uint32]) -> None:
        """Take in what was received into `places` or `room`.

        Raises:
            WireError: it is not these pages.
        """

    def zero(self, numbers: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of these pages, ascending, hold nothing but zeros."""

    def clear(self, numbers: NDArray[np.int64]) -> None:
        """Fill these pages, ascending, with zeros."""


class RealPages:
    """Pages that lie in memory."""

    def __init__(self, memory: GuestMemory) -> None:
        self.address, self._bytes, self._words = memory.address, memory.bytes, memory.words

    def run(self, first: int, count: int) -> memoryview:
        """They lie there."""
        return self._bytes[first * PAGE_BYTES : (first + count) * PAGE_BYTES]

    room = run

    def stage(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Each in its own place."""
        return numbers

    places = stage

    def arrived(self, numbers: NDArray[np.uint32]) -> None:
        """They are where they belong."""

    def zero(self, numbers: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Read."""
        return _zero_rows(self._words, numbers)

    def clear(self, numbers: NDArray[np.int64]) -> None:
        """Written."""
        self._words[numbers] = 0


class _Staged:
    """Pages that pass through a staging buffer, one after another."""

    def __init__(self) -> None:
        self._rows: NDArray[np.uint64] = np.zeros((_STAGED_PAGES, WORDS_PER_PAGE), np.uint64)
        self._bytes = self._rows.data.cast("B")
        self._order = np.arange(_STAGED_PAGES, dtype=NUMBER)
        self.address = int(self._rows.ctypes.data)

    def run(self, first: int, count: int) -> memoryview:
        """In the staging buffer."""
        self.stage(np.arange(first, first + count, dtype=NUMBER))
        return self._bytes[: count * PAGE_BYTES]

    def room(self, first: int, count: int) -> memoryview:
        """The staging buffer."""
        del first
        return self._bytes[: count * PAGE_BYTES]

    def stage(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """One after another in the staging buffer."""
        raise NotImplementedError

    def places(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """One after another in the staging buffer."""
        return self._order[: len(numbers)]


class SyntheticPages(_Staged):
    """Pages made up in a staging buffer; those of them that are real are copied."""

    def __init__(self, memory: SyntheticMemory) -> None:
        super().__init__()
        self._memory = memory
        fill_pages(self._rows, 0, MAGIC)
        self._body = self._rows.copy()
        self._spoiled = 0

    def stage(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """One after another in the staging buffer."""
        memory, rows, count = self._memory, self._rows, len(numbers)
        real = self._real(numbers)
        if real or self._spoiled:
            rows[: self._spoiled] = self._body[: self._spoiled]
            rows[:real] = memory.words[numbers[:real]]
            self._spoiled = real
        rows[real:count, 0] = numbers[real:]
        rows[real:count, 1] = memory.versions[numbers[real:]]
        return self._order[:count]

    def arrived(self, numbers: NDArray[np.uint32]) -> None:
        """Check the numbers, keep the versions, and copy real pages."""
        memory, rows, count = self._memory, self._rows, len(numbers)
        real = self._real(numbers)
        wrong = np.flatnonzero(rows[real:count, 0] != numbers[real:])
        if len(wrong):
            page, says = int(numbers[real + wrong[0]]), int(rows[real + wrong[0], 0])
            raise WireError(f"what came for page {page} says that it is page {says}")
        memory.words[numbers[:real]] = rows[:real]
        memory.versions[numbers[real:]] = rows[real:count, 1]

    def zero(self, numbers: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Never written, or if they are real, read."""
        real = self._real(numbers)
        found: NDArray[np.bool_] = self._memory.versions[numbers] == 0
        found[:real] = _zero_rows(self._memory.words, numbers[:real])
        return found

    def clear(self, numbers: NDArray[np.int64]) -> None:
        """As if never written."""
        self._memory.versions[numbers] = 0
        self._memory.words[numbers[: self._real(numbers)]] = 0

    def _real(self, numbers: NDArray[np.integer]) -> int:
        return int(np.searchsorted(numbers, self._memory.real_pages))


def _zero_rows(words: NDArray[np.uint64], numbers: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which of these rows are all zero; all of one is read only if its first word is 0."""
    zero: NDArray[np.bool_] = words[numbers, 0] == 0
    rows = np.flatnonzero(zero)
    if len(rows):
        zero[rows] = np.bitwise_or.reduce(words[numbers[rows]], axis=1) == 0
    return zero


class OvercommittedPages(_Staged):
    """Pages read into a staging buffer as one reads a file, so that a hole stays one."""

    def __init__(self, memory: OvercommittedMemory) -> None:
        super().__init__()
        self._memory = memory

    def stage(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """As they are at this moment."""
        for start, end in bounds(numbers):
            into = self._bytes[start * PAGE_BYTES : end * PAGE_BYTES]
            os.preadv(self._memory.fd, [into], int(numbers[start]) * PAGE_BYTES)
        return self._order[: len(numbers)]

    def arrived(self, numbers: NDArray[np.uint32]) -> None:
        """Copied to where they belong."""
        self._memory.words[numbers] = self._rows[: len(numbers)]

    def zero(self, numbers: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Read."""
        return zero_rows(self._rows[: len(self.stage(numbers))])

    def clear(self, numbers: NDArray[np.int64]) -> None:
        """Written."""
        self._memory.words[numbers] = 0


def wire_pages(memory: Memory) -> WirePages:
    """The pages of this memory, for one end of one stream.

    Raises:
        TypeError: it is none that the engine knows.
    """
    if isinstance(memory, SyntheticMemory):
        return SyntheticPages(memory)
    if isinstance(memory, OvercommittedMemory):
        return OvercommittedPages(memory)
    if isinstance(memory, GuestMemory):
        return RealPages(memory)
    raise TypeError(f"the engine can't send {type(memory).__name__}")
