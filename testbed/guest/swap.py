"""Overcommitted memory: the pages that the host has no room for are in the VM's swap file.

As ESX keeps it: `NAME.vswp` in the VM's directory, as large as what is swapped, reserved when
the VM is powered on, gone when it is off. The vCPU itself swaps when it meets a page that is
not there, and swaps out for it the page of its own that has been in longest, so the VM stays
at its size. A vCPU only touches pages of its own: nothing is locked. Everybody else reads the
table: a slot in the file for each page, outside guest memory, in a memfd.

When the VM migrates the file stays where it is. The destination adopts the table, and lets no
page go out until it is settled that the source never runs the VM again: until then no slot that
the source's own table tells of is written.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.filling import fill_pages
from testbed.guest.memory import PAGE_BYTES, WORDS_PER_PAGE, GuestMemory, zero_rows
from testbed.guest.page_runs import bounds, once
from testbed.guest.swap_file import SwapFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from testbed.guest.bytemap import Bytemap

TABLE = np.dtype([("slot", "<u4"), ("swap_ins", "<u4")])
"""A row of the table for each page, its slot counted from 1, 0 if it is in memory; and then one
whose slot is 1 while no page may go out."""
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

    def __init__(
        self,
        name: str,
        size_bytes: int,
        resident_bytes: int,
        directory: str,
        *,
        arriving: bool = False,
    ) -> None:
        """Reserve the swap file, then make and populate the rest.

        If the VM is `arriving` the file is its source's until `take_over`.

        Raises:
            ValueError: sizes are no whole pages, or there is nothing to swap or no place for it.
            KernelError: the datastore is full, the file in use, or not there if it is to be the
                source's; or there is no memory left.
        """
        if resident_bytes % PAGE_BYTES or not 0 < resident_bytes < size_bytes or not directory:
            raise ValueError(
                f"{resident_bytes} of {size_bytes} bytes can't be kept, the rest in {directory!r}"
            )
        self._swapped_at_first = (size_bytes - resident_bytes) // PAGE_BYTES
        self._closing = ExitStack()
        with ExitStack() as undo:
            path = Path(directory) / f"{name}.vswp"
            self._swap_file = SwapFile(path, self._swapped_at_first, arriving=arriving)
            undo.callback(self._swap_file.close)
            self._file = self._swap_file.rows
            count = size_bytes // PAGE_BYTES
            self.table_fd = os.memfd_create(f"swap-{name}", os.MFD_CLOEXEC)
            undo.callback(os.close, self.table_fd)
            os.ftruncate(self.table_fd, (count + 1) * TABLE.itemsize)
            table = np.frombuffer(mmap.mmap(self.table_fd, 0), TABLE)
            self._slot, self._swap_ins = table["slot"][:count], table["swap_ins"][:count]
            self._held = table["slot"][count:]
            self._slot[count - self._swapped_at_first :] = np.arange(1, self._swapped_at_first + 1)
            self._map(name, size_bytes, PAGE_BYTES, resident_bytes)
            self._closing = undo.pop_all()
        self.written: Bytemap | None = None
        """Where a page that comes in is noted as written, if a byte map tracks writes."""
        self._swap_ins_elsewhere = 0
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
        new = once(pages[~self._listed[pages]])
        self._listed[new] = True
        self._order.extend(new.tolist())
        if self._free and not self._held[0]:
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
        swapped = once(pages[self._slot[pages] != 0])
        if len(swapped):
            slots = self._slot[swapped] - 1
            self.words[swapped] = self._file[slots]
            if self.written is not None:  # before the table: see swap_bitmap.py of the migration
                self.written[swapped] = 1
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
        self.discard(pages)

    def discard(self, pages: NDArray[np.int64]) -> None:
        """Free the memory of these pages, ascending, whose content is elsewhere."""
        for start, end in bounds(pages):
            first, count = int(pages[start]), end - start
            self._mapping.madvise(_MADV_REMOVE, first * PAGE_BYTES, count * PAGE_BYTES)

    def table(self) -> NDArray[np.uint32]:
        """A copy of the table: each page's slot, counted from 1; 0: it is in memory."""
        return self._slot.copy()

    def adopt(self, pages: NDArray[np.int64], slots: NDArray[np.uint32], swap_ins: int) -> None:
        """Have these pages, ascending, and no others, in these slots of the file.

        Nobody runs the VM here. `swap_ins` is how many pages have come in since power on.

        Raises:
            ValueError: there are not these slots, or one has two pages.
        """
        places = np.sort(slots)
        if len(slots) and not 0 < places[0] <= places[-1] <= self._swapped_at_first:
            raise ValueError(f"slot {places[0]} or {places[-1]} of {self._swapped_at_first}")
        if len(slots) != len(pages) or (places[1:] == places[:-1]).any():
            raise ValueError(f"{len(slots)} slots, not each for one of {len(pages)} pages")
        self._slot[:] = 0
        self._slot[pages] = slots
        self._swap_ins[:] = 0
        self._swap_ins_elsewhere = swap_ins

    def hand_over(self) -> None:
        """Let another host have the file; the VM stands still here from now on."""
        self._swap_file.release()

    def take_over(self) -> None:
        """Take the file, before the VM runs here; no page goes out until `settle`.

        What vCPUs still owed at the source goes out now: these slots held nothing.

        Raises:
            KernelError: another host has the file, or it is gone.
        """
        self._swap_file.take()
        self._held[0] = 1
        full = np.zeros(self._swapped_at_first + 1, np.bool_)
        full[self._slot] = full[0] = True
        self._free = (np.flatnonzero(~full) - 1).tolist()
        if self._free:
            self.swap_out(np.flatnonzero(self._slot == 0)[-len(self._free) :])

    def take_back(self) -> None:
        """Take the file as it was handed over; errors as for `take_over`."""
        self._swap_file.take()
        self._swap_file.keep()

    def settle(self) -> None:
        """The VM is here for good: pages may go out, and the file goes when the VM does."""
        self._swap_file.keep()
        self._held[0] = 0

    def swap_bitmap(self) -> bytes:
        """A bit a page, the first page the lowest bit of the first byte: 1 if it is swapped."""
        return np.packbits(self._slot != 0, bitorder="little").tobytes()

    def swap_counters(self) -> SwapCounters:
        """What was swapped until now, by all vCPUs."""
        now = int(np.count_nonzero(self._slot))
        ins = int(self._swap_ins.sum(dtype=np.int64)) + self._swap_ins_elsewhere
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
        pages = np.flatnonzero(self._slot == 0)
        for start, end in bounds(pages):
            self._populate(int(pages[start]) * PAGE_BYTES, (end - start) * PAGE_BYTES)

    def close(self) -> None:
        """Give memory and swap file back."""
        super().close()
        self._file = self.words
        self._slot = self._swap_ins = self._held = np.empty(0, np.uint32)
        self._closing.close()
