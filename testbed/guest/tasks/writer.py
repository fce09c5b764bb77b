"""Writes pages of a working set: batches which are pure functions of their number.

Batch k of a vCPU follows from (specification, vCPU, k) alone, so another process goes on from
k, and the whole memory can be worked out again from the batch counters. Every vCPU has its own
part of the working set, so the order in which vCPUs run does not matter.

The dirty rate asked for is the rate of page writes x 4096 bytes, all vCPUs together. What a
migration finds is the distinct pages among them: `expected_distinct_pages`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest import draws, layout
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.task import NEVER_NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.task import TaskContext
    from testbed.guest.workloads import Writer

# First writes to protected pages cost about 1 us each (kernel notes): a batch of these stays
# below 200 us, so that a vCPU reaches the end of its batch that soon.
PAGES_PER_BATCH = 128
_DRAWN_AHEAD = 1024  # pages: small batches would cost more to draw than to write
_PACE_NS = 1_000_000  # a slower writer's batches are smaller, down to a page, and come each ms
# A batch this late is due at once; what the vCPU could not do in longer is not made up in a burst.
_MADE_UP_NS = 50_000_000
_WORDS_PER_PAGE = SMALL_PAGE_BYTES // 8


class WriterTask:
    """One vCPU's writes: its part of the working set, its batches and their pace."""

    def __init__(self, context: TaskContext, workload: Writer) -> None:
        self._memory, self._record, self._mark = context.memory, context.record, context.mark
        self.first_page, self.page_count = context.first_page, context.page_count
        self._kind, self._key = workload.kind, context.key
        pages_per_s = workload.dirty_rate_bytes_per_s / SMALL_PAGE_BYTES / context.spec.vcpus
        at_pace = round(pages_per_s * _PACE_NS / 1e9)
        self.pages_per_batch = max(1, min(PAGES_PER_BATCH, self.page_count, at_pace))
        self.interval_ns = self.pages_per_batch / pages_per_s * 1e9 if pages_per_s else NEVER_NS
        self._ahead = max(1, _DRAWN_AHEAD // self.pages_per_batch)
        self._index = np.arange(self._ahead * self.pages_per_batch, dtype=np.uint64)
        self._drawn, self._block = -1, np.empty((0, 0), np.int64)
        self._zipf = draws.Zipf(self.page_count, workload.exponent)
        self._due = NEVER_NS

    def pages(self, batch: int) -> NDArray[np.int64]:
        """The pages that this batch writes, in order; those drawn at random may repeat."""
        number, row = divmod(batch, self._ahead)
        if number != self._drawn:
            pages = self._draw(number * len(self._index))
            self._block = pages.reshape(self._ahead, self.pages_per_batch)
            self._drawn = number
        found: NDArray[np.int64] = self._block[row]
        return found

    def _draw(self, first: int) -> NDArray[np.int64]:
        """The pages of the first-th write and of those that follow it."""
        if self._kind == "sequential":
            pages = self._index.astype(np.int64)
            pages += first % self.page_count
            pages %= self.page_count
        else:
            drawn = draws.words(self._index, self._key, first)
            if self._kind == "zipf":
                pages = self._zipf.places(drawn)
            else:
                pages = draws.uniform(drawn, self.page_count)
        pages += self.first_page
        return pages

    def write(self, memory: Memory, batch: int) -> NDArray[np.int64]:
        """Do the batch, which may be repeated, and return its pages.

        The word written and its value depend on the batch, the value on the page as well.
        """
        pages = self.pages(batch)
        values = pages * 0x1000003
        values += (self._key ^ batch * 0x9E3779B97F4A7C15) % 2**63
        memory.write(pages, batch * 61 % _WORDS_PER_PAGE, values.view(np.uint64))
        return pages

    def start(self, now_ns: int) -> float:
        """From now on, at the pace asked for."""
        self._due = now_ns if self.interval_ns < NEVER_NS else NEVER_NS
        return self._due

    def pending(self) -> bool:
        """Nothing waits."""
        return False

    def step(self, now_ns: int) -> float:
        """A batch."""
        record = self._record
        batch = record[layout.BATCHES]
        pages = self.write(self._memory, batch)
        self._mark(pages)
        record[layout.BATCHES] = batch + 1
        record[layout.PAGES_WRITTEN] += self.pages_per_batch
        record[layout.LAST_AT] = now_ns
        self._due = max(self._due + self.interval_ns, now_ns - _MADE_UP_NS)
        return self._due

    def drain(self) -> None:
        """Nothing is under way between steps."""


def expected_distinct_pages(workload: Writer, vcpus: int, pages: int, writes: float) -> float:
    """How many distinct pages so many writes of all vCPUs are expected to hit.

    Args:
        workload: the writer.
        vcpus: among which its pages are divided.
        pages: those of its working set.
        writes: how many, all vCPUs together.
    """
    if workload.kind == "sequential":
        return min(writes, pages)
    if workload.kind == "uniform":
        return pages * -math.expm1(-writes / pages)
    each = draws.Zipf(max(1, pages // vcpus), workload.exponent).probabilities()
    return float(-np.expm1(each * (-writes / vcpus)).sum()) * vcpus
