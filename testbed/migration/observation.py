"""What is seen of a migration at its source: its iterations, its time series, its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.guest.memory import PAGE_BYTES
from testbed.migration.convergence import transmit_rate_bps
from testbed.report.result import Iteration, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.migration.outgoing import Outgoing
    from testbed.migration.phase import Phase

_PROGRESS_NS = 100_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a migration is; rates are 0 until they have been measured."""

    phase: Phase
    iteration: int
    throughput_bps: float
    pages_left: int
    dirty_rate_bytes_per_s: float
    pages_to_copy: int


def _nothing(*_: object) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SourceHooks:
    """What the lab does at the source, and is told.

    `cut` at the first instant of the stun, `uncut` when the guest runs on here after all;
    `progress` about ten times a second; `cancelled` is asked about forty times a second.
    `iterated` after each iteration while the guest runs, `stopping` once no other is to come.
    """

    cut: Callable[[], None] = _nothing
    uncut: Callable[[], None] = _nothing
    progress: Callable[[Progress], None] = _nothing
    iterated: Callable[[Iteration], None] = _nothing
    stopping: Callable[[], None] = _nothing
    cancelled: Callable[[], bool] = _never


class Observation:
    """Grows as the migration goes on; times count from its start.

    `pages_to_copy` is what the iteration that is under way began with.
    """

    def __init__(self, started_ns: int) -> None:
        self.iterations: list[Iteration] = []
        self.samples: list[Sample] = []
        self.pages_to_copy = 0
        self._started_ns = started_ns
        self._told_ns = self._told_bytes = 0

    @property
    def next_iteration(self) -> int:
        """The number of the iteration that is under way; the first is -1."""
        return len(self.iterations) - 1

    def iterated(
        self,
        pages: int,
        sent: Outgoing,
        from_to_ns: tuple[int, int],
        *,
        dirty_pages: int,
        stunned: bool,
    ) -> None:
        """An iteration has ended."""
        began_ns, ended_ns = from_to_ns
        self.iterations.append(
            Iteration(
                number=self.next_iteration,
                pages=pages,
                memory_bytes=(pages - sent.zero_pages) * PAGE_BYTES,
                wire_bytes=sent.wire_bytes,
                at_ns=began_ns - self._started_ns,
                duration_ns=ended_ns - began_ns,
                dirty_pages=dirty_pages,
                stunned=stunned,
                zero_pages=sent.zero_pages,
            )
        )

    def sample(self, phase: Phase, acknowledged_bytes: int, pages_left: int) -> Progress | None:
        """Add a point to the series; ten times a second there is progress to tell."""
        now = time.monotonic_ns()
        at_ns = now - self._started_ns
        self.samples.append(Sample(at_ns, phase.value, acknowledged_bytes, pages_left))
        if now < self._told_ns + _PROGRESS_NS:
            return None
        throughput_bps = 0.0
        if self._told_ns:
            sent_bytes = acknowledged_bytes - self._told_bytes
            throughput_bps = sent_bytes * 8e9 / (now - self._told_ns)
        elif self.iterations:
            throughput_bps = transmit_rate_bps(self.iterations)
        self._told_ns, self._told_bytes = now, acknowledged_bytes
        last = self.iterations[-1] if self.iterations else None
        return Progress(
            phase,
            self.next_iteration,
            throughput_bps,
            pages_left,
            last.dirty_rate_bytes_per_s if last else 0.0,
            self.pages_to_copy,
        )
