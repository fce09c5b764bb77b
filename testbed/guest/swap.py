"""Overcommitted memory: the pages that the host has no room for are in the VM's swap file.

As ESX keeps it: `NAME.vswp` in the VM's directory, as large as what is swapped, reserved when
the VM is powered on, gone when it is off. The vCPU itself swaps when it meets a page that is
not there, and swaps out for it the page of its own that has been in longest, so the VM stays
at its size. A vCPU only touches pages of its own: nothing is locked. Everybody else reads the
table: a slot in the file for each page, outside guest memory, in a memfd.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import KernelError
from testbed.guest.filling import fill_pages
from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE, GuestMemory, zero_rows
from testbed.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_TABLE = np.dtype([("slot", "<u4"), ("swap_ins", "<u4")])  # slot: 1 and up; 0: in memory
_MADV_REMOVE = 9  # punches a hole into the memfd: other processes' mappings lose the page too
_CHUNK_PAGES = 1024


@dataclass(frozen=True, slots=True)
class SwapCounters:
    """Pages in the swap file now, and how many went in and out since power on."""

    swapped_pages: int
    swap_ins: int
    swap_outs: int


class OvercommittedMemory(GuestMemory):
    """Real memory of which `resident_bytes` are there; at first the last pages are not.

    `write`, `read`, `fill` and `zero_pages` see all of it; `words` and `bytes` only what is there
    (whoever reads another page in them makes it a page of zeros).
    """

    def __init__(self, name: str, size_bytes: int, resident_bytes: int, directory: str) -> None:
        """Reserve the swap file, then make and populate the rest.

        Raises:
            ValueError: sizes are no whole pages, or there is nothing to swap or no place for it.
            KernelError: the datastore is full or the file in use, or there is no memory left.
        """
        if resident_bytes % PAGE_BYTES or not 0 < resident_bytes < size_bytes or not directory:
            raise ValueError(
                f"{resident_bytes} of {size_bytes} bytes can't be kept, the rest in {directory!r}"
            )
        self._swapped_at_first = (size_bytes - resident_bytes) // PAGE_BYTES
        self._closing = ExitStack()
        with ExitStack() as undo:
            self._file = _reserve(Path(directory) / f"{name}.vswp", self._swapped_at_first, undo)
            count = size_bytes // PAGE_BYTES
            self.table_fd = os.memfd_create(f"swap-{name}", os.MFD_CLOEXEC)
            undo.callback(os.close, self.table_fd)
            os.ftruncate(self.table_fd, count * _TABLE.itemsize)
            table = np.frombuffer(mmap.mmap(self.table_fd, 0), _TABLE)
            self._slot, self._swap_ins = table["slot"], table["swap_ins"]
            self._slot[count - self._swapped_at_first :] = np.arange(1, self._swapped_at_first + 1)
            self._map(name, size_bytes, PAGE_BYTES, resident_bytes)
            self._closing = undo.pop_all()
        self._maker = os.getpid()
        self._forget(0)

    def _forget(self, owner: int) -> None:
        """Begin the list of this process's own pages, in the order in which they came in."""
        self._owner = owner
        self._order: deque[int] = deque()
        self._listed = np.zeros(self.page_count if owner else 0, np.bool_)
        self._free: list[int] = []  # slots, as many as this process's pages exceed its share

    def write(self, pages: NDArray[np.int64], word: int, values: NDArray[np.uint64]) -> None:
        """Store one word of each of these pages; they come in first."""
        self._bring(pages)
        self.words[pages, word] = values

    def read(self, pages: NDArray[np.int64], word: int) -> NDArray[np.uint64]:
        """That word of each of these pages; they come in first."""
        self._bring(pages)
        return super().read(pages, word)

    def pin(self, pages: NDArray[np.int64]) -> None:
        """Keep these pages of the caller's own in memory: others go out for them as they come."""
        self._own()
        self.swap_in(pages)
        kept = set(pages.tolist())
        self._order = deque(page for page in self._order if page not in kept)
        self._listed[pages] = True  # though they aren't: so they never will be

    def disown(self) -> None:
        """Swap out no page met before now: it may be another vCPU's. What is owed stays."""
        free = self._free if self._owner == os.getpid() else []
        self._forget(os.getpid())
        self._free = free

    def _own(self) -> None:
        if self._owner != os.getpid():
            self._forget(os.getpid())

    def _bring(self, pages: NDArray[np.int64]) -> None:
        """Have the caller's own pages in memory, and others out for them."""
        self._own()
        self.swap_in(pages)
        new = _once(pages[~self._listed[pages]])
        self._listed[new] = True
        self._order.extend(new.tolist())
        if self._free:
            self.swap_out(self._victims(len(self._free), set(pages.tolist())))

    def _victims(self, count: int, kept: set[int]) -> NDArray[np.int64]:
        found: list[int] = []
        for _ in range(len(self._order)):
            if len(found) == count:
                break
            page = self._order.popleft()
            if page in kept:
                self._order.append(page)
            else:
                found.append(page)
        self._listed[found] = False
        return np.array(sorted(found), np.int64)

    def swap_in(self, pages: NDArray[np.int64]) -> int:
        """Bring in those of the caller's own pages that are swapped; returns how many."""
        swapped = _once(pages[self._slot[pages] != 0])
        if len(swapped):
            slots = self._slot[swapped] - 1
            self.words[swapped] = self._file[slots]
            self._slot[swapped] = 0
            self._swap_ins[swapped] += 1
            self._free += slots.tolist()
        return len(swapped)

    def swap_out(self, pages: NDArray[np.int64]) -> None:
        """Put pages of the caller's own out, into the slots of those that it brought in.

        Raises:
            ValueError: these are fewer, or a page is out already.
        """
        if len(pages) > len(self._free) or self._slot[pages].any():
            raise ValueError(f"can't swap out {len(pages)} pages into {len(self._free)} slots")
        slots = np.array([self._free.pop() for _ in range(len(pages))], np.uint32)
        self._file[slots] = self.words[pages]
        self._slot[pages] = slots + 1
        for first, count in _runs(pages):
            self._mapping.madvise(_MADV_REMOVE, first * PAGE_BYTES, count * PAGE_BYTES)

    def swap_bitmap(self) -> bytes:
        """A bit a page, the first page the lowest bit of the first byte: 1 if it is swapped."""
        return np.packbits(self._slot != 0, bitorder="little").tobytes()

    def swap_counters(self) -> SwapCounters:
        """What was swapped until now, by all vCPUs."""
        now, ins = int(np.count_nonzero(self._slot)), int(self._swap_ins.sum(dtype=np.int64))
        return SwapCounters(now, ins, ins + now - self._swapped_at_first)

    def fill(self, first: int, count: int, seed_key: int) -> None:
        """As `GuestMemory.fill`; the maker fills each page where it is, a vCPU in memory."""
        if os.getpid() != self._maker:
            self._bring(np.arange(first, first + count))
        for start, rows, slots in self._chunks(first, count):
            content = np.empty((len(slots), WORDS_PER_PAGE), np.uint64)
            fill_pages(content, start, seed_key)
            swapped = slots != 0
            rows[~swapped] = content[~swapped]
            self._file[slots[swapped] - 1] = content[swapped]

    def zero_pages(self, first: int, count: int) -> NDArray[np.bool_]:
        """Which of these pages hold nothing but zeros, each looked at where it is."""
        zero = np.empty(count, np.bool_)
        for start, rows, slots in self._chunks(first, count):
            swapped = slots != 0
            found = zero[start - first : start - first + len(slots)]
            found[~swapped] = zero_rows(rows[~swapped])
            found[swapped] = zero_rows(self._file[slots[swapped] - 1])
        return zero

    def _chunks(
        self, first: int, count: int
    ) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.uint32]]]:
        for start in range(first, first + count, _CHUNK_PAGES):
            part = slice(start, min(start + _CHUNK_PAGES, first + count))
            yield start, self.words[part], self._slot[part]

    def populate(self) -> None:
        """Fill this process's page tables with what is in memory."""
        for first, count in _runs(np.flatnonzero(self._slot == 0)):
            self._populate(first * PAGE_BYTES, count * PAGE_BYTES)

    def close(self) -> None:
        """Give memory and swap file back."""
        super().close()
        self._file = self.words
        self._slot = self._swap_ins = np.empty(0, np.uint32)
        self._closing.close()


