"""From the dirty pages of a running guest, sampled over time, to a trace that can be replayed.

What is kept of an interval is which pages were written in it, not how often: replayed, each is
written once, so as many distinct pages are found dirty.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from testbed.guest.layout import first_data_page
from testbed.guest.specification import SMALL_PAGE_BYTES
from testbed.guest.workloads import Replay, TraceRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from testbed.guest.machine import Guest

MOST_RANGES = 8000
"""Ranges of a recording: it has to fit the guest's program, which is 1 MiB of JSON."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The pages found dirty at a time, ascending: written since the sample before."""

    at_ns: int
    pages: NDArray[np.int64]


def ranges_of(
    samples: Iterable[Sample], began_ns: int, first_page: int, most: int
) -> tuple[TraceRange, ...]:
    """What to replay so that each interval dirties as many pages as were found.

    Adjacent pages are one range. If an interval has more than `most` of them, the narrowest
    gaps are bridged until it has not; a bridged range keeps its rate, so its first pages are
    written, as many of them as were dirty: the number stays right, where they are is
    approximate.

    Args:
        samples: in order of time.
        began_ns: when the tracking began: the trace's time 0.
        first_page: from which the trace counts; pages before it are left out.
        most: ranges of one interval, at least 1.
    """
    ranges: list[TraceRange] = []
    before_ns = began_ns
    for sample in samples:
        pages = sample.pages[sample.pages >= first_page] - first_page
        at_ns, until_ns = before_ns - began_ns, sample.at_ns - began_ns
        before_ns = sample.at_ns
        for first, last, dirty in _merged(pages, most):
            # rounded up, or the last page would be due just after the interval
            rate = dirty * SMALL_PAGE_BYTES * 10**9 // (until_ns - at_ns) + 1
            ranges.append(TraceRange(at_ns, until_ns, first, last - first + 1, rate))
    return tuple(ranges)


def _merged(pages: NDArray[np.int64], most: int) -> list[tuple[int, int, int]]:
    """(first page, last page, how many of them are in `pages`) of at most `most` ranges."""
    if not len(pages):
        return []
    gaps = np.diff(pages)
    breaks = np.flatnonzero(gaps > 1)
    if len(breaks) >= most:
        widest = np.argsort(gaps[breaks], kind="stable")[len(breaks) - most + 1 :]
        breaks = np.sort(breaks[widest])
    ends = np.append(breaks, len(pages) - 1)
    starts = np.append(0, breaks + 1)
    table = np.stack((pages[starts], pages[ends], ends - starts + 1), axis=1)
    return [(first, last, dirty) for first, last, dirty in table.tolist()]


def _wait(wait_s: float) -> bool:
    time.sleep(wait_s)
    return True


def record(
    guest: Guest, duration_ns: int, interval_ns: int, wait: Callable[[float], bool] = _wait
) -> Replay:
    """Track a running guest's writes for a time.

    The guest's tracking is used: not to be called while a migration is under way.

    Args:
        guest: it runs on.
        duration_ns: for how long.
        interval_ns: how far apart samples are; a page written twice in between counts once.
        wait: until the next sample, so many seconds; False ends the recording with that sample.

    Raises:
        ValueError: the interval is not positive, longer than the duration, or too short for it.
        KernelError: the kernel refuses to track it.
    """
    if not 0 < interval_ns <= duration_ns <= MOST_RANGES * interval_ns:
        raise ValueError(f"samples every {interval_ns} ns do not fit a recording of {duration_ns}")
    tracker = guest.tracker()
    tracker.install()
    try:
        began_ns = time.monotonic_ns()
        samples = []
        for number in range(1, duration_ns // interval_ns + 1):
            wait_ns = began_ns + number * interval_ns - time.monotonic_ns()
            go_on = wait(max(wait_ns, 0) / 1e9)
            at_ns = time.monotonic_ns()  # before: what is written meanwhile is the next one's
            samples.append(Sample(at_ns, tracker.collect()))
            if not go_on:
                break
    finally:
        tracker.remove()
    most = max(1, MOST_RANGES // len(samples))
    return Replay(ranges_of(samples, began_ns, first_data_page(guest.spec.vcpus), most))
