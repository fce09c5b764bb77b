"""Memory of a VM that is larger than the machine's: a version for each page instead of the page.

A write adds 1 to the page's version; its number and version stand for its content, and begin
the 4096 bytes that a migration sends for it (migration/wire_pages.py). Version 0 is a page that
was never written, which is zero. The leading pages, the guest's own state among them, are
real. What the kernel's tracking costs is not to be seen here: writes are noted in a byte map.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.availability import check_available, no_memory
from testbed.guest.filling import fill_pages
from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE, zero_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = 0x74657374_62656473
"""Begins the last page of the memfd, which says what is in it."""
VERSION = np.dtype("<u4")
_MADV_POPULATE_WRITE = 23


class SyntheticMemory:
    """As `GuestMemory`, in 1/1024 of the room. `words` are the leading pages, which are real.

    The memfd holds the real pages, the versions, and a page of (magic, page count, real pages).
    """

    trace_bytes = PAGE_BYTES
    address = 0

    def __init__(self, name: str, size_bytes: int, real_pages: int) -> None:
        """Make the memory, populated: all zero.

        Raises:
            ValueError: the size is not a number of pages, of which so many can be real.
            KernelError: the machine has not even the memory for the versions.
        """
        if size_bytes % PAGE_BYTES or not 0 < real_pages <= size_bytes // PAGE_BYTES:
            raise ValueError(f"{size_bytes} bytes are no memory with {real_pages} real pages")
        self.size_bytes = size_bytes
        self.page_count = size_bytes // PAGE_BYTES
        self.real_pages = real_pages
        version_pages = -(-self.page_count * VERSION.itemsize // PAGE_BYTES)
        taken_bytes = (real_pages + version_pages + 1) * PAGE_BYTES
        check_available(name, taken_bytes)
        self.fd = os.memfd_create(f"guest-{name}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, taken_bytes)
            self._mapping = mmap.mmap(self.fd, taken_bytes)
            self.populate()
        except OSError as error:
            os.close(self.fd)
            raise no_memory(name, taken_bytes, str(error)) from error
        last = np.frombuffer(self._mapping, np.uint64, 3, taken_bytes - PAGE_BYTES)
        last[:] = MAGIC, self.page_count, real_pages
        self.state, self.words, self.versions = parts(self._mapping)

    def write(self, pages: NDArray[np.int64], word: int, values: NDArray[np.uint64]) -> None:
        """Add 1 to the version of each of these pages, once; real ones are stored as well."""
        self.versions[pages] += 1
        real = pages < self.real_pages
        if real.any():
            self.words[pages[real], word] = values[real]

    def read(self, pages: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
        """That word of each page as a migration would send it: number, version, or zeros."""
        found = np.zeros(len(pages), np.uint64)
        if word == 0:
            found[:] = pages
        elif word == 1:
            found[:] = self.versions[pages]
        real = pages < self.real_pages
        if real.any():
            found[real] = self.words[pages[real], word]
        return found

    def pin(self, pages: NDArray[np.int64]) -> None:
        """Nothing: a device that writes memory writes the real pages only."""

    def disown(self) -> None:
        """Nothing: a page is nobody's own."""

    def fill(self, first: int, count: int, seed_key: int) -> None:
        """Make these pages non-zero: written once."""
        self.versions[first : first + count] += 1
        fill_pages(self.words[first : first + count], first, seed_key)

    def zero_pages(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of these pages were never written; of real ones, which are zero."""
        zero: NDArray[np.bool_] = self.versions[first : first + count] == 0
        real = self.words[first : first + count]
        zero[: len(real)] = zero_rows(real)
        return zero

    def populate(self) -> None:
        """Fill this process's page tables."""
        self._mapping.madvise(_MADV_POPULATE_WRITE)

    def close(self) -> None:
        """Give the memory back; it is freed with the last view of it that anybody holds."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.state = memoryview(b"")
            self.words = np.empty((0, WORDS_PER_PAGE), np.uint64)
            self.versions = np.empty(0, VERSION)
            del self._mapping

    def __enter__(self) -> SyntheticMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_synthetic(mapping: mmap.mmap) -> bool:
    """Whether a guest's memfd holds such a memory."""
    last = len(mapping) - PAGE_BYTES
    return int.from_bytes(mapping[last : last + 8], "little") == MAGIC


def parts(
    mapping: mmap.mmap,
) -> tuple[memoryview, NDArray[np.uint64], NDArray[np.uint32]]:
    """What a memfd holds: the real pages' bytes, these as rows of words, and the versions."""
    last = np.frombuffer(mapping, np.uint64, 3, len(mapping) - PAGE_BYTES)
    _, page_count, real_pages = last.tolist()
    end = real_pages * PAGE_BYTES
    state = memoryview(mapping)[:end]
    words = np.frombuffer(state, np.uint64).reshape(real_pages, WORDS_PER_PAGE)
    return state, words, np.frombuffer(mapping, VERSION, page_count, end)
