"""Fills memory that was zero, once, in order: the memory allocation tool of facts row 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.guest import layout
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.task import NEVER_NS

if TYPE_CHECKING:
    from testbed.guest.memory import Memory
    from testbed.guest.task import TaskContext
    from testbed.guest.workloads import Allocate

_MADE_UP_NS = 50_000_000  # see writer.py
_PAGES_PER_BATCH = 64  # whole pages take about 1 us each to fill, and 1 us to be noted as written


class AllocateTask:
    """One vCPU's part of it; batch k fills the k-th so many pages."""

    def __init__(self, context: TaskContext, workload: Allocate) -> None:
        self._memory, self._record, self._mark = context.memory, context.record, context.mark
        self._first, self._count, self._key = context.first_page, context.page_count, context.key
        rate = workload.rate_bytes_per_s / SMALL_PAGE_BYTES / context.spec.vcpus
        self._interval_ns = _PAGES_PER_BATCH / rate * 1e9 if rate else 0.0
        self._due = 0.0

    def write(self, memory: Memory, batch: int) -> range:
        """Do the batch, which may be repeated, and return its pages; none when all are filled."""
        begin = self._first + min(batch * _PAGES_PER_BATCH, self._count)
        end = min(begin + _PAGES_PER_BATCH, self._first + self._count)
        if begin < end:
            memory.fill(begin, end - begin, self._key)
        return range(begin, end)

    def start(self, now_ns: int) -> float:
        """On with the first page that has not been filled."""
        self._due = now_ns if self._left() else NEVER_NS
        return self._due

    def _left(self) -> bool:
        return self._record[layout.BATCHES] * _PAGES_PER_BATCH < self._count

    def pending(self) -> bool:
        """Nothing waits."""
        return False

    def step(self, now_ns: int) -> float:
        """A batch."""
        record = self._record
        pages = self.write(self._memory, record[layout.BATCHES])
        self._mark(np.arange(pages.start, pages.stop))
        record[layout.BATCHES] += 1
        record[layout.PAGES_WRITTEN] += len(pages)
        record[layout.OPERATIONS] += len(pages)
        record[layout.BYTES] += len(pages) * SMALL_PAGE_BYTES
        record[layout.LAST_AT] = now_ns
        late = now_ns - _MADE_UP_NS
        self._due = max(self._due + self._interval_ns, late) if self._left() else NEVER_NS
        return self._due

    def drain(self) -> None:
        """Nothing is under way between steps."""