def _reserve(path: Path, pages: int, undo: ExitStack) -> NDArray[np.uint64]:
    """Make a swap file and map it as rows of words; `undo` deletes it."""
    size_bytes = pages * PAGE_BYTES
    what = f"{format_size(size_bytes)} for swap file {path}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one left by a killed VM is nobody's
        undo.callback(path.unlink, missing_ok=True)
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, size_bytes)
        mapping = mmap.mmap(fd, size_bytes)
    except BlockingIOError as error:
        cause, remedy = "another VM has it open", "give each VM a directory or name of its own"
        raise KernelError("reserve", what, cause, remedy) from error
    except OSError as error:
        remedy = "reserve more of the VM's memory, or give it less"
        if error.errno == errno.ENOSPC:
            remedy = f"free room on the datastore, {remedy}"
        raise KernelError("reserve", what, str(error.strerror), remedy) from error
    return np.frombuffer(mapping, np.uint64).reshape(pages, WORDS_PER_PAGE)


def _once(pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Them, ascending, each once."""
    pages = np.sort(pages)
    return pages[:1] if len(pages) < 2 else pages[np.append(True, pages[1:] != pages[:-1])]


def _runs(pages: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ascending pages as (first, count) of neighbours."""
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    bounds = [0, *breaks.tolist(), len(pages)]
    for start, end in itertools.pairwise(bounds):
        if end > start:
            yield int(pages[start]), end - start
