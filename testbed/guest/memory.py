"""A guest's memory: one memfd of 4 KB pages, mapped shared."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from testbed.errors import KernelError
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.units import format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_BYTES = SMALL_PAGE_BYTES
WORDS_PER_PAGE = PAGE_BYTES // 8
_MADV_POPULATE_WRITE = 23  # linux/mman.h, since 5.14


class Memory(Protocol):
    """What the guest and its migration need of a memory, whatever holds its pages."""

    size_bytes: int
    page_count: int
    address: int
    fd: int
    state: memoryview
    """The leading bytes, which are real memory whatever the backing: the guest's own state."""

    def write(self, pages: NDArray[np.int64], word: int, values: NDArray[np.uint64]) -> None:
        """Store one word of each of these pages."""

    def read(self, pages: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
        """That word of each of these pages."""

    def populate(self) -> None:
        """Fill this process's page tables."""

    def close(self) -> None:
        """Give the memory back."""


class GuestMemory:
    """A guest's memory, populated, so that no first touch is paid for later.

    Processes forked by the owner inherit the mapping at the same address; nobody else sees it.
    `fd` is the memfd, for a reader that compares memories.
    """

    def __init__(self, name: str, size_bytes: int) -> None:
        """Make and populate the memory, 0.2 s per GB.

        Raises:
            ValueError: the size is not a positive multiple of the page size.
            KernelError: the machine has not that much memory left.
        """
        if size_bytes <= 0 or size_bytes % PAGE_BYTES:
            raise ValueError(
                f"{size_bytes} bytes are not a whole number of {PAGE_BYTES}-byte pages"
            )
        self.size_bytes = size_bytes
        self.page_count = size_bytes // PAGE_BYTES
        _check_available(name, size_bytes)
        self.fd = os.memfd_create(f"guest-{name}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size_bytes)
            self._mapping = mmap.mmap(self.fd, size_bytes)
            self.populate()
        except OSError as error:
            os.close(self.fd)
            raise _no_memory(name, size_bytes, str(error)) from error
        self.bytes = self.state = memoryview(self._mapping)
        self.words: NDArray[np.uint64] = np.frombuffer(self._mapping, np.uint64).reshape(
            self.page_count, WORDS_PER_PAGE
        )
        self.address = int(self.words.ctypes.data)

    def write(self, pages: NDArray[np.int64], word: int, values: NDArray[np.uint64]) -> None:
        """Store one word of each of these pages."""
        self.words[pages, word] = values

    def read(self, pages: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
        """That word of each of these pages."""
        return self.words[pages, word]

    def populate(self) -> None:
        """Fill this process's page tables (each vCPU process has its own)."""
        self._mapping.madvise(_MADV_POPULATE_WRITE)

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


def _check_available(name: str, size_bytes: int) -> None:
    """Populating more than there is would have the kernel kill some other process."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available_bytes = int(line.split()[1]) * 1024
            if size_bytes > available_bytes:
                cause = f"{format_size(available_bytes)} are available"
                raise _no_memory(name, size_bytes, cause)


def _no_memory(name: str, size_bytes: int, cause: str) -> KernelError:
    remedy = "give the VM less memory, or set `scale`"
    return KernelError("allocate", f"{format_size(size_bytes)} for VM {name}", cause, remedy)
