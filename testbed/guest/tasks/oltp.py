"""Transactions over a buffer pool, with a log.

Transaction k of a vCPU reads and writes pages of the pool that follow from (key, k) alone, then
one page of the log. Each written page carries the transaction's number, the page of the log
what was read as well: so the whole memory can be worked out again from the counters, and one
wrong read changes the log.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import InputError
from testbed.guest import draws
from testbed.guest.layout import BATCHES, LAST_AT, PAGES_WRITTEN
from testbed.guest.task import NEVER_NS
from testbed.guest.tasks.operations import count_operation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.memory import Memory
    from testbed.guest.task import TaskContext
    from testbed.guest.workloads import Oltp

NUMBER_WORD, READ_WORD = 1, 2
"""Words of a page: the last transaction that wrote it, counted from 1; on a log page also the
sum of the numbers that it read."""
_DRAWN_AHEAD = 64
_STEP_NS = 100_000
_MADE_UP_NS = 5_000_000


class OltpTask:
    """One vCPU's transactions, on its own part of pool and log."""

    def __init__(self, context: TaskContext, workload: Oltp) -> None:
        """Make it.

        Raises:
            InputError: there is not a page each for pool and log, or nothing to be written.
        """
        name = f"VM {context.spec.name}: workload oltp"
        if context.page_count < 2:
            raise InputError(
                f"{name}: a working set of {workload.working_set_bytes} bytes gives vCPU "
                f"{context.vcpu} fewer than two pages; make it larger"
            )
        if workload.commits_per_s < 0 or workload.pages_per_commit < 1:
            raise InputError(
                f"{name}: {workload.commits_per_s:g} commits/s of {workload.pages_per_commit} "
                f"pages; give at least 0 and 1"
            )
        self._context = context
        self.log_pages = max(1, context.page_count // 10)
        self.pool_pages = context.page_count - self.log_pages
        self._each = workload.pages_per_commit
        self._zipf = draws.Zipf(self.pool_pages, workload.exponent)
        self._index = np.arange(_DRAWN_AHEAD * self._each, dtype=np.uint64)
        self._pages, self._drawn = np.empty((0, 0), np.int64), -1
        per_s = workload.commits_per_s / context.spec.vcpus
        self.interval_ns = 1e9 / per_s if per_s else NEVER_NS
        self._due = NEVER_NS

    def pages(self, transaction: int) -> NDArray[np.int64]:
        """The pool pages that it reads and writes, and the log page, last; pages may repeat."""
        block, row = divmod(transaction, _DRAWN_AHEAD)
        if block != self._drawn:
            context, table = self._context, np.empty((_DRAWN_AHEAD, self._each + 1), np.int64)
            drawn = draws.words(self._index, context.key, block * len(self._index))
            table[:, :-1] = self._zipf.places(drawn).reshape(_DRAWN_AHEAD, self._each)
            numbers = np.arange(_DRAWN_AHEAD) + block * _DRAWN_AHEAD
            table[:, -1] = self.pool_pages + numbers % self.log_pages
            table += context.first_page
            self._pages, self._drawn = table, block
        pages: NDArray[np.int64] = self._pages[row]
        return pages

    def transact(self, memory: Memory, transaction: int) -> NDArray[np.int64]:
        """Do it, and return its pages."""
        pages = self.pages(transaction)
        read = memory.read(pages[:-1], NUMBER_WORD).sum(keepdims=True)
        values = np.full(len(pages), transaction + 1, np.uint64)
        memory.write(pages, NUMBER_WORD, values)
        memory.write(pages[-1:], READ_WORD, read)
        return pages

    def start(self, now_ns: int) -> float:
        """Go on: the next one has been due since an interval after the last."""
        record = self._context.record
        if self.interval_ns < NEVER_NS:
            self._due = record[LAST_AT] + self.interval_ns if record[LAST_AT] else now_ns
        return self._due

    def pending(self) -> bool:
        """Nothing waits."""
        return False

    def step(self, now_ns: int) -> float:
        """Commit what is due, for a while.

        The first that is late waited all the time, and its latency says so. Those that would have
        come meanwhile don't come in a burst: who asks for transactions waits for the answer.
        """
        context, record = self._context, self._context.record
        until_ns = now_ns + _STEP_NS
        while self._due <= now_ns < until_ns:
            transaction = record[BATCHES]
            pages = self.transact(context.memory, transaction)
            context.mark(pages)
            record[BATCHES] = transaction + 1
            record[PAGES_WRITTEN] += len(pages)
            now_ns = time.monotonic_ns()
            count_operation(record, now_ns - int(self._due), now_ns)
            self._due = max(self._due + self.interval_ns, now_ns - _MADE_UP_NS)
        return self._due

    def drain(self) -> None:
        """Nothing is under way between steps."""
