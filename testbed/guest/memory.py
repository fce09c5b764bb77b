"""A guest's memory: one memfd, mapped shared."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from testbed.guest.availability import check_available, no_memory
from testbed.guest.filling import fill_pages
from testbed.guest.large_pages import map_large
from testbed.guest.specification import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_BYTES = SMALL_PAGE_BYTES
WORDS_PER_PAGE = PAGE_BYTES // 8
# linux/mman.h, since 5.14. Pages of shared memory that are there are mapped 16 at a time, and for
# writing too: a quarter of what POPULATE_WRITE takes. Those that aren't are made by either.
_MADV_POPULATE_READ = 22
_CHUNK_PAGES = 1024  # 4 MiB at a time stays in the cache


class Memory(Protocol):
    """What the guest and its migration need of a memory, whatever holds its pages."""

    size_bytes: int
    page_count: int
    trace_bytes: int
    """What one entry of its page tables maps: the finest grain at which writes are traced."""
    address: int
    """Where page 0 is in this process and those that it forks; 0: pages are not in memory."""
    fd: int
    state: memoryview
    """The leading bytes, which are real memory whatever the backing: the guest's own state."""

    def write(self, pages: NDArray[np.int64], word: int, values: NDArray[np.uint64]) -> None:
        """Store one word of each of these pages."""

    def read(self, pages: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
        """That word of each of these pages."""

    def pin(self, pages: NDArray[np.int64]) -> None:
        """Keep these pages of the caller's own in memory from now on: a device writes them."""

    def disown(self) -> None:
        """From now on other pages are the caller's own, and none is kept."""

    def fill(self, first: int, count: int, seed_key: int) -> None:
        """Give these pages non-zero content, a pure function of key and page number."""

    def zero_pages(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of these pages hold nothing but zeros."""

    def populate(self) -> None:
        """Fill this process's page tables."""

    def close(self) -> None:
        """Give the memory back."""


class GuestMemory:
    """Memory that is all there and populated, so that no first touch is paid for later.

    Processes forked by the owner inherit the mapping at the same address. `fd` is the memfd,
    for a reader that compares memories. Pages of 2 MiB: see large_pages.py.
    """

    def __init__(self, name: str, size_bytes: int, page_bytes: int = PAGE_BYTES) -> None:
        """Make and populate the memory, 0.2 s per GB; 4 s per GB if pages are collapsed.

        Raises:
            ValueError: the size is not a positive multiple of the page size.
            KernelError: the machine has not that much memory left, or no pages of that size.
        """
        self._map(name, size_bytes, page_bytes, size_bytes)

    def _map(self, name: str, size_bytes: int, page_bytes: int, resident_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % page_bytes:
            raise ValueError(
                f"{size_bytes} bytes are not a whole number of {page_bytes}-byte pages"
            )
        self.size_bytes = size_bytes
        self.page_count = size_bytes // PAGE_BYTES
        self.trace_bytes = PAGE_BYTES
        self._offset = 0
        if page_bytes == LARGE_PAGE_BYTES:
            large = map_large(f"guest-{name}", size_bytes)
            self.fd, self._mapping, self._offset = large.fd, large.mapping, large.offset
            self.trace_bytes = LARGE_PAGE_BYTES if large.kind == "hugetlb" else PAGE_BYTES
        else:
            check_available(name, resident_bytes)
            self.fd = os.memfd_create(f"guest-{name}", os.MFD_CLOEXEC)
        try:
            if page_bytes == PAGE_BYTES:
                os.ftruncate(self.fd, size_bytes)
                self._mapping = mmap.mmap(self.fd, size_bytes)
            self._populate(0, resident_bytes)
        except OSError as error:
            os.close(self.fd)
            raise no_memory(name, resident_bytes, str(error)) from error
        self.bytes = self.state = memoryview(self._mapping)[self._offset :][:size_bytes]
        self.words: NDArray[np.uint64] = np.frombuffer(self.bytes, np.uint64).reshape(
            self.page_count, WORDS_PER_PAGE
        )
        self.address = int(self.words.ctypes.data)

    def write(self, pages: NDArray[np.int64], word: int, values: NDArray[np.uint64]) -> None:
        """Store one word of each of these pages."""
        self.words[pages, word] = values

    def read(self, pages: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
        """That word of each of these pages."""
        found: NDArray[np.uint64] = self.words[pages, word]
        return found

    def pin(self, pages: NDArray[np.int64]) -> None:
        """Nothing: they always are."""

    def disown(self) -> None:
        """Nothing: a page is nobody's own."""

    def fill(self, first: int, count: int, seed_key: int) -> None:
        """Give these pages non-zero content, a pure function of key and page number."""
        fill_pages(self.words[first : first + count], first, seed_key)

    def zero_pages(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of these pages hold nothing but zeros."""
        return zero_rows(self.words[first : first + count])

    def populate(self) -> None:
        """Fill this process's page tables (each vCPU process has its own)."""
        self._populate(0, self.size_bytes)

    def _populate(self, start: int, size_bytes: int) -> None:
        self._mapping.madvise(_MADV_POPULATE_READ, self._offset + start, size_bytes)

    def close(self) -> None:
        """Give the memory back; it is freed with the last view of it that anybody holds."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.bytes = self.state = memoryview(b"")
            self.words = np.empty((0, WORDS_PER_PAGE), np.uint64)
            del self._mapping

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def zero_rows(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows are nothing but zeros; all of a row is read only if its first word is 0."""
    zero: NDArray[np.bool_] = words[:, 0] == 0
    for first in range(0, len(words), _CHUNK_PAGES):
        chunk = zero[first : first + _CHUNK_PAGES]
        rows = np.flatnonzero(chunk)
        if len(rows):
            found = words[first : first + len(chunk)]
            if len(rows) < len(chunk):
                found = found[rows]
            chunk[rows] = np.bitwise_or.reduce(found, axis=1) == 0
    return zero


def count_zero_pages(memory: Memory) -> int:
    """How many of its pages hold nothing but zeros."""
    return int(np.count_nonzero(memory.zero_pages(0, memory.page_count)))
