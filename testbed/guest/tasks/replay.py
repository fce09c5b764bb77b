"""A trace of page writes, replayed by vCPU 0.

The trace has a clock of its own, which runs while the vCPU does and is kept in the record: after
a stop or a move the trace goes on from where it was. What has been written follows from that
clock alone: by time t a range has had floor((t - at) x rate / 4096) of its writes, in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import InputError
from testbed.guest.layout import BATCHES, LAST_AT, PAGES_WRITTEN, SPARE
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.task import NEVER_NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from testbed.guest.task import TaskContext
    from testbed.guest.workloads import Replay

POSITION = SPARE
"""The word of the record that holds the trace's clock, in ns; `batches` are its steps."""
_BEAT_NS = 1_000_000
_MADE_UP_NS = 50_000_000  # as writers do
_PAGES_PER_STEP = 128
_WORD = 1


class Trace:
    """The ranges of a trace as columns."""

    def __init__(self, workload: Replay) -> None:
        """Take a trace with at least one range."""
        rows = sorted(workload.ranges, key=lambda one: one.at_ns)
        self.at_ns = np.array([one.at_ns for one in rows], np.int64)
        self.until_ns = np.array([one.until_ns for one in rows], np.int64)
        self.first = np.array([one.first_page for one in rows], np.int64)
        self.pages = np.array([one.pages for one in rows], np.int64)
        rates = np.array([one.rate_bytes_per_s for one in rows], np.float64)
        self.writes_per_ns = rates / (SMALL_PAGE_BYTES * 1e9)
        self.length_ns = int(self.until_ns.max())
        # Between two of these moments the same ranges are being written.
        self._moments = np.unique(np.concatenate((self.at_ns, self.until_ns)))

    def until(self, position_ns: int) -> int:
        """The next moment at which a range begins or ends; the trace's end is the last."""
        place = int(np.searchsorted(self._moments, position_ns, "right"))
        return int(self._moments[place]) if place < len(self._moments) else self.length_ns

    def active(self, position_ns: int) -> NDArray[np.intp]:
        """The ranges that are being written at this time."""
        begun = int(np.searchsorted(self.at_ns, position_ns, "right"))
        return np.flatnonzero(self.until_ns[:begun] > position_ns)

    def written(self, ranges: NDArray[np.intp], position_ns: int) -> NDArray[np.int64]:
        """How many writes each of these ranges has had by this time, which is not after its end."""
        past_ns = position_ns - self.at_ns[ranges]
        # a millionth of a page early, lest rounding put off the last one
        return (past_ns * self.writes_per_ns[ranges] + 1e-6).astype(np.int64)

    def writes(
        self, ranges: NDArray[np.intp], from_ns: int, to_ns: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Pages written from one time to another, in order, and what: the number of the write."""
        done = self.written(ranges, from_ns)
        counts = self.written(ranges, to_ns) - done
        rows = np.repeat(ranges, counts)
        ends = np.cumsum(counts)
        numbers = np.arange(len(rows)) + np.repeat(done - ends + counts, counts)
        pages = self.first[rows] + numbers % self.pages[rows]
        values = (numbers + 1 + (rows << 40)).astype(np.uint64)
        return pages, values


class ReplayTask:
    """Replays a trace on vCPU 0; the others have no part in it."""

    def __init__(self, context: TaskContext, workload: Replay) -> None:
        """Make it.

        Raises:
            InputError: the trace is empty.
        """
        if not workload.ranges:
            raise InputError(f"VM {context.spec.name}: the trace {workload.file} has no range")
        self._context, self._repeat = context, workload.repeat
        self._trace = Trace(workload)
        self._zero_ns = 0  # when the trace's clock read 0, had it never stopped
        self._active = np.empty(0, np.intp)
        self._active_until_ns = -1

    def start(self, now_ns: int) -> float:
        """Go on from the position in the record."""
        if self._context.vcpu:
            return NEVER_NS
        self._zero_ns = now_ns - self._context.record[POSITION]
        return now_ns

    def pending(self) -> bool:
        """Nothing comes unasked."""
        return False

    def step(self, now_ns: int) -> float:
        """Write what is due, a part of it if that is much."""
        record, trace = self._context.record, self._trace
        position_ns: int = record[POSITION]
        if position_ns >= trace.length_ns:
            if not self._repeat:
                return NEVER_NS
            record[POSITION], self._zero_ns = 0, self._zero_ns + position_ns
            position_ns, self._active_until_ns = 0, -1
        late_ns = now_ns - self._zero_ns - position_ns
        if late_ns > _MADE_UP_NS:
            self._zero_ns += late_ns - _MADE_UP_NS
            late_ns = _MADE_UP_NS
        if position_ns >= self._active_until_ns:
            self._active = trace.active(position_ns)
            self._active_until_ns = trace.until(position_ns)
        rate = float(trace.writes_per_ns[self._active].sum())
        longest_ns = int(_PAGES_PER_STEP / rate) + 1 if rate else late_ns
        to_ns = min(position_ns + min(late_ns, longest_ns), self._active_until_ns)
        self._write(position_ns, to_ns)
        record[POSITION] = to_ns
        beat_ns = min(_BEAT_NS, longest_ns) if rate else trace.length_ns
        return self._zero_ns + min(to_ns + beat_ns, self._active_until_ns)

    def _write(self, from_ns: int, to_ns: int) -> None:
        record = self._context.record
        pages, values = self._trace.writes(self._active, from_ns, to_ns)
        record[BATCHES] += 1
        if len(pages):
            pages += self._context.first_page
            self._context.memory.write(pages, _WORD, values)
            self._context.mark(pages)
            record[PAGES_WRITTEN] += len(pages)
            record[LAST_AT] = self._zero_ns + to_ns

    def drain(self) -> None:
        """Nothing is ever under way."""
